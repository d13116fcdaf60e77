"""The frozen encoders that are evaluated, by name: V-JEPA, and what it is compared with at an equal protocol.

vjepa-vitl16, a folder, a released file, owner/name     V-JEPA: the target encoder
timm:NAME, timm:NAME@FILE                               an image model of timm
hf:NAME_OR_FOLDER                                       an image or video model of transformers
untrained:ANY_OF_THESE                                  the same architecture with random weights
pixels:SIZE                                             no encoder: raw pixels of clips of SIZE x SIZE
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ...features.extraction import encoder_details
from ...hub.default_processor import default_processor
from ...hub.loading import OpenedModel, open_model, resolve_config
from ...hub.registry import MODELS, find_model
from ...hub.safety import check_folder, fetch_repository
from ...model.modeling_vjepa import VJEPAForVideoClassification, VJEPAModel
from ...model.video_processing_vjepa import VJEPAVideoProcessor
from .frozen_encoder import (
    DEFAULT_MAX_FRAMES_PER_PASS,
    UNTRAINED_PREFIX,
    ClipEncoder,
    EncoderFacts,
    EncoderRequest,
    FrozenEncoder,
    ImageEncoder,
    build_with_seed,
    check_multiple,
    describe_untrained,
)
from .pixel_encoder import open_pixels
from .timm_encoders import open_timm
from .transformers_encoders import open_transformers

__all__ = ["ClipEncoder", "EncoderFacts", "FrozenEncoder", "ImageEncoder", "VJEPAClipEncoder", "open_encoder"]

TIMM, TRANSFORMERS, PIXELS = "timm", "hf", "pixels"
FORMS = (
    "NAME (V-JEPA: a registered name, folder, released file or owner/name), timm:NAME[@FILE], hf:NAME_OR_FOLDER, "
    "pixels:SIZE"
)


class VJEPAClipEncoder(ClipEncoder):
    """V-JEPA's target encoder, whole: with the norms, embeddings and scaled positions of V-JEPA 2.1.

    It takes other numbers of frames and sizes than its own: fixed positions are interpolated, rotary ones computed.
    """

    feature_layers: tuple[int, ...] | None = None
    """Blocks, from 0, whose normed tokens are joined along the token axis; None: the last alone."""

    def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """Tokens of clips, in raster order (depth, height, width)."""
        outputs = self.model(clips, None, self.feature_layers, return_dict=True)
        if outputs.feature_levels is None:
            return outputs.last_hidden_state
        return torch.cat(outputs.feature_levels, dim=1)

    @property
    def details(self) -> str:
        """Settings that change its tokens, and that neither weights nor clips tell."""
        return f"{super().details}, {encoder_details(self.model.config)}, blocks {self.feature_layers or 'last'}"

    @classmethod
    def of_model(
        cls,
        model: VJEPAModel | VJEPAForVideoClassification,
        processor: VJEPAVideoProcessor,
        *,
        name: str,
        description: str,
        is_trained: bool = True,
        frames_per_clip: int | None = None,
        crop_size: int | None = None,
        feature_layers: Sequence[int] | None = None,
    ) -> "VJEPAClipEncoder":
        """The encoder of a model that is open; the weights are shared, and frozen in place.

        Args:
            model: For features, or a classifier.
            processor: Says how its pixels are normalised.
            name: What it was opened by.
            description: A sentence on its weights.
            is_trained: False where the weights are a random initialisation.
            frames_per_clip: Frames of a clip; None: its own number.
            crop_size: Side of the input in pixels; None: its own.
            feature_layers: Blocks, from 0, whose tokens are joined; None: the last alone.

        Raises:
            ValueError: A size that is no multiple of its tubelets or patches.
        """
        config = model.config
        frames_per_clip = frames_per_clip or config.frames_per_clip
        crop_size = crop_size or config.crop_size
        check_multiple("frames_per_clip", frames_per_clip, config.tubelet_size, name)
        check_multiple("crop_size", crop_size, config.patch_size, name)
        facts = EncoderFacts(
            name=name,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            crop_size=crop_size,
            frames_per_clip=frames_per_clip,
            mean=_as_colours(processor.image_mean),
            std=_as_colours(processor.image_std),
            description=description,
            is_trained=is_trained,
        )
        encoder = cls(model.encoder, facts)
        encoder.feature_layers = tuple(feature_layers) if feature_layers else None
        return encoder


def open_encoder(
    spec: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    frames_per_clip: int | None = None,
    crop_size: int | None = None,
    pretrained: bool = True,
    seed: int = 0,
    max_frames_per_pass: int = DEFAULT_MAX_FRAMES_PER_PASS,
) -> FrozenEncoder:
    """Open a frozen encoder; the module's docstring lists the forms of its name.

    Args:
        spec: What to open. Image models encode each frame of a clip by itself.
        device: Where it goes; the CPU by default.
        dtype: Number format of the weights, such as "bfloat16"; by default as stored. The fingerprint is that of the
            stored weights all the same.
        frames_per_clip: Frames of a clip; by default 16 for an image model, for a video model its own number.
        crop_size: Side of the input in pixels; by default the encoder's own.
        pretrained: False is the same as the prefix `untrained:`, the baseline that no training has touched.
        seed: Of random weights. torch's global generator is left as it is.
        max_frames_per_pass: Frames that go through an image model at once, which bounds the memory.

    Raises:
        KeyError: V-JEPA has no such name, folder or file.
        ValueError: An unknown prefix, an empty name, a model that gives no tokens, or a size that does not fit.
        DownloadError: Weights are not in the cache and could not be downloaded; an OSError.
        OSError: A folder, file or Hub name could not be loaded.

    Example:
        >>> encoder = open_encoder("timm:vit_large_patch14_dinov2", crop_size=224, device="cuda")
        >>> tokens = encoder(clips)  # (2, 16, 3, 224, 224) -> (2, 4096, 1024)
    """
    number_format = _find_dtype(dtype)
    library, name = _split_spec(spec)
    request = EncoderRequest(
        library=library,
        name=name,
        frames_per_clip=frames_per_clip,
        crop_size=crop_size,
        is_pretrained=pretrained and not spec.startswith(UNTRAINED_PREFIX),
        seed=seed,
        max_frames_per_pass=max_frames_per_pass,
    )
    return _OPENERS[library](request).place(device, number_format)


def _split_spec(spec: str) -> tuple[str | None, str]:
    """Library and name; the library of V-JEPA is None."""
    rest = spec.removeprefix(UNTRAINED_PREFIX)
    prefix = re.match(r"([A-Za-z][\w.+-]+):", rest)
    if not rest or (prefix and rest == prefix[0]):
        raise ValueError(f"'{spec}' names no encoder; give one of {FORMS}, or untrained: and one of them")
    if prefix is None or Path(rest).exists():
        return None, rest
    if prefix[1] not in _OPENERS:
        raise ValueError(f"'{spec}' begins with '{prefix[0]}', which is no known library; give one of {FORMS}")
    return prefix[1], rest.removeprefix(prefix[0])


def _find_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype is '{dtype}', but must be a floating format such as float32, bfloat16 or float16")
    return found


def _open_vjepa(request: EncoderRequest) -> VJEPAClipEncoder:
    opened = open_model(request.name) if request.is_pretrained else build_untrained(request.name, request.seed)
    return VJEPAClipEncoder.of_model(
        opened.model,
        opened.processor,
        name=request.spec,
        description=f"V-JEPA, {opened.weights}",
        is_trained=opened.is_trained,
        frames_per_clip=request.frames_per_clip,
        crop_size=request.crop_size,
    )


_OPENERS: Mapping[str | None, Callable[[EncoderRequest], FrozenEncoder]] = {
    None: _open_vjepa,
    TIMM: open_timm,
    TRANSFORMERS: open_transformers,
    PIXELS: open_pixels,
}


def _as_colours(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def build_untrained(name: str, seed: int) -> OpenedModel:
    """A model of the same architecture as another with random weights; of a registered one nothing is downloaded.

    Args:
        name: What `open_model` takes, without the prefix `untrained:`.
        seed: Of the weights. torch's global generator is left as it is.

    Raises:
        KeyError: There is no such model.
        RefusedModelError: Its configuration is none; a ValueError.
    """
    if Path(name).is_file():
        config = resolve_config(Path(name), None)
    elif name in MODELS or not (Path(name).is_dir() or name.count("/") == 1):
        config = find_model(name).config()
    else:
        config = check_folder(Path(name) if Path(name).is_dir() else fetch_repository(name))
    model = build_with_seed(seed, lambda: VJEPAModel(config))
    processor = default_processor(config)
    weights = f"{describe_untrained(seed)}, architecture of {name}"
    return OpenedModel(name, model, processor, weights, is_trained=False)
