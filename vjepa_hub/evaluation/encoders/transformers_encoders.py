"""Frozen encoders of transformers: image models, and video models such as VideoMAE and V-JEPA 2.

    hf:facebook/dinov2-large            an image model: every frame by itself
    hf:MCG-NJU/videomae-large           a video model: a clip of its own length
    hf:facebook/vjepa2-vitl-fpc64-256   with frames_per_clip=16 at the protocol of the others
    hf:runs/my-vit                      a folder written by `save_pretrained`

Code that a repository brings along is never run (`trust_remote_code=False`).
"""

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils.hub import has_file

from ...data.augmentation import IMAGENET_MEAN, IMAGENET_STD
from ...hub.download import DownloadError
from ...model.configuration_vjepa import VJEPAConfig
from .frozen_encoder import (
    DEFAULT_FRAMES_PER_CLIP,
    DEFAULT_MAX_FRAMES_PER_PASS,
    ClipEncoder,
    EncoderFacts,
    EncoderRequest,
    FrozenEncoder,
    ImageEncoder,
    build_with_seed,
    check_multiple,
    count_heads,
    describe_untrained,
)

logger = logging.getLogger(__name__)

IMAGE_INPUT = "pixel_values"
VJEPA2 = "vjepa2"
# Video models that take `pixel_values` too, of one size and length, with their class tokens
FIXED_VIDEO_MODELS = {"videomae": 0, "timesformer": 1}
VIDEO_PROCESSOR_FILE = "video_preprocessor_config.json"
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"  # of older video models too
PROCESSOR_CLASSES: dict[str, Any] = {
    VIDEO_PROCESSOR_FILE: AutoVideoProcessor,
    IMAGE_PROCESSOR_FILE: AutoImageProcessor,
}
# Weights that the features do not pass through: a folder of another head may lack them
UNUSED_WEIGHTS = ("pooler.", "predictor.", "embeddings.mask_token")


class TransformersImageEncoder(ImageEncoder):
    """An image model of transformers: the last hidden state of each frame, without class and register tokens.

    Args:
        model: The model.
        facts: What is known about it.
        num_prefix_tokens: Class and register tokens, which come first.
        max_frames_per_pass: Frames that go through the network at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        facts: EncoderFacts,
        *,
        num_prefix_tokens: int,
        max_frames_per_pass: int = DEFAULT_MAX_FRAMES_PER_PASS,
    ):
        super().__init__(model, facts, max_frames_per_pass=max_frames_per_pass)
        self.num_prefix_tokens = num_prefix_tokens

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokens of frames; those of a map `(num_frames, hidden_size, height, width)` in raster order."""
        return _encode_frames(self.model, frames)[:, self.num_prefix_tokens :]


class FixedClipEncoder(ClipEncoder):
    """A video model whose positions are learned or stored for one length and size, such as VideoMAE.

    Args:
        model: The model.
        facts: What is known about it.
        num_prefix_tokens: Class tokens, which come first.
    """

    def __init__(self, model: PreTrainedModel, facts: EncoderFacts, *, num_prefix_tokens: int = 0):
        super().__init__(model, facts)
        self.num_prefix_tokens = num_prefix_tokens

    def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """Tokens of clips of the model's own size."""
        expected = (self.frames_per_clip, 3, self.crop_size, self.crop_size)
        if clips.shape[1:] != expected:
            raise ValueError(
                f"clips have the shape {tuple(clips.shape)}, but {self.name} takes (batch_size, "
                f"{', '.join(map(str, expected))}) and nothing else: its positions are made for that"
            )
        return self.model(pixel_values=clips).last_hidden_state[:, self.num_prefix_tokens :]


class VJEPA2Encoder(ClipEncoder):
    """V-JEPA 2. Its rotary positions serve any number of frames, but one frame size only, the configuration's."""

    def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """Tokens of clips; the predictor does not run."""
        if tuple(clips.shape[-2:]) != (self.crop_size, self.crop_size):
            raise ValueError(
                f"clips have {clips.shape[-2]} x {clips.shape[-1]} pixels, but {self.name} was opened for "
                f"{self.crop_size} x {self.crop_size}: at another size its positions are wrong; open it with "
                "that crop_size"
            )
        check_multiple("num_frames", clips.shape[1], self.model.config.tubelet_size, self.name)
        return self.model(pixel_values_videos=clips, skip_predictor=True).last_hidden_state


