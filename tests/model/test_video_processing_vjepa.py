import json
import struct
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import is_av_available
from transformers.video_utils import VideoMetadata

from tests.conftest import REFERENCE
from vjepa_hub import VJEPAVideoProcessor
from vjepa_hub.data.clip_sampling import ClipSpec, sample_clip_indices
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.data.video import open_video

ONE_GREY_LEVEL = 0.02
SPREAD_OVER_64 = [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]
CLIP_ROWS = json.loads((REFERENCE / "clip_indices.json").read_text())


@pytest.fixture(scope="module")
def case():
    return load_file(REFERENCE / "preprocessing.safetensors")


@pytest.fixture(scope="module")
def frames(case) -> np.ndarray:
    return case["frames_uint8"].numpy()


def _pixels(processor, videos, **options) -> torch.Tensor:
    return processor(videos, return_tensors="pt", **options)["pixel_values_videos"]


@pytest.mark.parametrize("crop", [72, 48])
def test_centre_crop_equals_the_release(case, frames, crop):
    pixels = _pixels(VJEPAVideoProcessor(crop_size=crop), frames)
    assert pixels.shape == (1, 4, 3, crop, crop)
    assert pixels.dtype == torch.float32
    assert (pixels[0].transpose(0, 1) - case[f"center_crop_{crop}"]).abs().max() < ONE_GREY_LEVEL


@pytest.mark.parametrize(("name", "crop"), [("three_views_72", 72), ("tall_three_views_48", 48)])
def test_three_views_equal_the_release(case, frames, name, crop):
    clip = frames.transpose(0, 2, 1, 3) if name.startswith("tall") else frames
    pixels = _pixels(VJEPAVideoProcessor(crop_size=crop, num_spatial_views=3), [clip, clip])
    assert pixels.shape == (6, 4, 3, crop, crop)
    for row in range(6):  # the views of one clip follow each other
        assert (pixels[row].transpose(0, 1) - case[f"{name}.{row % 3}"]).abs().max() < ONE_GREY_LEVEL


@pytest.mark.parametrize("name", ["wide", "tall", "tall_unscaled"])
def test_crops_of_odd_slack_equal_the_release(name):
    case = load_file(REFERENCE / "preprocessing_odd_slack.safetensors")
    options = {"crop_size": 32, "do_normalize": False}
    centre = _pixels(VJEPAVideoProcessor(**options), case[f"{name}.frames"])
    views = _pixels(VJEPAVideoProcessor(num_spatial_views=3, **options), case[f"{name}.frames"])
    for place, pixels in zip(("centre", "view0", "view1", "view2"), (*centre, *views), strict=True):
        expected = case[f"{name}.{place}"].transpose(0, 1).float()
        assert (pixels * 255 - expected).abs().max() < 1.01
        assert (pixels * 255 - expected).abs().mean() < 0.5  # a crop one pixel beside is over a grey level


@pytest.mark.parametrize(("width", "start"), [(455, 116), (341, 58), (343, 60), (256, 16)])
def test_centre_crop_rounds_half_a_pixel_to_even(width, start):
    frames = np.zeros((1, 256, width, 3), dtype=np.uint8)
    frames[..., 0], frames[..., 1] = np.arange(width) % 256, np.arange(width) // 256
    for clip in (frames, frames.swapaxes(1, 2)):
        pixels = _pixels(VJEPAVideoProcessor(do_rescale=False, do_normalize=False), clip)[0, 0]
        columns = pixels[0] + 256 * pixels[1]
        assert (columns.min(), columns.max()) == (start, start + 223)


def _as_pil(frames: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in frames]


@pytest.mark.parametrize(
    "make",
    [
        lambda f: f,
        torch.from_numpy,
        _as_pil,
        lambda f: f.transpose(0, 3, 1, 2),
        lambda f: [f],
        lambda f: f[None],
        lambda f: torch.from_numpy(f)[None],
        lambda f: [torch.from_numpy(f).permute(0, 3, 1, 2)],
        lambda f: [_as_pil(f)],
    ],
    ids=["numpy", "torch", "pil", "channels-first", "list", "5-D", "5-D torch", "list of torch", "list of pil"],
)
def test_every_form_of_a_clip_gives_the_same_tensor(frames, make):
    processor = VJEPAVideoProcessor(crop_size=48)
    assert torch.equal(_pixels(processor, make(frames)), _pixels(processor, frames))


