"""The card of a pretrained model: README.md with the Hub's metadata, and what the run itself knows.

A card that a person wrote or changed is never replaced: the last line of ours holds a checksum of the rest.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from ..data.masking import MaskKind, RandomTubeMasking
from ..hub.registry import MODELS
from .health import PREFIX as HEALTH
from .health import HealthMeasurement
from .probe import PREFIX as PROBE
from .recipe import load_recipe

if TYPE_CHECKING:
    from .trainer import VJEPATrainer

logger = logging.getLogger(__name__)

CARD = "README.md"
_MARK = re.compile(r"<!-- written by vjepa_hub, sha256 ([0-9a-f]{64}); a changed card is kept -->\n\Z")
PAPER = "https://arxiv.org/abs/2404.08471"


def write_card(folder: Path, trainer: "VJEPATrainer") -> None:
    """Write the card of what was trained so far, unless there is one that a person wrote or changed.

    Args:
        folder: Of the published model.
        trainer: Its state, arguments and data are described.
    """
    path = folder / CARD
    if path.exists() and not is_ours(path.read_text(encoding="utf-8")):
        logger.warning("%s was written or changed by a person, and stays as it is", path)
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(_marked(card_text(folder, trainer)), encoding="utf-8")


def is_ours(text: str) -> bool:
    """Whether a card is as `write_card` wrote it."""
    mark = _MARK.search(text)
    return mark is not None and mark.group(1) == _checksum(text[: mark.start()])


def card_text(folder: Path, trainer: "VJEPATrainer") -> str:
    """The text of the card.

    Args:
        folder: Of the published model; a `recipe.yaml` in it tells its name and what it started from.
        trainer: Its state, arguments and data are described.
    """
    recipe = load_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").exists() else None
    initial = recipe.initial if recipe else None
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="feature-extraction",  # the Hub has no task of its own for features of video
        tags=["vjepa", "video", "video-feature-extraction", "self-supervised-learning"],
        license=_license_of(initial),
    )
    title = f"V-JEPA {recipe.name}" if recipe else "V-JEPA"
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {title}, pretrained by vjepa_hub",
        f"A video encoder, trained without labels by feature prediction (V-JEPA, [Bardes et al. 2024]({PAPER})). The "
        "weights are those of the EMA target encoder, with the predictor.",
        "## Use",
        _usage(trainer.args.hub_model_id or folder.resolve().name),
        "## Training",
        _table(_facts(trainer, initial)),
        "## Health at the end",
        _health(trainer),
        "## Limits",
        "Features for a probe or for fine-tuning, not answers: nothing was trained on labels. They know what the "
        "videos above show, with their gaps and biases. Nobody has evaluated this model beyond the numbers here."
        + (f" The licence of {initial}, which it started from, holds for it too." if initial else ""),
    ]
    return "\n\n".join(parts) + "\n"


def _usage(name: str) -> str:
    return f"""```python
import vjepa_hub

model = vjepa_hub.load("{name}")  # a folder, or owner/name on the Hub
```

Without vjepa_hub, by the code that travels with the weights:

```python
from transformers import AutoModel, AutoVideoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoVideoProcessor.from_pretrained("{name}", trust_remote_code=True)
features = model(**processor("video.mp4", return_tensors="pt")).last_hidden_state
```"""


def _facts(trainer: "VJEPATrainer", initial: str | None) -> dict[str, str]:
    """What was trained, on what and how, as text."""
    config, args, state = trainer.model.config, trainer.args, trainer.state
    grid = " x ".join(map(str, config.token_grid))
    facts = {
        "encoder": f"width {config.hidden_size}, {config.num_hidden_layers} layers",
        "predictor": f"width {config.pred_hidden_size}, {config.pred_num_hidden_layers} layers",
        "clip": f"{config.frames_per_clip} frames of {config.crop_size} x {config.crop_size} pixels, {grid} tokens",
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


def _health(trainer: "VJEPATrainer") -> str:
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
    return f"At step {last['step']:,}:\n\n{_table(rows)}\n\n" + "\n".join(found)


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _license_of(initial: str | None) -> str | None:
    """Weights that go on from released ones keep their licence; of others nothing is known here."""
    if initial is None:
        return None
    released = initial in MODELS and MODELS[initial].checkpoint is not None
    return MODELS[initial].license if released else None


def _marked(text: str) -> str:
    return f"{text}<!-- written by vjepa_hub, sha256 {_checksum(text)}; a changed card is kept -->\n"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
