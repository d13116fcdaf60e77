"""Small runs of the public Trainer."""

import pytest
import torch
from torch.utils.data import Dataset

from tests.data.conftest import write_video  # noqa: F401  (a fixture)
from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.data.masking import MultiBlockMasking
from vjepa_hub.pretraining.arguments import VJEPATrainingArguments
from vjepa_hub.pretraining.trainer import VJEPATrainer

# Blocks that leave context on a grid of 4 x 4 patches
SMALL_KINDS = (
    MultiBlockMasking(num_blocks=2, spatial_scale=(0.15, 0.15), mask_index=0),
    MultiBlockMasking(num_blocks=1, spatial_scale=(0.5, 0.5), mask_index=1),
)


class MovingBlobs(Dataset):
    """Clips of a bright blob that moves, normalised: the same clip for an index each time."""

    def __init__(self, config: VJEPAConfig, num_clips: int = 32):
        self.config, self.num_clips = config, num_clips

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> dict:
        side, generator = self.config.crop_size, torch.Generator().manual_seed(index)
        start, step = torch.rand(2, generator=generator) * side, torch.randn(2, generator=generator) * 2
        times = torch.arange(self.config.frames_per_clip)[:, None]
        centre = (start + step * times) % side  # (T, 2)
        axis = torch.arange(side)
        rows = torch.exp(-((axis - centre[:, :1]) ** 2) / 20)
        columns = torch.exp(-((axis - centre[:, 1:]) ** 2) / 20)
        blob = rows[:, :, None] * columns[:, None, :]
        colour = torch.rand(3, 1, 1, generator=generator)
        return {"pixel_values_videos": (blob[:, None] * colour * 4 - 1).float()}


@pytest.fixture
def blobs(small_config):
    """`blobs(num_clips=32)`: a data set of moving blobs for the small model."""
    return lambda num_clips=32: MovingBlobs(small_config, num_clips)


@pytest.fixture
def make_trainer(small_config, tmp_path):
    """`make_trainer(train_dataset, model=None, mask_kinds=..., **arguments)`: a trainer of the small model."""

    def make(train_dataset, *, model=None, mask_kinds=SMALL_KINDS, folder=None, trainer_class=VJEPATrainer, **given):
        torch.manual_seed(0)
        model = VJEPAForPreTraining(small_config) if model is None else model
        arguments = {
            "output_dir": str(folder or tmp_path / "run"),
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "health_steps": 0,
        }
        args = VJEPATrainingArguments(**arguments | given)
        return trainer_class(model, args, train_dataset, mask_kinds=mask_kinds)

    return make


@pytest.fixture
def logged():
    """`logged(trainer, name)`: what was logged under a name, step by step."""
    return lambda trainer, name: [row[name] for row in trainer.state.log_history if name in row]
