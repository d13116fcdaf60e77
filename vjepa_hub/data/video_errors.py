"""Errors of decoding: each carries the path, the cause and the remedy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

CHECK_FILE = "check the path, and that the file plays (ffplay FILE)"
PLAY_FILE = "check that the file plays (ffplay FILE); if it does, re-encode it (ffmpeg -i FILE -c:v libx264 NEW.mp4)"
RECODE = "fetch the file again, or re-encode what is left of it (ffmpeg -i FILE -c:v libx264 NEW.mp4)"


class VideoDecodingError(ValueError):
    """A video that cannot be decoded exactly.

    Attributes:
        path: The file, as a string.
        cause: The finding, in words.
        remedy: Advice to the user.
    """

    def __init__(self, path: str | os.PathLike, cause: str, remedy: str = CHECK_FILE):
        super().__init__(f"cannot decode '{os.fspath(path)}': {cause}; {remedy}")
        self.path, self.cause, self.remedy = os.fspath(path), cause, remedy

    def __reduce__(self):
        return type(self), (self.path, self.cause, self.remedy)


class FrameIndexError(VideoDecodingError, IndexError):
    """A frame index outside the video."""


class UnsuitableBackendError(VideoDecodingError):
    """A video that this backend would not read exactly, but another one may."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or the error's name where there is none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


@contextmanager
def translate_errors(path: str | os.PathLike, action: str, errors: tuple[type[BaseException], ...]) -> Iterator[None]:
    """Turn a library's errors into `VideoDecodingError`, and let `VideoDecodingError` and all others pass.

    Args:
        path: The file.
        action: Subject and verb of the failure, such as `"pyav cannot open it"`.
        errors: Error classes of the library.
    """
    try:
        yield
    except VideoDecodingError:
        raise
    except errors as error:
        raise VideoDecodingError(path, f"{action} ({first_line(error)})", PLAY_FILE) from error