def test_a_batch_is_its_clips_one_by_one(frames):
    processor = VJEPAVideoProcessor(crop_size=48)
    other = frames[:, ::-1].copy()
    for batch in ([frames, other], np.stack([frames, other]), [_as_pil(frames), _as_pil(other)]):
        pixels = _pixels(processor, batch)
        assert torch.equal(pixels[:1], _pixels(processor, frames))
        assert torch.equal(pixels[1:], _pixels(processor, other))


def test_clips_of_other_sizes_share_a_batch(frames):
    processor = VJEPAVideoProcessor(crop_size=48)
    tall = frames.transpose(0, 2, 1, 3).copy()
    pixels = _pixels(processor, [frames, tall])
    assert torch.equal(pixels[1:], _pixels(processor, tall))


@pytest.mark.parametrize("make", [lambda f: f[0], lambda f: Image.fromarray(f[0]), lambda f: f[:1]])
def test_one_image_is_a_clip_of_one_frame(frames, make):
    processor = VJEPAVideoProcessor(crop_size=48)
    assert torch.equal(_pixels(processor, make(frames)), _pixels(processor, frames)[:, :1])


def test_crop_size_brings_its_size_and_an_explicit_size_wins(frames, tmp_path):
    assert VJEPAVideoProcessor().size["shortest_edge"] == 256
    assert VJEPAVideoProcessor(crop_size=384).size["shortest_edge"] == 438
    assert VJEPAVideoProcessor(crop_size=48, size={"shortest_edge": 96}).size["shortest_edge"] == 96
    VJEPAVideoProcessor(crop_size=48).save_pretrained(tmp_path)
    assert VJEPAVideoProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 54
    assert VJEPAVideoProcessor.from_pretrained(tmp_path, crop_size=96).size["shortest_edge"] == 109
    at_call = _pixels(VJEPAVideoProcessor(crop_size=96), frames, crop_size=48)
    assert torch.equal(at_call, _pixels(VJEPAVideoProcessor(crop_size=48), frames))


def test_saved_processor_computes_the_same(frames, tmp_path):
    processor = VJEPAVideoProcessor(crop_size=48, num_spatial_views=3)
    processor.save_pretrained(tmp_path)
    loaded = VJEPAVideoProcessor.from_pretrained(tmp_path)
    assert torch.equal(_pixels(loaded, frames), _pixels(processor, frames))


def test_options_that_cannot_be_meant_raise(frames):
    with pytest.raises(TypeError, match="crop_sise"):
        VJEPAVideoProcessor(crop_sise=48)
    with pytest.raises(TypeError, match=r"no option 'crop_sise'.*'crop_size'"):
        VJEPAVideoProcessor()(frames, crop_sise=48)
    with pytest.raises(ValueError, match="num_spatial_views is 2"):
        VJEPAVideoProcessor(num_spatial_views=2)
    with pytest.raises(ValueError, match="square"):
        VJEPAVideoProcessor(crop_size={"height": 48, "width": 64})
    with pytest.raises(TypeError, match=r"no option 'num_frame'.*'num_frames'"):
        VJEPAVideoProcessor(num_frame=8)


def test_misspelled_option_of_from_pretrained_raises_but_download_options_pass(tmp_path):
    VJEPAVideoProcessor(crop_size=48).save_pretrained(tmp_path)
    assert VJEPAVideoProcessor.from_pretrained(tmp_path, local_files_only=True, num_frames=8).num_frames == 8
    with pytest.raises(TypeError, match=r"no option 'crop_sise'.*'crop_size'"):
        VJEPAVideoProcessor.from_pretrained(tmp_path, crop_sise=32)


# values


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint16, torch.float32, torch.float64])
def test_the_same_pixels_in_another_type_give_the_same_tensor(frames, dtype):
    processor = VJEPAVideoProcessor(crop_size=48)
    clip = torch.from_numpy(frames).to(dtype)
    clip = clip / 255 if dtype.is_floating_point else clip
    for made in (clip, clip.numpy(), clip.permute(0, 3, 1, 2), list(clip)):
        pixels = _pixels(processor, made)
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, _pixels(processor, frames))


def test_floats_up_to_one_without_rescaling_give_the_same_tensor(frames):
    processor = VJEPAVideoProcessor(crop_size=48)
    pixels = _pixels(processor, frames.astype(np.float32) / 255, do_rescale=False)
    assert (pixels - _pixels(processor, frames)).abs().max() < ONE_GREY_LEVEL


