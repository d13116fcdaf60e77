import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from vjepa_hub.data import augmentation
from vjepa_hub.data.augmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Crop,
    CropSpec,
    draw_crop,
    finish_clips,
    resize_cutouts,
)

SETTINGS = CropSpec()
SIZES = [(31, 47), (64, 64), (90, 33)]


def draw_many(settings: CropSpec, *, height: int, width: int, num_crops: int) -> list[Crop]:
    return [draw_crop(settings, height=height, width=width, seed=3, position=place) for place in range(num_crops)]


def box_of(crop: Crop) -> tuple[int, int, int, int]:
    return crop.top, crop.left, crop.height, crop.width


def make_cutouts(sizes=tuple(SIZES), num_frames=3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (num_frames, *size, 3), dtype=torch.uint8, generator=generator) for size in sizes]


def resize_exactly(cutout: torch.Tensor, crop_size: int) -> torch.Tensor:
    """Pixels from 0 to 255 in double precision, `(num_frames, 3, crop_size, crop_size)`."""
    pixels = cutout.permute(0, 3, 1, 2).double()
    return F.interpolate(pixels, size=(crop_size, crop_size), mode="bilinear", align_corners=False)


def finish_exactly(cutout: torch.Tensor, is_flipped: bool, crop_size: int) -> torch.Tensor:
    """The released steps, one after the other, in double precision."""
    pixels = resize_exactly(cutout, crop_size)
    pixels = pixels.flip(-1) if is_flipped else pixels
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / 255 - mean) / std


def test_boxes_are_drawn_as_torchvision_draws_them():
    height, width, num_crops = 272, 640, 4000
    ours = np.array([box_of(crop) for crop in draw_many(SETTINGS, height=height, width=width, num_crops=num_crops)])
    torch.manual_seed(0)
    frame = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(frame, list(SETTINGS.scale), list(SETTINGS.ratio)) for _ in range(num_crops)]
    )
    for number in range(4):
        error = math.hypot(ours[:, number].std(), theirs[:, number].std()) / math.sqrt(num_crops)
        assert abs(ours[:, number].mean() - theirs[:, number].mean()) < 4 * error, number
        assert ours[:, number].std() == pytest.approx(theirs[:, number].std(), rel=0.06)
    assert ours[:, :2].min() == 0
    assert (ours[:, 0] + ours[:, 2]).max() == height
    assert (ours[:, 1] + ours[:, 3]).max() == width


def test_area_is_uniform_and_ratio_log_uniform_where_every_size_fits():
    settings = CropSpec(scale=(0.1, 0.3), ratio=(0.5, 2.0))
    boxes = np.array([box_of(crop) for crop in draw_many(settings, height=1000, width=1000, num_crops=4000)])
    areas, ratios = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    for drawn in ((areas - 0.1) / 0.2, np.log2(ratios) / 2 + 0.5):
        counts = np.histogram(drawn, bins=10, range=(0, 1))[0]
        assert abs(counts - 400).max() < 4 * math.sqrt(400 * 0.9)
    assert abs(np.corrcoef(areas, ratios)[0, 1]) < 0.07


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (37, 1000)])
def test_every_box_lies_within_the_frame(size):
    height, width = size
    for crop in draw_many(SETTINGS, height=height, width=width, num_crops=200):
        assert 0 <= crop.top < crop.top + crop.height <= height
        assert 0 <= crop.left < crop.left + crop.width <= width


@pytest.mark.parametrize(
    ("height", "width", "ratio", "box"),
    [
        (100, 301, (1.0, 1.0), (0, 100, 100, 100)),
        (301, 100, (1.0, 1.0), (100, 0, 100, 100)),
        (100, 301, (0.5, 2.0), (0, 50, 100, 200)),
        (301, 100, (0.5, 2.0), (50, 0, 200, 100)),
    ],
)
def test_the_largest_box_in_the_middle_is_taken_where_no_draw_fits(height, width, ratio, box):
    settings = CropSpec(scale=(1.0, 1.0), ratio=ratio)
    assert {box_of(crop) for crop in draw_many(settings, height=height, width=width, num_crops=20)} == {box}


def test_a_frame_with_an_allowed_shape_is_taken_whole_where_no_draw_fits():
    settings = CropSpec(scale=(1.0, 1.0), ratio=(0.5, 1.5))
    boxes = [box_of(crop) for crop in draw_many(settings, height=100, width=150, num_crops=50)]
    assert boxes.count((0, 0, 100, 150)) > 40


