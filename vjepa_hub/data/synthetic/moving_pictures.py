"""Video that the package makes of real pictures: one moves over a drifting background, as files with two labels.

What is shown (the picture's class) and how it moves (`MOTIONS`) are independent of each other and of everything else
that varies, as in `synthetic`, whose background, tracks and files these are. A picture is taken as light on black, the
form of Fashion-MNIST and its kind: black is transparent, and brightness goes from one random colour to a lighter one,
both lighter than the background. So a single frame tells what is shown, but not how it moves.

Light on dark is what makes this the easier set of the two: attentive probes on a small encoder with random weights
are above chance in both tasks, and far from perfect. There are two scenes. In `textured` colours and texture change
from video to video and stay within one. In `grainy` all is grey, and grain like that of film, new in every frame, lies
over everything: what can be predicted of a frame is the picture and its path.

The background of a test video is in no training video; that the pictures are others is the caller's part: give the
training files to one split and the test files to the other. Everything about video `index` is a function of the
pictures and of (seed, split, index).

    train = make_moving_pictures("train", MovingPictureSettings(split="train"), **read_fashion_mnist("train"))
    test = make_moving_pictures("test", MovingPictureSettings(split="test"), **read_fashion_mnist("test"))
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from pydantic import Field, PositiveInt

from ...core.progress import Progress, no_progress
from .shapes import (
    MOTIONS,
    SPLITS,
    FolderRecord,
    MotionRanges,
    SyntheticVideo,
    SyntheticVideoSettings,
    Track,
    choose_pair,
    draw_background,
    object_coordinates,
    plan_track,
    write_labelled_videos,
)

FASHION_MNIST_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_REMEDY = "apt-get install dataset-fashion-mnist, or name the folder of the IDX files"
_IDX_BYTES = 0x08  # the type of elements; the next byte is the number of axes
_SIDE = 28

# As in `synthetic`: a change of what is drawn, or of what the record holds, is a change of this number.
_FORMAT = 2
_CLASS_STREAM, _VIDEO_STREAM = 2, 3  # `synthetic` has 0 and 1: no background of the one is in the other
_GRAIN_STREAM = 4
_RANGES = MotionRanges(
    radii=(0.2, 0.3),  # half the side of the picture
    angles=(-0.1, 0.1),
    max_spin=0.0,
    speeds=(1 / 48, 1 / 24),
    orbit_radii=(0.12, 0.2),
    orbit_periods=(12.0, 24.0),
    zoom_periods=(16.0, 28.0),
)
SceneName = Literal["textured", "grainy"]
_OPAQUE_FROM = 0.25  # brightness; below it the background shines through


@dataclass(frozen=True, kw_only=True)
class Scene:
    """How a video looks. Colours are between two bounds, from 0 to 255.

    Attributes:
        ranges: Sizes and speeds of the picture.
        background: Bounds of the mean colour of the background.
        contrast: Of the background's texture.
        darkest: Bounds of the colour of the picture's darkest parts.
        lightest: Bounds of that of its lightest.
        is_grey: Whether red, green and blue of these colours are equal.
        grain: Standard deviation of the grain, in grey levels; spots are about a twelfth of the frame wide.
    """

    ranges: MotionRanges
    background: tuple[int, int]
    contrast: float
    darkest: tuple[int, int]
    lightest: tuple[int, int]
    is_grey: bool = False
    grain: float = 0.0

    def draw_colour(self, generator: np.random.Generator, bounds: tuple[int, int]) -> np.ndarray:
        """A colour, `(3,)` float32."""
        return np.broadcast_to(generator.uniform(*bounds, 1 if self.is_grey else 3), 3).astype(np.float32)


SCENES: Mapping[SceneName, Scene] = {
    "textured": Scene(ranges=_RANGES, background=(10, 90), contrast=0.6, darkest=(110, 190), lightest=(200, 255)),
    "grainy": Scene(
        ranges=replace(_RANGES, radii=(0.28, 0.42)),
        background=(50, 70),
        contrast=0.05,
        darkest=(110, 150),
        lightest=(200, 230),
        is_grey=True,
        grain=50.0,
    ),
}


class MovingPictureSettings(SyntheticVideoSettings):
    """Settings of videos of moving pictures; the fields are those of `SyntheticVideoSettings` and `scene`.

    Args:
        num_videos: Number of videos. Classes are balanced over each run of one video for each pair of classes.
        size: Side of the square frames in pixels, even.
        num_frames: Frames of each video. Speeds are set per frame.
        fps: Frames per second that the files declare.
        seed: Everything is a function of it.
        split: No background of one split is in the other.
        scene: One of `SCENES`.
    """

    kind: Literal["fashion-mnist"] = "fashion-mnist"  # type: ignore[assignment]  # settings of another kind
    num_frames: int = Field(default=16, ge=2)
    fps: PositiveInt = 8
    scene: SceneName = "textured"


class PictureFiles(NamedTuple):
    """The four files of a data set in IDX format."""

    train_images: Path
    train_labels: Path
    test_images: Path
    test_labels: Path


class Pictures(TypedDict):
    """Labelled pictures, as `make_moving_pictures` takes them."""

    pictures: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]


# --- files of pictures ---


def find_fashion_mnist(folder: str | Path | None = None) -> PictureFiles:
    """The files of Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), packed with gzip or not.

    Args:
        folder: Where they are; None: where Debian's package dataset-fashion-mnist puts them.

    Raises:
        FileNotFoundError: One of them is not there.
    """
    place = _DEBIAN_FOLDER if folder is None else Path(folder)
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return PictureFiles(*(_find_idx(place, f"{stem}-ubyte") for stem in stems))


def _find_idx(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} holds no {name}.gz (nor {name}) of Fashion-MNIST: {_REMEDY}")


def read_fashion_mnist(split: str, folder: str | Path | None = None) -> Pictures:
    """The pictures of a split, to be passed on to `make_moving_pictures`.

    Args:
        split: One of `SPLITS`.
        folder: See `find_fashion_mnist`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: The split is unknown, or a file is broken.
    """
    if split not in SPLITS:
        raise ValueError(f"split is '{split}', but has to be one of {', '.join(SPLITS)}")
    files = find_fashion_mnist(folder)
    pair = (files.train_images, files.train_labels) if split == "train" else (files.test_images, files.test_labels)
    pictures, labels = read_idx(*pair)
    return {"pictures": pictures, "labels": labels, "class_names": FASHION_MNIST_CLASSES}


def read_idx(images_file: str | Path, labels_file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels in the IDX format of MNIST and its kind, packed with gzip or not.

    Args:
        images_file: N pictures of 28 x 28 bytes.
        labels_file: N bytes.

    Returns:
        Pictures `(N, 28, 28)` and labels `(N,)`, both uint8.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is cut off, has another format, or the two do not belong together.
    """
    pictures, labels = _read_array(Path(images_file), num_axes=3), _read_array(Path(labels_file), num_axes=1)
    if pictures.shape[1:] != (_SIDE, _SIDE):
        sides = " x ".join(map(str, pictures.shape[1:]))
        raise ValueError(f"{images_file} holds pictures of {sides} pixels, but they have to be {_SIDE} x {_SIDE}")
    if len(pictures) != len(labels):
        raise ValueError(
            f"{images_file} holds {len(pictures):,} pictures and {labels_file} {len(labels):,} labels: they do not "
            "belong together; give both files of the same split"
        )
    return pictures, labels


