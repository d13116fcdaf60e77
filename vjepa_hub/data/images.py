"""Image files to upright RGB frames: one frame of a still image, all of an animation (APNG, WebP, GIF)."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .containers import require_regular_file
from .items import sign_of_life
from .video_errors import FrameIndexError, VideoDecodingError, first_line

if TYPE_CHECKING:
    from PIL import Image

_ANIMATED = ("GIF", "PNG", "WEBP")  # several images in other files are pages, sizes or views
# Frames for which no time is stated are shown for a tenth of a second, as browsers do
_DEFAULT_MILLISECONDS = 100


@contextmanager
def open_image(file: str | os.PathLike | io.BytesIO, *, name: str | None = None) -> Iterator["Image.Image"]:
    """Open an image file with Pillow.

    Args:
        file: The file, or its bytes.
        name: Stands in the errors; None: the path.

    Raises:
        VideoDecodingError: The file is missing or no regular file, or is no image that Pillow can read completely, at
            once or in the block.
    """
    from PIL import Image, UnidentifiedImageError

    path = "" if isinstance(file, io.BytesIO) else os.fspath(file)
    if path:
        require_regular_file(path)
    try:
        with Image.open(file) as image:
            yield image
    except VideoDecodingError:
        raise
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoDecodingError(
            name or path, f"not a readable image ({first_line(error)})", "check the file"
        ) from error


def read_image(file: str | os.PathLike | io.BytesIO, *, name: str | None = None) -> "Image.Image":
    """Read a still image as RGB, turned upright as its EXIF orientation says.

    Args:
        file: The file, or its bytes.
        name: Stands in the errors; None: the path.

    Raises:
        VideoDecodingError: As `open_image`; or an animation, of which one frame would stand for all.
    """
    with open_image(file, name=name) as image:
        if count_frames(image) > 1:
            cause = f"it is an animation of {count_frames(image)} frames, not an image"
            raise VideoDecodingError(name or str(file), cause, "use it as a video, or write its frames as images")
        return _upright(image)


def count_frames(image: "Image.Image") -> int:
    """Return the number of frames that are shown, 1 for a still image."""
    return _num_images(image) - _num_hidden(image)


class ImageReader:
    """An image file as a video: a still image is one frame at time 0.

    Args:
        path: The image.

    Raises:
        VideoDecodingError: As `open_image`.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        with open_image(path) as image:
            self.num_frames = count_frames(image)
            durations = [_milliseconds(image) for image in _shown(image)]
            self.height, self.width = np.asarray(_upright(image)).shape[:2]
        self.timestamps = np.cumsum([0, *durations[:-1]]) / 1000
        self.average_fps = 0.0 if self.num_frames == 1 else (self.num_frames - 1) / float(self.timestamps[-1])

    def read_frames(
        self, indices: Sequence[int] | np.ndarray, *, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """Read frames by index, or a box of each of them, see `VideoReader`."""
        top, left, height, width = (0, 0, self.height, self.width) if box is None else box
        unique, positions = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        outside = unique[(unique < 0) | (unique >= self.num_frames)]
        if outside.size:
            cause = f"frame {outside[0]} is asked for, but the image has {self.num_frames} frames"
            raise FrameIndexError(self._path, cause, f"ask for indices from 0 to {self.num_frames - 1}")
        frames = np.empty((len(unique), height, width, 3), dtype=np.uint8)
        wanted = {index: place for place, index in enumerate(unique.tolist())}
        with open_image(self._path) as image:
            for index, shown in enumerate(_shown(image)):
                if index in wanted:
                    frames[wanted[index]] = np.asarray(_upright(shown))[top : top + height, left : left + width]
        return frames[positions]


def _shown(image: "Image.Image") -> Iterator["Image.Image"]:
    """Go to one frame after the other, each whole: what it changes is laid over those before it."""
    for index in range(_num_hidden(image), _num_images(image)):
        sign_of_life()
        image.seek(index)
        image.load()  # WebP tells its times then
        yield image


def _num_images(image: "Image.Image") -> int:
    return getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1


def _num_hidden(image: "Image.Image") -> int:
    """Return 1 for an APNG whose first image is for programs that do not animate it, else 0."""
    return int(getattr(image, "default_image", False) and _num_images(image) > 1)


def _milliseconds(image: "Image.Image") -> float:
    return image.info.get("duration") or _DEFAULT_MILLISECONDS


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps

    return ImageOps.exif_transpose(image).convert("RGB")
