"""Features of whole videos: clips over the video, through the encoder, to one safetensors file per video.

Frames are decoded window by window and dense features are written as they come, so memory does not grow with the
length of the video: only the pooled features (one vector per clip) are held.

Shapes: B clips in a batch, T frames, H x W pixels, C channels; N tokens = d x h x w of the token grid (depth, height,
width); D features.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt, field_validator, model_validator
from safetensors import SafetensorError, safe_open

from .. import __version__
from ..core.files import written_whole
from ..core.fingerprints import hash_weights
from ..core.progress import Progress, no_progress
from ..core.settings import Settings, SettingsError
from ..data.clip_sampling import plan_windows
from ..data.items import ITEM_TIMEOUT
from ..data.records import ImageFile, LocalVideo, VideoRecord, is_image_name
from ..data.video import require_backend
from ..model.configuration_vjepa import VJEPAConfig
from ..model.video_processing_vjepa import VJEPAVideoProcessor

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..hub.loading import OpenedModel
    from ..model.configuration_vjepa import VJEPAConfig

logger = logging.getLogger(__name__)

FORMAT = "vjepa_hub.features/1"
# Clips of 16 frames over windows of 16 x 4, as in the released configurations (paper, section 3.3).
DEFAULT_FRAME_STEP = 4
_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}

VideoSource = str | Path | VideoRecord
"""A video or image file, or a video of a data set."""
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class FeatureExtractionError(ValueError):
    """A video that was decoded, but whose features cannot be used."""


class ExtractionSettings(Settings):
    """Features of each video: windows, and what is kept.

    Attributes:
        window: Number of video frames that one clip spans; None: 4 for each frame of the clip, as in the release.
        stride: Number of video frames from one clip's start to the next; None: the window, so that clips tile the
            video.
        clips_per_pass: Clips that the model takes at once.
        pooled: Keeps one vector per clip, the mean over its tokens (float32).
        dense: Keeps every token.
        levels: Keeps every token of each feature level too; a model without levels has the last one alone.
        dense_dtype: "model" stores dense features and levels as the model computes them, "float16" in half precision.
        backend: Video decoder, as for `open_video`.
        item_timeout: Seconds without a new frame after which a video is given up.

    Raises:
        SettingsError: A value out of its range, a decoder that is not installed, or no features to keep.
    """

    window: PositiveInt | None = None
    stride: PositiveInt | None = None
    clips_per_pass: PositiveInt = 1
    pooled: bool = True
    dense: bool = True
    levels: bool = False
    dense_dtype: Literal["model", "float16"] = "model"
    backend: str | None = None
    item_timeout: PositiveFloat = ITEM_TIMEOUT

    @field_validator("backend")
    @classmethod
    def _require_decoder(cls, backend: str | None) -> str | None:
        require_backend(backend)
        return backend

    @model_validator(mode="after")
    def _require_features(self) -> Self:
        if not (self.pooled or self.dense or self.levels):
            raise ValueError("pooled, dense and levels are all off, so nothing would be computed: turn one on")
        return self

    def describe(self, frames_per_clip: int) -> dict[str, str]:
        """Settings that change what is stored of a video, as text.

        Clips at once and decoder are none of them: they change features by rounding at most.

        Args:
            frames_per_clip: Frames in a clip of the model.
        """
        window = self.window or frames_per_clip * DEFAULT_FRAME_STEP
        return {
            "window": str(window),
            "stride": str(self.stride or window),
            "pooled": str(self.pooled).lower(),
            "dense": self.dense_dtype if self.dense else "false",
            "levels": self.dense_dtype if self.levels else "false",
        }

    def require_window_for(self, frames_per_clip: int) -> None:
        """Refuse a window that is too short for a model's clip, before any video is opened.

        Args:
            frames_per_clip: Frames in a clip of the model.

        Raises:
            SettingsError: The window is shorter than a clip.
        """
        if self.window is not None and self.window < frames_per_clip:
            raise SettingsError(
                f"window is {self.window} frames, but a clip of this model has {frames_per_clip}: "
                f"give a window of at least {frames_per_clip}"
            )


@dataclass(frozen=True)
class VideoFeatures:
    """The features of one video, with the frames and times that they belong to.

    Attributes:
        pooled: (num_clips, hidden_size), mean over the tokens of each clip, float32; or None.
        dense: (num_clips, depth, height, width, hidden_size); or None.
        levels: (num_clips, num_levels, depth, height, width, hidden_size), the normed features of each level; or None.
        frame_indices: (num_clips, num_frames) int64, the video frames that make up each clip.
        timestamps: (num_clips, num_frames) float64, the time of each of them in seconds.
        metadata: Model, weights, source and settings, as text.
    """

    pooled: torch.Tensor | None
    dense: torch.Tensor | None
    frame_indices: torch.Tensor
    timestamps: torch.Tensor
    metadata: dict[str, str]
    levels: torch.Tensor | None = None

    @property
    def num_clips(self) -> int:
        """Number of clips."""
        return self.frame_indices.shape[0]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there, by name, in the order of the file."""
        named = {"timestamps": self.timestamps, "frame_indices": self.frame_indices}
        named |= {"pooled": self.pooled} if self.pooled is not None else {}
        named |= {"dense": self.dense} if self.dense is not None else {}
        named |= {"levels": self.levels} if self.levels is not None else {}
        return named


