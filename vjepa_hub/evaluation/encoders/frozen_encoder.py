"""Frozen encoders under an attentive probe, which see a clip whole, or frame by frame.

A video model turns a clip into tokens. An image model encodes each frame by itself, and the tokens of all frames are
put one after the other: the comparison of the paper (Bardes et al. 2024), in which every
model is read by the same probe.

A token stands for a place: a tubelet of a clip, a patch of a frame, a cell of a feature map. Class and register tokens
stand for none and are left out, so that all models are read by the same rule; `description` says where this was done.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from ...core.fingerprints import hash_weights
from ...core.settings import Settings

Module = TypeVar("Module", bound=nn.Module)

UNTRAINED_PREFIX = "untrained:"
DEFAULT_FRAMES_PER_CLIP = 16
DEFAULT_MAX_FRAMES_PER_PASS = 64
USUAL_HEAD_WIDTH = 64

# Letters after a line: B clips, T frames, N tokens, D width


class EncoderRequest(Settings):
    """Name of a frozen encoder, and how it is opened.

    Args:
        library: Prefix of its library; None: V-JEPA.
        name: Name without prefixes.
        frames_per_clip: Frames of a clip; None: a video model's own number, 16 for an image model.
        crop_size: Side of the input in pixels; None: the encoder's own.
        is_pretrained: False for random weights.
        seed: Of random weights.
        max_frames_per_pass: Frames that go through an image model at once, which bounds the memory.
    """

    settings_name: ClassVar[str] = "encoder"

    library: Literal["timm", "hf", "pixels"] | None
    name: str
    frames_per_clip: PositiveInt | None = None
    crop_size: PositiveInt | None = None
    is_pretrained: bool = True
    seed: NonNegativeInt = 0
    max_frames_per_pass: PositiveInt = DEFAULT_MAX_FRAMES_PER_PASS

    @property
    def spec(self) -> str:
        """Name with its prefixes."""
        name = f"{self.library}:{self.name}" if self.library else self.name
        return name if self.is_pretrained else UNTRAINED_PREFIX + name


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """Facts of an encoder besides its weights.

    Attributes:
        name: Name, folder or file that it was opened by.
        hidden_size: Width of its tokens.
        num_attention_heads: Heads for the cross-attention of a probe on it.
        crop_size: Height and width of its input, in pixels.
        frames_per_clip: Frames of a clip that it is to be evaluated on.
        mean: Mean of each colour in its normalisation, of values from 0 to 1.
        std: Standard deviation of each colour there.
        description: A sentence on its weights, for files of results.
        is_trained: False where the weights are a random initialisation.
    """

    name: str
    hidden_size: int
    num_attention_heads: int
    crop_size: int
    frames_per_clip: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    description: str
    is_trained: bool


class FrozenEncoder(nn.Module, ABC):
    """An encoder that is never trained: no parameter takes a gradient, and it is in eval mode always.

    Its attributes are those of `EncoderFacts`.

    Args:
        model: The network. Its parameters are frozen in place.
        facts: What is known about it.
    """

    model: Any  # nn.Module, with the methods that a subclass needs of it

    def __init__(self, model: nn.Module, facts: EncoderFacts):
        super().__init__()
        self.name, self.description, self.is_trained = facts.name, facts.description, facts.is_trained
        self.hidden_size, self.num_attention_heads = facts.hidden_size, facts.num_attention_heads
        self.crop_size, self.frames_per_clip = facts.crop_size, facts.frames_per_clip
        self.mean, self.std = facts.mean, facts.std
        self.model = model
        self._fingerprint: tuple[tuple[int, ...], str] | None = None
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode, whatever is asked: dropout and batch statistics belong to training."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Tokens of clips.

        Args:
            clips: `(batch_size, num_frames, 3, height, width)`, floats normalised with the encoder's own mean and std.
                They are cast to the number format of the weights.

        Returns:
            `(batch_size, num_tokens, hidden_size)`, in the number format of the weights, or in that of autocast.

        Raises:
            ValueError: The clips have another shape or are integers; or the encoder cannot take their size.
        """
        self._check_clips(clips)
        return self.encode(clips.to(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    @property
    def details(self) -> str:
        """Settings that change its tokens, and that neither weights nor clips tell."""
        return f"{type(self).__name__} with {self.num_attention_heads} heads"

    def fingerprint(self) -> str:
        """A sha256 of the weights, 64 hexadecimal digits: names, number formats, shapes and bytes, in order of names.

        It is that of the weights as they were stored: the same on every device, and for an encoder that was opened
        with another `dtype`, for which it is computed before the cast. So features cached under it can be found again
        on another machine; what they were computed in has to be told apart by other means. It is computed when first
        asked for (seconds for a large model), and again where a weight has been changed in place since.
        """
        versions = self._weight_versions()
        if self._fingerprint is None or self._fingerprint[0] != versions:
            self._fingerprint = versions, hash_weights(self.model.state_dict())
        return self._fingerprint[1]

    def place(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "FrozenEncoder":
        """Move the encoder, and cast its weights; the fingerprint stays that of the weights before.

        Args:
            device: Where it goes; None leaves it where it is.
            dtype: A floating format; None leaves the weights as they are.
        """
        if dtype is not None and dtype != self.dtype:
            self.fingerprint()
        self.to(device=device, dtype=dtype)
        if self._fingerprint is not None:
            self._fingerprint = self._weight_versions(), self._fingerprint[1]
        return self

    @abstractmethod
    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        """Tokens `(batch_size, num_tokens, hidden_size)` of clips that were found to be in order."""

    def _check_clips(self, clips: torch.Tensor) -> None:
        shape = tuple(clips.shape)
        if len(shape) != 5 or shape[2] != 3 or 0 in shape:
            raise ValueError(
                f"clips have the shape {shape}, but {self.name} takes (batch_size, num_frames, 3, height, width), "
                "none of them 0; an image is a clip of one frame: add its axis with unsqueeze(1)"
            )
        if not clips.is_floating_point():
            raise ValueError(
                f"clips are {clips.dtype}, but {self.name} takes floats; divide by 255 and normalise with its mean "
                f"{self.mean} and std {self.std}"
            )

    def _weight_versions(self) -> tuple[int, ...]:
        """How often each tensor was changed in place, as torch counts it."""
        return tuple(tensor._version for tensor in self.model.state_dict().values())


class ImageEncoder(FrozenEncoder):
    """Encodes each frame by itself; the tokens of frame 0 come first, then those of frame 1, and so on.

    Args:
        model: The network.
        facts: What is known about it.
        max_frames_per_pass: Frames that go through the network at once: more take more memory.
    """

    def __init__(
        self, model: nn.Module, facts: EncoderFacts, *, max_frames_per_pass: int = DEFAULT_MAX_FRAMES_PER_PASS
    ):
        super().__init__(model, facts)
        self.max_frames_per_pass = max_frames_per_pass

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        """Tokens of all frames, one frame after the other."""
        frames = clips.flatten(0, 1)  # (B T, 3, H, W)
        tokens = torch.cat([self.encode_frames(part) for part in frames.split(self.max_frames_per_pass)])
        return tokens.reshape(clips.shape[0], -1, tokens.shape[-1])  # (B, T N, D)

    @abstractmethod
    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokens `(num_frames, num_tokens, hidden_size)` of frames `(num_frames, 3, height, width)`."""


class ClipEncoder(FrozenEncoder):
    """Encodes a clip as a whole. A clip of one frame becomes a still clip of `frames_per_clip`, as in the paper."""

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        """Tokens of whole clips."""
        if clips.shape[1] == 1:
            clips = clips.expand(-1, self.frames_per_clip, -1, -1, -1)
        return self.encode_clips(clips)

    @abstractmethod
    def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """Tokens `(batch_size, num_tokens, hidden_size)` of clips of more than one frame."""


def count_heads(width: int, num_heads: int | None) -> int:
    """Heads for a probe: those of the encoder, or where it has none that fit, heads of about 64 channels.

    Args:
        width: Of the tokens.
        num_heads: Heads of the encoder's attention, if it has any.

    Returns:
        `num_heads` if it divides the width; otherwise the divisor of the width whose heads come nearest to 64
        channels, of two that are equally near the greater.
    """
    if num_heads and width % num_heads == 0:
        return num_heads
    divisors = [count for count in range(width, 0, -1) if width % count == 0]
    return min(divisors, key=lambda count: abs(width // count - USUAL_HEAD_WIDTH))


def build_with_seed(seed: int, build: Callable[[], Module]) -> Module:
    """Build a module on the CPU with torch's generator at this seed, which is put back afterwards.

    Only the CPU's generator is set: `torch.manual_seed` would set those of the accelerators too.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return build()


def describe_untrained(seed: int) -> str:
    """The description of weights that no training has touched."""
    return f"untrained, random weights of seed {seed}"


def check_multiple(name: str, value: int, divisor: int, model: str) -> None:
    """Raise where a size of the input is no multiple of what one token spans.

    Args:
        name: Of the size, such as "crop_size".
        value: The size.
        divisor: What a token spans of it.
        model: The encoder's name, for the message.

    Raises:
        ValueError: It is none.
    """
    if value < 1 or value % divisor:
        lower = max(value // divisor, 1) * divisor
        raise ValueError(
            f"{name} is {value}, but {model} takes multiples of {divisor}, such as {lower} or {lower + divisor}"
        )
