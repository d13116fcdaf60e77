"""Runs of the distributed tests."""

import json
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.pretraining.arguments import VJEPATrainingArguments
from vjepa_hub.pretraining.optimizer import RecipeScheduler, clip_by_part, parameter_groups
from vjepa_hub.pretraining.schedules import Schedules
from vjepa_hub.pretraining.sharding import shard_model
from vjepa_hub.pretraining.trainer import VJEPATrainer

CLIPS_PER_STEP, NUM_STEPS = 4, 4
CONFIG = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
    "crop_size": 32,
    "frames_per_clip": 4,
    "pred_hidden_size": 24,
    "pred_num_hidden_layers": 2,
    "pred_num_attention_heads": 4,
}


class MaskedClips(Dataset):
    """Random clips that carry masks of one length: the loss is a mean of means, and so is the same for any split."""

    def __len__(self) -> int:
        return CLIPS_PER_STEP * NUM_STEPS

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        clip = torch.randn(4, 3, 32, 32, generator=generator)
        orders = [torch.randperm(32, generator=generator) for _ in range(2)]
        return {
            "pixel_values_videos": clip,
            "context_mask": [order[:10].sort().values for order in orders],
            "target_mask": [order[10:].sort().values for order in orders],
        }


def build_model() -> VJEPAForPreTraining:
    torch.manual_seed(0)
    return VJEPAForPreTraining(VJEPAConfig(**CONFIG))


def train(folder: Path, num_processes: int, accumulation: int = 1) -> None:
    """The public Trainer, at the same global batch for any number of processes and accumulated batches."""
    args = VJEPATrainingArguments(
        output_dir=str(folder / "run"),
        use_cpu=True,
        max_steps=NUM_STEPS,
        per_device_train_batch_size=CLIPS_PER_STEP // (num_processes * accumulation),
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        warmup_steps=1,
        momentum=0.9,
        max_grad_norm=5e-5,
        clip_after_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        health_steps=0,
    )
    trainer = VJEPATrainer(build_model(), args, MaskedClips())
    trainer.train()
    if trainer.is_world_process_zero():
        save(folder, trainer.model.state_dict(), trainer.state.log_history)


def train_accumulated(folder: Path, num_processes: int) -> None:
    train(folder, num_processes, accumulation=2)


def train_sharded(folder: Path, count: int) -> None:
    """The recipe's parts in a plain loop, over a model that FSDP2 shards where there are several processes."""
    model, clips = build_model(), MaskedClips()
    rank = distributed.get_rank() if count > 1 else 0
    if count > 1:
        shard_model(model, init_device_mesh("cpu", (count,)))
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-3)
    scheduler = RecipeScheduler(
        optimizer,
        Schedules(
            total_steps=NUM_STEPS,
            warmup_steps=1,
            start_learning_rate=2e-4,
            learning_rate=1e-3,
            final_learning_rate=1e-6,
            weight_decay=0.04,
            final_weight_decay=0.4,
            momentum=0.9,
            final_momentum=1.0,
        ),
    )
    log = []
    for step in range(NUM_STEPS):
        samples = [clips[step * CLIPS_PER_STEP + i] for i in range(rank, CLIPS_PER_STEP, count)]
        masks = {
            name: [torch.stack([sample[name][kind] for sample in samples]) for kind in (0, 1)]
            for name in ("context_mask", "target_mask")
        }
        model.train()
        model(torch.stack([sample["pixel_values_videos"] for sample in samples]), **masks).loss.backward()
        norms = clip_by_part(model, 5e-5 if step else float("inf"))
        optimizer.step()
        model.update_target_encoder(scheduler.schedules.momentum_at(step))
        scheduler.step()
        optimizer.zero_grad()
        log.append({f"{part}_grad_norm": norm.item() for part, norm in norms.items()})
    state = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in model.state_dict().items()}
    if rank == 0:
        save(folder, state, log)


def save(folder: Path, state: dict, log: list) -> None:
    torch.save({name: tensor.clone() for name, tensor in state.items()}, folder / "weights.pt")
    (folder / "log.json").write_text(json.dumps(log))


RUNS = {"plain": train, "accumulated": train_accumulated, "sharded": train_sharded}


def run_in_group(mode: str, folder: Path) -> None:
    """Work of one of several processes."""
    distributed.init_process_group("gloo")
    RUNS[mode](folder, distributed.get_world_size())
    distributed.barrier()  # none leaves while another still talks to it
    distributed.destroy_process_group()
