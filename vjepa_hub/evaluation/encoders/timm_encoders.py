"""Frozen image encoders of timm, transformers and convolutional networks, with timm's weights or those of a file.

timm:vit_large_patch14_dinov2.lvd142m                    timm's weights, downloaded at the first time
timm:vit_large_patch14_dinov2@weights/model.safetensors  a file in timm's format, for machines without network
"""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_data_config
from torch import nn

from ...core.names import nearest
from ...hub.download import DownloadError
from ...hub.released_file import ConversionError, read_released_file
from .frozen_encoder import (
    DEFAULT_FRAMES_PER_CLIP,
    DEFAULT_MAX_FRAMES_PER_PASS,
    EncoderFacts,
    EncoderRequest,
    ImageEncoder,
    build_with_seed,
    check_multiple,
    count_heads,
    describe_untrained,
)

SAFETENSORS = ".safetensors"
# How state dicts are packed in pickled checkpoints
CHECKPOINT_KEYS = ("state_dict", "model")


class TokenLayout(NamedTuple):
    """How an image model gives its features.

    Attributes:
        axes: "NLC", tokens; "NCHW" or "NHWC", a map.
        num_prefix_tokens: Class and register tokens, which come first and are left out.
    """

    axes: str
    num_prefix_tokens: int = 0

    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """Tokens `(num_frames, num_tokens, hidden_size)`; those of a map in raster order."""
        if self.axes == "NCHW":
            return features.flatten(2).transpose(1, 2)
        if self.axes == "NHWC":
            return features.flatten(1, 2)
        return features[:, self.num_prefix_tokens :]


class TimmEncoder(ImageEncoder):
    """An image model of timm: its features before pooling, of each frame.

    Args:
        model: The model.
        facts: What is known about it.
        layout: How it gives its features.
        max_frames_per_pass: Frames that go through the network at once.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: EncoderFacts,
        *,
        layout: TokenLayout,
        max_frames_per_pass: int = DEFAULT_MAX_FRAMES_PER_PASS,
    ):
        super().__init__(model, facts, max_frames_per_pass=max_frames_per_pass)
        self.layout = layout

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokens of frames."""
        return self.layout.tokens(self.model.forward_features(frames))


def open_timm(request: EncoderRequest) -> TimmEncoder:
    """Open an image model of timm.

    Its input size, mean and std are those that timm has for its weights; how an image is resized before the crop
    (`crop_pct`, interpolation) is the protocol's, the same for all models. A file of weights must hold every weight of
    the model: nothing is left at a random initialisation.

    Args:
        request: Its name is one of timm's list, with or without the tag of its weights; or that and `@` and a file of
            weights (`.safetensors`, or a checkpoint of torch that holds tensors only). Position tables are resized to
            its crop, as timm does.

    Raises:
        ValueError: There is no such model, it has no such weights, or it gives no tokens; or the size does not fit.
        DownloadError: The weights are not in timm's cache and could not be downloaded; an OSError.
        FileNotFoundError: There is no such file of weights.
    """
    name, seed = request.name, request.seed
    architecture, _, file = name.partition("@")
    _check_name(name, architecture, file, request.is_pretrained)
    size = _find_size_argument(architecture, request.crop_size)
    if request.is_pretrained:
        model = build_with_seed(seed, lambda: _create_trained(architecture, file, size))
        weights = _describe_weights(model, file)
    else:
        model = build_with_seed(seed, lambda: timm.create_model(architecture, pretrained=False, num_classes=0, **size))
        weights = describe_untrained(seed)
    data = resolve_data_config({}, model=model)
    side = request.crop_size or data["input_size"][-1]
    layout, width = _find_layout(architecture, model.eval(), side)
    facts = EncoderFacts(
        name=request.spec,
        hidden_size=width,
        num_attention_heads=count_heads(width, _find_heads(model)),
        crop_size=side,
        frames_per_clip=request.frames_per_clip or DEFAULT_FRAMES_PER_CLIP,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        description=f"timm's {architecture}, {weights}{_describe_prefix(layout)}",
        is_trained=request.is_pretrained,
    )
    return TimmEncoder(model, facts, layout=layout, max_frames_per_pass=request.max_frames_per_pass)


def _check_name(name: str, architecture: str, file: str, is_pretrained: bool) -> None:
    known = architecture.partition(".")[0]
    if not timm.is_model(known):
        raise ValueError(
            f"timm {timm.__version__} has no model '{known}' (of 'timm:{name}'); timm.list_models() gives those that "
            f"there are, the nearest is {nearest(known, timm.list_models())}"
        )
    if "@" in name and is_pretrained:
        if not Path(file).is_file():
            raise FileNotFoundError(f"'{file}' (of 'timm:{name}') is no file; give that of weights in timm's format")
    elif (is_pretrained or "." in architecture) and not timm.models.is_model_pretrained(architecture):
        tags = ", ".join(timm.list_pretrained(f"{known}.*")) or "none"
        raise ValueError(
            f"timm has no weights '{architecture}'; of this model there are: {tags}. Take one of them, a file "
            f"(timm:{known}@FILE), or untrained:timm:{known}"
        )


def _find_size_argument(architecture: str, crop_size: int | None) -> dict[str, Any]:
    """The argument that builds the model for a crop size; a model that takes any size has none."""
    if crop_size is None:
        return {}
    return {"img_size": crop_size} if timm.models.get_pretrained_cfg_value(architecture, "fixed_input_size") else {}


