"""The record of a pretraining run, from which `run.json` and the model's card are written."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from ..core.invocation import command_words
from ..core.run_files import (
    RECIPE_FILE,
    DataFacts,
    ModelFacts,
    RunRecord,
)
from ..data.masking import MaskKind
from .arguments import VJEPATrainingArguments
from .health import PREFIX as HEALTH
from .health import HealthMeasurement, HealthWarning
from .probe import PREFIX as PROBE
from .recipe import Recipe, load_recipe, recipe_names

# Of transformers' own arguments, those that a card tells
_TOLD = ("seed", "learning_rate", "weight_decay", "max_steps", "per_device_train_batch_size", "bf16")


def record_training(args: VJEPATrainingArguments, mask_kinds: Sequence[MaskKind], *, data: str) -> RunRecord:
    """The record of a Trainer that no recipe describes.

    Args:
        args: Of the Trainer.
        mask_kinds: The kinds of masks.
        data: Sentence on what it is trained on.
    """
    inherited = {entry.name for entry in fields(TrainingArguments)} - set(_TOLD)
    names = [entry.name for entry in fields(args) if entry.name not in inherited]
    return RunRecord(
        kind="pretrain",
        command=(),
        seeds=(args.seed,),
        settings={
            "training": {name: getattr(args, name) for name in names},
            "masks": [kind.to_tree() for kind in mask_kinds],
        },
        model=_initial_model(args.initial_checkpoint),
        data=(DataFacts(role="videos", source=data, description=data),) if data else (),
    )


def record_recipe(recipe: Recipe, folder: Path, data: Sequence[DataFacts], *, weights_origin: str) -> RunRecord:
    """The record of a run by a recipe, at its start.

    Args:
        recipe: The run, with its data and first weights.
        folder: Where it writes.
        data: Facts of its videos.
        weights_origin: Sentence on its first weights.
    """
    is_bundled = recipe.name in recipe_names()
    changes = recipe.changes_from(load_recipe(recipe.name)) if is_bundled else {}
    changed = {key: value for key, value in changes.items() if key not in ("data", "initial")}
    return RunRecord(
        kind="pretrain",
        command=command_words(
            "pretrain",
            recipe.name if is_bundled else folder / RECIPE_FILE,
            data=[share.path for share in recipe.data],
            weight=[share.weight for share in recipe.data],
            init=recipe.initial,
            output_dir=folder,
            assignments=changed,
        ),
        seeds=(recipe.training.seed,),
        settings=recipe.to_tree(),
        changed=changed,
        model=(
            ModelFacts.of(recipe.initial, weights=weights_origin)
            if recipe.initial
            else _initial_model(recipe.training.initial_checkpoint)
        ),
        data=tuple(data),
    )


def _initial_model(checkpoint: str | None) -> ModelFacts | None:
    return ModelFacts.of(checkpoint, weights=f"initialised from {checkpoint}") if checkpoint else None


def measured(state: TrainerState, warnings: Sequence[HealthWarning]) -> dict[str, Any]:
    """Fields of the record that the training itself fills: steps, the last measures and what is wrong.

    Args:
        state: Of the Trainer.
        warnings: By the rules of `diagnose`.
    """
    rows = [row for row in state.log_history if f"{HEALTH}fixed_loss" in row]
    last = rows[-1] if rows else {}
    labels = {f"{HEALTH}{entry.name}": entry.metadata["label"] for entry in fields(HealthMeasurement)}
    labels |= {name: f"Probe: {name.removeprefix(PROBE).replace('_', ' ')}" for name in last if name.startswith(PROBE)}
    return {
        "steps": state.global_step,
        "max_steps": state.max_steps,
        "measures": {label: last[name] for name, label in labels.items() if name in last},
        "warnings": tuple(warning.message for warning in warnings),
    }
