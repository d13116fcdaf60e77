"""From AVA's files and a folder of videos to clips around key frames, with the boxes of the persons in them.

The whole frame is resized to the square of the encoder's crop, whatever its proportions: boxes are relative to the
frame, so they stay as they are, and no person is cut off. A key frame whose clip cannot be read is an item that says
so; in training it is passed over, in validation its boxes count as not found.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from ...data.augmentation import IMAGENET_MEAN, IMAGENET_STD, finish_clips
from ...data.manifests import videos_below
from ...data.records import FrameReader, LocalVideo, VideoRecord
from ...data.video import VideoDecodingError
from .boxes import KeyFrameBoxes, KeyFrameId, overlaps
from .protocol import LocalisationProtocol

logger = logging.getLogger(__name__)

# A file may end a little before its last key frame; further out it is another cut of the film
_TOLERATED_SECONDS = 0.5


@dataclass(frozen=True)
class KeyFrame:
    """A key frame with the boxes whose actions are to be named.

    Attributes:
        id: Its video and second.
        boxes: `(num_boxes, 4)` float32, `x1, y1, x2, y2` relative to the frame.
        labels: Which actions are done in each box, `(num_boxes, num_classes)` bool; action `i` stands in column
            `i - 1`. All False where nothing is known of the box.
    """

    id: KeyFrameId
    boxes: np.ndarray
    labels: np.ndarray


class KeyFrameClip(NamedTuple):
    """The clip of a key frame, or of several ones, collated.

    Attributes:
        place: In the data set.
        pixel_values_videos: `(num_frames, 3, crop_size, crop_size)` float32, normalised; zeros if it is unreadable.
        is_readable: Whether it could be decoded.
    """

    place: Any
    pixel_values_videos: torch.Tensor
    is_readable: Any


def list_annotated_boxes(annotations: KeyFrameBoxes, *, num_classes: int) -> list[KeyFrame]:
    """The key frames of a file of annotations, each box once, with all its actions.

    Args:
        annotations: A row for each box and action.
        num_classes: Number of actions.
    """
    key_frames = []
    for key_frame, rows in zip(annotations.key_frames, _rows_by_frame(annotations), strict=True):
        boxes, places = _unique_boxes(annotations.boxes[rows])
        labels = np.zeros((len(boxes), num_classes), dtype=bool)
        labels[places, annotations.class_ids[rows] - 1] = True
        key_frames.append(KeyFrame(key_frame, boxes.astype(np.float32), labels))
    return key_frames


def list_training_boxes(
    annotations: KeyFrameBoxes, proposals: KeyFrameBoxes | None, *, num_classes: int, min_overlap: float
) -> list[KeyFrame]:
    """The annotated boxes, and the proposals that overlap one of them as much, with its actions.

    Args:
        annotations: A row for each box and action.
        proposals: What a detector of persons found; None: nothing.
        num_classes: Number of actions.
        min_overlap: Intersection over union from which a proposal shows the annotated person.
    """
    annotated = list_annotated_boxes(annotations, num_classes=num_classes)
    proposed = {} if proposals is None else _boxes_by_key_frame(proposals)
    return [_with_proposals(frame, proposed.get(frame.id), min_overlap) for frame in annotated]


def list_proposed_boxes(annotations: KeyFrameBoxes, proposals: KeyFrameBoxes, *, num_classes: int) -> list[KeyFrame]:
    """The key frames of a file of annotations with the boxes that a detector found there, perhaps none.

    Args:
        annotations: They say which key frames there are.
        proposals: What a detector of persons found, on these key frames or others.
        num_classes: Number of actions.
    """
    proposed = _boxes_by_key_frame(proposals)
    key_frames = []
    for key_frame in annotations.key_frames:
        boxes = proposed.get(key_frame, np.zeros((0, 4))).astype(np.float32)
        key_frames.append(KeyFrame(key_frame, boxes, np.zeros((len(boxes), num_classes), dtype=bool)))
    return key_frames


def find_clip_frames(
    timestamps: np.ndarray, seconds: float, *, frames_per_clip: int, frame_step: int, fps: float
) -> np.ndarray:
    """Choose the frames of a clip around a moment, its middle frame (number `frames_per_clip // 2`) being there.

    Args:
        timestamps: When each frame of the video is shown, `(num_frames,)`, ascending.
        seconds: The moment.
        frames_per_clip: Frames of the clip.
        frame_step: From one to the next, in frames of `fps`.
        fps: What `frame_step` counts. A video of this rate is read frame by frame, another at the nearest times.

    Returns:
        Indices, `(frames_per_clip,)` int64, ascending; the video's first or last frame is repeated beyond its ends.
    """
    offsets = (np.arange(frames_per_clip) - frames_per_clip // 2) * frame_step / fps
    wanted = seconds + offsets
    after = np.searchsorted(timestamps, wanted).clip(0, len(timestamps) - 1)
    before = (after - 1).clip(0)
    is_before_nearer = wanted - timestamps[before] < timestamps[after] - wanted
    return np.where(is_before_nearer, before, after).astype(np.int64)


class KeyFrameDataset(Dataset):
    """Clips around key frames, read from a folder of videos that are named by their ids.

    Several key frames of a video in a row are read from one open file.

    Args:
        key_frames: What to read.
        videos: The folder; its subfolders count.
        protocol: It says which frames make the clip.
        crop_size: Side of the clip, in pixels.
        mean: Of each channel, for pixels in [0, 1].
        std: Of each channel.
        start_second: The second of the film at which the files begin: 0 for whole films, 900 for files that hold
            the annotated quarter of an hour alone.

    Raises:
        FileNotFoundError: the folder has none of the videos.
    """

    def __init__(
        self,
        key_frames: Sequence[KeyFrame],
        videos: str | Path,
        protocol: LocalisationProtocol,
        *,
        crop_size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        start_second: float = 0.0,
    ):
        self.key_frames, self.videos, self.protocol = list(key_frames), Path(videos), protocol
        self.crop_size, self.mean, self.std = crop_size, tuple(mean), tuple(std)
        self.start_second = start_second
        self._paths = _find_videos(self.videos, {frame.id.video_id for frame in self.key_frames})
        self._opened: tuple[tuple[int, str], ExitStack, FrameReader] | None = None

    def __len__(self) -> int:
        return len(self.key_frames)

    def __getitem__(self, index: int) -> KeyFrameClip:
        """Read a key frame's clip: the whole frames resized to a square, bilinear without antialiasing."""
        try:
            frames = self._read_clip(self.key_frames[index].id)
        except VideoDecodingError as error:
            logger.warning("counted as unreadable: %s", error)
            shape = (self.protocol.frames_per_clip, 3, self.crop_size, self.crop_size)
            return KeyFrameClip(index, torch.zeros(shape), False)
        pixels = finish_clips(
            [torch.from_numpy(frames)],
            torch.zeros(1, dtype=torch.bool),
            crop_size=self.crop_size,
            mean=self.mean,
            std=self.std,
        )
        return KeyFrameClip(index, pixels[0], True)

    def __getstate__(self) -> dict:
        """Open files do not travel to other processes."""
        return self.__dict__ | {"_opened": None}

    def stamp(self, video_id: str) -> str:
        """Size and time of change of a video's file; empty where there is none."""
        if video_id not in self._paths:
            return ""
        found = self._paths[video_id].stat()
        return f"{found.st_size}-{found.st_mtime_ns}"

    def _read_clip(self, key_frame: KeyFrameId) -> np.ndarray:
        reader: Any = self._open(key_frame.video_id)
        seconds = key_frame.second - self.start_second
        last = float(reader.timestamps[-1])
        if not -_TOLERATED_SECONDS <= seconds <= last + _TOLERATED_SECONDS:
            raise VideoDecodingError(
                self._paths[key_frame.video_id],
                f"its key frame {key_frame.second} is at {seconds:g} s, but it lasts to {last:.2f} s",
                "set start_second to the second of the film at which the files begin (900 for AVA's cut videos)",
            )
        indices = find_clip_frames(
            reader.timestamps,
            seconds,
            frames_per_clip=self.protocol.frames_per_clip,
            frame_step=self.protocol.frame_step,
            fps=self.protocol.clip_fps,
        )
        return reader.read_frames(indices)

    def _open(self, video_id: str) -> FrameReader:
        """The video's reader: the last one if it is the same."""
        if video_id not in self._paths:
            raise VideoDecodingError(self.videos / f"{video_id}.mp4", "there is no such file", "fetch it")
        key = (os.getpid(), video_id)  # a reader must not be used after a fork
        if self._opened is None or self._opened[0] != key:
            if self._opened is not None and self._opened[0][0] == key[0]:
                self._opened[1].close()
            self._opened = None
            path, opening = self._paths[video_id], ExitStack()
            record = VideoRecord(str(path), LocalVideo(path))
            self._opened = key, opening, opening.enter_context(record.open())
        return self._opened[2]


