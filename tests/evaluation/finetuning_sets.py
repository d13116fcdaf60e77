"""Labelled sets in memory for the tests of fine-tuning: videos without files, some of which cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from vjepa_hub import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.data.records import ClipSource, VideoContent, VideoRecord
from vjepa_hub.data.video import VideoDecodingError
from vjepa_hub.evaluation.finetuning.run import FineTuneSettings
from vjepa_hub.evaluation.labelled import LabelledSet, VideoSource
from vjepa_hub.evaluation.protocols import Augmentation

UNCHANGED = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), auto_augment=None, erase_probability=0.0)
NUM_FRAMES, SIZE = 4, 32
# One clip is the whole video, and nothing is drawn that a test does not ask for
PLAIN = {
    "frame_step": 1,
    "num_workers": 0,
    "augmentation": UNCHANGED,
    "mixup": 0.0,
    "cutmix": 0.0,
    "label_smoothing": 0.0,
    "drop_path_rate": 0.0,
    "warmup_share": 0.0,  # a first step at the rate 0 would be most of a short run
}


class FramesInMemory:
    def __init__(self, frames: np.ndarray):
        self.frames, self.average_fps = frames, 25.0
        self.num_frames, self.height, self.width = frames.shape[:3]

    def read_frames(self, indices, *, box=None) -> np.ndarray:
        frames = self.frames[np.asarray(indices)]
        if box is None:
            return frames
        top, left, height, width = box
        return frames[:, top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class VideoInMemory(VideoContent):
    frames: np.ndarray | None

    @contextmanager
    def open(self, *, backend) -> Iterator[FramesInMemory]:
        if self.frames is None:
            raise VideoDecodingError("a broken video", "it is broken", "leave it out")
        yield FramesInMemory(self.frames)


class SourceInMemory(ClipSource):
    def __init__(self, videos: list[np.ndarray | None], labels: np.ndarray):
        self.videos, self._labels = videos, labels

    def __len__(self) -> int:
        return len(self.videos)

    def record(self, index: int) -> VideoRecord:
        return VideoRecord(f"video {index}", VideoInMemory(self.videos[index]), int(self._labels[index]))

    @property
    def has_labels(self) -> bool:
        return True


def labelled_set(videos, labels, *, num_classes: int = 2, class_names=("right", "left")) -> LabelledSet:
    labels = np.asarray(labels, dtype=np.int64)
    return LabelledSet(
        source=VideoSource(SourceInMemory(list(videos), labels)),
        indices=np.arange(len(labels)),
        labels=labels,
        num_classes=num_classes,
        class_names=class_names,
    )


def drifting_stripes(num_videos: int, *, seed: int, contrast: float = 0.1) -> LabelledSet:
    """Stripes of a random phase under noise that is more than twice as strong: do they drift to the right or the left?

    Each frame by itself is the same for both classes.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(num_videos) % 2
    columns, frames = np.arange(SIZE), np.arange(NUM_FRAMES)[:, None]
    videos = []
    for label in labels:
        sense, phase = 1 - 2 * label, generator.uniform(0, 2 * np.pi)
        stripes = contrast * np.sin(2 * np.pi / 8 * (columns - 2 * sense * frames) + phase)  # (T, W)
        noise = generator.normal(0.5, 0.25, (NUM_FRAMES, SIZE, SIZE, 3))
        videos.append((255 * (noise + stripes[:, None, :, None])).clip(0, 255).astype(np.uint8))
    return labelled_set(videos, labels)


def tiny_config(**changes) -> VJEPAConfig:
    return VJEPAConfig(
        **{
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 8,
            "crop_size": SIZE,
            "frames_per_clip": NUM_FRAMES,
            "pred_hidden_size": 12,
            "pred_num_hidden_layers": 1,
            "pred_num_attention_heads": 2,
            **changes,
        }
    )


def save_features_model(folder, seed: int = 0, **changes) -> str:
    torch.manual_seed(seed)
    VJEPAModel(tiny_config(**changes)).save_pretrained(folder)
    VJEPAVideoProcessor(crop_size=SIZE).save_pretrained(folder)
    return str(folder)


def plain_settings(**changes) -> FineTuneSettings:
    return FineTuneSettings(**{**PLAIN, "num_epochs": 1, **changes})
