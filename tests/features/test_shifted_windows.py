import numpy as np
import pytest
import torch
from torch import nn

from tests.features.test_pictures import PATCH, PatchBrightness, open_tiny
from vjepa_hub.features.extraction import clip_pixels, encode_clips
from vjepa_hub.features.shifted_windows import choose_num_shifts, encode_shifted
from vjepa_hub.hub.loading import OpenedModel
from vjepa_hub.model import VJEPAVideoProcessor

NUM_SHIFTS = [1, 2, 4, 8]


class PatchColour(PatchBrightness):
    """A model whose features are the mean colour of each patch."""

    def get_vision_features(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        colours = nn.functional.avg_pool3d(pixel_values_videos.transpose(1, 2), (2, PATCH, PATCH))  # (B, C, d, h, w)
        return colours.flatten(2).transpose(1, 2)


def open_colours(grid: tuple[int, int]) -> OpenedModel:
    """`PatchColour` on pixels from 0 to 1."""
    crop = {"height": grid[0] * PATCH, "width": grid[1] * PATCH}
    size = {"shortest_edge": min(crop.values())}
    processor = VJEPAVideoProcessor(crop_size=crop, size=size, do_normalize=False)
    return OpenedModel("colours", PatchColour(), processor, "none", True)


def encode(frames: np.ndarray, opened: OpenedModel, num_shifts: int) -> torch.Tensor:
    return encode_shifted(clip_pixels([frames], opened)[0], opened, num_shifts)


def noise(grid: tuple[int, int]) -> np.ndarray:
    shape = (8, grid[0] * PATCH, grid[1] * PATCH, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def ramps(grid: tuple[int, int]) -> np.ndarray:
    """Frames whose red is the column and whose green is the row of each pixel, and whose blue is the frame."""
    height, width = grid[0] * PATCH, grid[1] * PATCH
    frames = np.zeros((8, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.arange(width)
    frames[..., 1] = np.arange(height)[:, None]
    frames[..., 2] = np.arange(8)[:, None, None]
    return frames


@pytest.mark.parametrize("num_shifts", NUM_SHIFTS)
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)], ids=str)
def test_each_cell_has_the_value_at_its_own_centre(grid, num_shifts):
    colours = 255 * encode(ramps(grid), open_colours(grid), num_shifts)
    assert colours.shape == (4, grid[0] * num_shifts, grid[1] * num_shifts, 3)
    rows, columns = ((np.arange(count * num_shifts) + 0.5) * PATCH / num_shifts - 0.5 for count in grid)
    inside = slice(num_shifts // 2, -(num_shifts // 2) or None)  # where no patch leaves the frame
    for layer in colours[:, inside, inside].numpy():
        np.testing.assert_allclose(layer[..., 0], columns[inside] + 0 * layer[..., 0], atol=1e-3)
        np.testing.assert_allclose(layer[..., 1].T, rows[inside] + 0 * layer[..., 1].T, atol=1e-3)
    np.testing.assert_allclose(colours[:, 0, 0, 2], [0.5, 2.5, 4.5, 6.5], 1e-5)


def test_cells_at_the_border_see_its_pixels_repeated():
    frames = noise((2, 3))
    colours = encode(frames, open_colours((2, 3)), 4)
    repeated = np.pad(frames, [(0, 0), (6, 6), (6, 6), (0, 0)], mode="edge") / 255
    for row, column in [(0, 0), (0, 5), (7, 11), (3, 0)]:
        patch = repeated[:2, row * 4 : row * 4 + PATCH, column * 4 : column * 4 + PATCH]
        np.testing.assert_allclose(colours[0, row, column], patch.mean(axis=(0, 1, 2)), atol=1e-5)


def test_one_shift_gives_the_tokens_of_the_real_model():
    clip, opened = noise((3, 5)), open_tiny((3, 5))
    torch.testing.assert_close(encode(clip, opened, 1), encode_clips([clip], opened)[0])


def test_each_shift_of_the_real_model_gives_the_tokens_of_a_frame_that_was_moved():
    clip, opened = noise((4, 4)), open_tiny()
    fine = encode(clip, opened, 4)
    moved = np.pad(clip, [(0, 0), (6, 0), (0, 2), (0, 0)], mode="edge")[:, :64, 2:]  # 6 pixels down, 2 to the left
    torch.testing.assert_close(fine[:, 0::4, 2::4], encode_clips([moved], opened)[0])


@pytest.mark.parametrize(
    ("patch_size", "tokens", "expected"),
    [(16, 24, 1), (16, 14, 1), (16, 12, 1), (16, 8, 2), (16, 4, 4), (12, 4, 3), (16, 1, 8), (14, 9, 7), (2, 4, 1)],
)
def test_least_number_of_shifts_with_12_cells_on_the_shorter_side_is_chosen(patch_size, tokens, expected):
    assert choose_num_shifts((2 * tokens, tokens), patch_size) == expected
