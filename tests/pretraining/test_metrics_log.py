"""The CSV of a run: by the Trainer's events, and by transformers' own Trainer with a resume."""

import math

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.pretraining.callbacks import HealthCallback
from vjepa_hub.pretraining.metrics_log import MetricsCSVCallback, read_metrics


class Run:
    """Sends a callback what a Trainer sends it."""

    def __init__(self, path, history=(), is_first: bool = True):
        self.state = TrainerState(log_history=list(history))
        self.state.is_world_process_zero = is_first
        self.callback = MetricsCSVCallback(path)

    def begin(self) -> None:
        self.callback.on_train_begin(None, self.state, TrainerControl())

    def log(self, step: int, **logs) -> None:
        self.state.log_history.append({**logs, "step": step})
        self.callback.on_log(None, self.state, TrainerControl(), logs=logs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.csv"


def test_rows_come_back_as_they_were_logged(path):
    run = Run(path)
    run.begin()
    run.log(1, loss=0.1 + 0.2, epoch=0.5, num_failures=3)
    run.log(2, loss=math.inf, epoch=1.0, note='one, "two"\nthree')
    run.log(2, learning_rate=6.25e-4)
    assert read_metrics(path) == run.state.log_history
    assert [type(value) for value in read_metrics(path)[0].values()] == [int, float, float, int]


def test_not_a_number_is_kept(path):
    run = Run(path)
    run.begin()
    run.log(1, loss=math.nan)
    assert math.isnan(read_metrics(path)[0]["loss"])


def test_step_and_epoch_are_the_first_columns_and_others_come_as_they_came(path):
    run = Run(path)
    run.begin()
    run.log(1, loss=1.0, epoch=0.1)
    run.log(2, **{"health/target_std": 0.4, "epoch": 0.2})
    run.log(3, loss=0.9, epoch=0.3)
    lines = path.read_text().splitlines()
    assert lines == ["step,epoch,loss,health/target_std", "1,0.1,1.0,", "2,0.2,,0.4", "3,0.3,0.9,"]


def test_file_is_complete_after_every_row(path):
    run = Run(path)
    run.begin()
    assert path.read_text() == "step,epoch\n"
    for step in range(1, 4):
        run.log(step, loss=float(step))
        assert read_metrics(path) == run.state.log_history
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.csv"]


def test_rows_after_the_resumed_step_are_dropped(path):
    run = Run(path)
    run.begin()
    for step in range(1, 7):
        run.log(step, loss=1 / step)
    before = path.read_text()
    resumed = Run(path, history=run.state.log_history[:4])  # what the checkpoint of step 4 knows
    resumed.begin()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]
    for step in (5, 6):
        resumed.log(step, loss=1 / step)
    assert path.read_text() == before


def test_file_of_an_earlier_run_is_replaced(path):
    for loss in (1.0, 2.0):
        run = Run(path)
        run.begin()
        run.log(1, loss=loss)
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_row_that_another_callback_logs_before_the_beginning_is_there_once(path):
    run = Run(path)
    run.log(0, loss=3.0)
    run.begin()
    run.log(1, loss=2.0)
    assert [row["loss"] for row in read_metrics(path)] == [3.0, 2.0]


def test_other_processes_write_nothing(path):
    run = Run(path, is_first=False)
    run.begin()
    run.log(1, loss=1.0)
    assert not path.parent.exists()


def test_row_that_a_kill_has_cut_off_is_left_out(path):
    run = Run(path)
    run.begin()
    run.log(1, loss=0.25)
    run.log(2, loss=0.125)
    path.write_text(path.read_text()[:-3])
    assert read_metrics(path) == [{"step": 1, "loss": 0.25}]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "videos.csv").write_text("path,label\na.mp4,1\n")
    with pytest.raises(ValueError, match="columns path, label, but a file of logged metrics has 'step'"):
        read_metrics(tmp_path / "videos.csv")


# ------------------------------------------------------------------------------------------------ Trainer


class MaskedClips(Dataset):
    """Random clips with masks of their own, the same for an index each time."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        order = torch.randperm(32, generator=generator)
        clip = torch.randn(4, 3, 32, 32, generator=generator)
        return {"pixel_values_videos": clip, "context_mask": order[:10], "target_mask": order[10:]}


class MovingTarget(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model, **kwargs):
        model.update_target_encoder(0.9)


def run_trainer(config, folder, resume_from=None) -> MetricsCSVCallback:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=2,
        max_steps=6,
        save_steps=3,
        logging_steps=2,
        learning_rate=1e-3,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    csv = MetricsCSVCallback(folder / "metrics.csv")
    trainer = Trainer(VJEPAForPreTraining(config), arguments, train_dataset=MaskedClips(), callbacks=[MovingTarget])
    fixed = {name: torch.stack([MaskedClips()[i][name] for i in (6, 7)]) for name in MaskedClips()[0]}
    trainer.add_callback(HealthCallback(fixed, every=2, log=trainer.log))
    trainer.add_callback(csv)
    trainer.train(resume_from_checkpoint=resume_from)
    return csv


def test_resumed_run_of_a_trainer_leaves_the_file_of_an_uninterrupted_one(small_config, tmp_path):
    whole = run_trainer(small_config, tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / "metrics.csv").write_text("step,loss\n1,0.5\n5,0.1\n")  # what a killed run left
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    resumed = run_trainer(small_config, tmp_path / "resumed", resume_from=checkpoint)
    rows = [without_timing(read_metrics(csv.path)) for csv in (whole, resumed)]
    assert [row["step"] for row in rows[0] if "health/target_std" in row] == [0, 2, 4, 6]
    assert rows[1] == rows[0]


def without_timing(rows: list[dict]) -> list[dict]:
    """Without the row of speeds at the end of training, which tells of this start alone."""
    return [row for row in rows if "train_runtime" not in row]
