"""Video that the package makes itself: shapes that move over a drifting background, as files with two labels each.

Each video shows one or two objects. What they look like (`APPEARANCES`) and how they move (`MOTIONS`) are independent
of each other, and of everything else that varies: colours, textures, sizes, orientations, speeds, the background and
its drift. The cheap ways to guess are closed by construction:

- appearance: colours and textures are drawn without regard to the class;
- motion: the frame is a torus (what leaves on one side comes back on the other), a place, a size and an orientation
  have the same distribution in every class and at every time, and the background drifts in a direction of its own.
  So a single frame tells nothing, and neither does a change that is not the object's.

The files are H.264 in MP4, read back by the decoder that reads any other video. Everything about video `index` is a
function of (seed, split, index).

Lengths are in widths of the frame, x to the right and y downwards; an object has its own coordinates, in which it
fills a circle of radius 1. Shapes: T frames, S x S pixels.
"""

import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from ...core.files import require_replaceable, write_whole, written_whole
from ...core.names import counted
from ...core.progress import Progress, no_progress
from ...core.settings import Settings

MOTIONS = ("right", "left", "up", "down", "clockwise", "counter-clockwise", "expand", "shrink")
Split = Literal["train", "test"]
SPLITS: tuple[str, ...] = get_args(Split)

MANIFEST = "videos.csv"
_CLASSES_FILE = "classes.json"
_LABELS = ("appearance", "motion")
# Rendering of this version of the file: a change of what is drawn is a change of this number.
_FORMAT = 1

