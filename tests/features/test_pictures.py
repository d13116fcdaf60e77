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
    FeatureExtractionError,
    VideoFeatures,
    extract_features,
    extract_features_to_file,
    save_features,
)
from vjepa_hub.features.pictures import (
    AMBER,
    MARGIN,
    FeaturePCA,
    PictureSettings,
    PictureStrip,
    draw_animation,
    draw_picture,
    draw_video_pictures,
    evenly_spaced,
    frames_as_seen,
    make_strip,
    picture_steps,
    position_baseline,
    read_step_frames,
    step_durations,
)
from vjepa_hub.features.shifted_windows import encode_shifted
from vjepa_hub.hub.loading import OpenedModel
from vjepa_hub.model import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor

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
        self.config = SimpleNamespace(patch_size=PATCH, tubelet_size=2, frames_per_clip=8, hidden_size=1, **self.SAME)
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


def strip_of(video: Path, opened: OpenedModel, stride: int = 8) -> tuple[VideoFeatures, PictureStrip]:
    features = extract_features(video, opened, ExtractionSettings(window=8, stride=stride))
    steps = picture_steps(features.frame_indices, opened.model.config.tubelet_size)
    frames = read_step_frames(video, features, opened, steps)
    baseline = position_baseline(features, opened, frames)
    pca = FeaturePCA.fit(features.dense, baseline=baseline)
    return features, make_strip(features, opened, steps, frames, pca, baseline=baseline)


@pytest.mark.parametrize("stride", [8, 6])
def test_map_of_the_real_model_follows_a_moving_square_on_any_grid(square, stride):
    grid, video, cells = square
    _, strip = strip_of(video, open_tiny(grid), stride)
    shown = [cells[round(seconds * 10)] for seconds in strip.seconds]
    assert strip.maps.shape[1:3] == grid
    assert [most_unlike_the_ground(colours) for colours in strip.maps] == shown
    assert {row for row, _ in shown} == set(range(grid[0]))


def test_dense_grid_holds_the_brightness_of_the_patch_at_its_place_and_time(square):
    grid, video, cells = square
    opened = OpenedModel("brightness", PatchBrightness(), open_tiny(grid).processor, "none", True)
    features, strip = strip_of(video, opened)
    for clip, indices in enumerate(features.frame_indices.tolist()):
        for depth, first in enumerate(indices[::2]):
            assert brightest(features.dense[clip, depth, ..., 0].numpy()) == cells[first]
    assert [brightest(colours[..., 0]) for colours in strip.maps] == [cells[round(s * 10)] for s in strip.seconds]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_drawn_map_has_the_square_where_the_drawn_frame_has_it(square, interpolation):
    grid, video, _ = square
    _, strip = strip_of(video, open_tiny(grid))
    side = 40
    height, width = grid[0] * side, grid[1] * side
    for image in draw_animation(strip, cell=max(grid) * side, interpolation=interpolation):
        body = np.asarray(image)[image.height - MARGIN - 22 - height : image.height - MARGIN - 22]
        frame, colours = body[:, MARGIN : MARGIN + width], body[:, MARGIN + width + 8 : MARGIN + 2 * width + 8]
        middle = slice(side // 2, None, side)
        assert most_unlike_the_ground(colours[middle, middle]) == brightest(frame[middle, middle].sum(-1))


def test_frame_in_the_picture_is_the_crop_that_the_model_saw():
    opened = open_tiny()
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 100, 3), dtype=np.uint8)
    seen = frames_as_seen(frames, opened)
    assert seen.shape == (2, 64, 64, 3)
    np.testing.assert_allclose(seen.astype(int), frames[:, :, 18:82].astype(int), atol=1)