def _read_array(path: Path, *, num_axes: int) -> np.ndarray:
    """An array of bytes: two zeros, the type, the number of axes, their lengths in four bytes each, the elements."""
    data = _unpack(path)
    magic = bytes([0, 0, _IDX_BYTES, num_axes])
    if data[:4] != magic:
        raise ValueError(
            f"{path} begins with the bytes {data[:4].hex(' ') or '(none)'}, but an IDX file of {num_axes} axes of "
            f"bytes begins with {magic.hex(' ')}: give the file of the {'images' if num_axes == 3 else 'labels'}"
        )
    start = 4 + 4 * num_axes
    shape = tuple(int(length) for length in np.frombuffer(data[4:start].ljust(4 * num_axes, b"\0"), ">u4"))
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{path} has {len(data):,} bytes unpacked, but its header {shape} asks for {start + math.prod(shape):,}: "
            "it is cut off or not what it says; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _unpack(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): it is cut off or damaged; fetch it again") from error


# --- videos ---


def make_moving_pictures(
    folder: str | Path,
    settings: MovingPictureSettings | None = None,
    *,
    pictures: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    progress: Progress = no_progress,
) -> Path:
    """Write the videos, their labels and the manifests. Videos that are there already are kept.

    The files are those of `make_synthetic_videos`; the settings are in `moving_pictures.json`, with a digest of the
    pictures.

    Args:
        folder: Made if it is not there.
        settings: By default those of `MovingPictureSettings()`.
        pictures: `(N, height, width)`, uint8, light on black; each video shows one of them.
        labels: `(N,)`, their classes.
        class_names: Names of the classes.
        progress: Called with the videos that are there, and all videos, before the first and after each.

    Returns:
        The path of `videos.csv`.

    Raises:
        ValueError: Pictures, labels and names do not fit each other, or the folder holds videos that were made of
            other pictures, with other settings, or by somebody else.
        OSError: A file cannot be written.
    """
    settings = settings or MovingPictureSettings()
    _check_pictures(pictures, labels, class_names)
    contents = {"format": _FORMAT, **settings.to_tree(), "pictures": _digest(pictures, labels, class_names)}
    return write_labelled_videos(
        folder,
        settings,
        render=lambda index: render_moving_picture(settings, index, pictures=pictures, labels=labels),
        choose=lambda index: choose_pair(settings, index, len(class_names), stream=_CLASS_STREAM),
        class_names=(class_names, MOTIONS),
        record=FolderRecord("moving_pictures.json", "videos of moving pictures", contents),
        progress=progress,
    )


