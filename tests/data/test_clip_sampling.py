import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vjepa_hub.data.clip_sampling import ClipSpec, plan_windows, sample_clip_indices

ROWS = json.loads((Path(__file__).parents[1] / "reference_cases" / "clip_indices.json").read_text())
SPREAD_OVER_64 = [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]


def sample_row(row, **changes):
    settings = {
        "fps": row["fps"],
        "frames_per_clip": row["frames_per_clip"],
        "num_clips": row["num_clips"],
        "frame_step": row["frame_step"],
        "clip_duration": row["clip_duration_seconds"],
        "allow_clip_overlap": row["allow_clip_overlap"],
    }
    return sample_clip_indices(row["num_video_frames"], **(settings | changes))


def assert_valid(clips, num_video_frames, frames_per_clip=16):
    for clip in clips:
        assert clip.dtype == np.int64
        assert clip.shape == (frames_per_clip,)
        assert clip.min() >= 0
        assert clip.max() < num_video_frames
        assert (np.diff(clip) >= 0).all()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_row_of_the_released_code_is_reproduced():
    rows = [row for row in ROWS if row["reference_error"] is None]
    assert len(rows) == 573
    wrong = [row for row in rows if [clip.tolist() for clip in sample_row(row)] != row["indices"]]
    assert wrong == []


def test_rows_that_the_released_code_fails_on_get_valid_indices():
    rows = [row for row in ROWS if row["reference_error"] is not None]
    assert len(rows) == 21
    for row in rows:
        clips = sample_row(row)
        assert len(clips) == row["num_clips"]
        assert_valid(clips, row["num_video_frames"])


def test_clips_of_a_video_with_fewer_frames_than_clips_still_visit_every_frame():
    clips = sample_clip_indices(5, fps=30.0, frame_step=4, num_clips=8)
    assert [clip.tolist() for clip in clips] == [[frame] * 16 for frame in (0, 0, 1, 1, 2, 3, 3, 4)]


def test_random_windows_never_leave_their_partition_and_never_change_their_spread():
    for seed in range(200):
        clips = sample_clip_indices(201, fps=None, frame_step=4, num_clips=3, generator=generator(seed))
        for number, clip in enumerate(clips):
            assert number * 67 <= clip[0]
            assert clip[-1] < (number + 1) * 67
            assert (clip - clip[0]).tolist() == SPREAD_OVER_64


def test_random_windows_are_uniform_over_all_places_of_the_partition():
    draws = generator()
    firsts = [sample_clip_indices(68, fps=None, frame_step=4, generator=draws)[0][0] for _ in range(2000)]
    counts = np.bincount(firsts, minlength=5)
    assert len(counts) == 5
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # chi-squared, 4 degrees of freedom, p = 0.001


def test_same_seed_gives_the_same_clips_and_another_seed_does_not():
    first, again, other = (
        np.stack(sample_clip_indices(10_000, fps=None, frame_step=4, num_clips=4, generator=generator(seed)))
        for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("allow_clip_overlap", [False, True])
@pytest.mark.parametrize("frames_per_clip", [1, 2, 8, 16])
def test_indices_are_valid_for_every_length_up_to_a_few_windows(allow_clip_overlap, frames_per_clip):
    for num_video_frames in range(1, 150):
        for num_clips in (1, 3):
            clips = sample_clip_indices(
                num_video_frames,
                fps=None,
                frames_per_clip=frames_per_clip,
                num_clips=num_clips,
                frame_step=3,
                allow_clip_overlap=allow_clip_overlap,
                generator=generator(num_video_frames),
            )
            assert len(clips) == num_clips
            assert_valid(clips, num_video_frames, frames_per_clip)


def test_fps_is_not_needed_with_a_frame_step():
    assert sample_clip_indices(64, fps=None, frame_step=4)[0].tolist() == SPREAD_OVER_64


def test_a_duration_counts_more_than_a_frame_step():
    with_both = sample_clip_indices(500, fps=30.0, frame_step=9, clip_duration=16 * 4 / 30)
    assert with_both[0].tolist() == SPREAD_OVER_64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_video_frames": 0}, "num_video_frames is 0, .* at least 1"),
        ({"num_clips": -1}, "num_segments is -1"),
        ({"frames_per_clip": 2.5}, "frames_per_clip is 2.5"),
        ({"frame_step": 0}, "frame_step is 0"),
        ({"frame_step": None}, "all None.*give frame_step.*clip_duration.*fps"),
        ({"clip_duration": 2.0, "fps": None}, "fps is None.*give frame_step"),
        ({"clip_duration": 2.0, "fps": 0.0}, "fps is 0.0"),
        ({"clip_duration": float("nan")}, "clip_duration is nan"),
        ({"clip_duration": 0.5}, "15 frames.*frames_per_clip=16.*longer"),
    ],
)
def test_bad_values_are_named_in_the_error(changes, message):
    arguments = {"num_video_frames": 100, "fps": 30.0, "frame_step": 4} | changes
    with pytest.raises(ValueError, match=message):
        sample_clip_indices(arguments.pop("num_video_frames"), **arguments)


