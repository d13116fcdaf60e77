"""The recorded runs of V-JEPA 2 and 2.1 through the public Trainer."""

import json
import lzma
from pathlib import Path

import torch
from safetensors.torch import load
from torch import distributed

from tests.reference_family import reference_file, tiny_config
from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.hub.conversion import convert_original_checkpoint
from vjepa_hub.pretraining.arguments import VJEPATrainingArguments
from vjepa_hub.pretraining.trainer import VJEPATrainer


class RecordingTrainer(VJEPATrainer):
    """Keeps the loss of each batch of this process."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return (loss, outputs) if return_outputs else loss


def trajectory(generation: str) -> dict:
    """Settings and numbers of a generation's recorded runs."""
    return json.loads(reference_file(generation, "train_trajectory.json").read_text())


def recorded_model(generation: str, file: str = "train_initial.pt") -> VJEPAForPreTraining:
    """Weights of a recorded run, at its beginning or its end."""
    return convert_original_checkpoint(reference_file(generation, file), tiny_config(generation))


def recorded_batches(generation: str, prefix: str, num_steps: int, name: str = "train") -> list[dict]:
    """A batch for each step, masks included."""
    packed = reference_file(generation, f"{name}_batches.safetensors.xz").read_bytes()
    case = load(lzma.decompress(packed))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    batches = []
    for step in (f"{prefix}step{number:02d}" for number in range(num_steps)):
        frames = case[f"{step}.frames_uint8"].transpose(1, 2)
        kinds = [kind for kind in (0, 1) if f"{step}.mask{kind}.context_indices" in case]
        masks = {
            f"{part}_mask": [case[f"{step}.mask{kind}.{part}_indices"] for kind in kinds]
            for part in ("context", "target")
        }
        batches.append({"pixel_values_videos": (frames.float() / 255 - mean) / std, **masks})
    return batches


def train_recorded(
    folder: Path, model: VJEPAForPreTraining, batches: list[dict], settings: dict, **arguments
) -> RecordingTrainer:
    """The Trainer after the steps of a recorded run; an item of its data set is a whole batch.

    Args:
        folder: Of the run.
        model: Trained.
        batches: Of all steps.
        settings: `optimization` or `cooldown` of the record.
        arguments: Others of `VJEPATrainingArguments`.
    """
    args = VJEPATrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=settings["epochs"] * settings["ipe"],
        steps_per_epoch=settings["ipe"],
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        start_learning_rate=settings["start_lr"],
        learning_rate=settings["lr"],
        final_learning_rate=settings["final_lr"],
        lr_decay="linear" if settings.get("is_anneal") else "cosine",
        warmup_steps=settings["warmup"] * settings["ipe"],
        weight_decay=settings["weight_decay"],
        final_weight_decay=settings["final_weight_decay"],
        momentum=settings["ema"][0],
        final_momentum=settings["ema"][1],
        schedule_stretch=settings["ipe_scale"],
        max_grad_norm=0,
        logging_steps=1,
        save_strategy="steps",
        save_steps=settings["epochs"] * settings["ipe"],
        report_to="none",
        disable_tqdm=True,
        health_steps=0,
        **arguments,
    )
    trainer = RecordingTrainer(model, args, batches, data_collator=lambda items: items[0])
    trainer.train()
    return trainer


def train_mixed(folder: Path, **arguments) -> RecordingTrainer:
    """The recorded run on images and video: a step takes a batch of each, on as many processes as there are."""
    record = trajectory("v2.1")["mixed"]
    kinds = [recorded_batches("v2.1", f"{kind}.", 9, name="mixed") for kind in ("image", "video")]
    batches = [batch for pair in zip(*kinds, strict=True) for batch in pair]
    loss = record["loss"]
    return train_recorded(
        folder,
        recorded_model("v2.1"),
        batches,
        record["optimization"],
        context_loss_weight=loss["context_weight_video"],
        image_context_loss_weight=loss["context_weight_image"],
        context_loss_warmup_start=loss["context_warmup_start"],
        context_loss_warmup_end=loss["context_warmup_end"],
        context_loss_by_distance=loss["weighted_by_distance"],
        **arguments,
    )


def train_mixed_in_pair(folder: Path) -> None:
    """Work of one of two processes: rank 0 has the images, rank 1 the video."""
    distributed.init_process_group("gloo")
    trainer = train_mixed(folder / "run")
    rank = distributed.get_rank()
    (folder / f"losses-{rank}.json").write_text(json.dumps(trainer.losses))
    if rank == 0:
        trainer.model.save_pretrained(folder / "model")
    distributed.barrier()  # none leaves while another still talks to it
    distributed.destroy_process_group()
