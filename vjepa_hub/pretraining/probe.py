"""Online probe: how well labels can be read from the target encoder's features while it trains.

The one measure that is not a proxy. It costs labels, so the set is small, the features are frozen and computed once an
evaluation, and what is trained on them is small too. Three kinds:

    knn        votes of the nearest training clips; nothing is trained, so nothing has to be tuned
    average    a linear layer on the mean of a clip's tokens
    attentive  the paper's probe: an attentive pooler and a linear layer on all tokens (section 4.1), in short

The kinds differ in what they can see: averaging loses what is told by single tokens, such as motion.

Shapes: N clips, T tokens of a clip, D features, C classes.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn
from torch.nn import functional as F

from ..core.settings import Settings
from ..data.augmentation import IMAGENET_MEAN, IMAGENET_STD
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import VJEPAAttentivePooler, VJEPAEncoder
from .health import eval_mode

PREFIX = "probe/"
ProbeKind = Literal["knn", "attentive", "average"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledClips:
    """Clips with one or several labels each.

    Args:
        pixel_values_videos: `(num_clips, num_frames, 3, height, width)`: float as the encoder takes them, or uint8,
            which are normalised by ImageNet's mean and standard deviation when they are used.
        labels: Class indices of each task, such as `{"appearance": ..., "motion": ...}`; integers `(num_clips,)`.

    Raises:
        ValueError: There are no clips or no labels, or their numbers differ.
    """

    pixel_values_videos: torch.Tensor
    labels: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        shape = tuple(self.pixel_values_videos.shape)
        if len(shape) != 5 or not len(self.pixel_values_videos):
            raise ValueError(
                f"pixel_values_videos has shape {shape}, but must be (num_clips, num_frames, 3, height, width) with "
                "at least one clip; stack the clips"
            )
        if not self.labels:
            raise ValueError("labels is empty, but a probe needs at least one task; give {'task': class indices}")
        for name, values in self.labels.items():
            if values.is_floating_point() or values.is_complex() or tuple(values.shape) != shape[:1]:
                raise ValueError(
                    f"labels['{name}'] is {values.dtype} of shape {tuple(values.shape)}, but must be an integer for "
                    f"each of {shape[0]} clips"
                )
            if values.min() < 0:
                raise ValueError(
                    f"labels['{name}'] holds {int(values.min())}, but classes count from 0; leave out unlabelled clips"
                )

    def __len__(self) -> int:
        return len(self.pixel_values_videos)


class OnlineProbeSettings(Settings):
    """Reading of the features by an online probe.

    Args:
        clips_per_pass: Clips that the encoder takes at once.
        num_neighbours: Nearest training clips that vote ("knn").
        temperature: A neighbour's vote is `exp(cosine / temperature)` ("knn"; 0.07 as in DINO, Caron et al. 2021).
        num_epochs: Passes over the training clips ("attentive", "average").
        batch_size: Clips of a training step.
        learning_rate: Of AdamW, falling to 0 along a cosine.
        weight_decay: Of AdamW.
        seed: Of the first weights and of the order of clips.
    """

    clips_per_pass: PositiveInt = 32
    num_neighbours: PositiveInt = 10
    temperature: PositiveFloat = 0.07
    num_epochs: PositiveInt = 20
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    seed: NonNegativeInt = 0


class OnlineProbe:
    """Probes an encoder on a small labelled set, without touching the run around it.

    Each evaluation starts anew, from the same seed, so that it is a function of the encoder alone: a resumed run
    measures what an uninterrupted one does. No random number of the run is drawn.

    Args:
        kind: "knn", "average" or "attentive".
        train: Clips that the probe learns from.
        validation: Clips that it is judged on, with the same tasks.
        settings: How.

    Raises:
        ValueError: The kind is unknown, the two sets have other tasks, or there are fewer training clips than
            neighbours.
    """

    def __init__(
        self,
        kind: ProbeKind,
        train: LabelledClips,
        validation: LabelledClips,
        *,
        settings: OnlineProbeSettings | None = None,
    ):
        settings = OnlineProbeSettings() if settings is None else settings
        if kind not in get_args(ProbeKind):
            raise ValueError(f"kind is '{kind}'; available: {', '.join(get_args(ProbeKind))}")
        if set(train.labels) != set(validation.labels):
            raise ValueError(
                f"the training clips have labels for {', '.join(sorted(train.labels))} and the validation clips for "
                f"{', '.join(sorted(validation.labels))}; give both the same tasks"
            )
        if kind == "knn" and len(train) < settings.num_neighbours:
            raise ValueError(
                f"num_neighbours is {settings.num_neighbours}, but there are only {len(train)} training clips; "
                "lower it, or give more clips"
            )
        self.kind, self.train, self.validation, self.settings = kind, train, validation, settings

    def evaluate(self, encoder: VJEPAEncoder) -> dict[str, float]:
        """Accuracy of each task on the validation clips.

        Args:
            encoder: Read in eval mode, in float32 and without gradients, and left as it was.

        Returns:
            `{"probe/motion_accuracy": ...}`, from 0 to 1.
        """
        train, validation = self._features(encoder, self.train), self._features(encoder, self.validation)
        accuracies = {}
        for task, labels in self.train.labels.items():
            truth = self.validation.labels[task].cpu()
            scores = self._score(encoder, train, labels.cpu(), validation, num_classes=_num_classes(labels, truth))
            accuracies[f"{PREFIX}{task}_accuracy"] = (scores.argmax(1) == truth).double().mean().item()
        return accuracies

    def _features(self, encoder: VJEPAEncoder, clips: LabelledClips) -> torch.Tensor:
        """(N, T, D) float32 on the CPU, since the run needs the accelerator's memory; T is 1 after averaging."""
        device, features = next(encoder.parameters()).device, []
        with torch.no_grad(), eval_mode(encoder), torch.autocast(device.type, enabled=False):
            for batch in clips.pixel_values_videos.split(self.settings.clips_per_pass):
                tokens = encoder(_normalise(batch.to(device)), return_dict=True).last_hidden_state.float()
                features.append((tokens if self.kind == "attentive" else tokens.mean(1, keepdim=True)).cpu())
        return torch.cat(features)

    def _score(
        self,
        encoder: VJEPAEncoder,
        train: torch.Tensor,
        labels: torch.Tensor,
        validation: torch.Tensor,
        *,
        num_classes: int,
    ) -> torch.Tensor:
        """(N, C) scores of the validation clips."""
        if self.kind == "knn":
            return vote_of_neighbours(
                train[:, 0],
                F.one_hot(labels.long(), num_classes),
                validation[:, 0],
                num_neighbours=self.settings.num_neighbours,
                temperature=self.settings.temperature,
            )
        with _seeded(self.settings.seed):
            pooler = _attentive_pooler(encoder.config) if self.kind == "attentive" else _AveragePooler(train)
            head = nn.Sequential(pooler, nn.Linear(train.shape[-1], num_classes))
        device = next(encoder.parameters()).device
        with torch.autocast(device.type, enabled=False):
            _fit(head.to(device), train, labels.long(), self.settings)
            with torch.no_grad():
                batches = validation.split(self.settings.batch_size)
                return torch.cat([head(batch.to(device)).cpu() for batch in batches])