def as_record(source: VideoSource) -> VideoRecord:
    """Return a file as the record of a data set; a record stays as it is."""
    if isinstance(source, VideoRecord):
        return source
    path = Path(source)
    return VideoRecord(str(path), ImageFile(path) if is_image_name(path.name) else LocalVideo(path, num_threads=0))


def open_frames(
    source: VideoSource, backend: str | None = None, item_timeout: float | None = ITEM_TIMEOUT
) -> AbstractContextManager[Any]:
    """Open a video, or an image file (told by its ending) as a video.

    Args:
        source: A file, or a video of a data set.
        backend: Video decoder, as for `open_video`.
        item_timeout: Seconds without a new frame after which it is given up; None: never.

    Raises:
        VideoDecodingError: the file cannot be opened or read.
    """
    return as_record(source).open(backend=backend, item_timeout=item_timeout)


def with_clips_of(
    opened: OpenedModel, *, crop_size: int | None = None, frames_per_clip: int | None = None
) -> OpenedModel:
    """The model with clips of another size: positions of V-JEPA are interpolated, those of 2 and 2.1 computed.

    Args:
        opened: The model and its processor.
        crop_size: Height and width in pixels, a multiple of the patch; None: as it is.
        frames_per_clip: Frames, a multiple of the tubelet; None: as it is.

    Raises:
        ValueError: A size that is no multiple.
    """
    config = opened.model.config
    sizes = {"crop_size": crop_size, "frames_per_clip": frames_per_clip}
    given = {name: value for name, value in sizes.items() if value is not None}
    VJEPAConfig(**{**{n: getattr(config, n) for n in ("patch_size", "tubelet_size", *sizes)}, **given})  # checks them
    if frames_per_clip is not None:
        opened.model.config.frames_per_clip = frames_per_clip
    if crop_size is None:
        return opened
    processor = VJEPAVideoProcessor.from_dict(opened.processor.to_dict(), crop_size=crop_size)
    return replace(opened, processor=processor)


def encode_clips(clips: Sequence[np.ndarray], opened: OpenedModel) -> torch.Tensor:
    """Run clips through the processor and the encoder.

    Args:
        clips: uint8 arrays (num_frames, height, width, 3), one for each clip.
        opened: The model and its processor.

    Returns:
        (num_clips, depth, height, width, hidden_size) on the CPU, in the model's dtype. The grid follows the pixels
        that went in.

    Raises:
        FeatureExtractionError: the number of tokens is not that of the grid, or a feature is not finite.
        ValueError: a processor that takes several views of a clip.
    """
    return encode_pixels(clip_pixels(clips, opened), opened)


