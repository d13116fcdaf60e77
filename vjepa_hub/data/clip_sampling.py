"""Frames of the clips of a video: for training and evaluation, and for features of a whole video.

A clip of `frames_per_clip` frames is spread over a *window* of `frames_per_clip * frame_step` consecutive frames, both
ends of the window included. With 16 frames and a step of 4 that is 0, 4, 8, 12, 17, 21, ... 63 of 64 frames: not a
plain stride.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import PositiveFloat, PositiveInt, model_validator

from ..core.settings import Settings, require_at_least

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self


class FrameSampling(Settings):
    """Distance between the frames of a clip. The defaults are those of the released configurations.

    Args:
        frame_step: Length of a clip's window in frames, divided by the frames of the clip.
        clip_duration: Length of the window in seconds, whatever the frame rate: stands for
            `frame_step = int(clip_duration * video_fps / frames_per_clip)`. Where both are given, the duration counts,
            as in the released configurations.
        fps: Frames of a clip per second, as V-JEPA 2 and 2.1 sample: stands for
            `frame_step = max(ceil(video_fps) // fps, 1)`. It counts where a step is given too.
    """

    frame_step: PositiveInt | None = 4
    clip_duration: PositiveFloat | None = None
    fps: PositiveFloat | None = None

    @model_validator(mode="after")
    def _require_length(self) -> "Self":
        if self.frame_step is None and not self.needs_frame_rate:
            raise ValueError(
                "frame_step, clip_duration and fps are all None, but one of them sets the length of a clip; "
                "give frame_step (frames), clip_duration (seconds) or fps (frames per second)"
            )
        if self.clip_duration is not None and self.fps is not None:
            raise ValueError(
                f"clip_duration is {self.clip_duration:g} and fps {self.fps:g}, but each sets the length of a clip; "
                "give one of them"
            )
        return self

    @property
    def needs_frame_rate(self) -> bool:
        """True where the length of a clip depends on the frames per second of the video."""
        return self.clip_duration is not None or self.fps is not None


class ClipSpec(FrameSampling):
    """Frames of a clip, and number of clips of a video.

    Args:
        frames_per_clip: Frames of a clip.
        frame_step: Length of a clip's window in frames, divided by `frames_per_clip`.
        clip_duration: Length of the window in seconds, in place of `frame_step`.
        num_segments: Clips of a video, one in each of as many equal parts.
    """

    frames_per_clip: PositiveInt = 16
    num_segments: PositiveInt = 1

    @property
    def processor_options(self) -> dict[str, Any]:
        """The options of a `VJEPAVideoProcessor` that takes the same clips."""
        name = next(name for name in ("fps", "clip_duration", "frame_step") if getattr(self, name) is not None)
        options = {"num_frames": self.frames_per_clip, "num_segments": self.num_segments}
        return {**options, name: getattr(self, name)}

    def frame_step_at(self, fps: float | None) -> int:
        """Frames of the window for each frame of the clip.

        Args:
            fps: Frames of the video per second. Only read where `needs_frame_rate`; None where it is not known.

        Raises:
            ValueError: `fps` is needed and not positive, or the duration has fewer than `frames_per_clip` frames.
        """
        if not self.needs_frame_rate:
            assert self.frame_step is not None  # one of the three is given
            return self.frame_step
        if fps is None or not (math.isfinite(fps) and fps > 0):
            name = "clip_duration" if self.fps is None else f"a clip of fps={self.fps:g}"
            raise ValueError(
                f"fps is {fps}, but {name} needs the video's frames per second, a positive number; "
                "give frame_step instead where the video does not state them"
            )
        if self.fps is not None:
            return max(int(math.ceil(fps) // self.fps), 1)  # the release fails on slower videos than it asks for
        assert self.clip_duration is not None
        frame_step = int(self.clip_duration * fps / self.frames_per_clip)
        if frame_step < 1:
            raise ValueError(
                f"clip_duration of {self.clip_duration} s at {fps} fps is {self.clip_duration * fps:g} frames, but a "
                f"clip needs at least frames_per_clip={self.frames_per_clip}; give a longer duration, or frame_step=1"
            )
        return frame_step

    def sample_indices(
        self,
        num_video_frames: int,
        *,
        fps: float | None,
        allow_clip_overlap: bool = False,
        generator: "torch.Generator | None" = None,
    ) -> list[np.ndarray]:
        """Sample the frames of the clips of one video; arguments, rule and errors as for `sample_clip_indices`."""
        require_at_least(1, num_video_frames=num_video_frames)
        num_clips, window = self.num_segments, self.frames_per_clip * self.frame_step_at(fps)
        if num_video_frames // num_clips > window:
            starts = _window_starts(num_video_frames, num_clips, window, generator)
            num_spanned = window
        elif allow_clip_overlap:
            starts = _overlapping_starts(num_video_frames, num_clips, window)
            num_spanned = min(window, num_video_frames) - 1
        else:
            starts = _partition_starts(num_video_frames, num_clips)
            num_spanned = num_video_frames // num_clips
        offsets = _spread_over_window(num_spanned, window, self.frames_per_clip)
        return [start + offsets for start in starts]


def sample_clip_indices(
    num_video_frames: int,
    *,
    fps: float | None,
    frames_per_clip: int = 16,
    num_clips: int = 1,
    frame_step: int | None = None,
    clip_duration: float | None = None,
    allow_clip_overlap: bool = False,
    generator: "torch.Generator | None" = None,
) -> list[np.ndarray]:
    """Chooses the frames of `num_clips` clips of one video.

    The video is cut into `num_clips` equal partitions of `num_video_frames // num_clips` frames. What follows depends
    on whether a partition is longer than a clip's window:

    - longer: one window in each partition, at its beginning, or anywhere in it when a `generator` is given;
    - not longer, without overlap (training): the clip is spread over its partition, one frame for each `frame_step`,
      and the partition's last frame is repeated until the clip is full;
    - not longer, with overlap (evaluation): windows that begin at equal distances over the whole video; of a video
      that is shorter than a window all clips are the same, spread over the video and filled up with one frame. In this
      case the last frame of the window (or of the video) is left out, as in the released evaluations.

    The released code fails on a video with fewer frames than clips, or of one frame when clips may overlap. Here clip
    `i` of such a video repeats the one frame `i * num_video_frames // num_clips` (without overlap), or frame 0 (with
    overlap).

    Args:
        num_video_frames: Frames in the video.
        fps: Frames of the video per second. Only read with `clip_duration`; None where it is not known.
        frames_per_clip: Frames in each clip.
        num_clips: Clips to take from the video.
        frame_step: Window length in frames, divided by `frames_per_clip`.
        clip_duration: Window length in seconds; stands for `frame_step = int(clip_duration * fps / frames_per_clip)`.
            At least one of the two must be given; where both are, the duration counts, as in the released
            configurations.
        allow_clip_overlap: Let the clips of a video that is too short for `num_clips` windows overlap.
        generator: Draws the place of each window in its partition, uniformly over all places. None: no random
            sampling.

    Returns:
        One ascending int64 array `(frames_per_clip,)` for each clip, with values in `[0, num_video_frames)`.

    Raises:
        ValueError: If a count, the step, the duration or (when it is needed) `fps` is not positive, if neither step
            nor duration is given, or if the duration holds fewer than `frames_per_clip` frames.
    """
    clips = ClipSpec(
        frames_per_clip=frames_per_clip, num_segments=num_clips, frame_step=frame_step, clip_duration=clip_duration
    )
    return clips.sample_indices(num_video_frames, fps=fps, allow_clip_overlap=allow_clip_overlap, generator=generator)


def plan_windows(num_video_frames: int, *, frames_per_clip: int, window: int, stride: int) -> list[np.ndarray]:
    """Plans the clips that cover a whole video, for feature extraction.

    Clip `k` spans the `window` frames that begin at frame `k * stride`. Where these windows stop short of the video's
    end, one more is added that ends with the video's last frame. A video shorter than a window gives one clip, spread
    over the video and filled up with its last frame, as `sample_clip_indices` does without overlap.

    Args:
        num_video_frames: Frames in the video.
        frames_per_clip: Frames in each clip.
        window: Frames that a clip spans; with `frames_per_clip * frame_step` the clip's frames are those of
            `sample_clip_indices` with that step.
        stride: Frames from the beginning of a window to the beginning of the next. With `stride <= window` every frame
            of the video lies in a window.

    Returns:
        One ascending int64 array `(frames_per_clip,)` for each clip, at least one, all its
        values in `[0, num_video_frames)`.

    Raises:
        ValueError: If an argument is not a positive integer, or if the window has fewer frames than a clip.
    """
    require_at_least(
        1, num_video_frames=num_video_frames, frames_per_clip=frames_per_clip, window=window, stride=stride
    )
    if window < frames_per_clip:
        raise ValueError(
            f"window is {window} frames, but a clip takes frames_per_clip={frames_per_clip} different frames from it; "
            f"give a window of at least {frames_per_clip}, such as frames_per_clip * frame_step"
        )
    last_start = max(num_video_frames - window, 0)
    starts = np.append(np.arange(0, last_start, stride), last_start)
    offsets = _spread_over_window(min(window, num_video_frames), window, frames_per_clip)
    return [start + offsets for start in starts]


def _spread_over_window(num_spanned: int, window: int, frames_per_clip: int) -> np.ndarray:
    """Spreads a clip over `num_spanned <= window` frames, as densely as a window, then repeats the last one."""
    num_spread = num_spanned * frames_per_clip // window
    spread = np.linspace(0, num_spanned, num_spread)
    repeated = np.full(frames_per_clip - num_spread, num_spanned)
    return np.concatenate([spread, repeated]).clip(0, max(num_spanned - 1, 0)).astype(np.int64)


def _window_starts(
    num_video_frames: int, num_clips: int, window: int, generator: "torch.Generator | None"
) -> np.ndarray:
    """Places one window in each partition, all of which are longer than it."""
    starts = _partition_starts(num_video_frames, num_clips)
    if generator is None:
        return starts
    # The window may end with the partition: the released code leaves this last of the places out.
    num_places = num_video_frames // num_clips - window + 1
    import torch  # heavy: the settings of protocols are read without it

    return starts + torch.randint(0, num_places, (num_clips,), generator=generator).numpy()


def _overlapping_starts(num_video_frames: int, num_clips: int, window: int) -> np.ndarray:
    """Places windows at equal distances over the video; at 0 where the video has no more frames than a window."""
    distance = max(num_video_frames - window, 0) // max(num_clips - 1, 1)
    return np.arange(num_clips) * distance


def _partition_starts(num_video_frames: int, num_clips: int) -> np.ndarray:
    """First frame of each partition; with fewer frames than clips, the frame that each clip repeats."""
    if num_video_frames < num_clips:
        return np.arange(num_clips) * num_video_frames // num_clips
    return np.arange(num_clips) * (num_video_frames // num_clips)
