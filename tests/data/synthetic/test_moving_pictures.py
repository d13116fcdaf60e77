import gzip
import json
from collections import Counter

import numpy as np
import pytest

from vjepa_hub.data.manifests import read_manifest_entries
from vjepa_hub.data.synthetic import moving_pictures
from vjepa_hub.data.synthetic import shapes as synthetic
from vjepa_hub.data.synthetic.moving_pictures import (
    FASHION_MNIST_CLASSES,
    SCENES,
    MovingPictureSettings,
    find_fashion_mnist,
    make_moving_pictures,
    read_fashion_mnist,
    read_idx,
    render_moving_picture,
    render_moving_picture_background,
)
from vjepa_hub.data.synthetic.shapes import MOTIONS, SyntheticVideoSettings, Track, plan_track, render_synthetic_video
from vjepa_hub.data.video import open_video

NAMES = ("dot", "bar", "gate")
SMALL = MovingPictureSettings(num_videos=4, size=32, num_frames=6, fps=10)


def drawn_pictures():
    """Six pictures of three classes, each with a brightness of its own."""
    pictures = np.zeros((6, 28, 28), np.uint8)
    for number in range(6):
        light = 255 - 20 * number
        pictures[number, 6:22, 10:18] = light
        if number % 3:
            pictures[number, 2:26, 12:16] = light
        if number % 3 == 2:
            pictures[number, 2:6, 2:26] = light
    return {"pictures": pictures, "labels": np.arange(6, dtype=np.uint8) % 3, "class_names": NAMES}


