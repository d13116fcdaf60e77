"""A linear head that names the actions in boxes of persons: how it is trained and judged, on stored features.

    key frames -> clips -> frozen encoder -> features of boxes (on disk) -> linear head -> detections -> mean AP

The first half is in `key_frames.py` and `roi_features.py`, the whole in `localisation_run.py`.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...core.files import written_whole
from ...core.progress import Progress, no_progress
from .boxes import EVALUATED_CLASS_IDS, KeyFrameBoxes, read_detections, write_detections
from .key_frames import KeyFrame
from .metrics import MAX_DETECTIONS, AvaResult, evaluate_detections, highest_per_frame
from .protocol import LocalisationProtocol
from .roi_features import BoxFeatures, check_same_settings

logger = logging.getLogger(__name__)

HEAD_FILE, DETECTIONS_FILE = "head.pt", "detections.csv"


class RoIActionHead(nn.Module):
    """A linear classifier of boxes: one sigmoid for each action.

    Args:
        num_features: Features of a box.
        num_classes: Number of actions.
        generator: Draws the weights; None: torch's own.
    """

    def __init__(self, num_features: int, num_classes: int, *, generator: torch.Generator | None = None):
        super().__init__()
        self.classifier = nn.Linear(num_features, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of actions, `(num_boxes, num_classes)`, from features `(num_boxes, num_features)`."""
        return self.classifier(features)


@dataclass(frozen=True)
class TrainedHead:
    """A head with the way it took.

    Attributes:
        head: In eval mode, float32.
        losses: Mean loss of each epoch.
    """

    head: RoIActionHead
    losses: tuple[float, ...]


def learning_rate_at(step: int, *, steps_per_epoch: int, protocol: LocalisationProtocol) -> float:
    """The learning rate of an optimiser step: a linear warm-up, then half a cosine.

    Args:
        step: Its number, from 0.
        steps_per_epoch: Steps of an epoch.
        protocol: It has the rates and the lengths.
    """
    num_warmup = int(protocol.num_warmup_epochs * steps_per_epoch)
    start, peak, end = protocol.warmup_learning_rate, protocol.learning_rate, protocol.final_learning_rate
    if step < num_warmup:
        return start + (peak - start) * step / num_warmup
    num_falling = protocol.num_epochs * steps_per_epoch - num_warmup
    progress = (step - num_warmup) / max(num_falling - 1, 1)
    return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2


def train_localisation(
    features: BoxFeatures,
    key_frames: Sequence[KeyFrame],
    protocol: LocalisationProtocol,
    *,
    output_dir: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress = no_progress,
) -> TrainedHead:
    """Train a head on the features of boxes, or go on after the last whole epoch that is in the folder.

    Args:
        features: Of the key frames.
        key_frames: Their labels.
        protocol: The optimisation.
        output_dir: Where `head.pt` is written after each epoch.
        seed: Of the weights, the order and the mirroring. Equal seeds give equal heads on a device.
        device: Where the head is.
        progress: Called after each epoch with ("train", epochs done, epochs).

    Raises:
        ValueError: the folder has a head of other settings, there is nothing to train on, or the loss is not finite.
    """
    usable = features.usable_key_frames()
    if not len(usable):
        raise ValueError(f"none of the {len(key_frames)} training key frames has boxes; check the annotations")
    run = _TrainingRun(features, key_frames, protocol, output_dir=Path(output_dir), seed=seed, device=device)
    while run.num_epochs_done < protocol.num_epochs:
        run.train_epoch(usable)
        run.save()
        progress("train", run.num_epochs_done, protocol.num_epochs)
    return TrainedHead(run.head.eval(), tuple(run.losses))