def vote_of_neighbours(
    train: torch.Tensor,
    votes: torch.Tensor,
    validation: torch.Tensor,
    *,
    num_neighbours: int,
    temperature: float,
) -> torch.Tensor:
    """Weighted votes of the nearest training clips (the protocol of DINO, Caron et al. 2021).

    What all clips share is taken off first, the mean of the training clips: the mean of a clip's tokens is made of
    little else, so that without this every cosine is nearly 1 and every vote weighs the same.

    Args:
        train: Features, `(num_train, hidden_size)`.
        votes: What each training clip votes for, `(num_train, num_classes)`.
        validation: Features, `(num_validation, hidden_size)`.
        num_neighbours: How many vote.
        temperature: A vote weighs `exp(cosine / temperature)`.

    Returns:
        Votes of each class, `(num_validation, num_classes)`.
    """
    mean = train.mean(0)
    cosines = F.normalize(validation - mean, dim=1) @ F.normalize(train - mean, dim=1).T
    nearest, indices = cosines.topk(num_neighbours, dim=1)  # (N, k)
    weights = (nearest / temperature).exp()
    return (weights[..., None] * votes[indices]).sum(1)


class _AveragePooler(nn.Module):
    """The mean of a clip's tokens, each feature standardised as it is distributed over the training clips."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, train: torch.Tensor):
        super().__init__()
        pooled = train.mean(1)  # (N, D)
        self.register_buffer("mean", pooled.mean(0))
        self.register_buffer("std", pooled.std(0, correction=0).clamp_min(torch.finfo(torch.float32).eps))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens.mean(1) - self.mean) / self.std


def _attentive_pooler(encoder_config: VJEPAConfig) -> VJEPAAttentivePooler:
    """The paper's pooler with the classifier's first weights; attention written out is the same on every device."""
    config = deepcopy(encoder_config)
    config._attn_implementation, config.attention_probs_dropout_prob = "eager", 0.0
    pooler = VJEPAAttentivePooler(config)
    for module in pooler.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    pooler.reset_parameters(config.initializer_range)
    return pooler


def _fit(head: nn.Module, features: torch.Tensor, labels: torch.Tensor, settings: OnlineProbeSettings) -> None:
    """Train a head on frozen features, (N, T, D) on the CPU, batch by batch on its own device."""
    device = next(head.parameters()).device
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    num_steps = settings.num_epochs * math.ceil(len(features) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    with torch.enable_grad():
        for _ in range(settings.num_epochs):
            for batch in torch.randperm(len(features), generator=generator).split(settings.batch_size):
                loss = F.cross_entropy(head(features[batch].to(device)), labels[batch].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a seed of its own on the CPU, then go on as before.

    `torch.manual_seed` would seed the accelerators too, which the run around draws from.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _normalise(clips: torch.Tensor) -> torch.Tensor:
    if clips.is_floating_point():
        return clips
    mean, std = (torch.tensor(values, device=clips.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (clips.float() / 255 - mean) / std


def _num_classes(*labels: torch.Tensor) -> int:
    return 1 + max(int(values.max()) for values in labels)
