"""A pretraining run from beginning to end: model, data and probe of a recipe, the training, what is published, plots.

What a run leaves in its folder:

    run.json                           the record of the run
    recipe.yaml                        the recipe with all that was overridden; it repeats the run
    checkpoint-*                       to resume from
    metrics.csv                        all that was logged
    quarantine.jsonl                   videos that could not be read, with their cause
    videos, test-videos                synthetic video, if no data was given
    config.json, model.safetensors     the published model (target encoder and predictor), with its card README.md
    report.html, report.png            plots
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.text import Text
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from ..core.checkpoints import newest_checkpoint, require_readable
from ..core.distributed import join_processes
from ..core.files import write_whole
from ..core.names import counted
from ..core.progress import ProgressBar
from ..core.run_files import METRICS_TABLE, RECIPE_FILE, RUN_FILE, RunFile, require_own_folder, without_credentials
from ..data.quarantine import Quarantine
from ..hub.cost import measure_matrix_flops, time_text
from ..hub.loading import UNTRAINED
from ..model.modeling_vjepa import VJEPAForPreTraining
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .arguments import VJEPATrainingArguments
from .checkpoints import INCOMPLETE
from .console import PretrainingConsoleCallback
from .estimate import estimate_recipe
from .initial import begin_with
from .interruption import InterruptedRunError, StopOnSignal
from .metrics_log import MetricsCSVCallback
from .pixel_prediction import VJEPAForPixelPrediction
from .recipe import DataShare, Recipe, differing_keys, load_recipe
from .report import write_report
from .run_data import QUARANTINE, open_run_data
from .run_record import record_recipe
from .schedules import half_life
from .trainer import VJEPATrainer

RECIPE, METRICS = RECIPE_FILE, METRICS_TABLE
# What --overwrite takes away; synthetic video and what other programs wrote stays
_OF_A_RUN = (
    RECIPE,
    RUN_FILE,
    METRICS,
    QUARANTINE,
    "report.html",
    "report.png",
    "config.json",
    "model.safetensors",
    "trainer_state.json",
    "training_args.bin",
    INCOMPLETE,
)
# A target encoder that forgets its beginning later than this has seen too little of the run
LONGEST_HALF_LIFE = 1 / 3
# A run of more is warned of at its start
LONGEST_SECONDS = 86_400


def pretrain(
    recipe: Recipe,
    *,
    output_dir: str | Path,
    data: str | Path | Sequence[str | Path | DataShare] | None = None,
    initial: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> VJEPATrainer:
    """Pretrain as a recipe says, on all processes that were started together.

    Args:
        recipe: The run.
        output_dir: Its folder.
        data: Where videos come from, in place of the recipe's: paths that `open_source` takes.
        initial: Weights to start from, in place of the recipe's: a registered name, a folder, a released file, or a
            name on the Hub. Their architecture has to be the recipe's.
        overwrite: Replace the run that is in the folder, in place of going on from its newest checkpoint.
        console: Where progress is shown, by default on the standard output.
        callbacks: Others to be called while it trains.

    Returns:
        The trainer, after the training; the published model and the report are written.

    Raises:
        CheckpointError: The newest checkpoint of the folder lacks a part, or has a damaged one.
        FileExistsError: The folder has checkpoints without their recipe.
        FileNotFoundError: There is no data at a path.
        FolderInUseError: Another run writes into the folder.
        ValueError: The run in the folder has another recipe, and is not to be overwritten; or something in the recipe
            does not fit.
        InterruptedRunError: The run was told to stop, and saved.
    """
    run = prepare_run(
        recipe.with_inputs(data=data, initial=initial),
        output_dir=output_dir,
        overwrite=overwrite,
        console=console,
        callbacks=callbacks,
    )
    run.train()
    return run.trainer


@dataclass(frozen=True, kw_only=True)
class PretrainingRun:
    """A run that is ready to begin.

    Attributes:
        recipe: What it was prepared from.
        folder: Where it writes.
        trainer: With its model and data.
        console: Where progress is shown.
        checkpoint: What it goes on from; None: it begins.
        lock: Of the folder, until the run ends.
        start_warnings: What is likely to go wrong, known before the first step.
    """

    recipe: Recipe
    folder: Path
    trainer: VJEPATrainer
    console: Console
    checkpoint: Path | None
    lock: ExitStack
    start_warnings: Sequence[str] = ()

    def train(self) -> None:
        """Train to the end, and write the published model with its card, and the plots.

        Raises:
            InterruptedRunError: A signal came in; a checkpoint is saved.
        """
        with self.lock, self.trainer.run_file.recording(stopped_by=(InterruptedRunError,)):
            try:
                if not self._go_to_end():
                    self._train()
            finally:
                state = self.trainer.state
                self.trainer.run_file.update(steps=state.global_step, max_steps=state.max_steps)
            self._publish()

    @property
    def num_unreadable(self) -> int:
        """Videos of the data that the run could not read so far."""
        return len(Quarantine(self.folder / QUARANTINE))

    def _go_to_end(self) -> bool:
        """Load the last checkpoint of a run that is complete; a Trainer would train a step beyond it."""
        if self.checkpoint is None:
            return False
        trainer, state = self.trainer, TrainerState.load_from_json(str(self.checkpoint / TRAINER_STATE_NAME))
        if state.global_step < count_steps(trainer.args, trainer.train_dataset):
            return False
        require_readable(self.checkpoint)
        self.console.print(Text(f"the run is complete, after {counted(state.global_step, 'step')}"))
        trainer.state = state
        trainer.model.load_state_dict(type(trainer.model).from_pretrained(self.checkpoint).state_dict())
        return True

    def _train(self) -> None:
        trainer = self.trainer
        with StopOnSignal() as stop:
            trainer.add_callback(stop)
            trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        state, folder = trainer.state, self.folder
        if stop.signal_number is not None and state.global_step < state.max_steps:
            raise InterruptedRunError(
                f"stopped after step {state.global_step} of {state.max_steps}, which is saved; go on with: "
                f"vjepa-hub pretrain {folder / RECIPE} --output-dir {folder}",
                stop.signal_number,
            )

    def _publish(self) -> None:
        self.trainer.save_model()
        self.trainer.create_model_card()
        if not self.trainer.is_world_process_zero():
            return
        folder, history = self.folder, self.trainer.state.log_history
        written = [folder]
        if self.trainer.args.report and any("loss" in row for row in history):
            written += write_report(
                folder,
                history,
                title=self.recipe.name,
                settings=self.recipe.flatten(),
                warnings=self.trainer.health.warnings if self.trainer.health else [],
                start_warnings=self.start_warnings,
            )
        for path in written:
            self.console.print(Text(f"wrote {path}"), soft_wrap=True)


def prepare_run(
    recipe: Recipe,
    *,
    output_dir: str | Path,
    overwrite: bool = False,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> PretrainingRun:
    """Do all of a run that comes before its first step, show its facts, and lock its folder. As for `pretrain`."""
    console, folder = console or Console(), Path(output_dir)
    args = recipe.arguments(folder)
    args.disable_tqdm = True
    _require_one_device(args)
    with ExitStack() as lock:
        lock.enter_context(join_processes().locking(folder))
        with args.main_process_first(local=False, desc="clearing the folder"):
            if args.process_index == 0:
                require_own_folder(folder, "pretrain")
                clear_folder(folder, recipe, overwrite=overwrite)
            else:
                console = Console(quiet=True)
        trainer = build_trainer(recipe, args, folder, console)
        for callback in callbacks:
            trainer.add_callback(callback)
        facts = describe_run(recipe, trainer)
        for fact in facts:
            console.print(Text(fact.text, style="bold yellow" if fact.is_warning else ""), soft_wrap=True)
        if args.process_index == 0:  # not before: what could not be prepared is no run
            write_whole(folder / RECIPE, _without_credentials(recipe).to_yaml())
        return PretrainingRun(
            recipe=recipe,
            folder=folder,
            trainer=trainer,
            console=console,
            checkpoint=join_processes().from_first(lambda: newest_checkpoint(folder)),
            lock=lock.pop_all(),
            start_warnings=[fact.text for fact in facts if fact.is_warning],
        )


# ---------------------------------------------------------------------------------------------------------------------
# The folder of a run
# ---------------------------------------------------------------------------------------------------------------------


def _without_credentials(recipe: Recipe) -> Recipe:
    """The recipe as it is stored: addresses of data have neither user, password nor query."""
    shares = [{**share.to_tree(), "path": without_credentials(share.path)} for share in recipe.data]
    return recipe.with_values(data=shares) if shares else recipe


def clear_folder(folder: Path, recipe: Recipe, *, overwrite: bool = False) -> None:
    """Make sure that a folder has no run, or one of the same recipe, which is then gone on with.

    Args:
        folder: Need not be there.
        recipe: The run.
        overwrite: Removes a run that is there: its checkpoints, logs and model, not its synthetic video.

    Raises:
        FileExistsError: Checkpoints without their recipe are there, and are not to be overwritten.
        ValueError: The run that is there has another recipe, and is not to be overwritten.
    """
    stored, checkpoints = folder / RECIPE, sorted(folder.glob("checkpoint-*"))
    if overwrite:
        for path in [*checkpoints, *(folder / name for name in _OF_A_RUN)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif stored.exists():
        differing = differing_keys(load_recipe(stored), _without_credentials(recipe))
        if differing:
            raise ValueError(
                f"the run in {folder} has another recipe, differing in {', '.join(differing)}: go on with its own, "
                f"{stored} (write other values into it to change them on purpose), replace the run with --overwrite, "
                "or name another --output-dir"
            )
    elif checkpoints:
        raise FileExistsError(
            f"the folder {folder} has checkpoints but no {RECIPE}: restore it to go on, remove them with --overwrite, "
            "or name another --output-dir"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Model and trainer
# ---------------------------------------------------------------------------------------------------------------------


def build_trainer(recipe: Recipe, args: VJEPATrainingArguments, folder: Path, console: Console) -> VJEPATrainer:
    """The trainer of a recipe, with its model, data, probe and callbacks.

    Args:
        recipe: The run.
        args: Its arguments.
        folder: Where it writes.
        console: Where progress is shown.
    """
    with ProgressBar(console) as progress:
        data = open_run_data(recipe, args, folder, progress)
    trainer = VJEPATrainer(
        build_model(recipe),
        args,
        data.dataset,
        mask_kinds=recipe.masks,
        probe=data.probe,
        data_description=data.description,
        processing_class=build_processor(recipe),
    )
    record = record_recipe(recipe, folder, data.facts, weights_origin=str(trainer.model.config.weights_origin))
    trainer.run_file = RunFile(folder, record, is_writer=args.process_index == 0)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(PretrainingConsoleCallback(console))
    trainer.add_callback(MetricsCSVCallback(folder / METRICS))
    return trainer


def build_processor(recipe: Recipe) -> VJEPAVideoProcessor:
    """The processor of a recipe: takes clips from videos as the training does."""
    return VJEPAVideoProcessor(crop_size=recipe.config().crop_size, **recipe.clip_spec().processor_options)


def build_model(recipe: Recipe) -> VJEPAForPreTraining:
    """The model of a recipe: initialised from its seed, or with the weights that it names.

    Raises:
        ValueError: The weights have another architecture than the recipe.
        KeyError: There are no weights of that name.
    """
    model_class = VJEPAForPixelPrediction if recipe.training.targets == "pixels" else VJEPAForPreTraining
    config, seed = recipe.config(), recipe.training.seed
    config.weights_origin = f"{UNTRAINED}, seed {seed}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    if recipe.initial is not None:
        begin_with(model, recipe.initial)
    return model


def _require_one_device(args: VJEPATrainingArguments) -> None:
    """Refuse what transformers would answer with DataParallel, which has neither our masks nor our norms right."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs and one process: start one process a GPU with `torchrun --nproc-per-node {args.n_gpu} "
            "-m vjepa_hub pretrain ...`, or show this one a single GPU with CUDA_VISIBLE_DEVICES=0"
        )