_RADII = (0.12, 0.27)
_MAX_DRIFT = 1 / 96  # widths per frame
_REACH = 1.42  # beyond it there is nothing of any shape, not even half a pixel of an edge
_BRIGHTNESS = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class SyntheticVideoSettings(Settings):
    """Settings of synthetic videos.

    Args:
        num_videos: Number of videos. Classes are balanced over each run of 80, one of each pair of classes.
        size: Side of the square frames in pixels; H.264 in yuv420p wants even sides.
        num_frames: Frames of each video. Speeds are set per frame.
        fps: Frames per second that the files declare.
        seed: Everything is a function of it.
        split: No video of one split is in the other, whatever the number of videos.
    """

    kind: Literal["shapes"] = "shapes"
    num_videos: PositiveInt = 1000
    size: int = Field(default=64, ge=32, multiple_of=2)
    num_frames: int = Field(default=32, ge=2)
    fps: PositiveInt = 16
    seed: NonNegativeInt = 0
    split: Split = "train"

    def generator(self, *numbers: int) -> np.random.Generator:
        """A generator for these numbers, of this seed and split."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), *numbers])


@dataclass(frozen=True, kw_only=True)
class MotionRanges:
    """Ranges from which the numbers of an object's motion are drawn, evenly.

    Args:
        radii: Smallest and largest radius, in widths of the frame; even in their logarithm.
        angles: Orientation in the first frame, in radians.
        max_spin: Most radians by which the orientation changes in a frame.
        speeds: Of a straight way, in widths per frame.
        orbit_radii: Of a circle that is gone round, in widths.
        orbit_periods: Frames of a whole circle.
        zoom_periods: Frames from the smallest radius to the largest.
    """

    radii: tuple[float, float] = _RADII
    angles: tuple[float, float] = (0.0, 2 * np.pi)
    max_spin: float = 0.04
    speeds: tuple[float, float] = (1 / 48, 1 / 24)
    orbit_radii: tuple[float, float] = (0.14, 0.24)
    orbit_periods: tuple[float, float] = (20.0, 40.0)
    zoom_periods: tuple[float, float] = (28.0, 48.0)


_RANGES = MotionRanges()


@dataclass(frozen=True)
class SyntheticVideo:
    """A video and its labels.

    Attributes:
        frames: `(num_frames, size, size, 3)`, uint8 RGB.
        appearance: Place in `APPEARANCES`.
        motion: Place in `MOTIONS`.
    """

    frames: np.ndarray
    appearance: int
    motion: int


def make_synthetic_videos(
    folder: str | Path,
    settings: SyntheticVideoSettings | None = None,
    *,
    progress: Progress = no_progress,
) -> Path:
    """Write the videos, their labels and the manifests. Videos that are there already are kept.

    A file appears under its name when it is complete, so the same call goes on after an interruption. Beside the
    videos are written:

    - `videos.csv`, a table with the columns path, appearance, motion (names of the classes);
    - `appearance.csv` and `motion.csv`, lists of 'path label' (numbers), the form of the released code;
    - `classes.json`, the names of the labels in their order;
    - `synthetic.json`, the settings.

    Args:
        folder: Made if it is not there.
        settings: By default those of `SyntheticVideoSettings()`.
        progress: Called with the videos that are there, and all videos, before the first and after each.

    Returns:
        The path of `videos.csv`.

    Raises:
        ValueError: The folder holds videos that were made with other settings, or by somebody else.
        OSError: A file cannot be written.
    """
    settings = settings or SyntheticVideoSettings()
    return write_labelled_videos(
        folder,
        settings,
        render=lambda index: render_synthetic_video(settings, index),
        choose=lambda index: choose_classes(settings, index),
        class_names=(APPEARANCES, MOTIONS),
        record=FolderRecord("synthetic.json", "synthetic videos", {"format": _FORMAT, **settings.to_tree()}),
        progress=progress,
    )


def render_synthetic_video(settings: SyntheticVideoSettings, index: int) -> SyntheticVideo:
    """Draw one video; its frames as they are before coding.

    Args:
        settings: `num_videos` and `fps` have no influence.
        index: Number of the video, from 0.
    """
    appearance, motion = choose_classes(settings, index)
    generator = settings.generator(1, index)
    mean_colour, frames = _begin_video(generator, settings)
    for track in _plan_tracks(generator, MOTIONS[motion], settings.num_frames):
        _draw_object(generator, frames, track, APPEARANCES[appearance], mean_colour)
    return SyntheticVideo(np.rint(frames.clip(0, 255)).astype(np.uint8), appearance, motion)


def render_synthetic_background(settings: SyntheticVideoSettings, index: int) -> np.ndarray:
    """The same video without its objects: `(num_frames, size, size, 3)`, uint8 RGB.

    Args:
        settings: `num_videos` and `fps` have no influence.
        index: Number of the video, from 0.
    """
    _, frames = _begin_video(settings.generator(1, index), settings)
    return np.rint(frames.clip(0, 255)).astype(np.uint8)


def _begin_video(generator: np.random.Generator, settings: SyntheticVideoSettings) -> tuple[np.ndarray, np.ndarray]:
    """The background of a video: its mean colour, and its frames `(T, S, S, 3)` float32; the first of the draws."""
    mean_colour = generator.uniform(50, 205, 3).astype(np.float32)
    return mean_colour, draw_background(generator, settings, mean_colour)


def choose_classes(settings: SyntheticVideoSettings, index: int) -> tuple[int, int]:
    """The labels `(appearance, motion)` of a video. Each pair of them comes once in every 80 videos."""
    return choose_pair(settings, index, len(APPEARANCES), stream=0)


def choose_pair(settings: SyntheticVideoSettings, index: int, num_appearances: int, *, stream: int) -> tuple[int, int]:
    """Numbers of an appearance and a motion, each pair once in every `num_appearances * len(MOTIONS)` videos.

    Args:
        settings: Their seed and split count.
        index: Number of the video.
        num_appearances: How many there are.
        stream: First number of the generator's, one for each kind of video.
    """
    num_pairs = num_appearances * len(MOTIONS)
    run, place = divmod(index, num_pairs)
    pair = int(settings.generator(stream, run).permutation(num_pairs)[place])
    return pair % num_appearances, pair // num_appearances


# --- the background ---


def draw_background(
    generator: np.random.Generator,
    settings: SyntheticVideoSettings,
    mean_colour: np.ndarray,
    *,
    contrast: float = 1.0,
) -> np.ndarray:
    """Smooth noise of several scales in colours around a mean, drifting evenly: `(T, S, S, 3)` float32.

    The noise is made of waves that fit the frame, so that it wraps around, and is moved by turning their phases: a
    shift by any fraction of a pixel, without blur.

    Args:
        generator: What is drawn from.
        settings: Their size and number of frames count.
        mean_colour: `(3,)`.
        contrast: How far the colours are from the mean; 1 is that of the made shapes.
    """
    size, num_frames = settings.size, settings.num_frames
    cycles_y, cycles_x = np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size)[None, :]
    waves = _noise_spectrum(generator, np.hypot(cycles_y, cycles_x))
    direction, speed = generator.uniform(0, 2 * np.pi), generator.uniform(0, _MAX_DRIFT)
    turns = -2j * np.pi * speed * np.arange(num_frames)[:, None, None]
    waves = waves[:, None] * np.exp(turns * np.cos(direction) * cycles_x).astype(np.complex64)  # (2, T, S, S // 2 + 1)
    waves *= np.exp(turns * np.sin(direction) * cycles_y).astype(np.complex64)
    noise = np.fft.irfft2(waves, s=(size, size))  # (2, T, S, S)
    colours = generator.normal(0, 1, (2, 3))
    colours *= contrast * generator.uniform(20, 36) / np.linalg.norm(colours, axis=1, keepdims=True)
    weights = np.concatenate([noise, np.ones_like(noise[:1])]).astype(np.float32)
    return np.tensordot(weights, np.vstack([colours, mean_colour]).astype(np.float32), axes=(0, 0))


def _noise_spectrum(generator: np.random.Generator, cycles: np.ndarray) -> np.ndarray:
    """Two fields of noise of mean 0 and standard deviation 1, as waves `(2, S, S // 2 + 1)` with random roughness."""
    roughness = generator.uniform(1.3, 2.2)
    amplitudes = np.where(cycles == 0, 0, np.maximum(cycles, 1) ** -roughness)
    phases = generator.uniform(0, 2 * np.pi, (2, *cycles.shape))
    waves = amplitudes * np.exp(1j * phases)
    size = len(cycles)
    deviations = np.fft.irfft2(waves, s=(size, size)).std(axis=(1, 2), keepdims=True)
    return (waves / deviations).astype(np.complex64)


# --- where the objects are ---


@dataclass(frozen=True)
class Track:
    """Where an object is in each frame.

    Attributes:
        centres: `(T, 2)`, x and y on the torus, not yet wrapped.
        radii: `(T,)`.
        angles: `(T,)`, in radians.
    """

    centres: np.ndarray
    radii: np.ndarray
    angles: np.ndarray


def _plan_tracks(generator: np.random.Generator, motion: str, num_frames: int) -> list[Track]:
    """The tracks of one or two objects that keep their distance: they move alike, from places half a frame apart."""
    path = _plan_path(generator, motion, num_frames)
    start = generator.uniform(0, 1, 2)
    apart = np.zeros(2), np.array([0.5, 0.5]) + generator.uniform(-0.1, 0.1, 2)
    zoom = _plan_zoom(generator, motion, num_frames)
    num_objects = generator.integers(1, 3)
    return [_plan_track(generator, path + start + offset, zoom) for offset in apart[:num_objects]]


def plan_track(generator: np.random.Generator, motion: str, num_frames: int, ranges: MotionRanges) -> Track:
    """The track of one object, from anywhere in the frame.

    Args:
        generator: What is drawn from.
        motion: One of `MOTIONS`.
        num_frames: Length of the track.
        ranges: How fast and how large.
    """
    path = _plan_path(generator, motion, num_frames, ranges)
    start = generator.uniform(0, 1, 2)
    return _plan_track(generator, path + start, _plan_zoom(generator, motion, num_frames, ranges), ranges)


def _plan_track(
    generator: np.random.Generator, centres: np.ndarray, zoom: np.ndarray, ranges: MotionRanges = _RANGES
) -> Track:
    """A track with a size and an orientation of its own.

    Radii are uniform in their logarithm. One that reaches the largest starts again at the smallest (or the reverse):
    so sizes are distributed alike at every time, whether they grow, shrink or stay.
    """
    smallest, largest = ranges.radii
    phases = (generator.uniform() + zoom) % 1
    spin = (-ranges.max_spin, ranges.max_spin)
    angles = generator.uniform(*ranges.angles) + generator.uniform(*spin) * np.arange(len(zoom))
    return Track(centres, smallest * (largest / smallest) ** phases, angles)


def _plan_path(
    generator: np.random.Generator, motion: str, num_frames: int, ranges: MotionRanges = _RANGES
) -> np.ndarray:
    """The way from a start that is still to be drawn, `(T, 2)`."""
    steps = np.arange(num_frames)[:, None]
    directions = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
    if motion in directions:
        return generator.uniform(*ranges.speeds) * steps * np.array(directions[motion])
    sense = {"clockwise": 1, "counter-clockwise": -1}.get(motion, 0)
    if sense == 0:
        return np.zeros((num_frames, 2))
    turns = generator.uniform() + sense * steps / generator.uniform(*ranges.orbit_periods)
    angles = 2 * np.pi * turns  # y points downwards, so that a growing angle is clockwise to the eye
    return generator.uniform(*ranges.orbit_radii) * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def _plan_zoom(
    generator: np.random.Generator, motion: str, num_frames: int, ranges: MotionRanges = _RANGES
) -> np.ndarray:
    """How much of the range from the smallest to the largest radius is passed since the first frame, `(T,)`."""
    sense = {"expand": 1, "shrink": -1}.get(motion, 0)
    return sense * np.arange(num_frames) / generator.uniform(*ranges.zoom_periods)


# --- what the objects look like ---


def _draw_object(
    generator: np.random.Generator, frames: np.ndarray, track: Track, appearance: str, background: np.ndarray
) -> None:
    """Paint an object over `frames (T, S, S, 3)`, with edges one pixel wide."""
    size = frames.shape[1]
    x, y = object_coordinates(track, size)  # (T, S, S)
    is_near = x * x + y * y < _REACH**2
    x, y = x[is_near], y[is_near]  # (num_points,)
    radii_in_pixels = np.repeat((track.radii * size).astype(np.float32), is_near.sum(axis=(1, 2)))
    coverage = (0.5 - _SHAPES[appearance](x, y) * radii_in_pixels).clip(0, 1)[:, None]
    behind = frames[is_near]
    frames[is_near] = behind + coverage * (_paint(generator, x, y, background) - behind)


def object_coordinates(track: Track, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The object's own coordinates x and y of the pixels, each `(T, S, S)`, from its nearest copy on the torus.

    Args:
        track: Of the object.
        size: Side of the frames in pixels.
    """
    pixels = (np.arange(size) + 0.5) / size
    offsets = (pixels - track.centres[:, :, None] + 0.5) % 1 - 0.5  # (T, 2, S)
    scaled = (offsets / track.radii[:, None, None]).astype(np.float32)
    right, down = scaled[:, 0, None, :], scaled[:, 1, :, None]
    cosines = np.cos(track.angles).astype(np.float32)[:, None, None]
    sines = np.sin(track.angles).astype(np.float32)[:, None, None]
    return cosines * right + sines * down, cosines * down - sines * right


