import json
from collections import Counter

import numpy as np
import pytest

from vjepa_hub.data.manifests import read_manifest_entries
from vjepa_hub.data.synthetic import shapes as synthetic
from vjepa_hub.data.synthetic.shapes import (
    APPEARANCES,
    MOTIONS,
    MotionRanges,
    SyntheticVideoSettings,
    choose_classes,
    make_synthetic_videos,
    plan_track,
    render_synthetic_background,
    render_synthetic_video,
)
from vjepa_hub.data.video import open_video

SMALL = SyntheticVideoSettings(num_videos=3, size=32, num_frames=8, fps=10)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the videos of `SMALL`."""
    return make_synthetic_videos(tmp_path_factory.mktemp("made"), SMALL).parent


@pytest.fixture(scope="module")
def small_videos():
    """400 small videos, of which a test looks at single frames."""
    settings = SyntheticVideoSettings(size=32, num_frames=10)
    return [render_synthetic_video(settings, index) for index in range(400)]


def test_the_background_alone_is_that_of_the_video_outside_its_objects(monkeypatch):
    drawn = [render_synthetic_video(SMALL, index).frames for index in range(8)]
    monkeypatch.setattr(synthetic, "_draw_object", lambda *arguments: None)
    for index, frames in enumerate(drawn):
        background = render_synthetic_background(SMALL, index)
        assert np.array_equal(render_synthetic_video(SMALL, index).frames, background)
        assert 0.01 < (frames != background).any(axis=-1).mean() < 0.7


def video_bytes(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.mp4"))]


def mean_distance(video, path):
    with open_video(path) as reader:
        frames = reader.read_frames(range(reader.num_frames))
    return np.abs(frames.astype(int) - video.frames).mean()


def test_files_hold_the_frames_that_were_rendered(made):
    for index, path in enumerate(sorted(made.glob("*.mp4"))):
        with open_video(path) as reader:
            assert (reader.num_frames, reader.height, reader.width, reader.average_fps) == (8, 32, 32, 10)
        distances = [mean_distance(render_synthetic_video(SMALL, other), path) for other in range(3)]
        assert np.argmin(distances) == index
        assert distances[index] < 8  # of 255; yuv420p halves the resolution of colour


def test_equal_settings_give_equal_files(tmp_path):
    """Each is written several times: an encoder that differs now and then differs among these."""
    settings = SyntheticVideoSettings(num_videos=12)
    first, *others = (video_bytes(make_synthetic_videos(tmp_path / str(n), settings).parent) for n in range(5))
    assert all(other == first for other in others)


def test_other_seeds_and_splits_give_other_videos(made, tmp_path):
    for changed in (SMALL.with_values(seed=1), SMALL.with_values(split="test")):
        other = make_synthetic_videos(tmp_path / f"{changed.seed}-{changed.split}", changed).parent
        assert not set(video_bytes(other)) & set(video_bytes(made))


def test_a_video_never_depends_on_how_many_are_made():
    many = SMALL.with_values(num_videos=1000)
    for index in (0, 2):
        assert np.array_equal(render_synthetic_video(SMALL, index).frames, render_synthetic_video(many, index).frames)


def test_a_second_call_makes_what_is_missing_and_keeps_the_rest(tmp_path):
    make_synthetic_videos(tmp_path, SMALL)
    before = video_bytes(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}
    (tmp_path / "video-00001.mp4").unlink()
    calls = []
    make_synthetic_videos(tmp_path, SMALL, progress=lambda what, *counts: calls.append(counts))
    assert video_bytes(tmp_path) == before
    kept = [path for path in tmp_path.glob("*.mp4") if path.stat().st_mtime_ns == times[path.name]]
    assert sorted(path.name for path in kept) == ["video-00000.mp4", "video-00002.mp4"]
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_video_that_is_not_written_to_its_end_never_has_its_name(tmp_path):
    frames = render_synthetic_video(SMALL, 0).frames
    with pytest.raises(ValueError, match="dtype"):
        synthetic._write_video(tmp_path / "video-00000.mp4", frames.astype(np.float64), fps=10)
    assert not list(tmp_path.glob("*.mp4"))
    assert len(video_bytes(make_synthetic_videos(tmp_path, SMALL).parent)) == 3


def test_other_settings_in_a_folder_are_an_error_that_names_them(made):
    with pytest.raises(ValueError, match=r"seed is 0 there and 7 now\): name another folder"):
        make_synthetic_videos(made, SMALL.with_values(seed=7))


def test_videos_of_somebody_else_are_never_taken_for_made_ones(tmp_path):
    (tmp_path / "video-00000.mp4").write_bytes(b"holidays")
    with pytest.raises(ValueError, match=r"holds videos, but no synthetic\.json"):
        make_synthetic_videos(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["video-00000.mp4"]


@pytest.mark.parametrize("name", ["videos.csv", "motion.csv", "classes.json"])
def test_tables_of_somebody_else_are_never_replaced(tmp_path, name):
    (tmp_path / name).write_text("theirs")
    with pytest.raises(FileExistsError, match=f"{name}.*vjepa_hub did not write it.*another output folder"):
        make_synthetic_videos(tmp_path, SMALL)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_videos": 0}, "num_videos is 0"),
        ({"size": 16}, "size is 16"),
        ({"size": 33}, "size is 33.* multiple of 2"),
        ({"num_frames": 1}, "num_frames is 1"),
        ({"fps": 12.5}, "fps is 12.5"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "val"}, "split is 'val', but must be 'train' or 'test'"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SyntheticVideoSettings(**wrong)


def test_manifests_name_each_video_with_its_classes(made):
    rows = (made / "videos.csv").read_text().splitlines()
    classes = json.loads((made / "classes.json").read_text())
    assert rows[0] == "path,appearance,motion"
    numbers = {name: read_manifest_entries(made / f"{name}.csv") for name in ("appearance", "motion")}
    for index, row in enumerate(rows[1:]):
        appearance, motion = choose_classes(SMALL, index)
        assert row == f"video-{index:05d}.mp4,{APPEARANCES[appearance]},{MOTIONS[motion]}"
        entry = numbers["appearance"][index]
        assert (entry.path, str(entry.label)) == (f"video-{index:05d}.mp4", str(appearance))
        assert classes["motion"][int(numbers["motion"][index].label)] == MOTIONS[motion]
    assert len(rows) == 4
    assert [entry.path for entry in read_manifest_entries(made / "videos.csv")] == [
        row.split(",")[0] for row in rows[1:]
    ]


def test_each_pair_of_classes_comes_once_in_every_run_of_80():
    pairs = [choose_classes(SMALL, index) for index in range(80, 160)]
    assert len(set(pairs)) == 80
    assert pairs != [choose_classes(SMALL, index) for index in range(80)]


# --- what the labels mean ---


@pytest.mark.parametrize(("motion", "step"), [("right", (1, 0)), ("left", (-1, 0)), ("up", (0, -1)), ("down", (0, 1))])
def test_objects_move_in_the_direction_of_their_label(motion, step):
    displacements = [shown_displacement(video) for video in videos_of(motion, num_videos=8)]
    directions = np.array(displacements) @ np.array(step)
    assert np.mean(directions > 0.5) > 0.8, displacements


def test_a_clockwise_label_turns_clockwise_to_the_eye():
    for motion, sense in (("clockwise", 1), ("counter-clockwise", -1)):
        path = plan_track(np.random.default_rng(0), motion, 12, MotionRanges()).centres
        from_centre = path - path.mean(axis=0)
        step = np.diff(path, axis=0)
        turning = from_centre[:-1, 0] * step[:, 1] - from_centre[:-1, 1] * step[:, 0]  # y points downwards
        assert np.sign(turning.sum()) == sense


def test_objects_grow_and_shrink_but_for_one_jump_back():
    for motion, sense in (("expand", 1), ("shrink", -1)):
        for seed in range(20):
            track = plan_track(np.random.default_rng(seed), motion, 28, MotionRanges())
            assert (np.diff(track.radii) * sense <= 0).sum() <= 1
            assert np.ptp(track.centres, axis=0) == pytest.approx([0, 0])


def videos_of(motion, *, num_videos):
    settings = SyntheticVideoSettings(num_frames=8)
    chosen = (index for index in range(1000) if MOTIONS[choose_classes(settings, index)[1]] == motion)
    return [render_synthetic_video(settings, next(chosen)) for _ in range(num_videos)]


def shown_displacement(video):
    """Pixels (x, y) by which what stands out from the background moves in 4 frames: the peak of a correlation."""
    frames = video.frames.astype(np.float32)
    stands_out = np.linalg.norm(frames - np.median(frames, axis=(0, 1, 2)), axis=-1).clip(60, 160) - 60
    waves = np.fft.fft2(stands_out - stands_out.mean(axis=(1, 2), keepdims=True))
    correlation = np.fft.ifft2(waves[4:] * waves[:4].conj()).real.sum(axis=0)
    y, x = np.unravel_index(correlation.argmax(), correlation.shape)
    return (x + 32) % 64 - 32, (y + 32) % 64 - 32


# --- what must not give the labels away ---


def nearest_neighbour_accuracy(features, labels, num_train=240):
    """Share of the others that have the label of most of their five nearest training examples."""
    train, test = features[:num_train], features[num_train:]
    distances = (test**2).sum(1)[:, None] - 2 * test @ train.T + (train**2).sum(1)
    votes = labels[:num_train][np.argsort(distances, axis=1)[:, :5]]
    predictions = np.array([Counter(row.tolist()).most_common(1)[0][0] for row in votes])
    return np.mean(predictions == labels[num_train:])


def near_chance(num_classes, num_test=160):
    """Three standard deviations above chance."""
    chance = 1 / num_classes
    return chance + 3 * np.sqrt(chance * (1 - chance) / num_test)


@pytest.mark.parametrize("frame", [0, 9])
def test_the_pixels_of_one_frame_never_tell_the_motion(small_videos, frame):
    pixels = np.stack([video.frames[frame].ravel() / np.float32(255) for video in small_videos])
    labels = np.array([video.motion for video in small_videos])
    assert nearest_neighbour_accuracy(pixels, labels) < near_chance(len(MOTIONS))


@pytest.mark.parametrize("label_name", ["appearance", "motion"])
def test_the_mean_colour_never_tells_a_class(small_videos, label_name):
    colours = np.stack([video.frames.mean(axis=(0, 1, 2)) for video in small_videos])
    labels = np.array([getattr(video, label_name) for video in small_videos])
    assert nearest_neighbour_accuracy(colours, labels) < near_chance(labels.max() + 1)


def test_the_change_between_frames_without_its_direction_never_tells_the_way(small_videos):
    """Nor does the background: only where the object goes tells right from left, up and down."""
    ways = [video for video in small_videos if MOTIONS[video.motion] in ("right", "left", "up", "down")]
    changes = [np.abs(np.diff(video.frames.astype(np.float32), axis=0)).mean(axis=(1, 2)).ravel() for video in ways]
    labels = np.array([video.motion for video in ways])
    assert nearest_neighbour_accuracy(np.stack(changes), labels, num_train=120) < near_chance(4, len(ways) - 120)


@pytest.mark.parametrize("motion", MOTIONS)
def test_places_sizes_and_angles_are_distributed_alike_in_all_classes_and_at_all_times(motion):
    ranges = MotionRanges()
    tracks = [plan_track(np.random.default_rng(seed), motion, 32, ranges) for seed in range(1500)]
    smallest, largest = ranges.radii
    for frame in (0, 20, 31):
        shares = {
            "x": [track.centres[frame, 0] % 1 for track in tracks],
            "y": [track.centres[frame, 1] % 1 for track in tracks],
            "size": [np.log(track.radii[frame] / smallest) / np.log(largest / smallest) for track in tracks],
            "angle": [track.angles[frame] / (2 * np.pi) % 1 for track in tracks],
        }
        for name, values in shares.items():
            counts = np.histogram(values, bins=10, range=(0, 1))[0]
            assert ((counts - 150) ** 2 / 150).sum() < 33.7, (name, frame)  # chi-squared, 9 degrees: p = 1e-4


@pytest.mark.parametrize("appearance", APPEARANCES)
def test_shapes_fill_their_circle_and_nothing_beyond_it(appearance):
    x, y = np.meshgrid(*[np.linspace(-2, 2, 201, dtype=np.float32)] * 2)
    distances = synthetic._SHAPES[appearance](x, y)
    inside = np.hypot(x, y)[distances < 0]
    assert 0.85 < inside.max() < 1.16
    assert 0.12 < (distances < 0).sum() * (4 / 200) ** 2 / np.pi < 0.9
    half_a_pixel = 0.5 / (MotionRanges().radii[0] * 32)
    assert distances[np.hypot(x, y) > synthetic._REACH].min() > half_a_pixel