@pytest.mark.parametrize(
    ("spec", "pace"),
    [
        (ClipSpec(frame_step=2), {"frame_step": 2}),
        (ClipSpec(clip_duration=2.5), {"clip_duration": 2.5}),
        (ClipSpec(fps=4), {"fps": 4}),
    ],
)
def test_a_processor_gets_the_numbers_of_a_clip_and_one_pace(spec, pace):
    spec = spec.with_values(frames_per_clip=8, num_segments=3)
    assert spec.processor_options == {"num_frames": 8, "num_segments": 3, **pace}


def test_frames_per_second_give_the_step_of_each_video():
    assert [ClipSpec(fps=4).frame_step_at(rate) for rate in (30, 29.97, 25, 24, 4, 1)] == [7, 7, 6, 6, 1, 1]
    clips = ClipSpec(frames_per_clip=4, fps=5).sample_indices(100, fps=23.976)
    assert clips[0].tolist() == ClipSpec(frames_per_clip=4, frame_step=4).sample_indices(100, fps=None)[0].tolist()


def test_frames_per_second_need_the_rate_of_the_video_and_no_duration_beside_them():
    with pytest.raises(ValueError, match=r"fps is None, but .*fps=4 needs.*frame_step"):
        ClipSpec(fps=4).frame_step_at(None)
    with pytest.raises(ValueError, match=r"clip_duration is 2 and fps 4.*give one"):
        ClipSpec(fps=4, clip_duration=2)


PLANS = [
    (num_video_frames, window, stride)
    for num_video_frames in (*range(1, 70), 100, 127, 128, 129, 1000)
    for window in (8, 13, 32, 64)
    for stride in (1, 7, 8, 32, 64)
]


def test_every_frame_lies_in_a_window_unless_the_stride_is_longer():
    for num_video_frames, window, stride in PLANS:
        if stride > window:
            continue
        is_covered = np.zeros(num_video_frames, dtype=bool)
        clips = plan_windows(num_video_frames, frames_per_clip=8, window=window, stride=stride)
        for clip in clips:
            # The only clip of a video far shorter than the window may hold its last frame alone: it stands for all.
            start = clip[0] if len(clips) > 1 else 0
            is_covered[start : start + window] = True
        assert is_covered.all(), (num_video_frames, window, stride)


def test_planned_clips_are_valid_in_order_and_never_repeated():
    for num_video_frames, window, stride in PLANS:
        clips = plan_windows(num_video_frames, frames_per_clip=8, window=window, stride=stride)
        assert_valid(clips, num_video_frames, frames_per_clip=8)
        starts = [int(clip[0]) for clip in clips]
        assert starts == sorted(set(starts))
        assert starts[:-1] == [number * stride for number in range(len(starts) - 1)]


def test_planned_windows_never_reach_beyond_the_end_and_the_last_one_meets_it():
    for num_video_frames, window, stride in PLANS:
        clips = plan_windows(num_video_frames, frames_per_clip=8, window=window, stride=stride)
        if num_video_frames >= window:
            assert int(clips[-1][0]) + window == num_video_frames


def test_no_window_is_added_where_the_grid_of_windows_ends_with_the_video():
    assert [clip[0] for clip in plan_windows(128, frames_per_clip=16, window=64, stride=32)] == [0, 32, 64]
    assert [clip[0] for clip in plan_windows(129, frames_per_clip=16, window=64, stride=32)] == [0, 32, 64, 65]


@pytest.mark.parametrize("frame_step", [1, 2, 4, 15])
def test_a_planned_clip_is_spread_as_a_sampled_one(frame_step):
    for num_video_frames in (1, 5, 15, 16, 17, 63, 64, 65, 239, 240, 241, 500):
        planned = plan_windows(num_video_frames, frames_per_clip=16, window=16 * frame_step, stride=1000)[0]
        sampled = sample_clip_indices(num_video_frames, fps=None, frame_step=frame_step)[0]
        assert planned.tolist() == sampled.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_video_frames": 0}, "num_video_frames is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"window": 15}, "window is 15 frames.*at least 16"),
        ({"frames_per_clip": 0}, "frames_per_clip is 0"),
    ],
)
def test_bad_plans_are_named_in_the_error(changes, message):
    arguments = {"num_video_frames": 100, "frames_per_clip": 16, "window": 64, "stride": 32} | changes
    with pytest.raises(ValueError, match=message):
        plan_windows(arguments.pop("num_video_frames"), **arguments)