# ---------------------------------------------------------------------------------------------------------------------
# What is said of a run
# ---------------------------------------------------------------------------------------------------------------------


class Fact(NamedTuple):
    """Something that is said of a run before it begins.

    Attributes:
        text: A line.
        is_warning: Whether it is likely to go wrong.
    """

    text: str
    is_warning: bool = False


def describe_run(recipe: Recipe, trainer: VJEPATrainer) -> list[Fact]:
    """The facts of a run.

    Args:
        recipe: The run.
        trainer: Built from it.

    Raises:
        ValueError: The schedules do not fit the steps of the run.
    """
    args, config, grid = trainer.args, recipe.config(), recipe.grid()
    total_steps = count_steps(args, trainer.train_dataset)
    sizes = {part: _count_parameters(trainer.model.get_submodule(part)) for part in ("encoder", "predictor")}
    trained = " and ".join(f"{part} ({size / 1e6:.2f} M parameters)" for part, size in sizes.items())
    accumulated = args.gradient_accumulation_steps
    lines = [
        f"{recipe.name}: trains {trained} on {args.device}" + (", in bfloat16" if args.bf16 else ""),
        f"starts from {args.initial_checkpoint or trainer.model.config.weights_origin}",
        f"data: {trainer.data_description}{_describe_memory(trainer.train_dataset)}",
        f"a clip: {config.frames_per_clip} frames of {config.crop_size} pixels, {grid.depth} x {grid.rows} x "
        f"{grid.columns} = {grid.num_tokens} tokens; {counted(len(recipe.masks), 'kind')} of masks",
        f"{counted(total_steps, 'step')} of {counted(args.clips_per_step, 'clip')} ({args.train_batch_size} a batch x "
        f"{counted(args.world_size, 'process', 'processes')} x {accumulated} accumulated), "
        f"{counted(total_steps * args.clips_per_step, 'clip')} in all",
    ]
    facts = [*map(Fact, lines), *describe_time(recipe, args, total_steps)]
    return [*facts, *describe_bfloat16(args), *describe_momentum(args, total_steps)]