def render(settings, index, given=None):
    given = given or drawn_pictures()
    return render_moving_picture(settings, index, pictures=given["pictures"], labels=given["labels"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the videos of `SMALL`."""
    return make_moving_pictures(tmp_path_factory.mktemp("made"), SMALL, **drawn_pictures()).parent


@pytest.fixture(scope="module")
def small_videos():
    """480 small videos, of which a test looks at single frames."""
    settings = MovingPictureSettings(size=32, num_frames=10)
    return [render(settings, index) for index in range(480)]


def test_the_background_alone_is_that_of_the_video_outside_its_picture():
    for index in range(8):
        frames, background = render(SMALL, index).frames, render_moving_picture_background(SMALL, index)
        nothing = {**drawn_pictures(), "pictures": np.zeros((6, 28, 28), np.uint8)}
        assert background.shape == frames.shape
        assert np.array_equal(render(SMALL, index, nothing).frames, background)
        is_changed = (frames != background).any(axis=-1)
        assert 0.02 < is_changed.mean() < 0.5
        # What is drawn is lighter: where the two differ there is the picture, and nothing else
        assert (frames.astype(int) - background >= -1).all()


# --- files of pictures ---


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx(folder, pictures, labels, *, split="train", pack=gzip.compress, ending=".gz"):
    paths = folder / f"{split}-images-idx3-ubyte{ending}", folder / f"{split}-labels-idx1-ubyte{ending}"
    for path, array in zip(paths, (pictures, labels), strict=True):
        path.write_bytes(pack(idx_bytes(array)))
    return paths


@pytest.mark.parametrize(("pack", "ending"), [(gzip.compress, ".gz"), (bytes, "")])
def test_packed_and_plain_files_are_read_as_they_were_written(tmp_path, pack, ending):
    given = drawn_pictures()
    pictures, labels = read_idx(*write_idx(tmp_path, given["pictures"], given["labels"], pack=pack, ending=ending))
    assert np.array_equal(pictures, given["pictures"])
    assert np.array_equal(labels, given["labels"])
    assert pictures.dtype == labels.dtype == np.uint8


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
@pytest.mark.parametrize("num_lost", [1, 300])
def test_files_that_are_cut_off_are_an_error_that_names_the_file(tmp_path, pack, num_lost):
    given = drawn_pictures()
    noise = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)  # does not get smaller by packing
    images, labels = write_idx(tmp_path, noise, given["labels"], pack=pack)
    images.write_bytes(images.read_bytes()[:-num_lost])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz .*cut off.*fetch it again"):
        read_idx(images, labels)


@pytest.mark.parametrize("num_left", [0, 3, 4, 10])
def test_a_header_that_is_cut_off_is_an_error(tmp_path, num_left):
    given = drawn_pictures()
    images, labels = write_idx(tmp_path, given["pictures"], given["labels"], pack=bytes)
    images.write_bytes(images.read_bytes()[:num_left])
    with pytest.raises(ValueError, match="train-images-idx3"):
        read_idx(images, labels)


def test_files_in_the_wrong_order_are_an_error_that_says_which_is_wanted(tmp_path):
    given = drawn_pictures()
    images, labels = write_idx(tmp_path, given["pictures"], given["labels"])
    with pytest.raises(ValueError, match=r"begins with the bytes 00 00 08 01, .* 00 00 08 03: give the file"):
        read_idx(labels, images)


def test_files_of_another_kind_are_refused(tmp_path):
    given = drawn_pictures()
    _, labels = write_idx(tmp_path, given["pictures"], given["labels"])
    other = tmp_path / "other"
    other.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match="89 50 4e 47"):
        read_idx(other, labels)


def test_pictures_of_another_size_and_labels_of_another_split_are_refused(tmp_path):
    given = drawn_pictures()
    with pytest.raises(ValueError, match="pictures of 28 x 27 pixels"):
        read_idx(*write_idx(tmp_path, given["pictures"][:, :, 1:], given["labels"]))
    with pytest.raises(ValueError, match=r"6 pictures .* 5 labels"):
        read_idx(*write_idx(tmp_path, given["pictures"], given["labels"][1:]))


def test_fashion_mnist_is_found_in_a_folder_and_each_split_read_from_its_own_files(tmp_path):
    given = drawn_pictures()
    write_idx(tmp_path, given["pictures"], given["labels"])
    write_idx(tmp_path, 255 - given["pictures"], given["labels"], split="t10k", pack=bytes, ending="")
    assert [path.name for path in find_fashion_mnist(tmp_path)] == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ]
    train, test = read_fashion_mnist("train", tmp_path), read_fashion_mnist("test", tmp_path)
    assert np.array_equal(train["pictures"], 255 - test["pictures"])
    assert train["class_names"] == FASHION_MNIST_CLASSES
    with pytest.raises(ValueError, match="split is 'val'"):
        read_fashion_mnist("val", tmp_path)


@pytest.mark.parametrize("is_default", [True, False])
def test_missing_files_are_an_error_with_the_remedy(tmp_path, monkeypatch, is_default):
    monkeypatch.setattr(moving_pictures, "_DEBIAN_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist, or name the folder"):
        find_fashion_mnist(None if is_default else tmp_path)


# --- files of videos ---


def test_files_hold_the_frames_that_were_rendered(made):
    for index, path in enumerate(sorted(made.glob("*.mp4"))):
        with open_video(path) as reader:
            assert (reader.num_frames, reader.height, reader.width, reader.average_fps) == (6, 32, 32, 10)
            frames = reader.read_frames(range(6)).astype(int)
        distances = [np.abs(frames - render(SMALL, other).frames).mean() for other in range(4)]
        assert np.argmin(distances) == index
        assert distances[index] < 8  # of 255; yuv420p halves the resolution of colour


def test_manifests_name_each_video_with_its_classes(made):
    rows = (made / "videos.csv").read_text().splitlines()
    classes = json.loads((made / "classes.json").read_text())
    assert classes == {"appearance": list(NAMES), "motion": list(MOTIONS)}
    numbers = {name: read_manifest_entries(made / f"{name}.csv") for name in classes}
    for index in range(4):
        video = render(SMALL, index)
        assert rows[index + 1] == f"video-{index:05d}.mp4,{NAMES[video.appearance]},{MOTIONS[video.motion]}"
        assert numbers["appearance"][index].label == str(video.appearance)
        assert numbers["motion"][index].label == str(video.motion)
    assert len(rows) == 5


def test_a_second_call_makes_what_is_missing_and_keeps_the_rest(tmp_path):
    make_moving_pictures(tmp_path, SMALL, **drawn_pictures())
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.mp4")}
    (tmp_path / "video-00001.mp4").unlink()
    calls = []
    make_moving_pictures(tmp_path, SMALL, **drawn_pictures(), progress=lambda what, *counts: calls.append(counts))
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.mp4")}
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["video-00001.mp4"]
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_other_settings_in_a_folder_are_an_error_that_names_them(made):
    with pytest.raises(ValueError, match=r"moving pictures .*\(split is train there and test now\): name another"):
        make_moving_pictures(made, SMALL.with_values(split="test"), **drawn_pictures())


@pytest.mark.parametrize("changed", ["pictures", "labels", "class_names"])
def test_other_pictures_in_a_folder_are_an_error(made, changed):
    given = drawn_pictures()
    other = {"pictures": given["pictures"] // 2, "labels": given["labels"][::-1], "class_names": ("a", "b", "c")}
    with pytest.raises(ValueError, match=r"pictures is [0-9a-f]{64} there"):
        make_moving_pictures(made, SMALL, **{**given, changed: other[changed]})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pictures": np.zeros((6, 28, 28))}, r"pictures are float64 of shape \(6, 28, 28\)"),
        ({"pictures": np.zeros((6, 784), np.uint8)}, r"shape \(6, 784\)"),
        ({"labels": np.zeros(5, np.uint8)}, r"labels have the shape \(5,\), but there are 6 pictures"),
        ({"labels": np.arange(6, dtype=np.uint8) % 2}, r"labels are \[0, 1\], but each of the 3 classes"),
        ({"labels": np.arange(6, dtype=np.uint8) % 4}, r"labels are \[0, 1, 2, 3\]"),
        ({"class_names": ("dot", "bar, long", "gate")}, "a class is named 'bar, long'"),
    ],
)
def test_pictures_that_do_not_fit_their_labels_are_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        make_moving_pictures(tmp_path / "new", SMALL, **{**drawn_pictures(), **wrong})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 33}, "multiple of 2"),
        ({"num_videos": 0}, "num_videos is 0"),
        ({"split": "val"}, "split is 'val'"),
        ({"scene": "foggy"}, "scene is 'foggy', but must be 'textured' or 'grainy'"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MovingPictureSettings(**wrong)


# --- what is shown ---


def frames_with(picture, *, centre):
    """A grey frame of 56 pixels with a picture at its own size of 28."""
    frames = np.full((1, 56, 56, 3), 50, np.float32)
    track = Track(np.array([centre]), np.array([0.25]), np.zeros(1))
    darkest, lightest = np.float32([100, 110, 120]), np.float32([200, 220, 240])
    moving_pictures._draw_picture(frames, track, picture, darkest, lightest)
    return frames[0]


def test_a_picture_is_tinted_by_its_brightness_and_its_black_is_transparent():
    picture = np.arange(28 * 28).reshape(28, 28).astype(np.uint8)  # every brightness, no symmetry
    shown = frames_with(picture, centre=(0.5, 0.5))
    brightness = picture[..., None] / 255
    tinted = np.array([100, 110, 120]) * (1 - brightness) + np.array([200, 220, 240]) * brightness
    coverage = np.minimum(brightness / 0.25, 1)
    assert shown[14:42, 14:42] == pytest.approx(50 + coverage * (tinted - 50), abs=0.01)
    outside = np.ones((56, 56), bool)
    outside[14:42, 14:42] = False
    assert shown[outside] == pytest.approx(50, abs=0.01)


def test_what_leaves_on_one_side_comes_back_on_the_other():
    picture = drawn_pictures()["pictures"][2]
    in_the_middle = frames_with(picture, centre=(0.5, 0.5))
    assert frames_with(picture, centre=(0.0, 0.25)) == pytest.approx(np.roll(in_the_middle, (-14, -28), (0, 1)))


def test_each_video_shows_a_picture_of_its_class():
    given = drawn_pictures()
    for appearance in range(3):
        others_black = {**given, "pictures": given["pictures"].copy()}
        others_black["pictures"][given["labels"] != appearance] = 0
        for index in range(24):
            is_same = np.array_equal(render(SMALL, index).frames, render(SMALL, index, others_black).frames)
            assert is_same == (render(SMALL, index).appearance == appearance)


@pytest.mark.parametrize(("motion", "step"), [("right", (1, 0)), ("left", (-1, 0)), ("up", (0, -1)), ("down", (0, 1))])
def test_pictures_move_in_the_direction_of_their_label(small_videos, motion, step):
    for video in (video for video in small_videos if MOTIONS[video.motion] == motion):
        light = video.frames.max(axis=-1).astype(float).clip(120, None) - 120  # the background is darker
        waves = np.fft.fft2(light)
        correlation = np.fft.ifft2(waves[5] * waves[0].conj()).real
        down, right = np.unravel_index(correlation.argmax(), correlation.shape)
        moved = np.array([(right + 16) % 32 - 16, (down + 16) % 32 - 16])  # 3.3 to 6.7 pixels
        assert 2 < moved @ np.array(step) < 8
        assert abs(moved @ np.array(step[::-1])) <= 1


@pytest.mark.parametrize(("motion", "sense"), [("expand", 1), ("shrink", -1)])
def test_pictures_grow_and_shrink_but_for_jumps_back(small_videos, motion, sense):
    chosen = [video for video in small_videos if MOTIONS[video.motion] == motion]
    areas = np.array([(video.frames.max(axis=-1) > 120).sum(axis=(1, 2)) for video in chosen])
    steps = sense * (areas[:, 3:] - areas[:, :-3])
    assert np.mean(steps > 0) > 0.6
    assert np.mean(np.median(steps, axis=1) > 0) > 0.8


def test_speeds_and_periods_are_those_of_pictures():
    ranges = moving_pictures._RANGES
    for seed in range(50):
        generator = np.random.default_rng(seed)
        going, growing = (plan_track(generator, motion, 16, ranges) for motion in ("right", "expand"))
        speed = np.diff(going.centres[:, 0])
        phases = np.log(growing.radii / ranges.radii[0]) / np.log(ranges.radii[1] / ranges.radii[0])
        period = 1 / np.median(np.diff(phases))
        assert ranges.speeds[0] <= speed.min() + 1e-9
        assert speed.max() - 1e-9 <= ranges.speeds[1]
        assert ranges.zoom_periods[0] - 1e-6 <= period <= ranges.zoom_periods[1] + 1e-6


GRAINY = MovingPictureSettings(num_videos=1, size=48, num_frames=8, scene="grainy")


def test_grain_is_grey_as_strong_as_said_and_new_in_every_frame():
    frames = render_moving_picture_background(GRAINY, 0).astype(np.float32)
    assert np.ptp(frames, axis=-1).max() < 12  # the ground's texture is faint, but has colours
    lit = frames[..., 0]
    assert 0.7 * SCENES["grainy"].grain < lit.std() < SCENES["grainy"].grain  # black and white cut its tails off
    rows = (lit - lit.mean()).reshape(8, -1)
    alike = np.corrcoef(rows)[~np.eye(8, dtype=bool)]
    assert np.abs(alike).max() < 0.2
    beside = np.corrcoef(lit[:, :, 1:].ravel(), lit[:, :, :-1].ravel())[0, 1]
    assert beside > 0.5  # spots, and no single pixels, which coding would take away


def test_the_ground_of_a_grainy_video_is_that_of_the_video_without_its_picture():
    video, ground = render(GRAINY, 3).frames, render_moving_picture_background(GRAINY, 3)
    same = (video == ground).all(axis=-1)
    assert 0.4 < same.mean() < 0.98
    assert (render(GRAINY.with_values(seed=1), 3).frames != video).any()


# --- what must not give the labels away ---


def test_each_pair_of_classes_comes_once_in_every_run(small_videos):
    pairs = [(video.appearance, video.motion) for video in small_videos]
    for start in range(0, 480, 24):
        assert len(set(pairs[start : start + 24])) == 24
    assert pairs[:24] != pairs[24:48]


@pytest.mark.parametrize("frame", [0, 9])
def test_the_pixels_of_one_frame_never_tell_the_motion(small_videos, frame):
    pixels = np.stack([video.frames[frame].ravel() / np.float32(255) for video in small_videos])
    labels = np.array([video.motion for video in small_videos])
    train, test = pixels[:240], pixels[240:]
    distances = (test**2).sum(1)[:, None] - 2 * test @ train.T + (train**2).sum(1)
    votes = labels[:240][np.argsort(distances, axis=1)[:, :5]]
    predictions = [Counter(row.tolist()).most_common(1)[0][0] for row in votes]
    three_deviations = 3 * np.sqrt(1 / 8 * 7 / 8 / 240)
    assert np.mean(predictions == labels[240:]) < 1 / 8 + three_deviations


@pytest.mark.parametrize("motion", MOTIONS)
def test_places_sizes_and_angles_are_distributed_alike_in_all_classes_and_at_all_times(motion):
    ranges = moving_pictures._RANGES
    tracks = [plan_track(np.random.default_rng(seed), motion, 16, ranges) for seed in range(1500)]
    (smallest, largest), (first, last) = ranges.radii, ranges.angles
    for frame in (0, 9, 15):
        shares = {
            "x": [track.centres[frame, 0] % 1 for track in tracks],
            "y": [track.centres[frame, 1] % 1 for track in tracks],
            "size": [np.log(track.radii[frame] / smallest) / np.log(largest / smallest) for track in tracks],
            "angle": [(track.angles[frame] - first) / (last - first) for track in tracks],
        }
        for name, values in shares.items():
            counts = np.histogram(values, bins=10, range=(0, 1))[0]
            assert ((counts - 150) ** 2 / 150).sum() < 33.7, (name, frame)  # chi-squared, 9 degrees: p = 1e-4


def test_a_video_never_depends_on_how_many_are_made():
    many = SMALL.with_values(num_videos=1000)
    assert np.array_equal(render(SMALL, 2).frames, render(many, 2).frames)


def test_no_background_is_in_another_split_seed_or_video_nor_in_the_made_shapes(monkeypatch):
    monkeypatch.setattr(synthetic, "_draw_object", lambda *arguments: None)
    black = {**drawn_pictures(), "pictures": np.zeros((6, 28, 28), np.uint8)}
    values = {"size": 32, "num_frames": 2}
    backgrounds = []
    for seed in (0, 1):
        for split in ("train", "test"):
            settings = MovingPictureSettings(seed=seed, split=split, **values)
            backgrounds += [render(settings, index, black).frames[0] for index in range(3)]
            shapes = SyntheticVideoSettings(seed=seed, split=split, **values)
            backgrounds += [render_synthetic_video(shapes, index).frames[0] for index in range(3)]
    patterns = [(frame - frame.mean(axis=(0, 1))).ravel() for frame in backgrounds]
    correlations = np.corrcoef(patterns) - np.eye(len(patterns))
    assert correlations.max() < 0.9