def _paint(generator: np.random.Generator, x: np.ndarray, y: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The colours `(num_points, 3)` of an object's points: a random pattern of two colours unlike the background's."""
    first = _unlike(generator, background)
    second = _unlike(generator, background, first)
    angle, frequency, phase = generator.uniform(0, np.pi), generator.uniform(3.5, 6.5), generator.uniform(0, 6)
    cosine, sine = np.float32(frequency * np.cos(angle)), np.float32(frequency * np.sin(angle))
    u, v = cosine * x + sine * y + np.float32(phase), cosine * y - sine * x
    pattern = _PATTERNS[generator.integers(len(_PATTERNS))](u, v)
    return first + (0.5 + 0.5 * pattern.clip(-1, 1))[:, None] * (second - first)


def _unlike(generator: np.random.Generator, *others: np.ndarray) -> np.ndarray:
    """A random colour that differs from others, in brightness too: yuv420p halves the resolution of hues.

    The first of a dozen at a distance of 100 grey levels, 40 of them in brightness; else the nearest to that.
    """
    candidates = generator.uniform(10, 245, (12, 3)).astype(np.float32)
    differences = candidates - np.stack(others)[:, None]  # (num_others, 12, 3)
    distances = np.linalg.norm(differences, axis=-1).clip(0, 100) / 100
    brightness = np.abs(differences @ _BRIGHTNESS).clip(0, 40) / 40
    return candidates[int(np.argmax((distances + brightness).min(axis=0).round(3)))]


_PATTERNS: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda u, v: 3 * np.sin(u),  # stripes
    lambda u, v: 4 * np.sin(u) * np.sin(v),  # checks
    lambda u, v: 3 * (np.cos(u) + np.cos(v) - 0.7),  # dots
    lambda u, v: np.sin(u + 1.5 * np.sin(v)),  # waves
)


# Signed distances to a shape's edge, negative inside, exact near the edge but not at the corners.


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.9


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.75) - 0.22


def _half_disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x + 0.4, y) - 1, -0.4 - x)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1, 0.72 - np.hypot(x - 0.5, y))


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.78


def _frame(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.62) - 0.19


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(-x, 0.5 * x + np.float32(3**0.5 / 2) * np.abs(y)) - 0.55


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: the plane is folded into half a point, whose edge is a line from the tip to a notch."""
    half_point, notch = np.float32(np.pi / 5), 0.42
    angles = np.abs((np.arctan2(y, x) + half_point) % (2 * half_point) - half_point)
    radii = np.hypot(x, y)
    along, across = notch * np.sin(half_point), 1 - notch * np.cos(half_point)
    length = np.hypot(along, across)
    return ((radii * np.cos(angles) - 1) * along + radii * np.sin(angles) * across) / length


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    shorter, longer = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.maximum(shorter - 0.27, longer - 0.95)


def _bars(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x) - 0.85, np.abs(np.abs(y) - 0.5) - 0.23)


