"""Pictures of dense features: their first three principal components as red, green and blue, beside the frames.

The frames are shown as the model saw them (resized and cropped), so each patch of the map lies over its own pixels.
Where a model has few tokens, the map is made of finer cells, see `shifted_windows`.

Shapes: B clips of d x h x w tokens (depth, height, width) with D features; S time steps of a picture, one token layer
each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from ..core.files import written_whole
from .extraction import FeatureExtractionError, VideoFeatures, encode_clips, load_features, open_frames
from .shifted_windows import Detail, ShiftedMaps, choose_detail

if TYPE_CHECKING:
    from ..hub.loading import OpenedModel

NUM_COLOURS = 3
# The map reaches full colour at these quantiles, so that a few outlying tokens do not make the rest pale.
LOW_QUANTILE, HIGH_QUANTILE = 0.01, 0.99
FRAMES_AT_ONCE = 16
# Of longer videos every n-th clip is fitted: colours hardly change with more, and time and memory stay bounded. Where
# a clip is seen at n x n shifts, it counts n x n times.
MAX_FITTED_CLIPS = 256

Baseline = Literal["auto", "none", "even", "clips"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]
HeaderPart = tuple[str, int, Colour]


@dataclass(frozen=True)
class PictureSettings:
    """How pictures of features look.

    Attributes:
        columns: Time steps in the still picture.
        cell: Length in pixels of a frame's longer side, rounded to a whole number of pixels per patch.
        interpolation: "nearest" shows each cell of the map as a square; "bilinear" is smooth. "auto" shows tokens as
            squares, and cells finer than tokens smooth.
        baseline: What is taken off the features before the PCA, see `position_baseline`.
        detail: Cells of the map for each token, in each direction, see `shifted_windows`. Above 1 the clips that are
            shown or fitted go through the model again, detail x detail times. "auto" is 1 where the model has at least
            12 tokens on a frame's shorter side, and what makes as many cells where it has not.
        max_animation_steps: Longer videos are thinned out evenly to this many steps.
        backend: Video decoder, as for `open_video`.

    Raises:
        ValueError: a number below 1, or an unknown word. Whether a detail is possible depends on the model.
    """

    columns: int = 6
    cell: int = 224
    interpolation: Literal["auto", "nearest", "bilinear"] = "auto"
    baseline: Baseline = "auto"
    detail: Detail = "auto"
    max_animation_steps: int = 256
    backend: str | None = None

    def __post_init__(self) -> None:
        for name in ("columns", "cell", "max_animation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.detail != "auto" and not (isinstance(self.detail, int) and self.detail >= 1):
            raise ValueError(f"detail is {self.detail!r}; it must be at least 1, or 'auto'")
        if self.interpolation not in ("auto", "nearest", "bilinear"):
            raise ValueError(f"interpolation is '{self.interpolation}'; available: auto, nearest, bilinear")
        if self.baseline not in ("auto", "none", "even", "clips"):
            raise ValueError(f"baseline is '{self.baseline}'; available: auto, none, even, clips")


@dataclass(frozen=True)
class FeaturePCA:
    """Three principal components of features, and the range that becomes colour; fitted on one video, for any other.

    Attributes:
        mean: (hidden_size,) float64.
        components: (3, hidden_size) float64, orthonormal rows; the entry of largest size of each is positive.
        explained_variance_ratio: (3,) float64, their share of the variance.
        low: (3,) float64, the projections that become 0.
        high: (3,) float64, the projections that become 1; equal to `low` where a component only varies by rounding.
    """

    mean: torch.Tensor
    components: torch.Tensor
    explained_variance_ratio: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def fit(cls, dense: torch.Tensor, *, baseline: torch.Tensor | None = None) -> FeaturePCA:
        """Fit to all tokens, exactly (eigenvectors of the covariance in float64), one clip in memory at a time.

        Args:
            dense: (num_clips, ..., hidden_size).
            baseline: (..., hidden_size) to subtract from each clip first.
        """
        mean = torch.stack([_tokens(clip, baseline).mean(0) for clip in dense]).mean(0)  # (D,)
        covariance = torch.zeros(mean.numel(), mean.numel(), dtype=torch.float64)
        for clip in dense:
            centred = _tokens(clip, baseline) - mean
            covariance += centred.T @ centred / (len(centred) * len(dense))
        variances, components = _leading_components(covariance)
        ratio = variances / covariance.trace().clamp_min(torch.finfo(torch.float64).tiny)
        projected = torch.cat([(_tokens(clip, baseline) - mean) @ components.T for clip in dense])
        return cls(mean, components, ratio, *_colour_range(projected, smallest=_rounding(dense)))

    def transform(self, dense: torch.Tensor, *, baseline: torch.Tensor | None = None) -> torch.Tensor:
        """Colours of features.

        Args:
            dense: (num_clips, ..., hidden_size).
            baseline: (..., hidden_size) to subtract from each clip first.

        Returns:
            (num_clips, ..., 3) float32 in [0, 1]. A component that does not vary is 0.5 everywhere.
        """
        span = self.high - self.low
        is_flat = span <= 0
        colours = []
        for clip in dense:
            projected = (_tokens(clip, baseline) - self.mean) @ self.components.T  # (N, 3)
            scaled = (projected - self.low) / torch.where(is_flat, 1.0, span)
            colours.append(torch.where(is_flat, 0.5, scaled.clamp(0, 1)).reshape(*clip.shape[:-1], NUM_COLOURS))
        return torch.stack(colours).float()


def _tokens(clip: torch.Tensor, baseline: torch.Tensor | None) -> torch.Tensor:
    values = clip.double() if baseline is None else clip.double() - baseline.double()
    return values.reshape(-1, values.shape[-1])  # (N, D)


def _rounding(dense: torch.Tensor) -> float:
    """What differences between features may be, by rounding alone."""
    return 16 * torch.finfo(dense.dtype).eps * max(float(clip.abs().max()) for clip in dense)


def _colour_range(projected: torch.Tensor, *, smallest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantiles of each component (N, 3); its extremes where these agree, as with a small thing on a blank ground."""
    low, high = np.quantile(projected.numpy(), [LOW_QUANTILE, HIGH_QUANTILE], axis=0)
    is_narrow = high - low <= smallest
    low = np.where(is_narrow, projected.numpy().min(0), low)
    high = np.where(is_narrow, projected.numpy().max(0), high)
    high = np.where(high - low <= smallest, low, high)
    return torch.from_numpy(low), torch.from_numpy(high)


