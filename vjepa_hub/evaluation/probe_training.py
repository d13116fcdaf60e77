"""Trains several heads side by side on the tokens of a frozen encoder, which passes over each video once for all.

Every head has its own AdamW and its own curves, and sees the same videos in the same order as if it were trained
alone. The order, and everything drawn about a clip, is a function of the seed and of the position in the run: training
goes on exactly after an interruption, and several processes give what one gives.

The optimisation is that of the released evaluations: AdamW, learning rate and weight decay along cosines that are read
one step ahead, no decay on biases and 1-D parameters, gradients of each head clipped. What differs is said in
`protocols`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..core.distributed import join_processes
from ..core.files import written_whole
from ..core.progress import Progress, no_progress
from ..data.clip_order import ClipRequest
from ..data.random_streams import Stream, generator_at
from ..heads.pooling import HeadSettings, build_head
from .protocols import Protocol
from .tokens import TokenBatch, TokenSource

CHECKPOINT = "heads.pt"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Which videos each step sees.

    Args:
        num_videos: Videos of the training set.
        batch_size: Videos of a step, over all processes. The last step of an epoch takes what is left.
        num_epochs: Passes over the set.
        seed: The order is a function of it.
    """

    num_videos: int
    batch_size: int
    num_epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of a pass."""
        return math.ceil(self.num_videos / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.steps_per_epoch * self.num_epochs

    def batches(self, epoch: int, *, rank: int = 0, num_processes: int = 1) -> list[list[ClipRequest]]:
        """The share of one process in each step of an epoch; it may be empty in the last one."""
        generator = generator_at(self.seed, epoch, stream=Stream.ORDER)
        order = torch.randperm(self.num_videos, generator=generator).tolist()
        requests = [ClipRequest(epoch * self.num_videos + place, index) for place, index in enumerate(order)]
        starts = range(0, self.num_videos, self.batch_size)
        return [requests[start : start + self.batch_size][rank::num_processes] for start in starts]


class HeadTraining:
    """One head with its optimiser.

    Args:
        head: The head.
        settings: Its learning rate and weight decay.
        protocol: Where they end, and the norm of clipping.
        total_steps: Steps of the run.
    """

    def __init__(self, head: nn.Module, settings: HeadSettings, protocol: Protocol, total_steps: int):
        self.head, self.settings, self.protocol, self.total_steps = head, settings, protocol, total_steps
        decayed = [parameter for parameter in head.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others}])
        for parameter in head.parameters():  # a process without a video in a step takes part in the sum too
            parameter.grad = torch.zeros_like(parameter)

    def begin(self, step: int) -> None:
        """Begin a step.

        Args:
            step: Its number, from 0.
        """
        self._set_schedules(step)
        self.optimizer.zero_grad(set_to_none=False)
        device = next(self.head.parameters()).device
        self._step, self._sums = step, torch.zeros(2, dtype=torch.float64, device=device)

    @torch.enable_grad()
    def add(self, tokens: torch.Tensor, labels: torch.Tensor, is_readable: torch.Tensor) -> None:
        """Add the gradients of some videos of the step.

        Args:
            tokens: `(batch_size, num_tokens, hidden_size)`.
            labels: `(batch_size,)`.
            is_readable: `(batch_size,)` bool; other videos have no part in the loss.
        """
        losses = F.cross_entropy(self.head(tokens.float()), labels, reduction="none")
        total = losses[is_readable].sum()
        total.backward()
        self._sums += torch.stack([total.detach(), is_readable.sum()])

    def finish(self) -> float:
        """Do the step with the gradients of all processes, divided by the number of their readable videos.

        Returns:
            Mean loss over these videos; NaN without any, and then nothing is learned.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        loss_sum, num_videos = self._sum_over_processes()
        if not num_videos:
            return math.nan
        if not math.isfinite(loss_sum):
            raise FloatingPointError(
                f"the loss of the head ({self.settings}) is {loss_sum} at step {self._step}; lower its learning rate"
            )
        for gradient in self._gradients():
            gradient.div_(num_videos)
        nn.utils.clip_grad_norm_(self.head.parameters(), self.protocol.max_grad_norm)
        self.optimizer.step()
        return loss_sum / num_videos

    def _set_schedules(self, step: int) -> None:
        progress = min((step + 1) / self.total_steps, 1.0)
        rate = _cosine(progress, self.settings.learning_rate, self.protocol.final_learning_rate)
        decay = _cosine(progress, self.settings.weight_decay, self.protocol.final_weight_decay)
        for group, weight_decay in zip(self.optimizer.param_groups, (decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = rate, weight_decay

    def _gradients(self) -> list[torch.Tensor]:
        return [cast(torch.Tensor, parameter.grad) for parameter in self.head.parameters()]

    def _sum_over_processes(self) -> list[float]:
        """Add up the gradients of all processes in place, and return the sum of the losses and of the videos."""
        processes = join_processes()
        if processes.count > 1:
            processes.add_up(self._sums)
            gradients = self._gradients()
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            processes.add_up(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        return self._sums.tolist()


def _cosine(progress: float, initial: float, final: float) -> float:
    return final + (initial - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class ProbeTraining:
    """Heads that are trained side by side.

    Args:
        source: Tokens of the training set.
        heads: Which heads.
        protocol: How they are trained.
        hidden_size: Width of the tokens.
        num_attention_heads: Of the attentive probe.
        videos_per_pass: Videos whose tokens are there at once, in each process; changes nothing but the memory.
        seed: Of the first weights and of the order. All heads of one pooling start from the same weights.
        device: Where the heads are.

    Raises:
        ValueError: No head.
    """

    def __init__(
        self,
        source: TokenSource,
        heads: Sequence[HeadSettings],
        protocol: Protocol,
        *,
        hidden_size: int,
        num_attention_heads: int,
        videos_per_pass: int = 8,
        seed: int,
        device: torch.device,
    ):
        if not heads:
            raise ValueError("no head is given; train at least one")
        self.source, self.videos_per_pass = source, videos_per_pass
        self.plan = TrainingPlan(
            num_videos=len(source.labelled),
            batch_size=protocol.batch_size,
            num_epochs=protocol.num_epochs,
            seed=seed,
        )
        self.heads = []
        for settings in heads:
            head: nn.Module = build_head(
                settings.pooling,
                hidden_size=hidden_size,
                num_attention_heads=num_attention_heads,
                num_classes=source.labelled.num_classes,
                seed=seed,
            )
            head.to(device)
            self.heads.append(HeadTraining(head, settings, protocol, self.plan.total_steps))
        self.num_unreadable = 0
        self.losses: list[list[float]] = []  # of each epoch, the mean loss of each head

    def run(self, folder: Path, *, progress: Progress = no_progress) -> None:
        """Train to the end, from the last complete epoch that is found in a folder.

        Args:
            folder: Where the heads are kept after each epoch.
            progress: Called with the steps that are done, and all steps, after each.

        Raises:
            ValueError: What is kept there was trained with other settings.
            FloatingPointError: A loss is not finite.
        """
        processes = join_processes()
        for epoch in range(self._restore(folder), self.plan.num_epochs):
            steps = self.plan.batches(epoch, rank=processes.rank, num_processes=processes.count)
            done = epoch * self.plan.steps_per_epoch
            losses = []
            for number, of_heads in enumerate(self._steps(steps, done), done + 1):
                losses.append(of_heads)
                progress("training", number, self.plan.total_steps)
            self.losses.append(torch.tensor(losses, dtype=torch.float64).nanmean(0).tolist())
            self._save(folder, epoch + 1)

    def _steps(self, steps: list[list[ClipRequest]], first_step: int) -> Iterator[list[float]]:
        """The losses of each step, whose videos come in parts that fit into memory."""
        parts = [_split(batch, self.videos_per_pass) for batch in steps]
        batches = self.source.batches([part for of_step in parts for part in of_step])
        for step, of_step in enumerate(parts, first_step):
            for head in self.heads:
                head.begin(step)
            for _ in of_step:
                batch = next(batches)
                if batch is not None:
                    self._add(batch)
            yield [head.finish() for head in self.heads]

    def _add(self, batch: TokenBatch) -> None:
        tokens = batch.tokens[:, 0].flatten(1, 2)  # (B, S * N, D) of the one view
        self.num_unreadable += int((~batch.is_readable).sum())
        for head in self.heads:
            head.add(tokens, batch.labels, batch.is_readable)

    def _settings(self) -> dict[str, Any]:
        return {"plan": asdict(self.plan), "heads": [head.settings.to_tree() for head in self.heads]}

    def _save(self, folder: Path, num_epochs: int) -> None:
        """Keep the heads."""
        processes = join_processes()
        unreadable = sum(processes.gather([self.num_unreadable]))
        if processes.is_first:
            kept = {
                "settings": self._settings(),
                "num_epochs": num_epochs,
                "losses": self.losses,
                "num_unreadable": unreadable,
                "heads": [head.head.state_dict() for head in self.heads],
                "optimizers": [head.optimizer.state_dict() for head in self.heads],
            }
            with written_whole(folder / CHECKPOINT) as temporary:
                torch.save(kept, temporary)
        processes.wait()

    def _restore(self, folder: Path) -> int:
        """The epoch to go on from."""
        file = folder / CHECKPOINT
        if not file.exists():
            return 0
        kept = torch.load(file, map_location="cpu", weights_only=True)
        if kept["settings"] != self._settings():
            raise ValueError(
                f"{file} holds heads that are trained with other settings ({kept['settings']}) than are asked for "
                f"({self._settings()}); take another folder, or --overwrite"
            )
        for head, weights, optimizer in zip(self.heads, kept["heads"], kept["optimizers"], strict=True):
            head.head.load_state_dict(weights)
            head.optimizer.load_state_dict(optimizer)
        self.losses = kept["losses"]
        self.num_unreadable = kept["num_unreadable"] if join_processes().is_first else 0
        return kept["num_epochs"]


def _split(batch: list[ClipRequest], size: int) -> list[list[ClipRequest]]:
    return [batch[start : start + size] for start in range(0, len(batch), size)]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of heads for a set.

    Attributes:
        probabilities: Of each head, class probabilities `(num_videos, num_classes)` float64, the mean over views (and
            segments, where they are not attended together); zeros for videos that cannot be read.
        is_readable: `(num_videos,)` bool.
    """

    probabilities: list[np.ndarray]
    is_readable: np.ndarray


@torch.no_grad()
def predict(
    source: TokenSource,
    heads: Sequence[nn.Module],
    protocol: Protocol,
    *,
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> Predictions:
    """Class probabilities of a validation set, shared out among the processes; all of them get the whole.

    Args:
        source: Tokens of the set.
        heads: Each is in float32 and gives logits.
        protocol: Whether the segments of a video are attended together.
        batch_size: Videos at once, in each process.
        progress: Called with the videos that are done, and all videos of this process, after each batch.
    """
    processes = join_processes()
    share = range(len(source.labelled))[processes.rank :: processes.count]
    requests = _split([ClipRequest(index, index) for index in share], batch_size)
    found: list[tuple[list[int], list[bool], list[np.ndarray]]] = []
    done = 0
    for batch in source.batches(requests):
        assert batch is not None
        of_heads = [_probabilities(head, batch, protocol).cpu().double().numpy() for head in heads]
        found.append((batch.indices.tolist(), batch.is_readable.tolist(), of_heads))
        done += len(batch.indices)
        progress("evaluating", done, len(share))
    return _merge(processes.gather(found), len(heads), source)


def _probabilities(head: nn.Module, batch: TokenBatch, protocol: Protocol) -> torch.Tensor:
    """(B, C) mean of the softmax over views, and over segments that are not attended together."""
    if protocol.attends_across_segments:
        parts = [view.flatten(1, 2) for view in batch.tokens.unbind(1)]
    else:
        parts = [segment for view in batch.tokens.unbind(1) for segment in view.unbind(1)]
    return torch.stack([head(part.float()).softmax(-1) for part in parts]).mean(0)


def _merge(
    found: list[tuple[list[int], list[bool], list[np.ndarray]]], num_heads: int, source: TokenSource
) -> Predictions:
    num_videos, num_classes = len(source.labelled), source.labelled.num_classes
    probabilities = [np.zeros((num_videos, num_classes)) for _ in range(num_heads)]
    is_readable = np.zeros(num_videos, dtype=bool)
    for indices, readable, of_heads in found:
        is_readable[indices] = readable
        for of_head, values in zip(probabilities, of_heads, strict=True):
            of_head[indices] = values
    for of_head in probabilities:
        of_head[~is_readable] = 0.0
    return Predictions(probabilities=probabilities, is_readable=is_readable)