def test_a_draw_depends_on_seed_and_position_alone():
    here = draw_crop(SETTINGS, height=200, width=300, seed=1, position=7)
    draw_many(SETTINGS, height=90, width=80, num_crops=3)
    assert draw_crop(SETTINGS, height=200, width=300, seed=1, position=7) == here
    others = [
        draw_crop(SETTINGS, height=200, width=300, seed=seed, position=place) for seed, place in [(1, 8), (2, 7)]
    ]
    assert all(box_of(other) != box_of(here) for other in others)


def test_flips_are_drawn_apart_from_the_boxes():
    never, always = (CropSpec(flip_probability=probability) for probability in (0.0, 1.0))
    for settings, is_flipped in ((never, False), (always, True)):
        crops = draw_many(settings, height=200, width=300, num_crops=300)
        assert all(crop.is_flipped is is_flipped for crop in crops)
        assert [box_of(crop) for crop in crops] == [
            box_of(crop) for crop in draw_many(SETTINGS, height=200, width=300, num_crops=300)
        ]
    flips = np.array([crop.is_flipped for crop in draw_many(SETTINGS, height=200, width=300, num_crops=2000)])
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)
    assert abs(np.corrcoef(flips[1:], flips[:-1])[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale.0 is 0.0"),
        ({"scale": (0.5, 1.1)}, "scale.1 is 1.1"),
        ({"scale": (0.9, 0.5)}, r"scale is \[0.9, 0.5\].*smaller number first"),
        ({"ratio": (-1.0, 1.0)}, "ratio.0 is -1.0"),
        ({"ratio": (1.0, math.inf)}, "ratio.1 is inf"),
        ({"ratio": (1.0,)}, "ratio is .*more values"),
        ({"flip_probability": 1.5}, r"flip_probability is 1.5"),
        ({"flip_probability": math.nan}, r"flip_probability is nan"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CropSpec(**changes)


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_impossible_frame_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"(height|width) is .* at least 1"):
        draw_crop(SETTINGS, height=size[0], width=size[1], seed=0, position=0)


def test_crop_gives_the_rows_and_columns_of_its_box():
    frames = np.arange(60).reshape(1, 6, 10, 1)
    crop = Crop(top=1, left=2, height=3, width=4, is_flipped=False)
    assert frames[:, crop.rows, crop.columns].shape == (1, 3, 4, 1)
    assert frames[0, crop.rows, crop.columns][0, 0] == 12


def test_normalisation_constants_are_those_of_transformers():
    assert list(IMAGENET_MEAN) == IMAGENET_DEFAULT_MEAN
    assert list(IMAGENET_STD) == IMAGENET_DEFAULT_STD


@pytest.mark.parametrize("crop_size", [24, 56, 64, 100])
def test_cutouts_are_finished_as_the_release_does_it(crop_size):
    cutouts, is_flipped = make_cutouts(), torch.tensor([True, False, True])
    before = [cutout.clone() for cutout in cutouts]
    finished = finish_clips(cutouts, is_flipped, crop_size=crop_size)
    assert finished.shape == (3, 3, 3, crop_size, crop_size)
    assert finished.dtype == torch.float32
    assert finished.is_contiguous()
    for clip, cutout, flip in zip(finished, cutouts, is_flipped.tolist(), strict=True):
        expected = finish_exactly(cutout, flip, crop_size)
        # 1e-5 of the range from 0 to 1, divided by std
        torch.testing.assert_close(clip.double(), expected, rtol=0, atol=1e-5 / min(IMAGENET_STD))
    assert all(torch.equal(cutout, kept) for cutout, kept in zip(cutouts, before, strict=True))


def test_resized_clips_are_finished_without_a_further_change_of_their_pixels():
    clips, is_flipped = resize_cutouts(make_cutouts(), 32), torch.tensor([False, True, False])
    before = clips.clone()
    finished = finish_clips(clips, is_flipped, crop_size=32, mean=(0.0, 0.5, 0.25), std=(1.0, 0.5, 0.25))
    expected = torch.where(is_flipped.view(3, 1, 1, 1, 1), clips.flip(-1), clips).double() / 255
    expected = (expected - torch.tensor([0.0, 0.5, 0.25]).view(3, 1, 1)) / torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1)
    torch.testing.assert_close(finished.double(), expected, rtol=0, atol=1e-6)
    assert finished.is_contiguous()
    assert torch.equal(clips, before)


@pytest.mark.parametrize("crop_size", [24, 57, 90])
def test_resizing_in_the_worker_is_within_one_grey_level_and_never_darkens_or_brightens(crop_size):
    cutouts = make_cutouts(num_frames=8)
    resized = resize_cutouts(cutouts, crop_size)
    assert resized.dtype == torch.uint8
    assert resized.shape == (3, 8, 3, crop_size, crop_size)
    for clip, cutout in zip(resized, cutouts, strict=True):
        exact = resize_exactly(cutout, crop_size)
        assert (clip.double() - exact.round()).abs().max() <= 1
        assert (clip.double() - exact).mean().abs() < 0.25


def test_a_cutout_of_the_crop_size_is_kept_to_the_bit():
    cutouts = make_cutouts([(40, 40), (40, 40)])
    resized = resize_cutouts(cutouts, 40)
    assert torch.equal(resized.movedim(2, -1), torch.stack(cutouts))
    is_flipped = torch.tensor([True, False])
    from_list = finish_clips(cutouts, is_flipped, crop_size=40)
    assert torch.equal(from_list, finish_clips(resized, is_flipped, crop_size=40))


def test_views_into_larger_frames_are_resized_as_copies_are():
    frames = make_cutouts([(60, 80)])[0]
    view = frames[:, 5:45, 10:70]
    assert torch.equal(resize_cutouts([view], 32), resize_cutouts([view.contiguous()], 32))
    is_flipped = torch.tensor([True])
    assert torch.equal(
        finish_clips([view], is_flipped, crop_size=32), finish_clips([view.contiguous()], is_flipped, crop_size=32)
    )


def test_clips_mirrored_together_equal_clips_mirrored_one_by_one():
    clips, is_flipped = resize_cutouts(make_cutouts(), 16), torch.tensor([True, False, True])
    together = augmentation._mirror(clips, is_flipped)
    for number in range(3):
        alone = augmentation._mirror(clips[number : number + 1], is_flipped[number : number + 1])
        assert torch.equal(together[number], alone[0])


@pytest.mark.gpu
def test_the_accelerator_finishes_as_the_cpu_does_and_the_host_never_waits():
    cutouts, is_flipped = make_cutouts(), torch.tensor([True, False, True])
    clips = resize_cutouts(cutouts, 48)
    on_device = [cutout.cuda() for cutout in cutouts], clips.cuda(), is_flipped.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        finished = [finish_clips(pixels, on_device[2], crop_size=48) for pixels in on_device[:2]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, pixels in zip(finished, (cutouts, clips), strict=True):
        torch.testing.assert_close(ours.cpu(), finish_clips(pixels, is_flipped, crop_size=48), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("cutouts", "message"),
    [
        ([], "no cut-outs"),
        ([torch.zeros(2, 8, 8, 3)], "float32"),
        ([torch.zeros(8, 8, 3, dtype=torch.uint8)], r"shape \(8, 8, 3\)"),
        ([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], r"shape \(2, 3, 8, 8\)"),
        ([torch.zeros(2, 0, 8, 3, dtype=torch.uint8)], r"shape \(2, 0, 8, 3\)"),
        ([torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(3, 8, 8, 3, dtype=torch.uint8)], "has 3 frames"),
    ],
)
def test_cutouts_of_another_form_are_refused(cutouts, message):
    with pytest.raises(ValueError, match=message):
        resize_cutouts(cutouts, 16)
    with pytest.raises(ValueError, match=message):
        finish_clips(cutouts, torch.zeros(len(cutouts), dtype=torch.bool), crop_size=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values_videos": torch.zeros(2, 4, 3, 16, 16)}, "float32"),
        ({"pixel_values_videos": torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8)}, r"\(2, 4, 3, 32, 32\)"),
        ({"pixel_values_videos": torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8)}, r"\(2, 3, 4, 16, 16\)"),
        ({"is_flipped": torch.zeros(3, dtype=torch.bool)}, "each of the 2 clips"),
        ({"is_flipped": torch.zeros(2)}, "float32"),
        ({"is_flipped": torch.zeros(2, dtype=torch.bool, device="meta")}, "meta"),
        ({"mean": (0.5, 0.5)}, r"mean is \(0.5, 0.5\)"),
        ({"mean": (0.5, 0.5, math.nan)}, "nan"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0.5, 0.0, 0.5\)"),
        ({"crop_size": 0}, "crop_size is 0"),
    ],
)
def test_batches_of_another_form_are_refused(changes, message):
    arguments = {
        "pixel_values_videos": torch.zeros(2, 4, 3, 16, 16, dtype=torch.uint8),
        "is_flipped": torch.zeros(2, dtype=torch.bool),
        "crop_size": 16,
    }
    with pytest.raises(ValueError, match=message):
        finish_clips(**(arguments | changes))
