"""Which files decoders other than PyAV may read: those of which they are known to give the right frames."""

from ..video_errors import UnsuitableBackendError
from ..video_stream import VideoStream, display_orientation

TAKE_PYAV = 'take backend="pyav", the default, or re-encode it (ffmpeg -i FILE -c:v libx264 NEW.mp4)'


def require_plain_file(stream: VideoStream, backend: str) -> None:
    """Raise for a file that torchcodec or decord misread; each of these was seen in one of them.

    Raises:
        UnsuitableBackendError: With the finding, and PyAV as the remedy.
    """
    first = stream.decode_first_frame() if stream.has_decoder else None
    is_upright = first is None or display_orientation(stream.path, first) == (False, (slice(None), slice(None)))
    findings = {
        "a container without an index of its frames (MP4, Matroska and WebM have one)": not stream.has_frame_index,
        "time stamps that are missing, equal, or begin anew": stream.is_counted,
        "an edit list that hides frames": stream.is_trimmed,
        "a display matrix that turns or mirrors the frames": not is_upright,
        "colours from a palette": first is not None and first.format.name == "pal8",
    }
    for finding, is_found in findings.items():
        if is_found:
            cause = f"it has {finding}, where {backend} is not exact"
            raise UnsuitableBackendError(stream.path, cause, TAKE_PYAV)