def test_floats_between_grey_levels_are_not_rounded(frames):
    processor = VJEPAVideoProcessor(crop_size=48)
    clip = frames / np.float32(510)
    halves = _pixels(processor, clip, do_normalize=False) * 510
    assert (halves - _pixels(processor, frames, do_normalize=False) * 255).abs().max() < 1.01
    assert (halves - halves.round()).abs().max() > 0.2


@pytest.mark.parametrize("num_frames", [1, 4])
def test_frames_of_the_caller_are_left_as_they_were(frames, num_frames):
    clip = torch.from_numpy(frames[:num_frames]).permute(0, 3, 1, 2).contiguous().float() / 255
    before = clip.clone()
    _pixels(VJEPAVideoProcessor(do_resize=False, do_center_crop=False), clip)
    assert torch.equal(clip, before)


def test_unusual_memory_gives_the_same_tensor(frames):
    processor = VJEPAVideoProcessor(crop_size=48)
    turned = frames[:, ::-1]
    assert torch.equal(_pixels(processor, turned), _pixels(processor, turned.copy()))
    fixed = frames.copy()
    fixed.flags.writeable = False
    assert torch.equal(_pixels(processor, fixed), _pixels(processor, frames))


def test_grey_and_transparent_pil_images_become_rgb(frames):
    processor = VJEPAVideoProcessor(crop_size=48)
    grey = [image.convert("L") for image in _as_pil(frames)]
    transparent = [image.convert("RGBA") for image in _as_pil(frames)]
    assert torch.equal(_pixels(processor, grey), _pixels(processor, [image.convert("RGB") for image in grey]))
    assert torch.equal(_pixels(processor, transparent), _pixels(processor, frames))


def test_whole_frames_never_become_floats():
    clip = np.zeros((16, 360, 640, 3), dtype=np.uint8)
    processor = VJEPAVideoProcessor(crop_size=224)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        processor(clip, return_tensors="pt")
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profiled.key_averages())
    assert 0 < allocated < 2 * clip.nbytes  # the clip in floats has 4


UNIT = np.linspace(0, 1, 4 * 60 * 80 * 3, dtype=np.float32).reshape(4, 60, 80, 3)
BYTES = (UNIT * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("clip", "options", "message"),
    [
        (UNIT * 255, {}, r"from 0 to 255, but floats must lie within 0 to 1: divide them by 255, or pass uint8"),
        (BYTES, {"do_rescale": False}, r"from 0 to 255.*do_rescale=False.*within 0 to 1: leave do_rescale on"),
        (UNIT * 255, {"do_rescale": False}, "within 0 to 1"),
        (UNIT * 1023, {}, "from 0 to 1023, but floats"),
        (BYTES.astype(np.int32) * 257, {}, "from 0 to 65535.*within 0 to 255: scale them"),
        (UNIT * 4 - 2, {}, r"from -2 to 2, but pixels are 0 or more.*before normalisation"),
        (UNIT * 4 - 2, {"do_rescale": False}, "0 or more"),
        (np.where(UNIT > 0.5, np.nan, UNIT), {}, "nan.*must be finite"),
        (np.where(UNIT > 0.5, np.inf, UNIT), {"do_rescale": False}, "inf.*must be finite"),
        (BYTES[..., :1], {}, "1 channels.*convert it to RGB"),
        (BYTES[:0], {}, "no frames"),
        (BYTES[..., :2], {}, r"shape \(4, 60, 80, 2\)"),
    ],
)
def test_values_that_cannot_be_meant_raise(clip, options, message):
    with pytest.raises(ValueError, match=message):
        VJEPAVideoProcessor(crop_size=48)(clip, return_tensors="pt", **options)


def test_values_that_can_be_meant_never_raise():
    processor = VJEPAVideoProcessor(crop_size=48)
    for clip in (np.zeros_like(UNIT), (BYTES > 128).astype(np.uint8), UNIT * 1.0001):
        assert torch.isfinite(_pixels(processor, clip)).all()
    caffe_mean = {"image_mean": [104.0, 117.0, 124.0], "image_std": [1.0, 1.0, 1.0], "do_rescale": False}
    assert _pixels(processor, BYTES, **caffe_mean).max() > 100
    assert _pixels(processor, BYTES, do_rescale=False, do_normalize=False).max() > 200
    assert _pixels(processor, BYTES, rescale_factor=1 / 127.5, do_normalize=False).max() > 1.5