def _describe_memory(dataset: Any) -> str:
    if (memory := getattr(dataset, "memory", None)) is None:
        return ""
    return f"; frames stay in memory once they are decoded, {memory.num_bytes / 2**30:.2g} GiB (clips.max_memory_gib)"


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def describe_time(recipe: Recipe, args: VJEPATrainingArguments, total_steps: int) -> list[Fact]:
    """Time of the run as `--estimate` reckons it, and a warning above a day.

    Args:
        recipe: The run.
        args: The run's.
        total_steps: Optimiser steps of the run.
    """
    if args.process_index != 0:
        return []
    found = replace(
        estimate_recipe(recipe, num_processes=args.world_size, device=args.device), total_steps=total_steps
    )
    seconds = found.seconds or 0.0
    devices = found.device if found.num_processes == 1 else f"{found.num_processes} x {found.device}"
    fact = Fact(f"time: about {time_text(seconds)} on {devices}, without decoding (`--estimate` has more)")
    if seconds <= LONGEST_SECONDS:
        return [fact]
    text = (
        "that is more than a day: the recipe `tiny` suits a few videos and a CPU; --max-steps shortens a run, and "
        "Ctrl-C stops it, to be continued later"
    )
    return [fact, Fact(text, is_warning=True)]


def describe_bfloat16(args: VJEPATrainingArguments) -> list[Fact]:
    """A warning where bfloat16 costs time: a CPU without instructions for it converts, and computes in float32.

    Args:
        args: The run's.
    """
    if not args.bf16 or args.device.type != "cpu" or args.process_index != 0:
        return []
    rates = {dtype: measure_matrix_flops(args.device, dtype) for dtype in (torch.bfloat16, torch.float32)}
    ratio = rates[torch.bfloat16] / rates[torch.float32]
    if ratio >= 1:
        return []
    text = (
        f"matrix products in bfloat16 run at {ratio:.2f} times the rate of float32 on this CPU (measured now): train "
        "with --set bf16=false"
    )
    return [Fact(text, is_warning=True)]