def _check_pictures(pictures: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    if pictures.ndim != 3 or pictures.dtype != np.uint8:
        raise ValueError(
            f"pictures are {pictures.dtype} of shape {pictures.shape}, but have to be uint8 (N, height, width)"
        )
    if labels.shape != pictures.shape[:1]:
        raise ValueError(
            f"labels have the shape {labels.shape}, but there are {len(pictures):,} pictures; give each one"
        )
    found = {int(label) for label in np.unique(labels)}
    if found != set(range(len(class_names))):
        raise ValueError(
            f"labels are {sorted(found)}, but each of the {len(class_names)} classes in class_names needs pictures, "
            "and each label a name"
        )
    for name in class_names:
        if not name or not name.isprintable() or any(letter in name for letter in ',"'):
            raise ValueError(f"a class is named {name!r}, but a manifest wants a name without commas or quotes")


def _digest(pictures: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join([str(pictures.shape), *class_names]).encode())
    digest.update(np.ascontiguousarray(pictures).tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def render_moving_picture(
    settings: MovingPictureSettings, index: int, *, pictures: np.ndarray, labels: np.ndarray
) -> SyntheticVideo:
    """Draw one video; its frames as they are before coding, and its labels.

    Args:
        settings: `num_videos` and `fps` have no influence.
        index: Number of the video, from 0.
        pictures: `(N, height, width)`, uint8.
        labels: `(N,)`, their classes, from 0 to the highest.
    """
    appearance, motion = choose_pair(settings, index, int(labels.max()) + 1, stream=_CLASS_STREAM)
    generator = settings.generator(_VIDEO_STREAM, index)
    scene = SCENES[settings.scene]
    frames = _draw_background(generator, settings)
    track = plan_track(generator, MOTIONS[motion], settings.num_frames, scene.ranges)
    picture = pictures[generator.choice(np.flatnonzero(labels == appearance))]
    colours = [scene.draw_colour(generator, bounds) for bounds in (scene.darkest, scene.lightest)]
    _draw_picture(frames, track, picture, *colours)
    return SyntheticVideo(_finish(frames, settings, index), appearance, motion)


def render_moving_picture_background(settings: MovingPictureSettings, index: int) -> np.ndarray:
    """The same video without its picture: `(num_frames, size, size, 3)`, uint8 RGB.

    Args:
        settings: `num_videos` and `fps` have no influence.
        index: Number of the video, from 0.
    """
    return _finish(_draw_background(settings.generator(_VIDEO_STREAM, index), settings), settings, index)


def _draw_background(generator: np.random.Generator, settings: MovingPictureSettings) -> np.ndarray:
    """The background of a video, `(T, S, S, 3)` float32; the first of its draws."""
    scene = SCENES[settings.scene]
    mean_colour = scene.draw_colour(generator, scene.background)
    return draw_background(generator, settings, mean_colour, contrast=scene.contrast)


def _finish(frames: np.ndarray, settings: MovingPictureSettings, index: int) -> np.ndarray:
    """Lay grain over frames `(T, S, S, 3)`, and make bytes of them."""
    grain = SCENES[settings.scene].grain
    if grain:
        noise: np.ndarray = settings.generator(_GRAIN_STREAM, index).standard_normal(frames.shape[:3], np.float32)
        # Each pass smooths by a variance of half a pixel: in all by a deviation of a 48th of the side
        for axis in (1, 2) * round(2 * (settings.size / 48) ** 2):
            noise = (np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)) / 4
        frames += (grain / noise.std() * noise)[..., None]
    return np.rint(frames.clip(0, 255)).astype(np.uint8)


def _draw_picture(
    frames: np.ndarray, track: Track, picture: np.ndarray, darkest: np.ndarray, lightest: np.ndarray
) -> None:
    """Lay a picture over `frames (T, S, S, 3)`, in the colours of its darkest and lightest parts."""
    x, y = object_coordinates(track, frames.shape[1])  # (T, S, S)
    brightness = _look_up(picture, x, y)[..., None]  # (T, S, S, 1)
    coverage = (brightness / _OPAQUE_FROM).clip(0, 1)
    frames += coverage * (darkest + brightness * (lightest - darkest) - frames)


def _look_up(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brightness from 0 to 1 at points of the picture's square from -1 to 1, bilinear; 0 beyond it."""
    height, width = picture.shape
    padded = np.pad(picture.astype(np.float32) / 255, ((1, 2), (1, 2)))
    across = ((x + 1) / 2 * width + 0.5).clip(0, width + 1)  # in pixels of `padded`
    down = ((y + 1) / 2 * height + 0.5).clip(0, height + 1)
    left, top = across.astype(int), down.astype(int)
    right_share, bottom_share = across - left, down - top
    upper = padded[top, left] * (1 - right_share) + padded[top, left + 1] * right_share
    lower = padded[top + 1, left] * (1 - right_share) + padded[top + 1, left + 1] * right_share
    return upper * (1 - bottom_share) + lower * bottom_share