_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc,
    "ring": _ring,
    "half-disc": _half_disc,
    "crescent": _crescent,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "bars": _bars,
}
APPEARANCES = tuple(_SHAPES)


# --- files ---


@dataclass(frozen=True)
class FolderRecord:
    """Record beside synthetic videos, so that no others are taken for them.

    Attributes:
        name: Of the file.
        what: What the videos are, in words.
        settings: All that they depend on, as JSON has it.
    """

    name: str
    what: str
    settings: dict[str, Any]


class MadeVideo(Protocol):
    """A video that can be written; `frames` are `(num_frames, size, size, 3)`, uint8 RGB."""

    @property
    def frames(self) -> np.ndarray:
        """The pixels."""


def write_labelled_videos(
    folder: str | Path,
    settings: SyntheticVideoSettings,
    *,
    render: Callable[[int], MadeVideo],
    choose: Callable[[int], tuple[int, int]],
    class_names: tuple[Sequence[str], Sequence[str]],
    record: FolderRecord,
    progress: Progress = no_progress,
) -> Path:
    """Write videos of any maker, with the files and by the rules of `make_synthetic_videos`.

    Args:
        folder: Made if it is not there.
        settings: How many videos, and their rate.
        render: Makes the video of a number.
        choose: Tells its appearance and motion, as numbers.
        class_names: Names of the appearances, and of the motions.
        record: What the videos depend on.
        progress: Called with the videos that are there, and all videos, before the first and after each.

    Returns:
        The path of `videos.csv`.

    Raises:
        ValueError: The folder holds videos that were made with other settings, or by somebody else.
        OSError: A file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim_folder(folder, record)
    title = f"making {counted(settings.num_videos, 'video')} in {folder}"
    progress(title, 0, settings.num_videos)
    for index in range(settings.num_videos):
        path = folder / _video_name(index)
        if not path.exists():
            _write_video(path, render(index).frames, settings.fps)
        progress(title, index + 1, settings.num_videos)
    return _write_manifests(folder, [choose(index) for index in range(settings.num_videos)], class_names)


def _video_name(index: int) -> str:
    return f"video-{index:05d}.mp4"


def _claim_folder(folder: Path, record: FolderRecord) -> None:
    """Store the settings beside the videos, or make sure that those stored there are the same."""
    file = folder / record.name
    if not file.exists():
        if any(folder.glob("video-*.mp4")):
            raise ValueError(f"the folder {folder} holds videos, but no {record.name} of theirs: name another folder")
        tables = (MANIFEST, _CLASSES_FILE, *(f"{label_name}.csv" for label_name in _LABELS))
        require_replaceable([folder / name for name in tables], is_own=lambda _: False)
        write_whole(file, json.dumps(record.settings, indent=2) + "\n")
        return
    try:
        found = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} holds no settings ({error}): name another folder, or delete this one") from error
    differing = [
        f"{name} is {found.get(name)} there and {value} now"
        for name, value in record.settings.items()
        if found.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"the folder {folder} holds {record.what} of other settings ({'; '.join(differing)}): "
            "name another folder, use the settings of before, or delete it"
        )


def _write_manifests(
    folder: Path, labels: Sequence[tuple[int, int]], class_names: tuple[Sequence[str], Sequence[str]]
) -> Path:
    names = [_video_name(index) for index in range(len(labels))]
    classes = dict(zip(_LABELS, map(list, class_names), strict=True))
    write_whole(folder / _CLASSES_FILE, json.dumps(classes, indent=2) + "\n")
    for place, label_name in enumerate(_LABELS):
        lines = [f"{name} {pair[place]}\n" for name, pair in zip(names, labels, strict=True)]
        write_whole(folder / f"{label_name}.csv", "".join(lines))
    appearances, motions = class_names
    rows = [
        f"{name},{appearances[appearance]},{motions[motion]}\n"
        for name, (appearance, motion) in zip(names, labels, strict=True)
    ]
    return write_whole(folder / MANIFEST, "".join(["path,appearance,motion\n", *rows]))


def _write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Encode frames, one thread and no date, so that equal frames give equal files."""
    av = importlib.import_module("av")
    codec, options = "mpeg4", {"qmin": "2", "qmax": "2"}
    if "libx264" in av.codecs_available:
        # Without mbtree: with it x264 codes equal frames of this size now in one way, now in another.
        codec, options = "libx264", {"crf": "16", "preset": "veryfast", "x264-params": "mbtree=0"}
    file_options = {"fflags": "+bitexact"}
    with (
        written_whole(path) as temporary,
        av.open(os.fspath(temporary), "w", format="mp4", options=file_options) as container,
    ):
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
