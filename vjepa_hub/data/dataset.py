"""A random clip of each video of a source, as the pretraining takes them, with a stand-in for what cannot be read.

Everything random about a clip is a function of the seed and of its position in the global order of the run: which of
the video's frames, which box of them, the flip, and which video stands in for one that cannot be read.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from .augmentation import Crop, draw_crop
from .clip_order import ClipRequest
from .clip_sampling import ClipSpec
from .crop_spec import CropSpec
from .frame_memory import open_memory
from .items import ITEM_TIMEOUT
from .quarantine import NoReadableVideoError, Quarantine
from .random_streams import Stream, draw_uniform, generator_at
from .records import ClipSource, VideoRecord
from .video import VideoDecodingError, require_backend


class _Clip(TypedDict):
    frames: torch.Tensor
    is_flipped: bool
    position: int
    num_failures: int


class Clip(_Clip, total=False):
    """Clip of a data set.

    Attributes:
        frames: The box of the crop, cut out of the decoded frames and not resized,
            `(num_frames, box_height, box_width, 3)`, uint8 RGB.
        is_flipped: The clip is to be flipped horizontally.
        position: Its place in the global order of the run.
        num_failures: Videos that could not be read before this one.
        label: Number of the video's class; there only if the source has labels.
    """

    label: int


class ClipReader:
    """Reads a clip from the first of several videos that can be read.

    Args:
        clips: Frames of a clip. Of the `num_segments` clips of a video the first is read.
        crop: Random-resized-crop and flip; None: whole frames, not flipped.
        seed: Seed of the run.
        quarantine: Where videos that cannot be read are listed. None: in the memory of each process.
        max_tries: Videos that are tried for one clip.
        backend: The decoder, as for `open_video`.
        item_timeout: Seconds without a new frame after which a video is given up.

    Raises:
        ValueError: If `max_tries` is below 1, or if the decoder cannot be imported.
    """

    def __init__(
        self,
        clips: ClipSpec,
        *,
        crop: CropSpec | None,
        seed: int = 0,
        quarantine: Quarantine | None = None,
        max_tries: int = 10,
        backend: str | None = None,
        item_timeout: float = ITEM_TIMEOUT,
    ):
        if max_tries < 1:
            raise ValueError(
                f"max_tries is {max_tries}, but at least the video itself has to be tried; give 1 or more"
            )
        require_backend(backend)
        self.clips, self.crop, self.seed, self.max_tries = clips, crop, seed, max_tries
        self.quarantine = Quarantine() if quarantine is None else quarantine
        self.backend, self.item_timeout = backend, item_timeout

    def read(self, record: VideoRecord, *, position: int) -> Clip:
        """Read the clip at a position of the global order from a video.

        Args:
            record: The video.
            position: Place of the clip in the global order.

        Raises:
            VideoDecodingError: the video cannot be read, or is shorter than `clip_duration` asks for at its rate.
            ValueError: `clip_duration` or `fps` for frames whose rate nothing tells.
        """
        with record.open(backend=self.backend, item_timeout=self.item_timeout) as reader:
            fps = reader.average_fps if self.clips.needs_frame_rate else None
            try:
                indices = self.sample_indices(reader.num_frames, fps=fps, position=position)
            except ValueError as error:
                if fps is None:
                    raise
                raise VideoDecodingError(record.name, str(error), "leave the video out") from error
            crop = self.draw_crop(reader.height, reader.width, position=position)
            frames = reader.read_frames(indices, box=(crop.top, crop.left, crop.height, crop.width))
        clip = Clip(frames=torch.from_numpy(frames), is_flipped=crop.is_flipped, position=position, num_failures=0)
        if record.label is not None:
            clip["label"] = record.label
        return clip

    def sample_indices(self, num_video_frames: int, *, fps: float | None, position: int) -> np.ndarray:
        """Sample the frames of the clip at a position, `(frames_per_clip,)`; errors as for `ClipSpec.frame_step_at`.

        Args:
            num_video_frames: Frames of the video.
            fps: Its frames per second; only read where `ClipSpec.needs_frame_rate`.
            position: Place of the clip in the global order.
        """
        generator = generator_at(self.seed, position, stream=Stream.CLIP)
        return self.clips.sample_indices(num_video_frames, fps=fps, generator=generator)[0]

    def draw_crop(self, height: int, width: int, *, position: int) -> Crop:
        """Sample the box and the flip of the clip at a position.

        Args:
            height: Pixels of the video's frames.
            width: Pixels of the video's frames.
            position: Place of the clip in the global order.
        """
        if self.crop is None:
            return Crop(top=0, left=0, height=height, width=width, is_flipped=False)
        return draw_crop(self.crop, height=height, width=width, seed=self.seed, position=position)

    def read_first(self, records: Iterable[VideoRecord], *, position: int) -> Clip:
        """Read the clip at a position from the first video that can be read, and count the ones before it.

        A video in quarantine counts as one that fails, without being opened: the result is the same as without.

        Args:
            records: The video, then those that stand in for it.
            position: Place of the clip in the global order.

        Raises:
            NoReadableVideoError: none of the first `max_tries` can be read.
        """
        failed: list[str] = []
        for record in islice(records, self.max_tries):
            if record.name not in self.quarantine:
                try:
                    clip = self.read(record, position=position)
                except VideoDecodingError as error:
                    self.quarantine.add(record.name, cause=error.cause, position=position)
                else:
                    clip["num_failures"] = len(failed)
                    return clip
            failed.append(record.name)
        raise NoReadableVideoError(self._complaint(failed, position))

    def _complaint(self, failed: list[str], position: int) -> str:
        causes = "\n".join(f"  {name}: {self.quarantine.cause(name)}" for name in failed)
        return (
            f"none of the {len(failed)} videos that were tried for the clip at position {position} can be read; check "
            f"the paths, and all videos with `vjepa-hub check-data`{self.quarantine.reminder}. Found:\n{causes}"
        )


class VideoClipDataset(Dataset[Clip]):
    """One random clip of each video of a source.

    It is asked for a `ClipRequest`, as `ClipOrder` hands them out, or for the number of a video, which then is the
    position as well. A video that cannot be read is replaced by one that is sampled from (seed, position), and listed.

    Args:
        source: The videos, see `open_source`.
        clips: Frames of a clip; of several `num_segments` the first is read.
        crop: Random-resized-crop and flip; None: whole frames, not flipped.
        seed: Seed of the run.
        quarantine: Where videos that cannot be read are listed. None: in the memory of each process.
        max_tries: Videos that are tried for one clip.
        backend: The decoder, see `open_video`.
        item_timeout: Seconds without a new frame after which a video is given up.
        max_memory: Bytes of decoded frames that may be kept in memory. If all videos fit, each is decoded once, and
            a file that changes later is not read again; see `frame_memory`.

    Raises:
        ValueError: If `max_tries` is below 1, or if the decoder cannot be imported.
    """

    def __init__(
        self,
        source: ClipSource,
        clips: ClipSpec = ClipSpec(),  # noqa: B008 (it is frozen)
        *,
        crop: CropSpec | None = CropSpec(),  # noqa: B008
        seed: int = 0,
        quarantine: Quarantine | None = None,
        max_tries: int = 10,
        backend: str | None = None,
        item_timeout: float = ITEM_TIMEOUT,
        max_memory: int = 0,
    ):
        self.source = source
        self.reader = ClipReader(
            clips,
            crop=crop,
            seed=seed,
            quarantine=quarantine,
            max_tries=max_tries,
            backend=backend,
            item_timeout=item_timeout,
        )
        self.memory = None
        if max_memory > 0:
            self.memory = open_memory(source, max_bytes=max_memory, backend=backend, item_timeout=item_timeout)

    @property
    def weights(self) -> np.ndarray | None:
        """Weight of each video in the sampling, `(num_videos,)`; None: all equally often."""
        return self.source.weights

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.source)

    def __getitem__(self, request: ClipRequest | int) -> Clip:
        """Read a clip.

        Args:
            request: Position and video, or the number of a video alone.

        Raises:
            IndexError: there is no such video.
            NoReadableVideoError: neither the video nor those sampled in its place can be read.
        """
        position, index = request if isinstance(request, tuple) else (request, request)
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} is asked for, but the source has the videos 0 to {len(self) - 1}")
        candidates = (self._record(number) for number in self._candidates(position, index))
        return self.reader.read_first(candidates, position=position)

    def _record(self, number: int) -> VideoRecord:
        record = self.source.record(number)
        return record if self.memory is None else self.memory.wrap(record, number)

    def _candidates(self, position: int, index: int) -> Iterator[int]:
        """Yield a video, and then those that stand in for it: sampled without repetition."""
        yield index
        stand_ins = self.source.stand_ins(index)
        tried = [index - stand_ins.start]
        num_draws = min(self.reader.max_tries, len(stand_ins)) - 1
        draws = draw_uniform(self.reader.seed, [position], stream=Stream.REPLACEMENT, num_draws=num_draws)[0]
        for draw in draws.tolist():
            place = int(draw * (len(stand_ins) - len(tried)))  # among those not tried yet
            for earlier in sorted(tried):
                place += place >= earlier
            tried.append(place)
            yield stand_ins[place]
