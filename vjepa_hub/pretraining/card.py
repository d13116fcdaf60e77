"""The card of a pretrained model: README.md with the Hub's metadata, and what the run itself knows.

A card that a person wrote or changed is never replaced: the last line of ours holds a checksum of the rest.
"""

import copy
import logging
from pathlib import Path
from typing import Any

from ..core.files import write_whole
from ..data.masking import MaskKind, RandomTubeMasking
from ..hub.registry import MODELS
from ..publishing.card_text import FEATURES_LIMITS, fact_table
from ..publishing.cards import CardFacts, is_ours, render_card
from .checkpoints import trained_origin
from .health import PREFIX as HEALTH
from .health import HealthMeasurement
from .probe import PREFIX as PROBE
from .recipe import load_recipe

logger = logging.getLogger(__name__)

CARD = "README.md"


def write_card(folder: Path, trainer: Any) -> None:
    """Write the card of what was trained so far, unless there is one that a person wrote or changed.

    Args:
        folder: Of the published model.
        trainer: Its state, arguments and data are described.
    """
    path = folder / CARD
    if path.exists() and not is_ours(path.read_text(encoding="utf-8")):
        logger.warning("%s was written or changed by a person, and stays as it is", path)
        return
    write_whole(path, card_text(folder, trainer))


def card_text(folder: Path, trainer: Any) -> str:
    """The text of the card.

    Args:
        folder: Of the published model; a `recipe.yaml` in it tells its name and what it started from.
        trainer: Its state, arguments and data are described.
    """
    return render_card(card_facts(folder, trainer))


def card_facts(folder: Path, trainer: Any) -> CardFacts:
    """What the card is made from. Arguments as for `card_text`."""
    recipe = load_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").exists() else None
    initial = recipe.initial if recipe else None
    config = copy.deepcopy(trainer.model.config)
    config.weights_origin = trained_origin(trainer.state.global_step)
    limits = f"{FEATURES_LIMITS} Nobody has evaluated this model beyond the numbers here."
    return CardFacts(
        name=trainer.args.hub_model_id or folder.resolve().name,
        title=f"V-JEPA{f' {recipe.name}' if recipe else ''}, pretrained by vjepa_hub",
        kind="pretraining",
        config=config,
        license=_license_of(initial),
        base_model=initial if _is_hub_name(initial) else None,
        training=_facts(trainer, initial),
        sections={"Health at the end": _health(trainer)},
        limits=f"{limits} The licence of {initial}, which it started from, holds for it too." if initial else limits,
    )


def _is_hub_name(initial: str | None) -> bool:
    return initial is not None and initial.count("/") == 1 and initial not in MODELS and not Path(initial).exists()


def _facts(trainer: Any, initial: str | None) -> dict[str, str]:
    """What was trained, on what and how, as text."""
    args, state = trainer.args, trainer.state
    facts = {
        "data": trainer.data_description or "not told",
        "first weights": initial or f"random, seed {args.seed}",
        "steps": f"{state.global_step:,} of {state.max_steps:,}",
        "clips a step": f"{args.clips_per_step:,}",
        "objective": f"{args.objective} loss on {args.targets}",
        "learning rate": f"{args.start_learning_rate:g} to {args.learning_rate:g} to {args.final_learning_rate:g}",
        "weight decay": f"{args.weight_decay:g} to {args.final_weight_decay:g}",
        "EMA momentum": f"{args.momentum:g} to {args.final_momentum:g}",
    }
    return facts | {f"masks, kind {index}": _describe_masks(kind) for index, kind in enumerate(trainer.mask_kinds)}


def _describe_masks(kind: MaskKind) -> str:
    if isinstance(kind, RandomTubeMasking):
        return f"random tubes over {kind.ratio:.0%} of the frame"
    lowest, highest = kind.spatial_scale
    share = f"{lowest:.0%}" if lowest == highest else f"{lowest:.0%} to {highest:.0%}"
    text = f"{kind.num_blocks} blocks of {share} of the frame"
    return text if kind.max_temporal_keep == 1 else f"{text}, context from the first {kind.max_temporal_keep:.0%}"


def _health(trainer: Any) -> str:
    """The last measures, and what is wrong by the rules of `diagnose`."""
    state = trainer.state
    measured = [row for row in state.log_history if f"{HEALTH}fixed_loss" in row]
    if not measured:
        return "Not measured."
    last = measured[-1]
    labels = {f"{HEALTH}{name}": entry for name, entry in HealthMeasurement.__dataclass_fields__.items()}
    rows = {labels[name].metadata["label"]: f"{last[name]:.3g}" for name in labels if name in last}
    rows |= {
        f"Probe: {name.removeprefix(PROBE).replace('_', ' ')}": f"{value:.1%}"
        for name, value in last.items()
        if name.startswith(PROBE)
    }
    warnings = trainer.health.warnings if trainer.health else []
    found = [f"- {warning.message}" for warning in warnings] or ["No rule of a collapse holds."]
    return f"At step {last['step']:,}:\n\n{fact_table(rows)}\n\n" + "\n".join(found)


def _license_of(initial: str | None) -> str | None:
    """Weights that go on from released ones keep their licence; of others nothing is known here."""
    if initial is None:
        return None
    released = initial in MODELS and MODELS[initial].checkpoint is not None
    return MODELS[initial].license if released else None