def clip_pixels(clips: Sequence[np.ndarray], opened: OpenedModel) -> torch.Tensor:
    """Run clips through the processor alone.

    Args:
        clips: uint8 arrays (num_frames, height, width, 3), one for each clip.
        opened: The model and its processor.

    Returns:
        (num_clips, num_frames, 3, crop_height, crop_width) on the CPU, in float32.

    Raises:
        ValueError: a processor that takes several views of a clip.
    """
    inputs = opened.processor(list(clips), do_sample_frames=False, return_tensors="pt")
    pixels = inputs["pixel_values_videos"]  # (B, T, C, H, W)
    if len(pixels) != len(clips):
        raise ValueError(f"the processor made {len(pixels)} rows of {len(clips)} clips: set num_spatial_views to 1")
    return pixels


def encode_pixels(pixels: torch.Tensor, opened: OpenedModel) -> torch.Tensor:
    """Run clips that have been through the processor through the encoder.

    Args:
        pixels: (num_clips, num_frames, 3, crop_height, crop_width), as from `clip_pixels`.
        opened: The model.

    Returns:
        As `encode_clips`.

    Raises:
        FeatureExtractionError: as `encode_clips`.
    """
    parameter = next(opened.model.parameters())
    with torch.inference_mode():
        tokens = opened.model.get_vision_features(pixels.to(parameter.device, parameter.dtype))  # (B, N, D)
    return _in_grid(tokens, pixels, opened)  # (B, d, h, w, D)


def encode_levels(pixels: torch.Tensor, opened: OpenedModel) -> torch.Tensor:
    """Run clips that have been through the processor through the encoder, and take all its feature levels.

    Args:
        pixels: As for `encode_pixels`.
        opened: The model.

    Returns:
        (num_clips, num_levels, depth, height, width, hidden_size) on the CPU; the last level is what `encode_pixels`
        gives.

    Raises:
        FeatureExtractionError: as `encode_clips`.
    """
    parameter = next(opened.model.parameters())
    with torch.inference_mode():
        output = opened.model(pixels.to(parameter.device, parameter.dtype), output_feature_levels=True)
    return torch.stack([_in_grid(level, pixels, opened) for level in output.feature_levels], dim=1)


def _in_grid(tokens: torch.Tensor, pixels: torch.Tensor, opened: OpenedModel) -> torch.Tensor:
    grid = _token_grid(opened, num_frames=pixels.shape[1], height=pixels.shape[3], width=pixels.shape[4])
    if tokens.shape[1] != grid[0] * grid[1] * grid[2]:
        raise FeatureExtractionError(f"{tokens.shape[1]} tokens do not fill the grid {grid} of depth, height, width")
    _require_finite(tokens, opened.name)
    return tokens.cpu().unflatten(1, grid)


