"""Which parameters a fine-tuning moves, and at which rate: all, the last blocks, the head, or low-rank adapters.

The encoder's parameters have a depth: its patch embedding 0, block i the depth i + 1; the encoder's last norm, the
pooler and the classifier lie above all blocks. Layer-wise decay of the learning rate (Clark et al. 2020, ELECTRA; Bao
et al. 2022, BEiT) multiplies the rate once for each step downwards.
"""

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from ...model.modeling_vjepa import VJEPAForVideoClassification, VJEPALayer

if TYPE_CHECKING:
    from peft import PeftModel

Mode = Literal["full", "last-k", "head", "lora"]
# The plain linear layers of the encoder's attention; the pooler has none of this name
LORA_TARGETS = r"encoder\.layer\.\d+\.attention\.(qkv|proj)"
TRAINED_WHOLE = ("pooler", "classifier")

_BLOCK = re.compile(r"(?:^|\.)encoder\.layer\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)encoder\.embeddings\.")


def set_trainable(model: VJEPAForVideoClassification, mode: str, *, num_blocks: int | None = None) -> None:
    """Free the parameters that a fine-tuning moves, and freeze the others. Pooler and classifier are always free.

    A frozen block drops no paths: it computes what it computes in use.

    Args:
        model: A classifier, without adapters.
        mode: "full", all of it; "last-k", the encoder's last `num_blocks` blocks with their levels' norms and the last
            norm; "head", nothing of the encoder.
        num_blocks: For "last-k".

    Raises:
        ValueError: There is no such mode, or the number of blocks is missing, too large, or not used by the mode.
    """
    layers = cast("list[VJEPALayer]", list(model.encoder.layer))
    if mode not in ("full", "last-k", "head"):
        raise ValueError(f"mode is '{mode}', but must be full, last-k or head; adapters are added with add_lora")
    check_num_blocks(mode, num_blocks, len(layers))
    model.requires_grad_(True)
    if mode != "full":
        model.encoder.requires_grad_(False)
    if mode == "last-k":
        model.encoder.layernorm.requires_grad_(True)
        first = len(layers) - cast(int, num_blocks)
        for layer in layers[first:]:
            layer.requires_grad_(True)
        inner_levels = (model.config.feature_levels or [])[:-1]
        for level, norm in zip(inner_levels, model.encoder.level_norms, strict=True):
            norm.requires_grad_(level >= first)
    for layer in layers:
        if not layer.norm1.weight.requires_grad:
            layer.drop_path.probability = 0.0


def check_num_blocks(mode: str, num_blocks: int | None, num_layers: int | None = None) -> None:
    """Make sure that a number of blocks is given where it is used, and nowhere else.

    Args:
        mode: A `Mode`.
        num_blocks: Blocks that are tuned.
        num_layers: Blocks of the encoder; None: not known yet.

    Raises:
        ValueError: It is not.
    """
    if (mode == "last-k") != (num_blocks is not None):
        raise ValueError(
            f"num_blocks is {num_blocks} and the mode is '{mode}', but a number of blocks belongs to last-k and to no "
            "other mode: give both, or neither"
        )
    if num_blocks is not None and not 1 <= num_blocks <= (num_layers or num_blocks):
        limit = "" if num_layers is None else f", the encoder's {num_layers} at most"
        raise ValueError(f"num_blocks is {num_blocks}, but must be at least 1{limit}; for none the mode is head")


def add_lora(
    model: VJEPAForVideoClassification, *, rank: int = 16, alpha: float = 32.0, dropout: float = 0.0
) -> "PeftModel":
    """Add low-rank adapters (Hu et al. 2022, LoRA) to the projections of the encoder's attention.

    Pooler and classifier are trained whole, as copies beside the originals. `merge_and_unload()` of what is returned
    gives an ordinary classifier.

    Args:
        model: A classifier; it is changed in place.
        rank: Of the adapters.
        alpha: The adapters' output is multiplied by `alpha / rank`.
        dropout: On the adapters' input.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(
            "mode 'lora' needs peft, which is not installed: pip install 'vjepa-hub[lora]', or choose another mode"
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared as an integer; only divided by the rank
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        modules_to_save=list(TRAINED_WHOLE),
    )
    return cast("PeftModel", get_peft_model(model, config))


def layerwise_parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, decay: float = 1.0
) -> list[dict]:
    """Groups of the trained parameters for AdamW, with a learning rate for each depth.

    Pooler, classifier and the encoder's last norm have the base rate; block i of n has
    `learning_rate * decay ** (n - i)`, the patch embedding `learning_rate * decay ** (n + 1)`. Biases and other 1-D
    parameters have no weight decay. A scheduler that multiplies each group's rate, as the Trainer's do, keeps the
    proportions: `Trainer(..., optimizers=(torch.optim.AdamW(groups), None))`.

    Args:
        model: A classifier, with or without adapters; frozen parameters are left out.
        learning_rate: The base rate.
        weight_decay: Of matrices.
        decay: Above 0, at most 1; 1 is the same rate for all.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and a `name`; the first has the base rate, which the Trainer logs.

    Raises:
        ValueError: The decay is out of its range, or every parameter is frozen.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}, but must be above 0 and at most 1; 1 gives all layers the same rate")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("every parameter of the model is frozen, so that there is nothing to train: set_trainable it")
    num_layers = 1 + max((int(found[1]) for name, _ in model.named_parameters() if (found := _BLOCK.search(name))))
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trained:
        members[_depth(name, num_layers), parameter.ndim > 1].append(parameter)
    return [
        {
            "params": members[depth, is_decayed],
            "lr": learning_rate * decay ** (num_layers + 1 - depth),
            "weight_decay": weight_decay if is_decayed else 0.0,
            "name": f"{_name_depth(depth, num_layers)}, {'decayed' if is_decayed else 'not decayed'}",
        }
        for depth, is_decayed in sorted(members, reverse=True)
    ]


def _depth(name: str, num_layers: int) -> int:
    block = _BLOCK.search(name)
    if block:
        return int(block[1]) + 1
    return 0 if _EMBEDDINGS.search(name) else num_layers + 1


def _name_depth(depth: int, num_layers: int) -> str:
    if depth == 0:
        return "patch embedding"
    return "head" if depth > num_layers else f"block {depth - 1}"