def test_the_bad_video_of_a_batch_is_named():
    with pytest.raises(ValueError, match="video 1 of the batch has values from nan"):
        VJEPAVideoProcessor()([BYTES, UNIT * np.nan])


@pytest.mark.parametrize("videos", [[], None, 7, np.zeros((60, 80), np.uint8), [np.zeros((60, 80), np.uint8)]])
def test_what_is_no_video_raises(videos):
    with pytest.raises(TypeError, match="pass a path, an http"):
        VJEPAVideoProcessor()(videos)


# sampling


def test_indices_are_those_of_the_data_room():
    rows = [row for row in CLIP_ROWS if row["allow_clip_overlap"]]
    assert len(rows) > 250
    for row in rows:
        pace = {"frame_step": row["frame_step"]}
        if row["clip_duration_seconds"] is not None:
            pace = {"clip_duration": row["clip_duration_seconds"]}
        num_frames, num_segments = row["frames_per_clip"], row["num_clips"]
        metadata = VideoMetadata(total_num_frames=row["num_video_frames"], fps=row["fps"])
        processor = VJEPAVideoProcessor(num_frames=num_frames, num_segments=num_segments, **pace)
        expected = sample_clip_indices(
            row["num_video_frames"],
            fps=row["fps"],
            frames_per_clip=num_frames,
            num_clips=num_segments,
            allow_clip_overlap=True,
            **pace,
        )
        assert processor.sample_frames(metadata).tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize("num_frames", [1, 2, 8, 16])
@pytest.mark.parametrize("num_segments", [1, 2, 8])
def test_indices_are_those_of_the_data_room_for_every_length(num_frames, num_segments):
    processor = VJEPAVideoProcessor(num_frames=num_frames, num_segments=num_segments, frame_step=3)
    for length in (*range(1, 150), 383, 384, 385, 1000):
        expected = sample_clip_indices(
            length,
            fps=None,
            frames_per_clip=num_frames,
            num_clips=num_segments,
            frame_step=3,
            allow_clip_overlap=True,
        )
        found = processor.sample_frames(VideoMetadata(total_num_frames=length))
        assert found.tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize(
    ("video_fps", "fps", "step"),
    [(29.97, 30, 1), (29.97, 15, 2), (29.97, 4, 7), (29.97, 1, 30), (25, 4, 6), (24, 5, 4), (23.976, 4, 6), (3, 4, 1)],
)
def test_fps_divides_the_rate_rounded_up_as_in_vjepa_2(video_fps, fps, step):
    metadata = VideoMetadata(total_num_frames=10_000, fps=video_fps)
    indices = VJEPAVideoProcessor(num_frames=2, fps=fps).sample_frames(metadata)
    assert (indices[-1] - indices[0] + 1) / 2 == step
    assert ClipSpec(fps=fps).frame_step_at(video_fps) == step


@pytest.fixture(scope="module")
def long_clip() -> np.ndarray:
    """100 small frames, each filled with its own number."""
    return np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 20, 24, 3)).copy()


PLAIN = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}


def _numbers(output) -> np.ndarray:
    """The number that fills each frame."""
    return output["pixel_values_videos"][..., 0, 0, 0].int().numpy()


def test_decoded_frames_are_used_as_they_are_unless_a_sampling_option_is_given(long_clip):
    processor = VJEPAVideoProcessor(**PLAIN)
    assert _numbers(processor(long_clip, return_tensors="pt")).tolist() == [list(range(100))]
    for options in ({"frame_step": 4}, {"num_frames": 16}, {"do_sample_frames": True}):
        assert _numbers(processor(long_clip, return_tensors="pt", **options)).tolist() == [SPREAD_OVER_64]
    stored = VJEPAVideoProcessor(num_frames=16, **PLAIN)
    assert _numbers(stored(long_clip, return_tensors="pt")).tolist() == [SPREAD_OVER_64]
    assert _numbers(stored(long_clip, do_sample_frames=False, return_tensors="pt")).shape == (1, 100)


@pytest.mark.parametrize(
    "stored", [{"num_frames": 16, "frame_step": 4}, {"num_frames": 16}, {"frame_step": 4}, {"clip_duration": 2.0}]
)
@pytest.mark.parametrize("options", [{}, {"num_frames": 16, "do_sample_frames": True}])  # the latter is pipeline's
@pytest.mark.parametrize("make", [lambda f: f, torch.from_numpy, list], ids=["numpy", "torch", "list"])
def test_as_many_frames_as_a_clip_has_are_used_as_they_are(long_clip, stored, options, make):
    processor = VJEPAVideoProcessor(return_metadata=True, **stored, **PLAIN)
    clip = make(long_clip[:64:4])
    output = processor(clip, video_metadata={"frames_indices": range(0, 64, 4)}, return_tensors="pt", **options)
    assert _numbers(output).tolist() == [list(range(0, 64, 4))]
    assert output["video_metadata"][0].frames_indices == list(range(0, 64, 4))