def extract_features(
    source: VideoSource,
    opened: OpenedModel,
    settings: ExtractionSettings = ExtractionSettings(),  # noqa: B008 (it is frozen)
    *,
    progress: Progress = no_progress,
) -> VideoFeatures:
    """Features of one video, in memory. For long videos with dense features see `extract_features_to_file`.

    Args:
        source: Video or image file, or a video of a data set.
        opened: The model and its processor, from `vjepa_hub.hub.loading.open_model`.
        settings: Windows, and what to keep.
        progress: Called with the clips that are done, and all clips, before the first batch and after each.

    Raises:
        VideoDecodingError: the file cannot be opened or read.
        FeatureExtractionError: the features are not finite.
    """
    with open_frames(source, settings.backend, settings.item_timeout) as video:
        plan = _plan(video, source, opened, describe_model(opened), settings)
        parts = [tensors for _, tensors in _iterate_batches(video, plan, opened, settings, progress)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return VideoFeatures(
        joined.get("pooled"),
        joined.get("dense"),
        plan.frame_indices,
        plan.timestamps,
        metadata=plan.metadata,
        levels=joined.get("levels"),
    )


def extract_features_to_file(
    source: VideoSource,
    output: str | Path,
    opened: OpenedModel,
    settings: ExtractionSettings,
    *,
    progress: Progress = no_progress,
    model_metadata: dict[str, str] | None = None,
) -> VideoFeatures:
    """Features of one video, written as they come: one batch of frames and tokens is in memory at a time.

    Args:
        source: Video or image file, or a video of a data set.
        output: The safetensors file to write; replaced if it exists.
        opened: The model and its processor.
        settings: Windows, and what to keep.
        progress: Called with the clips that are done, and all clips, before the first batch and after each.
        model_metadata: What `describe_model(opened)` returned, for callers that write many files.

    Returns:
        What `load_features(output)` returns: tensors that are read from the file when they are used.

    Raises:
        VideoDecodingError: the file cannot be opened or read.
        FeatureExtractionError: the features are not finite.
    """
    with open_frames(source, settings.backend, settings.item_timeout) as video:
        plan = _plan(video, source, opened, model_metadata or describe_model(opened), settings)
        with FeatureFileWriter(output, _file_layout(plan, opened, settings), plan.metadata) as writer:
            writer.write_rows("timestamps", 0, plan.timestamps)
            writer.write_rows("frame_indices", 0, plan.frame_indices)
            for first_clip, tensors in _iterate_batches(video, plan, opened, settings, progress):
                for name, rows in tensors.items():
                    writer.write_rows(name, first_clip, rows)
    return load_features(output)


def save_features(features: VideoFeatures, path: str | Path) -> None:
    """Write features as safetensors; `load_features` gives them back bit by bit.

    Args:
        features: What to write.
        path: The file; replaced if it exists.
    """
    tensors = features.tensors()
    layout: Layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with FeatureFileWriter(path, layout, features.metadata) as writer:
        for name, tensor in tensors.items():
            writer.write_rows(name, 0, tensor)


def load_features(path: str | Path) -> VideoFeatures:
    """Read features that `save_features` or `extract_features_to_file` wrote, mapped from the file and not copied.

    Args:
        path: The safetensors file.

    Raises:
        ValueError: a safetensors file that is none of ours, or of a newer format.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(sorted((file.metadata() or {}).items()))  # safetensors gives them in random order
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and extract the features again") from error
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise ValueError(f"{path} has the format '{found}', not '{FORMAT}': was it written by `vjepa-hub features`?")
    if missing := {"frame_indices", "timestamps"} - tensors.keys():
        raise ValueError(f"{path} has no {' or '.join(sorted(missing))}: delete it and extract the features again")
    return VideoFeatures(
        tensors.get("pooled"),
        tensors.get("dense"),
        tensors["frame_indices"],
        tensors["timestamps"],
        metadata=metadata,
        levels=tensors.get("levels"),
    )


class FeatureFileWriter:
    """A safetensors file whose tensors are filled row by row.

    safetensors itself writes whole tensors only. The format is an 8-byte header length, a JSON header with each
    tensor's dtype, shape and place, and the bytes (https://github.com/huggingface/safetensors#format), so rows can be
    put in place as they come.

    Args:
        path: The finished file. It appears when the `with` block ends without an error; what an error leaves behind
            is removed.
        layout: dtype and shape of each tensor, the widest dtypes first so that all are aligned.
        metadata: Text for the header.
    """

    def __init__(self, path: str | Path, layout: Layout, metadata: dict[str, str]) -> None:
        self.layout, self._stack = layout, ExitStack()
        header, self._starts = _safetensors_header(layout, metadata)
        self._file = self._stack.enter_context(self._stack.enter_context(written_whole(path)).open("wb"))
        self._file.write(header)

    def write_rows(self, name: str, first_row: int, rows: torch.Tensor) -> None:
        """Put rows in their place.

        Args:
            name: A tensor of the layout.
            first_row: Where along the first axis.
            rows: (num_rows, ...), of the dtype and the row shape in the layout.

        Raises:
            ValueError: rows of another dtype or shape, or past the end.
        """
        dtype, shape = self.layout[name]
        is_inside = first_row >= 0 and first_row + rows.shape[0] <= shape[0]
        if rows.dtype != dtype or tuple(rows.shape[1:]) != shape[1:] or not is_inside:
            raise ValueError(
                f"rows {tuple(rows.shape)} {rows.dtype} at row {first_row} do not fit '{name}', "
                f"which is {shape} {dtype}"
            )
        row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
        self._file.seek(self._starts[name] + first_row * row_bytes)
        self._file.write(rows.contiguous().view(torch.uint8).numpy().data)

    def __enter__(self) -> FeatureFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _safetensors_header(layout: Layout, metadata: dict[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header's bytes, and where in the file each tensor starts."""
    entries: dict[str, object] = {"__metadata__": metadata}
    offset, offsets = 0, {}
    for name, (dtype, shape) in layout.items():
        end = offset + dtype.itemsize * int(np.prod(shape))
        entries[name] = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offsets[name], offset = offset, end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in offsets.items()}


