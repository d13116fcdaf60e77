"""Clips of a video as evaluations see them: the one preprocessing of the online probe and of the final one.

Shapes: V views, S segments, T frames, C channels, H x W pixels.
"""

import numpy as np
import torch

from ..data.clip_sampling import ClipSpec
from ..data.items import ITEM_TIMEOUT
from ..data.records import VideoRecord
from ..data.video import VideoDecodingError
from ..model.video_processing_vjepa import VJEPAVideoProcessor


def read_segments(
    record: VideoRecord,
    clips: ClipSpec,
    *,
    generator: torch.Generator | None = None,
    backend: str | None = None,
    item_timeout: float = ITEM_TIMEOUT,
) -> list[np.ndarray]:
    """Frames of the segments of a video, which may overlap where it is short.

    Args:
        record: The video.
        clips: Frames and number of the segments.
        generator: Places each segment at random in its part of the video; None: at the part's beginning.
        backend: The decoder, as for `open_video`.
        item_timeout: Seconds without a new frame after which the video is given up.

    Returns:
        uint8 `(num_frames, height, width, 3)` for each segment.

    Raises:
        VideoDecodingError: It cannot be read, or is too slow for a clip of so many seconds.
    """
    with record.open(backend=backend, item_timeout=item_timeout) as reader:
        fps = reader.average_fps if clips.needs_frame_rate else None
        try:
            indices = clips.sample_indices(reader.num_frames, fps=fps, allow_clip_overlap=True, generator=generator)
        except ValueError as error:
            if fps is None:  # in memory, where no video has a rate: another setting is needed
                raise
            # The settings are checked, so it is this video that is too slow
            raise VideoDecodingError(record.name, str(error), "leave the video out") from error
        return np.split(reader.read_frames(np.concatenate(indices)), len(indices))


def evaluation_pixels(segments: list[np.ndarray], processor: VJEPAVideoProcessor) -> torch.Tensor:
    """Pixels of the segments of a video, resized, cropped and normalised by a model's own processor.

    Args:
        segments: From `read_segments`.
        processor: Of the model; it says how many views there are.

    Returns:
        float32 `(num_views, num_segments, num_frames, 3, crop, crop)`.
    """
    pixels = processor(segments, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    return pixels.unflatten(0, (len(segments), -1)).transpose(0, 1).contiguous()  # (V, S, T, C, H, W)