@pytest.mark.parametrize(
    ("num_given", "expected"), [(8, [range(4), range(4, 8)]), (4, [range(4)] * 2), (1, [range(1)] * 2)]
)
def test_frames_of_one_segment_or_of_all_are_used_as_they_are(long_clip, num_given, expected):
    processor = VJEPAVideoProcessor(num_frames=4, num_segments=2, **PLAIN)
    output = processor(long_clip[:num_given], return_tensors="pt")
    assert _numbers(output).tolist() == [[list(segment) for segment in expected]]


def test_an_image_is_one_frame_for_a_stored_number_of_frames_too(frames):
    for image in (frames[0], Image.fromarray(frames[0]), [Image.fromarray(frames[0])]):
        assert _pixels(VJEPAVideoProcessor(crop_size=48, num_frames=16, frame_step=2), image).shape[1] == 1


@pytest.mark.parametrize(("num_given", "num_different"), [(17, 4), (15, 3)])
def test_a_clip_that_repeats_most_of_its_frames_is_warned_about(long_clip, num_given, num_different):
    processor = VJEPAVideoProcessor(num_frames=16, **PLAIN)
    with pytest.warns(UserWarning, match=f"16 frames.* {num_different} .* has {num_given}.*do_sample_frames=False"):
        processor(long_clip[:num_given])


def test_a_clip_of_mostly_different_frames_is_not_warned_about(long_clip, recwarn):
    VJEPAVideoProcessor(num_frames=16, **PLAIN)(long_clip[:40])
    assert not recwarn


def test_segments_are_an_axis_and_views_are_rows():
    clips = np.random.default_rng(0).integers(0, 256, (2, 100, 20, 24, 3), dtype=np.uint8)
    processor = VJEPAVideoProcessor(crop_size=16, num_segments=3, num_frames=4, frame_step=2)
    assert _pixels(processor, clips).shape == (2, 3, 4, 3, 16, 16)
    pixels = _pixels(processor, clips, num_spatial_views=3)
    assert pixels.shape == (6, 3, 4, 3, 16, 16)
    alone = VJEPAVideoProcessor(crop_size=16, num_spatial_views=3)
    for number, clip in enumerate(clips):
        for segment, start in enumerate((0, 33, 66)):
            views = _pixels(alone, clip[[start, start + 2, start + 5, start + 7]])
            assert torch.equal(pixels[3 * number : 3 * number + 3, segment], views)


def test_an_option_of_the_call_takes_the_place_of_a_stored_one(long_clip, tmp_path):
    processor = VJEPAVideoProcessor(frame_step=2, num_frames=4, **PLAIN)
    metadata = {"fps": 10.0, "total_num_frames": 100}
    found = processor(long_clip, fps=2.5, video_metadata=metadata, return_tensors="pt")
    assert _numbers(found).tolist() == [[0, 5, 10, 15]]
    processor.save_pretrained(tmp_path)
    loaded = VJEPAVideoProcessor.from_pretrained(tmp_path, clip_duration=0.8)
    assert (loaded.frame_step, loaded.clip_duration, loaded.num_frames) == (None, 0.8, 4)
    whole = VJEPAVideoProcessor(do_sample_frames=False, **PLAIN)
    assert _numbers(whole(long_clip, num_frames=4, return_tensors="pt")).tolist() == [[0, 5, 10, 15]]


