"""Descriptors of the videos of a labelled set, for the search of nearest neighbours (`heads.neighbours`)."""

from ..core.progress import Progress, no_progress
from ..heads.neighbours import ClipDescriptors, describe_token_source
from .clips import EvaluationClips
from .encoders.opening import FrozenEncoder, ImageEncoder, VJEPAClipEncoder
from .labelled import LabelledSet
from .probe_run import clip_format_of
from .protocols import Protocol
from .tokens import EncodedClips, EncodingSettings


def count_times(encoder: FrozenEncoder) -> int:
    """Token layers along time that an encoder makes of a clip; 1 where that is not known.

    Args:
        encoder: Each frame of an image model is a layer, each tubelet of V-JEPA.
    """
    if isinstance(encoder, ImageEncoder):
        return encoder.frames_per_clip
    if isinstance(encoder, VJEPAClipEncoder):
        return encoder.frames_per_clip // int(encoder.model.config.tubelet_size)
    return 1


def describe_set(
    encoder: FrozenEncoder,
    labelled: LabelledSet,
    protocol: Protocol,
    descriptor: str = "mean-std",
    *,
    encoding: EncodingSettings | None = None,
    progress: Progress = no_progress,
) -> ClipDescriptors:
    """Descriptors of a labelled set, as a validation of the protocol sees its videos.

    Args:
        encoder: The frozen encoder.
        labelled: The videos; their labels are not looked at.
        protocol: Which clips of each. The tokens of all its segments and views count together.
        descriptor: One of `DESCRIPTORS`.
        encoding: How clips are encoded.
        progress: Called with the videos that are described, and all videos, after each batch.

    Raises:
        KeyError: There is no such descriptor.
        ValueError: The set holds other media than the protocol, or no video can be read; or "temporal" is asked of
            several segments or views, or of an encoder whose tokens have no known order in time.
    """
    num_times = _require_times(encoder, protocol) if descriptor == "temporal" else 1
    clips = EvaluationClips(labelled, protocol, clip_format_of(encoder))
    source = EncodedClips(encoder, clips, encoding or EncodingSettings())
    return describe_token_source(source, descriptor, num_times=num_times, progress=progress)


def _require_times(encoder: FrozenEncoder, protocol: Protocol) -> int:
    num_times = count_times(encoder)
    if protocol.media == "image" or (protocol.num_segments, protocol.num_views) != (1, 1) or num_times < 2:
        raise ValueError(
            f"the descriptor 'temporal' follows one clip through time, but {encoder.name} has {num_times} known times "
            f"and the protocol {protocol.num_segments} segments x {protocol.num_views} views of a {protocol.media}; "
            "take 'mean' or 'mean-std', or one segment and view of videos"
        )
    return num_times
