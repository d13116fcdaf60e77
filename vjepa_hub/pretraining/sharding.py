"""Fully sharded data parallelism (FSDP2) of a pretraining model, by torch's own `fully_shard`.

accelerate shards in the same way on GPUs (`launch/fsdp2.yaml`). On a CPU it turns FSDP into DDP without a word, so
`VJEPATrainingArguments` refuses it there; this function shards on any device.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..model.modeling_vjepa import VJEPAForPreTraining, VJEPALayer


def shard_model(
    model: VJEPAForPreTraining, mesh: DeviceMesh, *, mixed_precision: MixedPrecisionPolicy | None = None
) -> VJEPAForPreTraining:
    """Shard parameters, gradients and optimiser states over the processes of a mesh, in place.

    Each block is gathered when it runs. Encoder and target encoder are cut alike, so that the average of the two needs
    no communication: `update_target_encoder` moves each process's own part.

    Args:
        model: With the same weights on every process.
        mesh: One-dimensional, over the processes.
        mixed_precision: In which format blocks run and gradients are reduced; by default as the weights are.

    Returns:
        The model, whose parameters are DTensors. Build the optimiser afterwards.
    """
    policy = mixed_precision or MixedPrecisionPolicy()
    parts: list[nn.Module] = [module for module in model.modules() if isinstance(module, VJEPALayer)]
    parts += [model.encoder, model.predictor, model.target_encoder, model]
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Return whether parameters are distributed over processes, so that all of them have to run it together."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Whole parameters of a sharded model's own unit, such as last norms, while a part of the model runs alone."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
