"""Online probe: how well labels can be read from the target encoder's features while it trains.

The one measure that is not a proxy. It costs labels, so the set is small, and its clips stay in memory. Clips, tokens,
heads, their training and the accuracy are those of the frozen evaluation (`heads`), with one clip and one view of a
video and no augmentation: the same set gives the same number there. Three kinds:

    knn        votes of the nearest training clips; nothing is trained, so nothing has to be tuned
    average    a linear layer on the mean of a clip's tokens
    attentive  the paper's probe: an attentive pooler and a linear layer on all tokens (section 4.1)

The kinds differ in what they can see: averaging loses what is told by single tokens, such as motion.

Shapes: N clips, T tokens of a clip, D features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from ..heads.metrics import compute_metrics
from ..heads.neighbours import predict_by_neighbours
from ..heads.optimisation import HeadOptimisation
from ..heads.pooling import HeadSettings
from ..heads.prediction import Predictions, predict
from ..heads.tokens import TOKEN_DTYPE, TokensInMemory
from ..heads.training import SideBySideTraining
from ..model.modeling_vjepa import VJEPAEncoder
from .health import eval_mode

PREFIX = "probe/"
ProbeKind = Literal["knn", "attentive", "average"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledClips:
    """Clips with one or several labels each.

    Args:
        pixel_values_videos: `(num_clips, num_frames, 3, height, width)`, floats as the encoder takes them, of any
            precision.
        labels: Class indices of each task, such as `{"appearance": ..., "motion": ...}`; integers `(num_clips,)`.
        is_readable: Clips that could be decoded, bool `(num_clips,)`; None: all. Others are not trained on, and count
            as wrong.

    Raises:
        ValueError: There are no clips or no labels, or their numbers differ.
    """

    pixel_values_videos: torch.Tensor
    labels: Mapping[str, torch.Tensor]
    is_readable: torch.Tensor | None = None

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


class OnlineProbeSettings(HeadOptimisation):
    """Reading of the features by a probe.

    Args:
        batch_size: Clips of a training step ("attentive", "average").
        clips_per_pass: Clips that the encoder takes at once.
        num_neighbours: Nearest training clips that vote ("knn").
        temperature: A neighbour's vote is `exp(cosine / temperature)` ("knn"; 0.07 as in DINO, Caron et al. 2021).
        seed: Of the first weights and of the order of clips.

    Raises:
        SettingsError: A value out of its range.
    """

    batch_size: PositiveInt = 32
    clips_per_pass: PositiveInt = 32
    num_neighbours: PositiveInt = 10
    temperature: PositiveFloat = 0.07
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
        """Top-1 accuracy of each task on the validation clips.

        Args:
            encoder: Read in eval mode, in float32 and without gradients, and left as it was.

        Returns:
            `{"probe/motion_accuracy": ...}`, from 0 to 1; NaN where the features are not finite.
        """
        device, accuracies = next(encoder.parameters()).device, {}
        with torch.autocast(device.type, enabled=False):
            tokens = [self._encode(encoder, clips) for clips in (self.train, self.validation)]
            if not all(of_set.isfinite().all() for of_set in tokens):  # the run itself says so, and stops
                return {f"{PREFIX}{task}_accuracy": math.nan for task in self.train.labels}
            for task in self.train.labels:
                num_classes = 1 + max(int(clips.labels[task].max()) for clips in (self.train, self.validation))
                train, validation = (
                    TokensInMemory(
                        of_set,
                        clips.labels[task].long().cpu(),
                        torch.ones(len(clips), dtype=torch.bool) if clips.is_readable is None else clips.is_readable,
                        num_classes=num_classes,
                        device=device,
                    )
                    for of_set, clips in zip(tokens, (self.train, self.validation), strict=True)
                )
                found = self._predict(encoder, train, validation)
                metrics = compute_metrics(found.probabilities[0], validation.labels.numpy(), found.is_readable)
                accuracies[f"{PREFIX}{task}_accuracy"] = metrics.top1
        return accuracies

    def _encode(self, encoder: VJEPAEncoder, clips: LabelledClips) -> torch.Tensor:
        """(N, T, D) on the CPU, since the run needs the accelerator's memory; T is 1 where the mean is enough."""
        device, found = next(encoder.parameters()).device, []
        with torch.no_grad(), eval_mode(encoder):
            for batch in clips.pixel_values_videos.split(self.settings.clips_per_pass):
                tokens = encoder(batch.to(device).float(), return_dict=True).last_hidden_state
                tokens = tokens.to(TOKEN_DTYPE)
                found.append((tokens if self.kind == "attentive" else tokens.float().mean(1, keepdim=True)).cpu())
        return torch.cat(found)

    def _predict(self, encoder: VJEPAEncoder, train: TokensInMemory, validation: TokensInMemory) -> Predictions:
        settings = self.settings
        if self.kind == "knn":
            return predict_by_neighbours(
                train, validation, num_neighbours=settings.num_neighbours, temperature=settings.temperature
            )
        head = HeadSettings(
            pooling=self.kind,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        training = SideBySideTraining(
            train,
            [head],
            settings,
            hidden_size=encoder.config.hidden_size,
            num_attention_heads=encoder.config.num_attention_heads,
            seed=settings.seed,
            device=train.device,
        )
        return predict(validation, training.run())