def test_components_are_those_of_a_singular_value_decomposition_of_all_tokens():
    dense = torch.randn(3, 2, 4, 5, 7) * torch.arange(1, 8) + 3
    tokens = dense.reshape(-1, 7).double()
    _, singular, rows = torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    pca = FeaturePCA.fit(dense)
    torch.testing.assert_close((pca.components @ rows[:3].T).abs(), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(pca.explained_variance_ratio, (singular**2 / (singular**2).sum())[:3])


def test_sign_of_components_never_depends_on_the_order_of_clips():
    dense = torch.randn(4, 2, 3, 3, 6)
    torch.testing.assert_close(FeaturePCA.fit(dense).components, FeaturePCA.fit(dense.flip(0)).components)
    components = FeaturePCA.fit(-dense).components
    torch.testing.assert_close(components, FeaturePCA.fit(dense).components)
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


def test_colours_fill_the_range_and_ignore_outliers():
    dense = torch.randn(2, 4, 8, 8, 5)
    dense[0, 0, 0, 0] = 1000.0
    colours = FeaturePCA.fit(dense).transform(dense)
    assert colours.shape == (2, 4, 8, 8, 3)
    assert (colours.min(), colours.max()) == (0, 1)
    assert colours[..., 1].std() > 0.2


def test_colours_of_another_video_use_the_fitted_components():
    first, other = torch.randn(2, 2, 3, 3, 6), torch.randn(1, 2, 3, 3, 6)
    pca = FeaturePCA.fit(first)
    together = pca.transform(torch.cat([first, other]))
    torch.testing.assert_close(pca.transform(other), together[2:])


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_features_that_only_vary_by_rounding_give_an_even_grey(noise):
    dense = torch.full((2, 2, 3, 3, 4), 5.0) + noise * torch.randn(2, 2, 3, 3, 4)
    assert (FeaturePCA.fit(dense).transform(dense) == 0.5).all()


def test_one_token_among_thousands_is_seen_on_a_blank_ground():
    dense = torch.zeros(1, 8, 20, 20, 4)
    dense[0, 3, 5, 7] = torch.tensor([1.0, 0, 0, 0])
    colours = FeaturePCA.fit(dense).transform(dense)[..., 0]
    assert brightest(colours[0].amax(0).numpy()) == (5, 7)
    assert colours.sum() == 1


def test_map_of_an_untrained_model_never_shows_the_position_table(tmp_path):
    video = write_video(tmp_path / "even.mp4", np.full((8, 64, 64, 3), LEVEL, dtype=np.uint8))
    opened = open_tiny()
    features = extract_features(video, opened, ExtractionSettings(window=8))
    as_they_are = FeaturePCA.fit(features.dense).transform(features.dense)
    assert as_they_are.std(dim=(0, 1, 2, 3)).min() > 0.1
    baseline = position_baseline(features, opened, np.full((1, 64, 64, 3), LEVEL, dtype=np.uint8))
    colours = FeaturePCA.fit(features.dense, baseline=baseline).transform(features.dense, baseline=baseline)
    assert (colours == 0.5).all()


def test_finer_map_of_an_untrained_model_never_shows_the_position_table():
    clip, opened = np.full((8, 64, 64, 3), LEVEL, dtype=np.uint8), open_tiny()
    fine = encode_shifted(clip, opened, 4)[None]
    features = VideoFeatures(None, fine, torch.zeros(1, 8), torch.zeros(1, 8), {})
    baseline = position_baseline(features, opened, clip[:1])
    assert baseline.shape == fine.shape[1:]
    assert (FeaturePCA.fit(fine, baseline=baseline).transform(fine, baseline=baseline) == 0.5).all()


def test_features_of_a_trained_model_are_shown_as_they_are(tmp_path):
    video = write_video(tmp_path / "square.mp4", moving_square((4, 4), 9)[0])
    opened = open_tiny(is_trained=True)
    features = extract_features(video, opened, ExtractionSettings(window=8))
    frames = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    assert position_baseline(features, opened, frames) is None
    assert position_baseline(features, opened, frames, "even").shape == (4, 4, 4, 48)
    baseline = position_baseline(features, opened, frames, "clips")
    torch.testing.assert_close(baseline, features.dense.double().mean(0))


def test_mean_over_clips_of_one_clip_is_refused():
    features = VideoFeatures(None, torch.zeros(1, 1, 2, 2, 3), torch.zeros(1, 2), torch.zeros(1, 2), {})
    with pytest.raises(FeatureExtractionError, match="this video has 1"):
        position_baseline(features, open_tiny(), np.zeros((1, 64, 64, 3), dtype=np.uint8), "clips")


def test_steps_show_each_moment_once_in_the_order_of_time():
    frames = torch.tensor([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [8, 8, 8, 8, 8, 8]])
    assert picture_steps(frames, 2) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 0)]


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (99, list(range(10)))])
def test_columns_are_spread_over_the_whole_video(count, expected):
    assert evenly_spaced(10, count) == expected


def test_animation_plays_at_the_speed_of_the_video_without_drift():
    seconds = np.arange(300) * 2 / 29.97
    durations = step_durations(seconds)
    assert set(durations) == {60, 70}
    assert abs(sum(durations[:-1]) - 1000 * seconds[-1]) < 10
    assert step_durations([0.0]) == [1000]
    assert step_durations([0.0, 0.001, 60.0]) == [20, 1000, 1000]