@dataclass(frozen=True)
class _ClipPlan:
    windows: list[np.ndarray]
    frame_indices: torch.Tensor
    timestamps: torch.Tensor
    metadata: dict[str, str]


def _plan(
    video: Any,
    source: VideoSource,
    opened: OpenedModel,
    model_metadata: dict[str, str],
    settings: ExtractionSettings,
) -> _ClipPlan:
    config = opened.model.config
    chosen = settings.describe(config.frames_per_clip)
    if video.num_frames == 1 and config.image_tokenizer:
        windows = [np.zeros(1, dtype=np.int64)]  # an image, which is not repeated to a clip
    else:
        windows = plan_windows(
            video.num_frames,
            frames_per_clip=config.frames_per_clip,
            window=int(chosen["window"]),
            stride=int(chosen["stride"]),
        )
    indices = np.stack(windows).astype(np.int64)
    metadata = {"fps": repr(float(video.average_fps or 0)), "video_frames": str(video.num_frames)}
    # The format first, by which a damaged file is known to be ours.
    metadata = {"format": FORMAT, **describe_source(source), **metadata, **chosen, **model_metadata}
    times = np.asarray(video.timestamps, dtype=np.float64)[indices]
    return _ClipPlan(windows, torch.from_numpy(indices), torch.from_numpy(times), metadata)


def describe_source(source: VideoSource) -> dict[str, str]:
    """Name, size and time of change of a video, as text: they tell it from others.

    Args:
        source: A file, or a video of a data set; where no file of this machine holds it, its name alone tells it.
    """
    record = as_record(source)
    name = os.fsencode(Path(record.name).name).decode("utf-8", errors="replace")
    num_bytes, mtime_ns = record.state or ("unknown", "unknown")
    return {"file": name, "source_bytes": str(num_bytes), "source_mtime_ns": str(mtime_ns)}


def describe_model(opened: OpenedModel) -> dict[str, str]:
    """Model, weights and preprocessing as text, as they stand in the header of each file. Reads all the weights.

    Args:
        opened: The model and its processor.
    """
    config, processor = opened.model.config, opened.processor
    height, width = _crop(opened)
    encoder = {name: value for name, value in opened.model.state_dict().items() if "predictor." not in name}
    options = processor.to_dict()
    preprocessing = {name: options[name] for name in ("size", "crop_size", "resample", "image_mean", "image_std")}
    return {
        "format": FORMAT,
        "package": f"vjepa_hub {__version__}",
        "model": opened.name,
        "weights": opened.weights,
        "encoder_sha256": hash_weights(encoder),
        "encoder_details": encoder_details(config),
        "is_trained": str(opened.is_trained).lower(),
        "frames_per_clip": str(config.frames_per_clip),
        "crop": f"{height}x{width}",
        "patch_size": str(config.patch_size),
        "tubelet_size": str(config.tubelet_size),
        "dtype": str(next(opened.model.parameters()).dtype).removeprefix("torch."),
        "preprocessing": json.dumps(preprocessing),
    }