def _find_videos(folder: Path, video_ids: set[str]) -> dict[str, Path]:
    paths = {path.stem: path for path in videos_below(folder)}
    found = {video_id: paths[video_id] for video_id in video_ids if video_id in paths}
    if video_ids and not found:
        raise FileNotFoundError(
            f"{folder} has none of the {len(video_ids)} videos, such as '{min(video_ids)}.mp4', but {len(paths)} "
            "others; name the folder in which the files are called by their ids"
        )
    return found


def _rows_by_frame(table: KeyFrameBoxes) -> list[np.ndarray]:
    """The rows of each key frame, in the file's order."""
    order = np.argsort(table.frame_indices, kind="stable")
    ends = np.cumsum(np.bincount(table.frame_indices, minlength=len(table.key_frames)))
    return np.split(order, ends[:-1]) if len(ends) else []


def _boxes_by_key_frame(proposals: KeyFrameBoxes) -> dict[KeyFrameId, np.ndarray]:
    rows = zip(proposals.key_frames, _rows_by_frame(proposals), strict=True)
    return {key_frame: proposals.boxes[of_frame] for key_frame, of_frame in rows}


def _unique_boxes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each box once, in the order of first rows, and for each row the place of its box."""
    unique, first, inverse = np.unique(boxes, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return unique[order], np.argsort(order)[inverse.reshape(-1)]


def _with_proposals(key_frame: KeyFrame, proposed: np.ndarray | None, min_overlap: float) -> KeyFrame:
    if proposed is None or not len(proposed) or not len(key_frame.boxes):
        return key_frame
    shares = overlaps(proposed[:, None], key_frame.boxes[None].astype(np.float64))  # (proposals, annotated)
    best = shares.argmax(axis=1)
    is_kept = shares.max(axis=1) >= min_overlap
    boxes = np.concatenate([key_frame.boxes, proposed[is_kept].astype(np.float32)])
    return KeyFrame(key_frame.id, boxes, np.concatenate([key_frame.labels, key_frame.labels[best[is_kept]]]))