@pytest.fixture
def drawn(tmp_path):
    video = write_video(tmp_path / "square.mp4", moving_square((3, 5), 24)[0])
    opened, output = open_tiny((3, 5)), tmp_path / "square.safetensors"
    extract_features_to_file(video, output, opened, ExtractionSettings(window=8))
    return draw_video_pictures(video, output, opened, PictureSettings(cell=80, columns=4))


def test_picture_and_animation_are_complete_files_beside_the_features(drawn):
    assert [path.name for path in drawn] == ["square.png", "square.gif"]
    assert not list(drawn[0].parent.glob("*.partial"))
    with Image.open(drawn[1]) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (12, 0)


def test_every_picture_says_that_the_model_is_untrained(drawn):
    with Image.open(drawn[0]) as picture, Image.open(drawn[1]) as animation:
        assert picture.text["weights"] == "untrained, seed 0"
        assert b"untrained, seed 0" in animation.info["comment"]
        assert (np.asarray(picture) == AMBER).all(-1).any()


def drawn_strip(monkeypatch, video: Path, opened: OpenedModel, **look) -> PictureStrip:
    """What `draw_video_pictures` draws the animation from."""
    strips, output = [], video.with_suffix(".safetensors")

    def keep(strip, **options):
        strips.append(strip)
        return draw_animation(strip, **options)

    extract_features_to_file(video, output, opened, ExtractionSettings(window=8))
    monkeypatch.setattr(pictures, "draw_animation", keep)
    draw_video_pictures(video, output, opened, PictureSettings(cell=32, **look), picture=False)
    return strips[0]


@pytest.mark.parametrize("baseline", ["none", "even"])
def test_finer_map_has_the_moving_square_where_it_is_and_says_so(monkeypatch, tmp_path, baseline):
    frames, cells = moving_square((4, 4), 24)
    video = write_video(tmp_path / "square.mp4", frames)
    opened = OpenedModel("brightness", PatchBrightness(), open_tiny().processor, "none", True)
    strip = drawn_strip(monkeypatch, video, opened, baseline=baseline)
    assert strip.maps.shape == (12, 16, 16, 3)
    assert "4 x 4 x 4 tokens a clip, seen at 4 x 4 shifts; " in strip.subtitle[1]
    for colours, seconds in zip(strip.maps[..., 0], strip.seconds, strict=True):
        bright = np.argwhere(colours >= np.sort(colours, axis=None)[-4])  # the four cells in the middle of the square
        row, column = cells[round(seconds * 10)]
        assert np.abs(bright.mean(0) - (4 * row + 1.5, 4 * column + 1.5)).max() <= 1


def test_map_of_one_cell_for_each_token_is_that_of_the_stored_features(monkeypatch, tmp_path):
    video, opened = write_video(tmp_path / "square.mp4", moving_square((4, 4), 16)[0]), open_tiny()
    strip = drawn_strip(monkeypatch, video, opened, detail=1)
    np.testing.assert_array_equal(strip.maps, strip_of(video, opened)[1].maps)
    assert "shifts" not in strip.subtitle[1]


def strip_with(title: str, *, is_trained: bool = True) -> PictureStrip:
    frames, maps = np.zeros((1, 32, 32, 3), dtype=np.uint8), np.zeros((1, 2, 2, 3), dtype=np.float32)
    return PictureStrip(frames, maps, [0.0], title, ("model, weights",), is_trained)


def test_picture_of_a_trained_model_has_no_warning_colour():
    assert not (np.asarray(draw_picture(strip_with("a"))) == AMBER).all(-1).any()
    assert (np.asarray(draw_picture(strip_with("a", is_trained=False))) == AMBER).all(-1).any()


@pytest.mark.parametrize("title", ["word " * 60, "a" * 300])
def test_long_titles_are_wrapped_inside_the_margins(title):
    image = np.asarray(draw_picture(strip_with(title)))
    assert (image[:, -MARGIN:] == 255).all()
    assert len(image) > len(np.asarray(draw_picture(strip_with("short")))) + 50


def test_pictures_of_pooled_features_are_refused(tmp_path):
    features = VideoFeatures(
        torch.zeros(1, 3), None, torch.zeros(1, 2), torch.zeros(1, 2), {"format": "vjepa_hub.features/1"}
    )
    save_features(features, tmp_path / "pooled.safetensors")
    with pytest.raises(ValueError, match="pooled only"):
        draw_video_pictures("none.mp4", tmp_path / "pooled.safetensors", open_tiny(), PictureSettings())


@pytest.mark.parametrize("options", [{"columns": 0}, {"detail": 0}, {"interpolation": "cubic"}, {"baseline": "mean"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        PictureSettings(**options)