@pytest.mark.parametrize("pace", [{"frame_step": 2}, {"fps": 12.5}, {"clip_duration": 0.5}])
def test_sampling_options_are_saved_and_restored(pace, tmp_path):
    options = {"num_frames": 4, "num_segments": 3, "num_spatial_views": 3, **pace}
    processor = VJEPAVideoProcessor(crop_size=48, **options)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert options.items() <= saved.items()
    loaded = VJEPAVideoProcessor.from_pretrained(tmp_path)
    assert torch.equal(_pixels(loaded, sample_clip_path()), _pixels(processor, sample_clip_path()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_step": 2, "fps": 3.0}, "frame_step.*fps.*give one of them"),
        ({"num_frames": 0}, "num_frames is 0.*positive integer"),
        ({"num_segments": -2}, "num_segments is -2"),
        ({"frame_step": True}, "frame_step is True"),
        ({"clip_duration": float("nan")}, "clip_duration is nan.*positive number"),
        ({"do_sample_frames": False, "num_frames": 8}, "do_sample_frames is False, but.*num_frames"),
        ({"do_sample_frames": False, "num_segments": 2}, "do_sample_frames is False, but.*num_segments"),
    ],
)
def test_sampling_options_that_cannot_be_meant_raise(options, message):
    with pytest.raises(ValueError, match=message):
        VJEPAVideoProcessor(**options)


def test_sampling_that_a_video_does_not_allow_raises(long_clip):
    with pytest.raises(ValueError, match=r"fps is 5.*not known.*video_metadata"):
        VJEPAVideoProcessor()(long_clip, fps=5)
    with pytest.raises(ValueError, match=r"clip_duration of 0.1 on a video of 25 frames per second.*at least 0.64 s"):
        VJEPAVideoProcessor()(sample_clip_path(), clip_duration=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_std": [0.0, 0.2, 0.2]}, r"image_std is .0.0.*positive.*do_normalize=False"),
        ({"image_mean": [float("nan"), 0.5, 0.5]}, "image_mean is .nan.*finite"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0.*0 to 255.*1/255.*do_rescale=False"),
        ({"rescale_factor": 0.0}, "rescale_factor is 0.0.*positive"),
    ],
)
def test_normalisation_that_cannot_be_meant_raises(frames, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        VJEPAVideoProcessor(**options)
    with pytest.raises(ValueError, match=message):
        VJEPAVideoProcessor()(frames, **options)
    processor = VJEPAVideoProcessor()
    for name, value in options.items():
        setattr(processor, name, value)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        VJEPAVideoProcessor.from_pretrained(tmp_path)


# metadata


def test_metadata_of_decoded_frames_has_the_given_indices_and_times(long_clip):
    processor = VJEPAVideoProcessor(crop_size=16, return_metadata=True)
    times = np.arange(100) ** 1.5
    described = [{"total_num_frames": 900, "fps": 30.0, "frames_indices": range(200, 300), "timestamps": times}, None]
    first, second = processor([long_clip, long_clip], num_frames=4, video_metadata=described)["video_metadata"]
    assert first.frames_indices == [200, 205, 210, 215]
    assert first.timestamps == times[[0, 5, 10, 15]].tolist()
    assert (first.total_num_frames, first.height, first.width) == (900, 20, 24)
    assert second.frames_indices == [0, 5, 10, 15]
    assert second.timestamps is None


def test_metadata_that_does_not_fit_raises(long_clip):
    with pytest.raises(ValueError, match="2 entries for 1 videos"):
        VJEPAVideoProcessor()(long_clip, video_metadata=[{}, {}])
    with pytest.raises(ValueError, match="3 timestamps for 100 frames"):
        VJEPAVideoProcessor()(long_clip, video_metadata={"timestamps": [0, 1, 2]})
    with pytest.raises(ValueError, match="a file describes itself"):
        VJEPAVideoProcessor()(sample_clip_path(), video_metadata={"fps": 3.0})


# files


@pytest.fixture(params=["with PyAV", "without PyAV"])
def pyav(request, monkeypatch):
    """PyAV is installed, or it is not."""
    if request.param == "without PyAV":
        pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
        is_av_available()  # transformers remembers its first answer, for the tests after this one too
        monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.parametrize(
    "make",
    [str, Path, Path.read_bytes, lambda path: bytearray(path.read_bytes()), lambda path: [path]],
    ids=["str", "path", "bytes", "bytearray", "list"],
)
def test_every_form_of_a_file_gives_the_pixels_of_its_frames(pyav, make, monkeypatch):
    processor = VJEPAVideoProcessor(crop_size=32, num_segments=2, return_metadata=True)
    output = processor(make(Path(sample_clip_path())), return_tensors="pt")
    metadata = output["video_metadata"][0]
    monkeypatch.undo()
    with open_video(sample_clip_path()) as reader:
        expected = sample_clip_indices(96, fps=None, frame_step=4, num_clips=2, allow_clip_overlap=True)
        frames = reader.read_frames(np.concatenate(expected))
        assert metadata.timestamps == [pytest.approx(reader.timestamps[indices]) for indices in expected]
    assert metadata.frames_indices == [indices.tolist() for indices in expected]
    assert (metadata.total_num_frames, metadata.fps, metadata.height, metadata.width) == (96, 25, 360, 640)
    pixels = _pixels(VJEPAVideoProcessor(crop_size=32), frames)
    assert torch.equal(output["pixel_values_videos"].flatten(1, 2), pixels)


def test_a_file_becomes_the_first_clip_of_the_released_evaluation():
    processor = VJEPAVideoProcessor(crop_size=32, return_metadata=True)
    output = processor([sample_clip_path(), sample_clip_path()], return_tensors="pt")
    assert output["pixel_values_videos"].shape == (2, 16, 3, 32, 32)
    assert output["video_metadata"][1].frames_indices == SPREAD_OVER_64


def test_files_and_decoded_frames_share_a_batch():
    processor = VJEPAVideoProcessor(crop_size=32)
    with open_video(sample_clip_path()) as reader:
        frames = reader.read_frames(SPREAD_OVER_64)
    pixels = _pixels(processor, [sample_clip_path(), frames])
    assert torch.equal(pixels[0], pixels[1])


def test_all_frames_of_a_file_on_demand():
    processor = VJEPAVideoProcessor(crop_size=16, do_sample_frames=False)
    assert _pixels(processor, sample_clip_path()).shape == (1, 96, 3, 16, 16)


@pytest.fixture(scope="module")
def write_clip(tmp_path_factory):
    """`write_clip(name, num_frames)`: grey frames, each brighter than the last."""
    av = pytest.importorskip("av", reason="PyAV writes the test videos (pip install av)")
    folder = tmp_path_factory.mktemp("videos")

    def write(name, num_frames, codec="mpeg4", **options) -> Path:
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=10, options={"threads": "1", **options})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(num_frames):
                frame = np.full((48, 64, 3), 20 + 4 * number, dtype=np.uint8)
                frame[:10, :10] = 0
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return folder / name

    return write


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mpg", "a.avi", "12:30.mp4", "turned.mp4", "cut.mp4"])
def test_file_gives_the_frames_that_the_data_room_decodes(write_clip, name, monkeypatch):
    codec, options = ("mpeg2video", {"bf": "2"}) if name == "a.mpg" else ("libx264", {"bf": "2", "g": "10"})
    path = write_clip(name, 40, codec if name != "a.avi" else "mpeg4", **options)
    data = bytearray(path.read_bytes())
    if name == "turned.mp4":  # mirrored, too
        place = data.index(b"tkhd") + 44
        data[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30)
    if name == "cut.mp4":  # the edit list shows the first 3 s
        place = data.index(b"elst") + 12
        data[place : place + 4] = struct.pack(">I", 3000)
    path.write_bytes(data)
    monkeypatch.chdir(path.parent)
    processor = VJEPAVideoProcessor(crop_size=16, num_frames=4, num_segments=2, return_metadata=True)
    output = processor(name, return_tensors="pt")
    metadata = output["video_metadata"][0]
    with open_video(path) as reader:
        frames = reader.read_frames(np.concatenate(metadata.frames_indices))
        assert (metadata.total_num_frames, metadata.fps) == (reader.num_frames, reader.average_fps)
        assert metadata.timestamps == [reader.timestamps[indices].tolist() for indices in metadata.frames_indices]
    pixels = _pixels(VJEPAVideoProcessor(crop_size=16), frames)
    assert torch.equal(output["pixel_values_videos"].flatten(1, 2), pixels)