def encoder_details(config: VJEPAConfig) -> str:
    """The fields of a configuration that change an encoder's features, and that its weights do not tell.

    Args:
        config: Of the encoder's model.
    """
    details = f"{config.num_attention_heads} heads, {config.hidden_act}, {config.layer_norm_eps}"
    if config.has_rotary_positions:
        details += f", {config.position_embedding} positions, reference grid {config.rotary_reference_grid}"
    return details if config.feature_levels is None else f"{details}, levels {config.feature_levels}"


def read_header(path: str | Path) -> dict[str, dict] | None:
    """The header of a safetensors file, or None where the file is none or not whole. Reads no tensor.

    Args:
        path: The file.

    Returns:
        For each tensor its `dtype`, `shape` and `data_offsets`, and under `__metadata__` the text.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= num_bytes - 8:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return header if num_bytes == 8 + length + max(ends, default=0) else None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # damaged, or another file
            return None


def _iterate_batches(
    video: Any,
    plan: _ClipPlan,
    opened: OpenedModel,
    settings: ExtractionSettings,
    progress: Progress,
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """(first clip, what to keep of the batch), in the order of the video."""
    total = len(plan.windows)
    progress(plan.metadata["file"], 0, total)
    for first in range(0, total, settings.clips_per_pass):
        windows = plan.windows[first : first + settings.clips_per_pass]
        pixels = clip_pixels([video.read_frames(window) for window in windows], opened)
        levels = encode_levels(pixels, opened) if settings.levels else None  # (B, L, d, h, w, D)
        tokens = encode_pixels(pixels, opened) if levels is None else levels[:, -1]  # (B, d, h, w, D)
        yield first, _kept(tokens, levels, opened.name, settings)
        progress(plan.metadata["file"], first + len(windows), total)


def _kept(
    tokens: torch.Tensor, levels: torch.Tensor | None, model_name: str, settings: ExtractionSettings
) -> dict[str, torch.Tensor]:
    kept = {}
    if settings.pooled:
        kept["pooled"] = tokens.float().mean(dim=(1, 2, 3))  # (B, D)
    for name, values in (("dense", tokens if settings.dense else None), ("levels", levels)):
        if values is not None:
            kept[name] = values.half() if settings.dense_dtype == "float16" else values
            _require_finite(kept[name], model_name)
    return kept


def _file_layout(plan: _ClipPlan, opened: OpenedModel, settings: ExtractionSettings) -> Layout:
    config = opened.model.config
    height, width = _crop(opened)
    clips, num_frames = plan.frame_indices.shape
    grid = _token_grid(opened, num_frames=num_frames, height=height, width=width)
    layout: Layout = {
        "timestamps": (torch.float64, tuple(plan.timestamps.shape)),
        "frame_indices": (torch.int64, tuple(plan.frame_indices.shape)),
    }
    if settings.pooled:
        layout["pooled"] = (torch.float32, (clips, config.hidden_size))
    dtype = torch.float16 if settings.dense_dtype == "float16" else next(opened.model.parameters()).dtype
    if settings.dense:
        layout["dense"] = (dtype, (clips, *grid, config.hidden_size))
    if settings.levels:
        layout["levels"] = (dtype, (clips, config.num_feature_levels, *grid, config.hidden_size))
    return layout


def _crop(opened: OpenedModel) -> tuple[int, int]:
    crop = opened.processor.to_dict()["crop_size"]
    return int(crop["height"]), int(crop["width"])


def _token_grid(opened: OpenedModel, *, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
    config = opened.model.config
    depth = 1 if num_frames == 1 and config.image_tokenizer else num_frames // config.tubelet_size
    return depth, height // config.patch_size, width // config.patch_size


def _require_finite(features: torch.Tensor, model_name: str) -> None:
    if not torch.isfinite(features).all():
        dtype = str(features.dtype).removeprefix("torch.")
        raise FeatureExtractionError(
            f"{model_name} gave features that are not finite in {dtype}: use float32 or bfloat16, "
            "or look at the weights"
        )