def _create_trained(architecture: str, file: str, size: dict[str, Any]) -> Any:
    """The model with its head first: timm loads a model that lacks the head of its weights without being strict."""
    if file:
        model = _create_from_file(architecture, Path(file), size)
    else:
        try:
            model = timm.create_model(architecture, pretrained=True, **size)
        except OSError as error:
            raise DownloadError(
                f"the weights of timm's {architecture} are not in the cache and could not be downloaded ({error}). "
                "Fetch them on a machine with network and copy its cache (HF_HUB_CACHE, then HF_HUB_OFFLINE=1 here), "
                f"or pass their file: timm:{architecture}@model.safetensors"
            ) from error
    model.reset_classifier(0)
    return model


def _create_from_file(architecture: str, file: Path, size: dict[str, Any]) -> Any:
    classifier = timm.models.get_pretrained_cfg_value(architecture, "classifier")
    num_classes = _count_classes(_read_state_dict(file), classifier)
    overlay = {"file": str(file), "num_classes": num_classes, "custom_load": False, "source": None}
    try:
        return timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes, **size
        )
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{file} does not hold the weights of timm's {architecture}: {_one_line(error)}. Pass the model it "
            "was made of, and a file in timm's format, such as the model.safetensors of its page on the Hub"
        ) from error


def _read_state_dict(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file. A pickled one is read without running what it may hold, before timm reads it."""
    try:
        if file.suffix == SAFETENSORS:
            return load_file(file)
        content: Any = read_released_file(file)
    except (ConversionError, SafetensorError) as error:
        raise ValueError(
            f"{file} cannot be read as weights: {_one_line(error)}. Give a .safetensors file, or one of torch.save "
            "with tensors and nothing else"
        ) from error
    inner = [content[key] for key in CHECKPOINT_KEYS if isinstance(content, dict) and key in content]
    return inner[0] if inner else content


def _one_line(error: Exception) -> str:
    """Message of an error on one line; torch's go over many."""
    return " ".join(str(error).split())[:500].rstrip(" .")


def _count_classes(state_dict: dict[str, torch.Tensor], classifier: str | tuple[str, ...] | None) -> int:
    """Classes of the head in a file; 0 where it has none."""
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    heads = [state_dict[f"{name}.weight"] for name in names if f"{name}.weight" in state_dict]
    return heads[0].shape[0] if heads else 0


def _find_layout(name: str, model: Any, side: int) -> tuple[TokenLayout, int]:
    """How a model gives its features, and their width, told by those of one black frame."""
    features = _encode_black_frame(name, model, side)
    num_axes = features.ndim if isinstance(features, torch.Tensor) else 0
    if num_axes == 3:
        return TokenLayout("NLC", _count_prefix_tokens(name, model)), features.shape[-1]
    if num_axes == 4:
        axes = _find_map_axes(name, model, features)
        return TokenLayout(axes), features.shape[axes.index("C")]
    found = f"a tensor {tuple(features.shape)}" if num_axes else type(features).__name__
    raise ValueError(
        f"timm's {name} gives {found} for a frame, but a probe takes tokens: features of 3 axes (tokens) or 4 (a "
        "map); take another model"
    )


@torch.no_grad()
def _encode_black_frame(name: str, model: Any, side: int) -> torch.Tensor:
    patch_size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch_size is not None:
        check_multiple("crop_size", side, patch_size[0] if isinstance(patch_size, tuple) else patch_size, name)
    try:
        return model.forward_features(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"timm's {name} cannot encode a frame of {side} x {side} pixels: {_one_line(error)}; pass a "
            "crop_size that it takes"
        ) from error


def _count_prefix_tokens(name: str, model: Any) -> int:
    number = getattr(model, "num_prefix_tokens", None)
    if number is None and getattr(model, "cls_token", None) is not None:
        raise ValueError(
            f"timm's {name} has a class token, but does not say where (num_prefix_tokens): which of its tokens stand "
            "for patches cannot be told; take another model"
        )
    return number or 0


def _find_map_axes(name: str, model: Any, features: torch.Tensor) -> str:
    stated = getattr(model, "output_fmt", None)
    if stated is not None:
        return str(getattr(stated, "value", stated))
    is_channel = [size == model.num_features for size in features.shape]
    if is_channel[1] == is_channel[3]:
        raise ValueError(
            f"timm's {name} gives features of the shape {tuple(features.shape)} and does not say which axis is its "
            f"width, which must be told by its num_features = {model.num_features}; take another model"
        )
    return "NCHW" if is_channel[1] else "NHWC"


def _find_heads(model: Any) -> int | None:
    """Heads of the last attention of a model, or None where it has none."""
    heads = [module.num_heads for module in model.modules() if isinstance(getattr(module, "num_heads", None), int)]
    return heads[-1] if heads else None


def _describe_weights(model: Any, file: str) -> str:
    if file:
        return f"weights of the file {Path(file).name}"
    origin = model.pretrained_cfg
    return f"timm {timm.__version__}'s weights {origin.get('tag') or 'without a tag'} " + (
        f"from {origin.get('hf_hub_id') or origin.get('url')}"
    )


def _describe_prefix(layout: TokenLayout) -> str:
    number = layout.num_prefix_tokens
    return f"; {number} class or register token{'s' if number > 1 else ''} left out" if number else ""