@pytest.mark.parametrize("name", ["b.ts", "b.avi"])
def test_container_without_an_index_raises_without_pyav(write_clip, name, monkeypatch):
    path = write_clip(name, 20)
    is_av_available()
    monkeypatch.setitem(sys.modules, "av", None)
    for source in (path, path.read_bytes()):
        with pytest.raises(ImportError, match="pip install av"):
            VJEPAVideoProcessor()(source)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_picture_file_is_one_frame(frames, ending, tmp_path):
    path = tmp_path / f"frame.{ending}"
    Image.fromarray(frames[0]).save(path, quality=100)
    for source in (path, path.read_bytes()):
        pixels = _pixels(VJEPAVideoProcessor(crop_size=48, num_frames=16), source)
        assert pixels.shape[1] == 1
        assert (pixels - _pixels(VJEPAVideoProcessor(crop_size=48), frames[0])).abs().mean() < 0.1


@pytest.mark.parametrize("num_frames", [1, 3, 16, 17])
def test_a_short_file_fills_its_clip_with_a_warning(num_frames, write_clip):
    path = write_clip(f"short{num_frames}.mp4", num_frames)
    with pytest.warns(UserWarning, match=f"has {num_frames}: give a smaller frame_step"):
        output = VJEPAVideoProcessor(crop_size=16, return_metadata=True)(path, return_tensors="pt")
    assert output["pixel_values_videos"].shape == (1, 16, 3, 16, 16)
    expected = sample_clip_indices(num_frames, fps=None, frame_step=4, allow_clip_overlap=True)
    assert output["video_metadata"][0].frames_indices == expected[0].tolist()


