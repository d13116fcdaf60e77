"""Training of several heads side by side on the tokens of a frozen encoder, which encodes each video once for all.

Every head has its own AdamW and its own curves, and sees the same items in the same order as if it were trained alone.
The order, and everything drawn about a clip, is a function of the seed and of the position in the run: a resumed
training equals an uninterrupted one, and several processes give what one gives.

The optimisation is that of the released evaluations: AdamW, learning rate and weight decay along cosines that are read
one step ahead; those of V-JEPA have no decay on biases and 1-D parameters, and clip the gradients of each head.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..core.checkpoints import require_whole_archive
from ..core.distributed import ALONE, Processes
from ..core.files import written_whole
from ..core.progress import Progress, no_progress
from ..data.clip_order import ClipRequest
from ..data.random_streams import Stream, generator_at
from .optimisation import HeadOptimisation
from .pooling import HeadSettings, build_head
from .tokens import TokenBatch, TokenSource, split

CHECKPOINT = "heads.pt"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Items of each step.

    Args:
        num_items: Items of the training set.
        batch_size: Items of a step, over all processes. The last step of an epoch takes what is left.
        num_epochs: Passes over the set.
        seed: Of the order.
    """

    num_items: int
    batch_size: int
    num_epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of a pass."""
        return math.ceil(self.num_items / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.steps_per_epoch * self.num_epochs

    def batches(self, epoch: int, *, rank: int = 0, num_processes: int = 1) -> list[list[ClipRequest]]:
        """The share of one process in each step of an epoch; it may be empty in the last one."""
        generator = generator_at(self.seed, epoch, stream=Stream.ORDER)
        order = torch.randperm(self.num_items, generator=generator).tolist()
        requests = [ClipRequest(epoch * self.num_items + place, index) for place, index in enumerate(order)]
        return [batch[rank::num_processes] for batch in split(requests, self.batch_size)]


def learning_rate_at(
    step: int, total_steps: int, *, num_warmup_steps: int, peak: float, optimisation: HeadOptimisation
) -> float:
    """Learning rate of a step: a linear warm-up, then half a cosine, both read one step ahead as in the release.

    Args:
        step: Its number, from 0.
        total_steps: Steps of the run.
        num_warmup_steps: Steps of the warm-up.
        peak: Learning rate at its end.
        optimisation: Where the warm-up begins and the cosine ends.
    """
    ahead = step + 1
    if ahead < num_warmup_steps:
        start = optimisation.warmup_learning_rate
        return start + (peak - start) * ahead / num_warmup_steps
    progress = (ahead - num_warmup_steps) / max(total_steps - num_warmup_steps, 1)
    return _cosine(progress, peak, optimisation.final_learning_rate)


def _cosine(progress: float, initial: float, final: float) -> float:
    return final + (initial - final) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


class HeadTraining:
    """One head with its optimiser.

    Args:
        head: The head.
        settings: Its learning rate and weight decay.
        optimisation: The rest.
        plan: Number of steps.
        processes: This process among those that have a share of each step.
    """

    def __init__(
        self,
        head: nn.Module,
        settings: HeadSettings,
        optimisation: HeadOptimisation,
        plan: TrainingPlan,
        processes: Processes = ALONE,
    ):
        self.head, self.settings, self.optimisation = head, settings, optimisation
        self.plan, self.processes = plan, processes
        least_dims = 0 if optimisation.decays_biases else 2
        decayed = [parameter for parameter in head.parameters() if parameter.ndim >= least_dims]
        others = [parameter for parameter in head.parameters() if parameter.ndim < least_dims]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": others}], betas=optimisation.betas, eps=optimisation.epsilon
        )
        for parameter in head.parameters():  # a process without an item in a step takes part in the sum too
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
        """Add the gradients of some items of the step.

        Args:
            tokens: `(batch_size, num_tokens, hidden_size)`.
            labels: Classes, `(batch_size,)`, for a cross-entropy; or for each class whether it applies,
                `(batch_size, num_classes)`, for the mean of their binary cross-entropies.
            is_readable: `(batch_size,)` bool; other items have no part in the loss.
        """
        logits = self.head(tokens.float())
        if labels.ndim == 1:
            losses = F.cross_entropy(logits, labels, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)
        total = losses[is_readable].sum()
        total.backward()
        self._sums += torch.stack([total.detach(), is_readable.sum()])

    def finish(self) -> float:
        """Do the step with the gradients of all processes, divided by the number of their readable items.

        Returns:
            Mean loss over these items; NaN without any, and then nothing is learned.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        loss_sum, num_items = self._sum_over_processes()
        if not num_items:
            return math.nan
        if not math.isfinite(loss_sum):
            raise FloatingPointError(
                f"the loss of the head ({self.settings}) is {loss_sum} at step {self._step}; lower its learning rate"
            )
        for gradient in self._gradients():
            gradient.div_(num_items)
        if self.optimisation.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.head.parameters(), self.optimisation.max_grad_norm)
        self.optimizer.step()
        return loss_sum / num_items

    def _set_schedules(self, step: int) -> None:
        optimisation, plan = self.optimisation, self.plan
        rate = learning_rate_at(
            step,
            plan.total_steps,
            num_warmup_steps=int(optimisation.num_warmup_epochs * plan.steps_per_epoch),
            peak=self.settings.learning_rate,
            optimisation=optimisation,
        )
        initial, final = self.settings.weight_decay, optimisation.final_weight_decay
        decay = _cosine((step + 1) / plan.total_steps, initial, initial if final is None else final)
        for group, weight_decay in zip(self.optimizer.param_groups, (decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = rate, weight_decay

    def _gradients(self) -> list[torch.Tensor]:
        return [cast(torch.Tensor, parameter.grad) for parameter in self.head.parameters()]

    def _sum_over_processes(self) -> list[float]:
        """Add up the gradients of all processes in place, and return the sum of the losses and of the items."""
        if self.processes.count > 1:
            self.processes.add_up(self._sums)
            gradients = self._gradients()
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.processes.add_up(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        return self._sums.tolist()


class SideBySideTraining:
    """Heads that are trained side by side.

    Args:
        source: Tokens of the training set.
        heads: Which heads.
        optimisation: How they are trained.
        hidden_size: Width of the tokens.
        num_attention_heads: Of the attentive probe.
        num_pooler_layers: Of the attentive probe.
        items_per_pass: Items whose tokens are there at once, in each process; changes nothing but the memory.
        seed: Of the first weights and of the order. All heads of one pooling start from the same weights.
        device: Where the heads are.
        processes: This process among those that train together.

    Raises:
        ValueError: No head.
    """

    def __init__(
        self,
        source: TokenSource,
        heads: Sequence[HeadSettings],
        optimisation: HeadOptimisation,
        *,
        hidden_size: int,
        num_attention_heads: int,
        num_pooler_layers: int = 1,
        items_per_pass: int = 8,
        seed: int,
        device: torch.device,
        processes: Processes = ALONE,
    ):
        if not heads:
            raise ValueError("no head is given; train at least one")
        self.source, self.optimisation = source, optimisation
        self.items_per_pass, self.processes = items_per_pass, processes
        self.plan = TrainingPlan(
            num_items=len(source), batch_size=optimisation.batch_size, num_epochs=optimisation.num_epochs, seed=seed
        )
        self.heads = []
        for settings in heads:
            head: nn.Module = build_head(
                settings.pooling,
                hidden_size=hidden_size,
                num_attention_heads=num_attention_heads,
                num_pooler_layers=num_pooler_layers,
                num_classes=source.num_classes,
                seed=seed,
            )
            head.to(device)
            self.heads.append(HeadTraining(head, settings, optimisation, self.plan, processes))
        self.num_unreadable = 0
        self.losses: list[list[float]] = []  # of each epoch, the mean loss of each head

    def run(self, folder: Path | None = None, *, progress: Progress = no_progress) -> list[nn.Module]:
        """Train to the end, from the last complete epoch that is found in a folder.

        Args:
            folder: Where the heads are kept after each epoch; None: nowhere.
            progress: Called with the steps that are done, and all steps, after each.

        Returns:
            The heads, in eval mode.

        Raises:
            ValueError: What is kept there was trained with other settings.
            FloatingPointError: A loss is not finite.
        """
        first_epoch = 0 if folder is None else self._restore(folder)
        for epoch in range(first_epoch, self.plan.num_epochs):
            batches = self.plan.batches(epoch, rank=self.processes.rank, num_processes=self.processes.count)
            done = epoch * self.plan.steps_per_epoch
            losses = []
            for number, of_heads in enumerate(self._steps(batches, done), done + 1):
                losses.append(of_heads)
                progress("training", number, self.plan.total_steps)
            self.losses.append(torch.tensor(losses, dtype=torch.float64).nanmean(0).tolist())
            if folder is not None:
                self._save(folder, epoch + 1)
        return [head.head.eval() for head in self.heads]

    def _steps(self, batches: list[list[ClipRequest]], first_step: int) -> Iterator[list[float]]:
        """The losses of each step, whose items come in parts that fit into memory."""
        parts = [split(batch, self.items_per_pass) for batch in batches]
        tokens = self.source.batches([part for of_step in parts for part in of_step])
        for step, of_step in enumerate(parts, first_step):
            for head in self.heads:
                head.begin(step)
            for _ in of_step:
                batch = next(tokens)
                if batch is not None:
                    self._add(batch)
            yield [head.finish() for head in self.heads]

    def _add(self, batch: TokenBatch) -> None:
        tokens = batch.tokens[:, 0].flatten(1, 2)  # (B, S * N, D) of the one view
        self.num_unreadable += int((~batch.is_readable).sum())
        for head in self.heads:
            head.add(tokens, batch.labels, batch.is_readable)

    def _settings(self) -> dict[str, Any]:
        return {
            "plan": asdict(self.plan),
            "optimisation": self.optimisation.optimisation,
            "heads": [head.settings.to_tree() for head in self.heads],
        }

    def _save(self, folder: Path, num_epochs: int) -> None:
        unreadable = sum(self.processes.gather([self.num_unreadable]))
        if self.processes.is_first:
            kept = {
                "settings": self._settings(),
                "num_epochs": num_epochs,
                "losses": self.losses,
                "num_unreadable": unreadable,
                "heads": [head.head.state_dict() for head in self.heads],
                "optimizers": [head.optimizer.state_dict() for head in self.heads],
            }
            with written_whole(folder / CHECKPOINT) as temporary, temporary.open("wb") as file:
                torch.save(kept, file)
        self.processes.wait()

    def _restore(self, folder: Path) -> int:
        """The epoch to go on from."""
        file = folder / CHECKPOINT
        if not file.exists():
            return 0
        require_whole_archive(file, remedy="delete it, and the heads are trained from their beginning")
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
        # The count of all processes stays with the first one: the next save adds them up again
        self.num_unreadable = kept["num_unreadable"] if self.processes.is_first else 0
        return kept["num_epochs"]