@dataclass(frozen=True)
class _Preprocessing:
    """Normalisation and crop of a model's own processor; `note` says where they come from, if not from there."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_size: int | None = None
    note: str = ""


def open_transformers(request: EncoderRequest) -> FrozenEncoder:
    """Open an image or video model of transformers.

    Mean, std and crop are those of the processor that lies beside the weights; where there is none, ImageNet's mean
    and std and the configuration's size, with a warning and a note in `description`.

    Args:
        request: Its name is a folder written by `save_pretrained`, or a name on the Hub. V-JEPA 2 takes any multiple
            of its tubelet as frames, the other video models only their own number. Image models whose positions can
            be interpolated and V-JEPA 2 take another crop than their own.

    Raises:
        ValueError: The model takes no images or clips, it gives no tokens, weights are missing, or a size does not
            fit.
        DownloadError: The name is no folder, and could not be loaded from the Hub or its cache; an OSError.
        OSError: The folder is not complete.
    """
    name = request.name
    with _named_download_errors(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model_class = _find_class(name, config)
        if config.model_type == VJEPA2:
            return _open_vjepa2(request, config, model_class)
        if config.model_type in FIXED_VIDEO_MODELS:
            return _open_fixed_video_model(request, config, model_class)
        return _open_image_model(request, config, model_class)


@contextmanager
def _named_download_errors(name: str) -> Iterator[None]:
    """Tell which model could not be fetched, and what helps; transformers' message may name a file only."""
    try:
        yield
    except OSError as error:
        if Path(name).is_dir():
            raise
        raise DownloadError(
            f"'{name}' is no folder, and could not be loaded from the Hub: {error}. Correct the name; or fetch it on "
            "a machine with network and copy its cache (HF_HUB_CACHE, then HF_HUB_OFFLINE=1 here), or pass its "
            "folder: hf:FOLDER"
        ) from error


def _open_vjepa2(request: EncoderRequest, config: Any, model_class: type[PreTrainedModel]) -> VJEPA2Encoder:
    preprocessing = _find_preprocessing(request.name)
    crop_size = request.crop_size or config.crop_size
    frames_per_clip = request.frames_per_clip or config.frames_per_clip
    check_multiple("crop_size", crop_size, config.patch_size, request.spec)
    check_multiple("frames_per_clip", frames_per_clip, config.tubelet_size, request.spec)
    config.crop_size = crop_size  # the grid of its positions is taken from here, not from the input
    model: Any = _build(request, config, model_class)
    model.predictor = None  # never run; its weights belong neither in memory nor in the fingerprint
    facts = _gather_facts(request, config, replace(preprocessing, crop_size=crop_size), frames_per_clip)
    return VJEPA2Encoder(model, facts)


def _open_fixed_video_model(
    request: EncoderRequest, config: Any, model_class: type[PreTrainedModel]
) -> FixedClipEncoder:
    preprocessing = _find_preprocessing(request.name)
    for field, value, own in (
        ("frames_per_clip", request.frames_per_clip, config.num_frames),
        ("crop_size", request.crop_size, config.image_size),
    ):
        if value not in (None, own):
            raise ValueError(
                f"{field} is {value}, but the positions of {request.spec} are made for {own}; leave it out, or take a "
                "model of that size"
            )
    model = _build(request, config, model_class)
    num_prefix_tokens = FIXED_VIDEO_MODELS[config.model_type]
    preprocessing = replace(preprocessing, crop_size=config.image_size)
    facts = _gather_facts(request, config, preprocessing, config.num_frames, num_prefix_tokens=num_prefix_tokens)
    return FixedClipEncoder(model, facts, num_prefix_tokens=num_prefix_tokens)


