"""AdamW's four parameter groups, their scheduled learning rate and weight decay, and clipping by part.

The released training steps encoder and predictor with one AdamW: weight decay on matrices (the mask tokens are one),
none on biases and one-dimensional parameters. Gradients of encoder and of predictor are clipped each by its own norm.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler

from ..model.modeling_vjepa import VJEPAForPreTraining
from .schedules import Schedules

TRAINED_PARTS = ("encoder", "predictor")
DECAYED = "is_decayed"


def parameter_groups(model: nn.Module) -> list[dict]:
    """Four groups: the decayed parameters of encoder and predictor, then the others of each.

    Args:
        model: A `VJEPAForPreTraining`; parameters that take no gradient, as those of the target encoder, are left out.
            Parameters outside encoder and predictor (a pixel head) join the predictor's groups.

    Returns:
        Groups for a torch optimiser. `is_decayed` tells the scheduler where the weight decay goes.
    """
    groups = []
    for is_decayed in (True, False):
        for part in TRAINED_PARTS:
            parameters = [p for p in trained_parameters(model, part) if (p.ndim > 1) == is_decayed]
            groups.append({"params": parameters, "weight_decay": 0.0, DECAYED: is_decayed})
    return groups


def trained_parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    """The parameters of the encoder that take gradients; as `predictor` all others that do."""
    encoder = {id(parameter) for parameter in model.get_submodule("encoder").parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [parameter for parameter in trained if (id(parameter) in encoder) == (part == "encoder")]


class RecipeScheduler(LRScheduler):
    """Sets learning rate and weight decay of all groups for the step that comes next.

    Args:
        optimizer: With the groups of `parameter_groups`.
        schedules: The curves.

    Raises:
        ValueError: The groups are others, and do not tell which of them are decayed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedules: Schedules):
        if not all(DECAYED in group for group in optimizer.param_groups):
            raise ValueError(
                f"the optimiser has parameter groups without '{DECAYED}', which tells where the scheduled weight "
                "decay goes; build it over vjepa_hub.pretraining.optimizer.parameter_groups(model), or give its "
                "scheduler too, optimizers=(optimizer, scheduler), which takes the place of the recipe's schedules"
            )
        self.schedules = schedules
        super().__init__(optimizer)

    def get_lr(self) -> list:
        """The learning rate of each group at the step that comes next."""
        return [self.schedules.learning_rate_at(self.last_epoch)] * len(self.optimizer.param_groups)

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next step, or to the one that is given."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._last_lr = self.get_lr()
        for group, learning_rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = learning_rate
            group["weight_decay"] = self.schedules.weight_decay_at(self.last_epoch) if group[DECAYED] else 0.0

    def state_dict(self) -> dict:
        """The step alone: the curves belong to the arguments of the run."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go to the step of a saved state."""
        self.step(state_dict["last_epoch"])


def clip_by_part(model: VJEPAForPreTraining, max_norm: float) -> dict[str, torch.Tensor]:
    """Clip the gradients of encoder and predictor, each by its own norm.

    Args:
        model: With gradients that are complete: averaged over processes and unscaled.
        max_norm: The largest norm; `inf` measures only.

    Returns:
        The norm of each part before clipping, as a scalar on the device of the gradients. Nothing is read by the host.
    """
    return {part: clip_gradients(trained_parameters(model, part), max_norm) for part in TRAINED_PARTS}


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clip by the norm over all given parameters; sharded ones (FSDP2) count whole. Returns the norm before."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([cast(torch.Tensor, parameter.grad) for parameter in parameters])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm != float("inf"):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
