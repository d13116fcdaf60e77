"""A run over real video files that kills itself while it saves."""

import os
import signal
from pathlib import Path

import torch

from tests.pretraining.conftest import SMALL_KINDS
from tests.pretraining.distributed_run import CONFIG
from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.data.clip_sampling import ClipSpec
from vjepa_hub.data.dataset import VideoClipDataset
from vjepa_hub.data.sources import open_source
from vjepa_hub.pretraining.arguments import VJEPATrainingArguments
from vjepa_hub.pretraining.trainer import VJEPATrainer

NUM_STEPS, SAVE_STEPS = 12, 3


class KilledTrainer(VJEPATrainer):
    """Dies by signal 9 in the middle of a checkpoint: weights written, optimiser not."""

    kill_at: int | None = None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.state.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_optimizer_and_scheduler(output_dir)


def train(videos: Path, folder: Path, kill_at: int | None = None, resume: bool = False) -> None:
    torch.manual_seed(0)
    model = VJEPAForPreTraining(VJEPAConfig(**CONFIG, drop_path_rate=0.2))  # draws from torch's own generator
    dataset = VideoClipDataset(open_source(videos), ClipSpec(frames_per_clip=4, frame_step=2), seed=0)
    args = VJEPATrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=NUM_STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        dataloader_num_workers=2,
        learning_rate=1e-3,
        warmup_steps=2,
        logging_steps=1,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        report_to="none",
        disable_tqdm=True,
        health_steps=5,
        health_batch_size=4,
    )
    trainer = KilledTrainer(model, args, dataset, mask_kinds=SMALL_KINDS)
    trainer.kill_at = kill_at
    trainer.train(resume_from_checkpoint=resume)