def _open_image_model(
    request: EncoderRequest, config: Any, model_class: type[PreTrainedModel]
) -> TransformersImageEncoder:
    preprocessing = _find_preprocessing(request.name)
    crop_size = request.crop_size or preprocessing.crop_size or _as_side(getattr(config, "image_size", None))
    if crop_size is None:
        raise ValueError(f"neither the processor nor the configuration of {request.spec} has a size; pass crop_size")
    patch_size = config.patch_size if isinstance(getattr(config, "patch_size", None), int) else 1
    check_multiple("crop_size", crop_size, patch_size, request.spec)
    model = _build(request, config, model_class)
    num_tokens, width = _measure_tokens(request.spec, model, crop_size)
    # Models that merge patches have fewer tokens than patches, and no class token
    num_prefix_tokens = max(num_tokens - (crop_size // patch_size) ** 2, 0)
    facts = _gather_facts(
        request,
        config,
        replace(preprocessing, crop_size=crop_size),
        request.frames_per_clip or DEFAULT_FRAMES_PER_CLIP,
        num_prefix_tokens=num_prefix_tokens,
        hidden_size=width,
    )
    return TransformersImageEncoder(
        model, facts, num_prefix_tokens=num_prefix_tokens, max_frames_per_pass=request.max_frames_per_pass
    )


def _find_class(name: str, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the encoder; what takes no images or clips is refused before its weights are fetched."""
    if config.model_type == VJEPAConfig.model_type:
        raise ValueError(f"'{name}' is a V-JEPA model of this package; open it without the prefix hf:, as '{name}'")
    model_class: Any = MODEL_MAPPING.get(type(config), None)
    inputs = getattr(model_class, "main_input_name", None)
    if config.model_type != VJEPA2 and inputs != IMAGE_INPUT:
        raise ValueError(
            f"'{name}' is a '{config.model_type}' model, whose input is {inputs}, but an encoder takes {IMAGE_INPUT} "
            "(images) or is a video model that is known here: "
            f"{', '.join((VJEPA2, *FIXED_VIDEO_MODELS))}; the image towers of CLIP and SigLIP are in timm (timm:NAME)"
        )
    if getattr(config, "mask_ratio", 0):
        raise ValueError(
            f"'{name}' is a '{config.model_type}' model, which hides patches at random whenever it runs (mask_ratio = "
            f"{config.mask_ratio}); take its encoder from timm, such as timm:vit_base_patch16_224.mae"
        )
    return model_class


def _build(request: EncoderRequest, config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    has_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    options = {"add_pooling_layer": False} if has_pooler else {}
    if not request.is_pretrained:
        return build_with_seed(request.seed, lambda: model_class(config, **options))
    # Seeded as well, since a weight that does not matter and is missing must not change the fingerprint
    return build_with_seed(request.seed, lambda: _load(request.name, config, model_class, options))


def _load(
    name: str, config: PreTrainedConfig, model_class: type[PreTrainedModel], options: Mapping[str, Any]
) -> PreTrainedModel:
    loaded: Any = model_class.from_pretrained(name, config=config, output_loading_info=True, **options)
    model, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(UNUSED_WEIGHTS))
    if missing:
        raise ValueError(
            f"'{name}' lacks weights of its {model_class.__name__}, which would stay random: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; take a complete folder, or untrained:hf:{name}"
        )
    return model


def _gather_facts(
    request: EncoderRequest,
    config: Any,
    preprocessing: _Preprocessing,
    frames_per_clip: int,
    *,
    num_prefix_tokens: int = 0,
    hidden_size: int | None = None,
) -> EncoderFacts:
    width = hidden_size or config.hidden_size
    heads = getattr(config, "num_attention_heads", None)
    notes = preprocessing.note
    if num_prefix_tokens:
        notes += f"; {num_prefix_tokens} class or register token{'s' if num_prefix_tokens > 1 else ''} left out"
    return EncoderFacts(
        name=request.spec,
        hidden_size=width,
        num_attention_heads=count_heads(width, heads if isinstance(heads, int) else None),
        crop_size=preprocessing.crop_size or config.image_size,
        frames_per_clip=frames_per_clip,
        mean=preprocessing.mean,
        std=preprocessing.std,
        description=f"transformers' {config.model_type} model, {_describe_weights(request, config)}{notes}",
        is_trained=request.is_pretrained,
    )


def _describe_weights(request: EncoderRequest, config: PreTrainedConfig) -> str:
    if not request.is_pretrained:
        return f"{describe_untrained(request.seed)}, architecture of {request.name}"
    if Path(request.name).is_dir():
        return f"from the folder {request.name}"
    revision = getattr(config, "_commit_hash", None)
    return f"from the Hub repository {request.name}" + (f" at revision {revision}" if revision else "")


# ---------------------------------------------------------------------------------------------------------------------
# Preprocessing
# ---------------------------------------------------------------------------------------------------------------------


def _find_preprocessing(name: str) -> _Preprocessing:
    found = [file for file in PROCESSOR_CLASSES if has_file(name, file)]
    if not found:
        files = " or ".join(PROCESSOR_CLASSES)
        logger.warning("%s has no processor (%s): ImageNet's mean and std are used", name, files)
        return _Preprocessing(note="; normalised with ImageNet's mean and std, for want of a processor of its own")
    processor = PROCESSOR_CLASSES[found[0]].from_pretrained(name, trust_remote_code=False)
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    mean, std = _find_normalisation(processor, f"{found[0]} of '{name}'")
    return _Preprocessing(mean, std, _as_side(crop))


def _find_normalisation(processor: Any, file: str) -> tuple[Any, Any]:
    """Mean and std of values from 0 to 1."""
    factor = getattr(processor, "rescale_factor", None)
    if not getattr(processor, "do_rescale", True) or abs((factor or 0) * 255 - 1) > 1e-3:
        raise ValueError(
            f"{file} multiplies pixels by {factor}, but a clip is normalised from values that go from 0 to 1, "
            "which is 1 / 255; set do_rescale and rescale_factor so, and mean and std to match"
        )
    if not getattr(processor, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (tuple(getattr(processor, field, None) or ()) for field in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(
            f"{file} has image_mean {mean} and image_std {std}, but there must be three numbers in each, for red, "
            "green and blue; correct it there"
        )
    return mean, std


def _as_side(size: Any) -> int | None:
    """The side of a square size, in any of the forms in which configurations have it; None where it is none."""
    if isinstance(size, int):
        return size
    if size is None:
        return None
    if hasattr(size, "get"):
        sides = [size.get(key) for key in ("height", "width", "shortest_edge") if size.get(key) is not None]
    else:
        sides = list(size)
    return sides[0] if sides and len(set(sides)) == 1 else None


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def _encode_frames(model: PreTrainedModel, frames: torch.Tensor) -> torch.Tensor:
    """Every token of frames, `(num_frames, num_tokens, hidden_size)`, class and register tokens first."""
    size = _as_side(getattr(model.config, "image_size", None))
    options = {}
    if size != frames.shape[-1] and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True
    features = model(pixel_values=frames, **options).last_hidden_state
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


@torch.no_grad()
def _measure_tokens(name: str, model: PreTrainedModel, crop_size: int) -> tuple[int, int]:
    """Tokens of one black frame and their width."""
    model.eval()
    frame = torch.zeros(1, 3, crop_size, crop_size, dtype=model.dtype)
    try:
        tokens = _encode_frames(model, frame)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name} gives no tokens for a frame of {crop_size} x {crop_size} pixels: {type(error).__name__}: "
            f"{error}. Pass the crop_size that it was made for, or take a model whose last hidden state is tokens or "
            "a map"
        ) from error
    if tokens.ndim != 3:
        raise ValueError(
            f"{name} gives features of the shape {tuple(tokens.shape)} for a frame, but a probe takes (1, num_tokens, "
            "hidden_size); take a model whose last hidden state is tokens or a map"
        )
    return tokens.shape[1], tokens.shape[2]
