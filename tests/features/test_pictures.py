from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vjepa_hub.features import pictures
from vjepa_hub.features.extraction import (
    ExtractionSettings,
    VideoFeatures,
    clip_pixels,
    extract_features_to_file,
    load_features,
    save_features,
)
from vjepa_hub.features.pictures import distinct_layers, draw_video_picture, position_features
from vjepa_hub.features.shifted_windows import encode_shifted
from vjepa_hub.hub.loading import OpenedModel
from vjepa_hub.model import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.viz.feature_maps import FeatureColours

# Clips of flat colours and of other sizes, which the model warns of
pytestmark = pytest.mark.filterwarnings("ignore:pixel_values_videos has values", "ignore:a clip of")

PATCH = 16
LEVEL = 128


def write_video(path: Path, frames: np.ndarray, fps: int = 10) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def moving_square(grid: tuple[int, int], num_frames: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Black frames in which one white patch visits all rows and columns, and the cell that it fills in each frame."""
    frames = np.zeros((num_frames, grid[0] * PATCH, grid[1] * PATCH, 3), dtype=np.uint8)
    cells = [((step // 2) % grid[0], (step // 2 * 2 + 1) % grid[1]) for step in range(num_frames)]
    for frame, (row, column) in zip(frames, cells, strict=True):
        frame[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 255
    return frames, cells


def open_tiny(grid: tuple[int, int] = (4, 4), *, is_trained: bool = False) -> OpenedModel:
    """The real model, untrained, which sees `grid` patches of the short side of a frame of that very size."""
    torch.manual_seed(0)
    config = VJEPAConfig(
        crop_size=4 * PATCH,
        frames_per_clip=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        pred_hidden_size=12,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
    )
    crop = {"height": grid[0] * PATCH, "width": grid[1] * PATCH}
    processor = VJEPAVideoProcessor(crop_size=crop, size={"shortest_edge": min(crop.values())})
    weights = "released weights" if is_trained else "untrained, seed 0"
    return OpenedModel("tiny", VJEPAModel(config).eval(), processor, weights, is_trained)


class PatchBrightness(nn.Module):
    """A model whose one feature is the mean of each patch, computed by pooling and not by the patch embedding."""

    SAME: ClassVar[dict] = {"num_attention_heads": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-6}

    def __init__(self):
        super().__init__()
        plain = {"image_tokenizer": False, "has_rotary_positions": False, "feature_levels": None, "hidden_size": 1}
        self.config = SimpleNamespace(patch_size=PATCH, tubelet_size=2, frames_per_clip=8, **plain, **self.SAME)
        self.unused = nn.Parameter(torch.zeros(1))

    def get_vision_features(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        brightness = pixel_values_videos.mean(2)  # (B, T, H, W)
        return nn.functional.avg_pool3d(brightness, (2, PATCH, PATCH)).flatten(1)[..., None]


def brightest(values: np.ndarray) -> tuple[int, int]:
    return tuple(int(index) for index in np.unravel_index(values.argmax(), values.shape))


def most_unlike_the_ground(colours: np.ndarray) -> tuple[int, int]:
    """The place that differs most from the median colour: the sign of a component, and so its colour, is arbitrary."""
    colours = colours.astype(np.float64)
    return brightest(np.abs(colours - np.median(colours, axis=(0, 1))).sum(-1))


GRIDS = [(4, 4), (3, 5), (6, 2)]


@pytest.fixture(params=GRIDS, ids=str)
def square(request, tmp_path):
    frames, cells = moving_square(request.param, 24)
    return request.param, write_video(tmp_path / "square.mp4", frames), cells


def shown_moments(monkeypatch, video: Path, opened: OpenedModel, stride: int = 8) -> SimpleNamespace:
    """Frames, colours, seconds and texts that a video's picture is drawn from."""
    found, draw = SimpleNamespace(), pictures.draw_feature_maps

    def keep(frames, colours, seconds, **texts):
        found.__dict__.update(frames=frames, colours=colours, seconds=seconds, **texts)
        return draw(frames, colours, seconds, **texts)

    monkeypatch.setattr(pictures, "draw_feature_maps", keep)
    output = video.with_suffix(".safetensors")
    extract_features_to_file(video, output, opened, ExtractionSettings(window=8, stride=stride))
    draw_video_picture(video, output, opened)
    return found


@pytest.mark.parametrize("stride", [8, 6])
def test_map_of_the_real_model_follows_a_moving_square_on_any_grid(monkeypatch, square, stride):
    grid, video, cells = square
    shown = shown_moments(monkeypatch, video, open_tiny(grid), stride)
    num_shifts = shown.colours.shape[1] // grid[0]
    assert shown.colours.shape[2] == grid[1] * num_shifts
    assert shown.is_smooth == (num_shifts > 1)
    for frame, colours, seconds in zip(shown.frames, shown.colours, shown.seconds, strict=True):
        cell = cells[round(seconds * 10)]
        assert brightest(frame[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].sum(-1)) == cell
        row, column = most_unlike_the_ground(colours)
        assert max(abs((row + 0.5) / num_shifts - cell[0] - 0.5), abs((column + 0.5) / num_shifts - cell[1] - 0.5)) < 1


def test_finer_map_has_the_moving_square_where_it_is_and_says_so(monkeypatch, tmp_path):
    frames, cells = moving_square((4, 4), 24)
    video = write_video(tmp_path / "square.mp4", frames)
    opened = OpenedModel("brightness", PatchBrightness(), open_tiny().processor, "none", True)
    shown = shown_moments(monkeypatch, video, opened)
    assert shown.colours.shape == (6, 16, 16, 3)
    assert "4 x 4 x 4 tokens a clip, seen at 4 x 4 shifts" in shown.tokens
    for colours, seconds in zip(shown.colours[..., 0], shown.seconds, strict=True):
        bright = np.argwhere(colours >= np.sort(colours, axis=None)[-4])  # the four cells in the middle of the square
        row, column = cells[round(seconds * 10)]
        assert np.abs(bright.mean(0) - (4 * row + 1.5, 4 * column + 1.5)).max() <= 1


def test_model_with_enough_tokens_is_not_run_again(monkeypatch, tmp_path):
    video = write_video(tmp_path / "square.mp4", moving_square((12, 12), 8)[0])
    opened = open_tiny((12, 12), is_trained=True)
    monkeypatch.setattr(pictures, "encode_shifted", None)
    shown = shown_moments(monkeypatch, video, opened)
    dense = load_features(video.with_suffix(".safetensors")).dense
    np.testing.assert_array_equal(shown.colours, FeatureColours.fit(dense)(dense[0]))
    assert not shown.is_smooth
    assert "shifts" not in shown.tokens


@pytest.mark.parametrize("num_shifts", [1, 4])
def test_map_of_an_untrained_model_never_shows_the_position_table(num_shifts):
    clip, opened = np.full((8, 64, 64, 3), LEVEL, dtype=np.uint8), open_tiny()
    features = encode_shifted(clip_pixels([clip], opened)[0], opened, num_shifts)[None]
    assert FeatureColours.fit(features)(features).std(axis=(0, 1, 2, 3)).min() > 0.1
    position = position_features(clip[:1], 8, opened)
    finer = position.repeat_interleave(num_shifts, 1).repeat_interleave(num_shifts, 2)
    assert (FeatureColours.fit(features, finer)(features - finer) == 0.5).all()


def test_only_features_of_an_untrained_model_are_changed(monkeypatch, tmp_path):
    video = write_video(tmp_path / "square.mp4", moving_square((4, 4), 9)[0])
    for is_trained in (False, True):
        shown = shown_moments(monkeypatch, video, open_tiny(is_trained=is_trained))
        assert shown.is_trained == is_trained
        assert ("position part subtracted" in shown.tokens) != is_trained


def test_frame_in_the_picture_is_the_crop_that_the_model_saw(monkeypatch, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "noise.safetensors"
    extract_features_to_file(tmp_path / "noise.png", output, open_tiny(), ExtractionSettings())
    monkeypatch.setattr(pictures, "draw_feature_maps", lambda frames, *rest, **texts: seen.append(frames))
    monkeypatch.setattr(pictures, "write_png", lambda figure, path, metadata: path)
    seen = []
    draw_video_picture(tmp_path / "noise.png", output, open_tiny())
    np.testing.assert_allclose(seen[0][0].astype(int), noise[:, 18:82].astype(int), atol=1)


def test_layers_show_each_moment_once_in_the_order_of_time():
    frames = torch.tensor([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [8, 8, 8, 8, 8, 8]])
    assert distinct_layers(frames, 2) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 0)]