def describe_momentum(args: VJEPATrainingArguments, total_steps: int) -> list[Fact]:
    """How long the target encoder remembers, and a warning where that is too long for the run.

    Args:
        args: The run's.
        total_steps: Optimiser steps of the run.
    """
    schedules = args.schedules(total_steps)
    steps = half_life(schedules.momentum_at(0))
    clips = steps * args.clips_per_step
    share = steps / total_steps
    fact = Fact(
        f"target encoder: EMA momentum {args.momentum} to {schedules.momentum_at(total_steps - 1):.5f}; at the start "
        f"its half-life is {steps:,.0f} steps, {clips:,.0f} clips, "
        + (f"{share:.1%} of the run" if share < 1 else f"{share:.1f} times the run")
    )
    if steps <= LONGEST_HALF_LIFE * total_steps:
        return [fact]
    fitting = 0.5 ** (1 / max(LONGEST_HALF_LIFE * total_steps / 3, 1))
    warning = Fact(
        "that half-life is longer than a third of the run: the target encoder stays near its beginning; train for "
        f"longer, or lower the momentum (and with it the learning rate): {fitting:.4f} is a ninth of the run",
        is_warning=True,
    )
    return [fact, warning]


def count_steps(args: VJEPATrainingArguments, dataset: Any) -> int:
    """Optimiser steps of a run.

    Raises:
        ValueError: A stream has no end, and the recipe gives none.
    """
    if args.max_steps > 0:
        return args.max_steps
    if args.steps_per_epoch is None and not hasattr(dataset, "__len__"):
        raise ValueError("a stream has no end: set max_steps")
    steps_per_epoch = args.steps_per_epoch or max(1, len(dataset) // args.clips_per_step)
    return math.ceil(args.num_train_epochs * steps_per_epoch)
