"""Augmentation of a training clip: random resized crop, horizontal flip, normalisation; the same for all its frames.

The crop of a clip, `draw_crop`, is a function of the seed and of its position in the run, so it depends neither on
workers nor on processes nor on a resume. The pixels are treated in two steps, apart on purpose: a worker only cuts the
box out of the decoded frames (and may resize it, `resize_cutouts`); `finish_clips` resizes what is not, flips and
normalises a whole batch, on the device where it lies. So no float pixels travel between processes.

Shapes: B clips, T frames, h x w pixels of a cut-out, S pixels of the crop's side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..core.settings import require_at_least
from .crop_spec import CropSpec
from .random_streams import Stream, draw_uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_DRAWS = 10  # of a size, until one fits into the frame; as torchvision


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A box of a frame, in pixels, and its horizontal flip."""

    top: int
    left: int
    height: int
    width: int
    is_flipped: bool

    @property
    def rows(self) -> slice:
        """The rows of the box."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """The columns of the box."""
        return slice(self.left, self.left + self.width)


def draw_crop(settings: CropSpec, *, height: int, width: int, seed: int, position: int) -> Crop:
    """Draws the box and the flip of one clip.

    The area is uniform in `scale`, the width by height log-uniform in `ratio`, the place uniform over all places. A
    size that does not fit into the frame is sampled again; after ten of them the box lies in the middle, and is
    the largest one whose width by height is in `ratio`. This is the released code's way to draw, and torchvision's.

    Args:
        settings: Random-resized-crop parameters.
        height: Pixels of the frames.
        width: Pixels of the frames.
        seed: Seed of the run.
        position: The clip's place in the global order of the run, from 0.

    Raises:
        ValueError: If the height or the width is not a positive integer.
    """
    require_at_least(1, height=height, width=width)
    num_draws = 2 + 2 * MAX_DRAWS
    vertical, horizontal, *sizes = draw_uniform(seed, [position], stream=Stream.CROP, num_draws=num_draws)[0].tolist()
    is_flipped = draw_uniform(seed, [position], stream=Stream.FLIP, num_draws=1).item() < settings.flip_probability
    drawn = _draw_size(settings, height, width, sizes)
    if drawn is None:
        box_height, box_width = _central_size(settings.ratio, height, width)
        top, left = (height - box_height) // 2, (width - box_width) // 2
    else:
        box_height, box_width = drawn
        top, left = int(vertical * (height - box_height + 1)), int(horizontal * (width - box_width + 1))
    return Crop(top=top, left=left, height=box_height, width=box_width, is_flipped=is_flipped)


def _draw_size(settings: CropSpec, height: int, width: int, draws: list[float]) -> tuple[int, int] | None:
    """Height and width of the first size that fits, from pairs of uniform draws; None if none does."""
    (smallest, largest), (narrowest, widest) = settings.scale, settings.ratio
    for area_draw, ratio_draw in zip(draws[::2], draws[1::2], strict=True):
        area = height * width * (smallest + area_draw * (largest - smallest))
        ratio = narrowest * (widest / narrowest) ** ratio_draw
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            return box_height, box_width
    return None


def _central_size(ratio: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    if width < ratio[0] * height:
        return max(round(width / ratio[0]), 1), width
    if width > ratio[1] * height:
        return height, max(round(height * ratio[1]), 1)
    return height, width


def resize_cutouts(cutouts: Sequence[torch.Tensor], crop_size: int) -> torch.Tensor:
    """Resizes cut-outs of any sizes in a data loading worker, so that they make one small tensor.

    Bilinear without antialiasing, as in the released code, but by torch's kernel for uint8 channels-last pixels: 1.4
    to 2 ms for 16 frames of 200 x 200 on one core, where the same resize in float32 takes 5 to 9 ms, and a gather of
    the neighbours or a product with the matrix of weights longer still. It rounds after each of its two passes: the
    result is the rounded exact one, or a grey level beside it (0.31 grey levels from the exact value on average, of
    which 0.25 are the price of any uint8).

    Args:
        cutouts: One uint8 tensor `(num_frames, height, width, 3)` for each clip, on the CPU.
        crop_size: Pixels of the result's sides.

    Returns:
        uint8 `(batch_size, num_frames, 3, crop_size, crop_size)`, the channels last in memory.

    Raises:
        ValueError: If there is no cut-out, if they are not such tensors, if they differ in their number of frames, or
            if `crop_size` is not a positive integer.
    """
    require_at_least(1, crop_size=crop_size)
    _require_cutouts(cutouts)
    shape = (len(cutouts), len(cutouts[0]), crop_size, crop_size, 3)
    resized = torch.empty(shape, dtype=torch.uint8, device=cutouts[0].device)
    for slot, cutout in zip(resized, cutouts, strict=True):
        slot.copy_(_resize(cutout.contiguous().movedim(-1, 1), crop_size).movedim(1, -1))
    return resized.movedim(-1, 2)


def finish_clips(
    pixel_values_videos: torch.Tensor | Sequence[torch.Tensor],
    is_flipped: torch.Tensor,
    *,
    crop_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """Makes the encoder's input of a batch, on the device where the batch lies: resize, flip, normalisation.

    Cut-outs are resized without rounding: bilinear without antialiasing on float pixels, as in the released code. The
    host never waits for the device.

    Args:
        pixel_values_videos: uint8 clips `(batch_size, num_frames, 3, crop_size, crop_size)` that a worker has resized
            (`resize_cutouts`), or for each clip its uint8 cut-out `(num_frames, height, width, 3)`, of any sizes.
        is_flipped: Clips that are flipped, bool `(batch_size,)`, on the device of the clips.
        crop_size: Pixels of the result's sides.
        mean: Of each channel, for pixels from 0 to 1.
        std: Of each channel, for pixels from 0 to 1.

    Returns:
        float32 `(batch_size, num_frames, 3, crop_size, crop_size)`, contiguous.

    Raises:
        ValueError: If the clips or the flips have another shape or dtype, if the clips have another size than
            `crop_size`, or if mean and std are not three numbers each, those of std positive.
    """
    require_at_least(1, crop_size=crop_size)
    groups = _groups_of_clips(pixel_values_videos, crop_size)
    num_clips, device = len(pixel_values_videos), pixel_values_videos[0].device
    _require_flips(is_flipped, num_clips, device)
    scale, offset = _normalisation(mean, std, device)
    shape = (num_clips, len(pixel_values_videos[0]), 3, crop_size, crop_size)
    finished = torch.empty(shape, dtype=torch.float32, device=device)
    group_size = len(groups[0])
    for clips, flips, slot in zip(groups, is_flipped.split(group_size), finished.split(group_size), strict=True):
        pixels = _mirror(clips, flips).flatten(0, 1)
        if pixels.shape[-2:] != (crop_size, crop_size):
            pixels = _resize(pixels.float(), crop_size)
        # Two steps in place: addcmul would be one, but its broadcast operands make it four times slower on a CPU.
        slot.flatten(0, 1).copy_(pixels).mul_(scale).add_(offset)
    return finished


def _groups_of_clips(clips: torch.Tensor | Sequence[torch.Tensor], crop_size: int) -> Sequence[torch.Tensor]:
    """Parts `(b, num_frames, 3, height, width)` of the batch that are finished at once.

    An accelerator takes stacked clips whole; on a CPU one clip at a time stays in the cache.
    """
    if not isinstance(clips, torch.Tensor):
        _require_cutouts(clips)
        return [clip.movedim(-1, 1)[None] for clip in clips]
    expected = (3, crop_size, crop_size)
    if clips.ndim != 5 or clips.dtype != torch.uint8 or clips.shape[2:] != expected or 0 in clips.shape:
        raise ValueError(
            f"pixel_values_videos is {clips.dtype} of shape {tuple(clips.shape)}, but stacked clips must be uint8 of "
            f"shape (batch_size, num_frames, 3, {crop_size}, {crop_size}); resize the cut-outs to the model's "
            "crop_size, or pass them as a list"
        )
    return clips.split(1 if clips.device.type == "cpu" else len(clips))


def _mirror(clips: torch.Tensor, is_flipped: torch.Tensor) -> torch.Tensor:
    if is_flipped.device.type == "cpu" and len(clips) == 1:  # to look at the flag costs nothing here
        return clips.flip(-1) if is_flipped.item() else clips
    return torch.where(is_flipped.view(-1, 1, 1, 1, 1), clips.flip(-1), clips)


def _resize(pixels: torch.Tensor, crop_size: int) -> torch.Tensor:
    return F.interpolate(pixels, size=(crop_size, crop_size), mode="bilinear", align_corners=False, antialias=False)


def _normalisation(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset, `(3, 1, 1)` float32 each: `pixel * scale + offset` is `(pixel / 255 - mean) / std`."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name} is {tuple(values)}, but must be three finite numbers, one for each channel")
    if min(std) <= 0:
        raise ValueError(f"std is {tuple(std)}, but must be positive; for pixels from 0 to 1 that is about 0.2")
    scale = torch.tensor([1 / (255 * value) for value in std], dtype=torch.float32)
    offset = torch.tensor([-middle / value for middle, value in zip(mean, std, strict=True)], dtype=torch.float32)
    return scale.view(3, 1, 1).to(device, non_blocking=True), offset.view(3, 1, 1).to(device, non_blocking=True)


def _require_cutouts(cutouts: Sequence[torch.Tensor]) -> None:
    if len(cutouts) == 0:
        raise ValueError("there are no cut-outs, but a batch has at least one clip")
    for number, cutout in enumerate(cutouts):
        if cutout.ndim != 4 or cutout.shape[-1] != 3 or cutout.dtype != torch.uint8 or cutout.numel() == 0:
            raise ValueError(
                f"cut-out {number} is {cutout.dtype} of shape {tuple(cutout.shape)}, but must be uint8 of shape "
                "(num_frames, height, width, 3), as VideoClipDataset returns its frames"
            )
        if len(cutout) != len(cutouts[0]):
            raise ValueError(
                f"cut-out {number} has {len(cutout)} frames and cut-out 0 has {len(cutouts[0])}, but all clips of a "
                "batch need the same number; take them from one frames_per_clip"
            )


def _require_flips(is_flipped: torch.Tensor, num_clips: int, device: torch.device) -> None:
    if is_flipped.dtype != torch.bool or is_flipped.shape != (num_clips,):
        raise ValueError(
            f"is_flipped is {is_flipped.dtype} of shape {tuple(is_flipped.shape)}, but must be bool with one entry "
            f"for each of the {num_clips} clips"
        )
    if is_flipped.device != device:
        raise ValueError(
            f"is_flipped is on {is_flipped.device} and the clips on {device}; move the whole batch to one device"
        )