def test_picture_carries_the_facts_of_its_features_and_is_drawn_once(tmp_path):
    video, opened = write_video(tmp_path / "square.mp4", moving_square((3, 5), 24)[0]), open_tiny((3, 5))
    output = tmp_path / "square.safetensors"
    extract_features_to_file(video, output, opened, ExtractionSettings(window=8))
    assert draw_video_picture(video, output, opened) == [tmp_path / "square.png"]
    with Image.open(tmp_path / "square.png") as picture:
        assert picture.text == load_features(output).metadata
        assert picture.text["weights"] == "untrained, seed 0"
    assert draw_video_picture(video, output, opened) == []
    (tmp_path / "square.png").write_bytes(b"no picture")
    assert len(draw_video_picture(video, output, opened)) == 1
    extract_features_to_file(video, output, opened, ExtractionSettings(window=10))
    assert len(draw_video_picture(video, output, opened)) == 1


def test_pooled_features_are_refused_with_the_remedy(tmp_path):
    features = VideoFeatures(
        torch.zeros(1, 3), None, torch.zeros(1, 2), torch.zeros(1, 2), {"format": "vjepa_hub.features/1"}
    )
    save_features(features, tmp_path / "pooled.safetensors")
    with pytest.raises(ValueError, match="dense=True"):
        draw_video_picture("none.mp4", tmp_path / "pooled.safetensors", open_tiny())