def test_a_row_of_a_video_column_gives_the_pixels_of_its_file():
    datasets = pytest.importorskip("datasets", reason="Video columns are of `datasets` (pip install datasets)")
    pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    rows = datasets.Dataset.from_dict({"video": [str(sample_clip_path())]}).cast_column("video", datasets.Video())
    processor = VJEPAVideoProcessor(crop_size=16)
    expected = _pixels(processor, sample_clip_path())
    for row in (rows[0]["video"], rows.cast_column("video", datasets.Video(decode=False))[0]["video"]):
        assert torch.equal(_pixels(processor, row), expected)
        assert torch.equal(_pixels(processor, [row]), expected)


def test_a_decoder_that_names_no_file_raises_and_its_frames_are_taken():
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    decoder = decoders.VideoDecoder(str(sample_clip_path()))
    with pytest.raises(TypeError, match=r"VideoDecoder.*path.*decoder\[:\]"):
        VJEPAVideoProcessor()(decoder)
    assert _pixels(VJEPAVideoProcessor(crop_size=16), decoder[:]).shape[1] == 96


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text.mp4' cannot be decoded .*ffplay"):
        VJEPAVideoProcessor()(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="a video of 11 bytes cannot be decoded"):
        VJEPAVideoProcessor()(b"not a video")
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4"):
        VJEPAVideoProcessor()(tmp_path / "missing.mp4")


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def address(monkeypatch):
    """Of the folder of the sample clip, served on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(_QuietHandler, directory=str(Path(sample_clip_path()).parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_gives_the_pixels_of_its_file(address):
    processor = VJEPAVideoProcessor(crop_size=16)
    pixels = _pixels(processor, f"{address}/big_buck_bunny.mp4")
    assert torch.equal(pixels, _pixels(processor, sample_clip_path()))


def test_an_address_without_a_video_raises(address):
    with pytest.raises(Exception, match=r"404.*no_such_file.mp4"):  # the class is httpx's or httpx2's
        VJEPAVideoProcessor()(f"{address}/no_such_file.mp4")


# --- Settings of a file ---


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("num_segments", 10**6, "more than 16384 frames"),
        ("num_frames", 10**400, "positive integer"),
        ("num_frames", "16", "positive integer"),
        ("frame_step", 0, "positive integer"),
        ("fps", float("nan"), "positive number"),
        ("size", {"shortest_edge": 10**6}, "smaller or fewer frames"),
        ("size", {"longest_edge": 16}, "shortest_edge"),
        ("size", {"shortest_edge": "16"}, "positive integer"),
        ("size", [16], "size"),
        ("crop_size", {"height": 10**400, "width": 10**400}, "positive integer"),
        ("crop_size", {"height": 16}, "width"),
        ("crop_size", "16", "crop_size"),
        ("image_mean", "grey", "one for each of three channels"),
        ("image_mean", [0.5, 0.5], "one for each of three channels"),
        ("image_std", None, "one for each of three channels"),
        ("rescale_factor", float("inf"), "rescale_factor"),
        ("rescale_factor", 0, "positive number"),
        ("resample", 1, "2 (bilinear)"),
        ("resample", 10**30, "2 (bilinear)"),
        ("do_resize", "yes", "do_resize"),
        ("do_normalize", 3, "do_normalize"),
    ],
)
def test_settings_that_no_clip_can_be_processed_with_are_refused_when_they_are_loaded(name, value, rule):
    settings = VJEPAVideoProcessor(crop_size=16, num_frames=4).to_dict()
    with pytest.raises((ValueError, TypeError)) as caught:
        VJEPAVideoProcessor.from_dict(settings | {name: value})
    assert name in str(caught.value)
    assert rule in str(caught.value)