def _leading_components(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variances (3,) and components (3, D), largest first; zero where there are fewer than three features."""
    values, vectors = torch.linalg.eigh(covariance)
    count = min(NUM_COLOURS, len(covariance))
    variances = torch.zeros(NUM_COLOURS, dtype=torch.float64)
    components = torch.zeros(NUM_COLOURS, len(covariance), dtype=torch.float64)
    variances[:count] = values.flip(0)[:count].clamp_min(0)
    leading = vectors.flip(1)[:, :count].T
    largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
    components[:count] = leading * largest.sign()
    return variances, components


def position_baseline(
    features: VideoFeatures, opened: OpenedModel, frames: np.ndarray, baseline: Baseline = "auto"
) -> torch.Tensor | None:
    """The part of the features that comes from the place of a token, not from what is seen there.

    The sin-cos table is added to every token, and in an untrained model nothing has learned to look past it: maps of
    its features show gradients over still ground. "even" subtracts the features of an even clip in the video's mean
    colour, which has positions and no content. (Subtracting those of a grey clip would add gradients to a dark video:
    the norms scale the position part by how strong the content is.) "clips" subtracts the mean of each position over
    the clips of the video: what stands still is taken off too, and what moves is left. A trained model's features are
    shown as they are. "auto" is "even" for an untrained model and "none" for a trained one.

    Args:
        features: Dense features of the video, or their maps in finer cells.
        opened: The model and its processor.
        frames: uint8 (num_frames, height, width, 3), frames of the video whose mean colour stands for it.
        baseline: Which.

    Returns:
        (depth, height, width, hidden_size), or None for "none". Of finer cells each has the position of its token.

    Raises:
        FeatureExtractionError: "clips" with one clip only, which would leave nothing.
    """
    dense = _require_dense(features)
    if baseline == "none" or (baseline == "auto" and opened.is_trained):
        return None
    if baseline == "clips":
        if len(dense) < 2:
            raise FeatureExtractionError(
                "baseline 'clips' is a mean over clips, and this video has 1: use 'even', or a smaller stride"
            )
        return dense.mean(0, dtype=torch.float64)
    num_frames, (height, width) = features.frame_indices.shape[1], frames.shape[1:3]
    colour = frames.mean(axis=(0, 1, 2)).round().astype(np.uint8)
    even_clip = np.ascontiguousarray(np.broadcast_to(colour, (num_frames, height, width, 3)))
    even = encode_clips([even_clip], opened)[0]  # (d, h, w, D)
    detail = dense.shape[2] // even.shape[1]
    return even.repeat_interleave(detail, dim=1).repeat_interleave(detail, dim=2)


def _require_dense(features: VideoFeatures) -> torch.Tensor:
    if features.dense is None:
        raise ValueError("these features are pooled only, and pictures show dense ones: extract with dense=True")
    return features.dense


def picture_steps(frame_indices: torch.Tensor, tubelet_size: int) -> list[tuple[int, int]]:
    """(clip, depth) of the token layers to show, in the order of time, each moment once.

    Where clips overlap, or a short video repeats its last frame, layers that do not begin later than the last one are
    left out.

    Args:
        frame_indices: (num_clips, num_frames), as in `VideoFeatures`.
        tubelet_size: Frames in a token.
    """
    steps, latest = [], -1
    for clip, firsts in enumerate(frame_indices[:, ::tubelet_size].tolist()):
        for depth, first in enumerate(firsts):
            if first > latest:
                steps.append((clip, depth))
                latest = first
    return steps


def frames_as_seen(frames: np.ndarray, opened: OpenedModel) -> np.ndarray:
    """What the model sees of frames: resized and cropped by its processor, with the normalisation undone.

    Args:
        frames: uint8 (num_frames, height, width, 3).
        opened: The model and its processor.

    Returns:
        uint8 (num_frames, crop_height, crop_width, 3).
    """
    inputs = opened.processor([frames], do_sample_frames=False, return_tensors="pt")
    pixels = inputs["pixel_values_videos"][0].float()  # (T, C, H, W)
    mean, std = (
        torch.tensor(value).view(1, -1, 1, 1) for value in (opened.processor.image_mean, opened.processor.image_std)
    )
    return ((pixels * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class PictureStrip:
    """What pictures are drawn from.

    Attributes:
        frames: uint8 (num_steps, crop_height, crop_width, 3), the first frame of each token layer.
        maps: float32 (num_steps, height, width, 3) in [0, 1], its colours.
        seconds: Time of each frame.
        title: The first line.
        subtitle: The lines below; the first says which model and weights.
        is_trained: Whether the weights are trained; if not, the picture says so in colour.
    """

    frames: np.ndarray
    maps: np.ndarray
    seconds: list[float]
    title: str
    subtitle: tuple[str, ...]
    is_trained: bool

    def thinned(self, count: int) -> PictureStrip:
        """At most `count` of the steps, evenly spread."""
        kept = evenly_spaced(len(self.seconds), count)
        seconds = [self.seconds[index] for index in kept]
        return replace(self, frames=self.frames[kept], maps=self.maps[kept], seconds=seconds)


def read_step_frames(
    video_path: str | Path,
    features: VideoFeatures,
    opened: OpenedModel,
    steps: Sequence[tuple[int, int]],
    *,
    backend: str | None = None,
) -> np.ndarray:
    """The first frame of each time step, as the model saw it. A few at a time are decoded, since they can be large.

    Args:
        video_path: The video that the features were computed from.
        features: Its features.
        opened: The model and its processor.
        steps: (clip, depth) of the token layers, as from `picture_steps`.
        backend: Video decoder.

    Returns:
        uint8 (num_steps, crop_height, crop_width, 3).

    Raises:
        VideoDecodingError: the video cannot be read.
    """
    tubelet = opened.model.config.tubelet_size
    indices = np.array([int(features.frame_indices[clip, depth * tubelet]) for clip, depth in steps])
    with open_frames(video_path, backend) as video:
        chunks = [
            frames_as_seen(video.read_frames(indices[first : first + FRAMES_AT_ONCE]), opened)
            for first in range(0, len(indices), FRAMES_AT_ONCE)
        ]
    return np.concatenate(chunks)


def make_strip(
    features: VideoFeatures,
    opened: OpenedModel,
    steps: Sequence[tuple[int, int]],
    frames: np.ndarray,
    pca: FeaturePCA,
    *,
    baseline: torch.Tensor | None = None,
    maps: torch.Tensor | ShiftedMaps | None = None,
) -> PictureStrip:
    """Frames and maps of some time steps.

    Args:
        features: Dense features.
        opened: The model that computed them.
        steps: (clip, depth) of the token layers, as from `picture_steps`.
        frames: The frame of each step, as from `read_step_frames`.
        pca: Fitted to these features, or to those of another video.
        baseline: (depth, height, width, hidden_size) to subtract, as when fitting.
        maps: The same features in finer cells; None shows the features themselves.

    Raises:
        ValueError: pooled features.
    """
    dense, tubelet = _require_dense(features), opened.model.config.tubelet_size
    maps = dense if maps is None else maps
    layers = [
        pca.transform(maps[clip][depth][None], baseline=None if baseline is None else baseline[depth])[0].numpy()
        for clip, depth in steps
    ]
    seconds = [float(features.timestamps[clip, depth * tubelet]) for clip, depth in steps]
    detail = layers[0].shape[0] // dense.shape[2]
    subtitle = (_model_sentence(opened), _map_sentence(features, pca, baseline, detail))
    return PictureStrip(frames, np.stack(layers), seconds, features.metadata["file"], subtitle, opened.is_trained)


def _model_sentence(opened: OpenedModel) -> str:
    return opened.weights if opened.name in opened.weights else f"{opened.name}, {opened.weights}"


def _map_sentence(features: VideoFeatures, pca: FeaturePCA, baseline: torch.Tensor | None, detail: int) -> str:
    depth, height, width = _require_dense(features).shape[1:4]
    share = 100 * float(pca.explained_variance_ratio.sum())
    tokens = f"{depth} x {height} x {width} tokens a clip"
    tokens += f", seen at {detail} x {detail} shifts" if detail > 1 else ""
    sentence = f"{tokens}; three components, {share:.0f} % of the variance"
    return sentence if baseline is None else sentence + "; position part subtracted"


INK, GREY, AMBER, PAPER = (28, 28, 30), (118, 118, 124), (190, 92, 0), (255, 255, 255)
MARGIN, GAP = 28, 8
TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 22, 15, 14
MIN_TEXT_WIDTH = 420


def draw_picture(strip: PictureStrip, *, cell: int = 224, interpolation: str = "nearest") -> Image.Image:
    """The still picture: a column for each time step, with the frame, its map and both on top of each other.

    Args:
        strip: What to draw.
        cell: Length in pixels of a frame's longer side, rounded to whole pixels per patch.
        interpolation: "nearest" or "bilinear".
    """
    width, height = cell_size(strip.maps.shape[1:3], cell)
    label_width, columns = LABEL_SIZE + GAP, len(strip.frames)
    canvas, top = _paper_with_header(
        strip, label_width + columns * (width + GAP) - GAP, 3 * (height + GAP) + LABEL_SIZE
    )
    for row, label in enumerate(("frame", "features", "overlay")):
        _draw_upright(canvas, label, x=MARGIN, centre_y=top + row * (height + GAP) + height // 2)
    for column in range(columns):
        x = MARGIN + label_width + column * (width + GAP)
        for row, picture in enumerate(_cells(strip, column, (width, height), interpolation)):
            canvas.paste(picture, (x, top + row * (height + GAP)))
        draw_time(canvas, strip.seconds[column], centre_x=x + width // 2, y=top + 3 * (height + GAP))
    return canvas


def draw_animation(strip: PictureStrip, *, cell: int = 224, interpolation: str = "nearest") -> list[Image.Image]:
    """The pictures of the animation: the frame beside its map, one for each time step.

    Args:
        strip: What to draw.
        cell: Length in pixels of a frame's longer side, rounded to whole pixels per patch.
        interpolation: "nearest" or "bilinear".
    """
    width, height = cell_size(strip.maps.shape[1:3], cell)
    paper, top = _paper_with_header(strip, 2 * width + GAP, height + GAP + LABEL_SIZE)
    images = []
    for step, seconds in enumerate(strip.seconds):
        image = paper.copy()
        frame, colours, _ = _cells(strip, step, (width, height), interpolation)
        image.paste(frame, (MARGIN, top))
        image.paste(colours, (MARGIN + width + GAP, top))
        draw_time(image, seconds, centre_x=MARGIN + width + GAP // 2, y=top + height + GAP)
        images.append(image)
    return images


def _paper_with_header(strip: PictureStrip, width: int, height: int) -> tuple[Image.Image, int]:
    model, *others = strip.subtitle
    parts: list[HeaderPart] = [(strip.title, TITLE_SIZE, INK), (model, TEXT_SIZE, GREY if strip.is_trained else AMBER)]
    parts += [(text, TEXT_SIZE, GREY) for text in others]
    return paper_with_header(parts, width, height)


def paper_with_header(parts: Sequence[HeaderPart], width: int, height: int) -> tuple[Image.Image, int]:
    """A canvas with room for a body of that size under a header.

    Args:
        parts: Text, size of its letters and colour of each paragraph of the header; long ones are wrapped.
        width: Of the body, in pixels; a narrow one gets the width that text needs.
        height: Of the body, in pixels.

    Returns:
        The canvas, with margins, and the y at which the body begins (its x is `MARGIN`).
    """
    width = max(width, MIN_TEXT_WIDTH)
    lines = [
        (line, size, colour) for text, size, colour in parts for line in _wrapped(text, picture_font(size), width)
    ]
    top = MARGIN + sum(size + GAP for _, size, _ in lines) + GAP
    canvas = Image.new("RGB", (width + 2 * MARGIN, top + height + MARGIN), PAPER)
    draw, y = ImageDraw.Draw(canvas), MARGIN
    for text, size, colour in lines:
        draw.text((MARGIN, y), text, font=picture_font(size), fill=colour)
        y += size + GAP
    return canvas, top


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines that fit the width: broken between words, and inside a word (a path, a checksum) that is too long."""
    lines = [""]
    for word in text.split():
        if font.getlength(f"{lines[-1]} {word}".strip()) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def cell_size(grid: tuple[int, ...], cell: int) -> tuple[int, int]:
    """Width and height in pixels of a drawn frame: near to `cell` on its longer side, whole pixels per patch.

    Args:
        grid: Patches of a frame, (rows, columns).
        cell: Wanted length of the longer side in pixels.
    """
    pixels_per_patch = max(1, round(cell / max(grid)))
    return grid[1] * pixels_per_patch, grid[0] * pixels_per_patch


def _cells(strip: PictureStrip, step: int, size: tuple[int, int], interpolation: str) -> list[Image.Image]:
    frame = Image.fromarray(strip.frames[step]).resize(size, Image.Resampling.BICUBIC)
    resampling = Image.Resampling.NEAREST if interpolation == "nearest" else Image.Resampling.BILINEAR
    colours = Image.fromarray(np.round(strip.maps[step] * 255).astype(np.uint8)).resize(size, resampling)
    return [frame, colours, Image.blend(frame, colours, 0.5)]


def picture_font(size: int) -> Font:
    """The font of all pictures, which comes with Pillow."""
    return ImageFont.load_default(size)


def draw_time(canvas: Image.Image, seconds: float, *, centre_x: int, y: int) -> None:
    """Write a time in the video, centred under a frame."""
    font, text = picture_font(LABEL_SIZE), f"{seconds:.2f} s"
    ImageDraw.Draw(canvas).text((centre_x - font.getlength(text) / 2, y), text, font=font, fill=GREY)


def _draw_upright(canvas: Image.Image, text: str, *, x: int, centre_y: int) -> None:
    font = picture_font(LABEL_SIZE)
    strip = Image.new("RGB", (int(font.getlength(text)) + 1, LABEL_SIZE + 4), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, font=font, fill=GREY)
    strip = strip.rotate(90, expand=True)
    canvas.paste(strip, (x, centre_y - strip.height // 2))


def draw_video_pictures(
    video_path: str | Path,
    features_path: str | Path,
    opened: OpenedModel,
    settings: PictureSettings,
    *,
    picture: bool = True,
    animation: bool = True,
    pca: FeaturePCA | None = None,
) -> list[Path]:
    """Draw the pictures of one video beside its features file: NAME.png and NAME.gif.

    Args:
        video_path: The video.
        features_path: Its features, with dense ones; the pictures are named after this file.
        opened: The model that computed them.
        settings: How they look.
        picture: Whether to draw the still picture.
        animation: Whether to draw the animation (a GIF, which opens everywhere).
        pca: Colours fitted to another video; None fits them to this one (at most `MAX_FITTED_CLIPS` of its clips).

    Returns:
        The files that were written.

    Raises:
        ValueError: pooled features, or a detail that the model's patches do not allow.
        FeatureExtractionError: a baseline that these clips do not allow.
        VideoDecodingError: the video cannot be read.
    """
    features, output = load_features(features_path), Path(features_path)
    metadata = _picture_metadata(features, settings)
    count = settings.max_animation_steps if animation else settings.columns
    strip = _video_strip(video_path, features, opened, settings, count, pca)
    is_finer = strip.maps.shape[1] > _require_dense(features).shape[2]
    automatic = "bilinear" if is_finer else "nearest"
    interpolation = automatic if settings.interpolation == "auto" else settings.interpolation
    written = []
    if picture:
        image = draw_picture(strip.thinned(settings.columns), cell=settings.cell, interpolation=interpolation)
        written.append(save_png(image, output.with_suffix(".png"), metadata))
    if animation:
        images = draw_animation(strip, cell=settings.cell, interpolation=interpolation)
        written.append(save_gif(images, strip.seconds, output.with_suffix(".gif"), metadata))
    return written


def _video_strip(
    video_path: str | Path,
    features: VideoFeatures,
    opened: OpenedModel,
    settings: PictureSettings,
    count: int,
    pca: FeaturePCA | None,
) -> PictureStrip:
    """`count` time steps of a video, evenly spread over it."""
    dense, detail = _require_dense(features), choose_detail(settings.detail, opened)
    steps = picture_steps(features.frame_indices, opened.model.config.tubelet_size)
    steps = [steps[index] for index in evenly_spaced(len(steps), count)]
    frames = read_step_frames(video_path, features, opened, steps, backend=settings.backend)
    every = math.ceil(len(dense) * detail**2 / MAX_FITTED_CLIPS)
    with open_frames(video_path, settings.backend) as video:
        maps = dense if detail == 1 else ShiftedMaps(video, features.frame_indices, opened, detail)
        fitted = maps[::every]
        baseline = position_baseline(replace(features, dense=fitted), opened, frames, settings.baseline)
        pca = pca or FeaturePCA.fit(fitted, baseline=baseline)
        return make_strip(features, opened, steps, frames, pca, baseline=baseline, maps=maps)


def update_video_pictures(
    video_path: str | Path,
    features_path: str | Path,
    opened: OpenedModel,
    settings: PictureSettings,
    *,
    picture: bool = True,
    animation: bool = True,
) -> list[Path]:
    """Draw those pictures of one video that are missing, or that were drawn from other features or in another way.

    Args:
        video_path: The video.
        features_path: Its features, with dense ones.
        opened: The model that computed them.
        settings: How they look.
        picture: Whether there has to be the still picture.
        animation: Whether there has to be the animation.

    Returns:
        The files that were written.

    Raises:
        ValueError, FeatureExtractionError, VideoDecodingError: as `draw_video_pictures`.
    """
    metadata = _picture_metadata(load_features(features_path), settings)
    picture = picture and not _is_drawn(Path(features_path).with_suffix(".png"), metadata)
    animation = animation and not _is_drawn(Path(features_path).with_suffix(".gif"), metadata)
    if not (picture or animation):
        return []
    return draw_video_pictures(video_path, features_path, opened, settings, picture=picture, animation=animation)


def _picture_metadata(features: VideoFeatures, settings: PictureSettings) -> dict[str, str]:
    """What a picture carries along: that of the features, and how it looks."""
    look = {name: value for name, value in asdict(settings).items() if name != "backend"}
    return {**features.metadata, "picture": json.dumps(look)}


def _is_drawn(path: Path, metadata: dict[str, str]) -> bool:
    """Whether a PNG or GIF is there and carries exactly this metadata."""
    try:
        with Image.open(path) as image:
            info = image.info
    except (FileNotFoundError, UnidentifiedImageError):
        return False
    if "comment" in info:
        return info["comment"] == _gif_comment(metadata)
    return {name: info.get(name) for name in metadata} == metadata


def _gif_comment(metadata: dict[str, str]) -> bytes:
    return json.dumps(metadata).encode()


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` places in a sequence, evenly spread, with the first and (from 2 on) the last among them."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


def save_png(image: Image.Image, path: Path, metadata: dict[str, str]) -> Path:
    """Write a PNG with the metadata as text chunks.

    Args:
        image: The picture.
        path: The file; replaced if it exists.
        metadata: Text to carry along.

    Returns:
        `path`.
    """
    chunks = PngImagePlugin.PngInfo()
    for name, text in metadata.items():
        chunks.add_itxt(name, text)
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
    return path


def save_gif(images: Sequence[Image.Image], seconds: Sequence[float], path: Path, metadata: dict[str, str]) -> Path:
    """Write an animation that plays at the speed of the video and loops.

    Args:
        images: One for each step, of equal size.
        seconds: Their times in the video.
        path: The file; replaced if it exists.
        metadata: Text to carry along, in the GIF's comment.

    Returns:
        `path`.
    """
    first, *others = (_with_palette(image) for image in images)
    with written_whole(path) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=step_durations(seconds),
            loop=0,
            comment=_gif_comment(metadata),
        )
    return path


def _with_palette(image: Image.Image) -> Image.Image:
    """256 colours. An octree palette with dithering looks as good as Pillow's default and is found 20 times faster."""
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def step_durations(seconds: Sequence[float]) -> list[int]:
    """Milliseconds to show each step: its time to the next one, in GIF's steps of 10 ms and without drift.

    Browsers slow down anything below 20 ms, and thinned-out steps of a long video would stand still: so from 20 to
    1000 ms. The last step is shown as long as the one before it.

    Args:
        seconds: Times in the video, ascending.
    """
    ticks = np.round(np.asarray(seconds, dtype=np.float64) * 100)
    gaps = np.diff(ticks) * 10
    gaps = np.append(gaps, gaps[-1] if len(gaps) else 1000)
    return [int(gap) for gap in gaps.clip(20, 1000)]