class _TrainingRun:
    """Head, optimiser and what is done; all that is random is a function of the seed and the epoch."""

    def __init__(
        self,
        features: BoxFeatures,
        key_frames: Sequence[KeyFrame],
        protocol: LocalisationProtocol,
        *,
        output_dir: Path,
        seed: int,
        device: str | torch.device,
    ):
        self.features, self.protocol, self.seed, self.device = features, protocol, seed, device
        self.labels = np.concatenate([frame.labels for frame in key_frames])
        self.path = output_dir / HEAD_FILE
        generator = torch.Generator().manual_seed(seed)
        self.head = RoIActionHead(features.num_features, protocol.num_classes, generator=generator).to(device)
        self.optimizer = _build_optimizer(self.head, protocol)
        self.losses: list[float] = []
        output_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    @property
    def num_epochs_done(self) -> int:
        return len(self.losses)

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values that the head depends on, as a file gives them back."""
        protocol = self.protocol.to_tree()
        del protocol["description"]
        labels = hashlib.sha256(np.packbits(self.labels).tobytes()).hexdigest()
        settings = {"features": self.features.fingerprint, "labels": labels, "seed": self.seed, **protocol}
        return json.loads(json.dumps(settings))

    def train_epoch(self, usable: np.ndarray) -> None:
        self.head.train()
        generator = np.random.default_rng([self.seed, self.num_epochs_done])
        order = generator.permutation(usable)
        views = (generator.random(len(order)) < self.protocol.flip_probability) * (self.features.num_views - 1)
        starts = range(0, len(order), self.protocol.batch_size)
        total, num_boxes = 0.0, 0
        for number, start in enumerate(starts):
            batch = slice(start, start + self.protocol.batch_size)
            step = self.num_epochs_done * len(starts) + number
            loss, num_in_batch = self._train_step(order[batch], views[batch], step, len(starts))
            total, num_boxes = total + loss * num_in_batch, num_boxes + num_in_batch
        self.losses.append(total / num_boxes)

    def _train_step(
        self, key_frames: np.ndarray, views: np.ndarray, step: int, steps_per_epoch: int
    ) -> tuple[float, int]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps_per_epoch=steps_per_epoch, protocol=self.protocol)
        values, rows = self.features.read(key_frames, views)
        labels = torch.from_numpy(self.labels[rows]).float().to(self.device)
        loss = F.binary_cross_entropy_with_logits(self.head(values.to(self.device)), labels)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()} in step {step}; lower learning_rate")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), len(rows)

    def save(self) -> None:
        state = {
            "settings": self.settings,
            "losses": self.losses,
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(self.path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def _load(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        check_same_settings(self.path, state["settings"], self.settings)
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])
        logger.info("%s: going on after epoch %d", self.path, self.num_epochs_done)


def _build_optimizer(head: RoIActionHead, protocol: LocalisationProtocol) -> torch.optim.AdamW:
    decayed = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": protocol.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=protocol.learning_rate, betas=protocol.betas, eps=protocol.epsilon)


@torch.no_grad()
def detect_actions(
    head: RoIActionHead,
    features: BoxFeatures,
    key_frames: Sequence[KeyFrame],
    *,
    class_ids: Sequence[int] = EVALUATED_CLASS_IDS,
    max_detections: int = MAX_DETECTIONS,
    batch_size: int = 1024,
) -> KeyFrameBoxes:
    """Score the actions of boxes.

    Args:
        head: The classifier; where it lies it runs.
        features: Of the boxes.
        key_frames: The boxes.
        class_ids: The actions to score.
        max_detections: Only the highest scores of a key frame are kept, as the evaluation counts no more.
        batch_size: Key frames at a time.
    """
    head.eval()
    device = head.classifier.weight.device
    columns = torch.tensor(class_ids) - 1
    ids = np.asarray(class_ids, dtype=np.int64)
    parts = []
    usable = features.usable_key_frames()
    for places in np.array_split(usable, max(math.ceil(len(usable) / batch_size), 1)):
        values, _ = features.read(places, np.zeros(len(places), dtype=np.int64))
        scores = head(values.to(device)).sigmoid().cpu()[:, columns].double().numpy()
        counts = np.array([len(key_frames[place].boxes) for place in places], dtype=np.int64)
        boxes = np.concatenate([np.zeros((0, 4)), *(key_frames[place].boxes for place in places)])
        parts.append(_highest(np.repeat(places, counts), boxes, scores, ids, max_detections))
    columns_of_parts = (np.concatenate(column) for column in zip(*parts, strict=True))
    return KeyFrameBoxes(tuple(frame.id for frame in key_frames), *columns_of_parts)


def _highest(
    frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, max_detections: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of key frame, box, class and score: the highest scores of each key frame."""
    frames = np.repeat(frames, len(class_ids))
    kept = highest_per_frame(frames, scores.ravel(), max_detections)
    return frames[kept], boxes[kept // len(class_ids)], class_ids[kept % len(class_ids)], scores.ravel()[kept]


def evaluate_localisation(
    head: RoIActionHead,
    features: BoxFeatures,
    key_frames: Sequence[KeyFrame],
    annotations: KeyFrameBoxes,
    *,
    output_dir: str | Path,
    class_ids: Sequence[int] = EVALUATED_CLASS_IDS,
) -> AvaResult:
    """Write `detections.csv` and evaluate what stands in it, so that AVA's own evaluation says the same of the file.

    Args:
        head: The classifier.
        features: Of the boxes of the key frames.
        key_frames: Their boxes.
        annotations: The ground truth of all key frames, of those too that could not be read.
        output_dir: Where the file is written.
        class_ids: The actions that count.
    """
    path = Path(output_dir) / DETECTIONS_FILE
    write_detections(path, detect_actions(head, features, key_frames, class_ids=class_ids))
    num_classes = max(*class_ids, head.classifier.out_features)
    return evaluate_detections(annotations, read_detections(path, num_classes=num_classes), class_ids=class_ids)
