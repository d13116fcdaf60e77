"""Recipes: a whole pretraining run as one YAML file, any value of which can be overridden.

The bundled ones lie in `recipes/`. A recipe has these keys, of which all but `model` and `training` may be missing:

    name, description     what it is
    initial               weights to start from, as `run.pretrain` takes them; null: a seeded initialisation
    model                 fields of `VJEPAConfig`
    masks                 kinds of masks: a name of `MASK_NAMES`, or settings with a `kind` of `MASK_CLASSES`
    clips                 fields of `ClipRecipe`
    data                  list of {path, weight}
    synthetic             video that is made where no data is given: a `kind` of `MADE_KINDS` (by default
                          shapes), and the fields of its settings
    training              fields of `VJEPATrainingArguments`, and `global_batch_size`
    published             facts of the published run that no code reads

Every key is checked, and every value's type.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, PositiveInt

from ..data.augmentation import CropSpec
from ..data.clip_sampling import ClipSpec, FrameSampling
from ..data.masking import (
    CAUSAL,
    LONG_RANGE,
    RANDOM_TUBE,
    SHORT_RANGE,
    MaskKind,
    MultiBlockMasking,
    RandomTubeMasking,
    TokenGrid,
    require_possible,
)
from ..data.synthetic.shapes import SyntheticVideoSettings
from ..data.synthetic.videos import MADE_KINDS, SHAPES, kind_of
from ..model.configuration_vjepa import VJEPAConfig
from .arguments import CHECKPOINTING, VJEPATrainingArguments
from .checked_fields import as_mapping, build_checked, checked, checked_fields, nearest, require_known, unknown_key
from .recipe_yaml import read_yaml, write_yaml

RECIPES = Path(__file__).with_name("recipes")
MASK_NAMES: dict[str, tuple[MaskKind, ...]] = {
    "multi-block": (SHORT_RANGE, LONG_RANGE),
    "short-range": (SHORT_RANGE,),
    "long-range": (LONG_RANGE,),
    "random-tube": (RANDOM_TUBE,),
    "causal": (CAUSAL,),
}
MASK_CLASSES: dict[str, type] = {"multi-block": MultiBlockMasking, "random-tube": RandomTubeMasking}
GLOBAL_BATCH_SIZE = "global_batch_size"
# Arguments of the Trainer that a recipe cannot hold, and where they belong
_REFUSED = {
    "output_dir": "it is given beside the recipe (--output-dir)",
    "resume_from_checkpoint": "resuming is asked for beside the recipe (--resume)",
    "hub_token": "the recipe is stored with the run; log in with `hf auth login`, or set HF_TOKEN",
    "lr_scheduler_type": "the curves are those of the recipe: start_learning_rate, warmup_steps, learning_rate, ...",
    "lr_scheduler_kwargs": "the curves are those of the recipe: start_learning_rate, warmup_steps, learning_rate, ...",
}


class ClipRecipe(FrameSampling, CropSpec):
    """Sampling, augmentation and reading of clips; how many frames they have is said by the model.

    Args:
        frame_step: Video frames from one frame of a clip to the next.
        clip_duration: Seconds that a clip spans, whatever the frame rate; in place of `frame_step`.
        scale: Smallest and largest area of the random crop, as a part of the frame's.
        ratio: Smallest and largest width of the random crop, divided by its height.
        flip_probability: Probability of a horizontal flip.
        max_tries: Videos that are tried for a clip before the run stops.
        backend: pyav, torchcodec or decord; none: as for `vjepa_hub.data.video.open_video`.
        stream: Whether tar files are read from beginning to end, again and again, rather than by number.
        max_memory_gib: GiB of decoded frames that may be kept in memory, over all processes of this machine. If all
            videos fit, each is decoded once; 0 keeps none. It changes no clip.
    """

    max_tries: PositiveInt = 10
    backend: str | None = None
    stream: bool = False
    max_memory_gib: NonNegativeFloat = 3.0


@dataclass(frozen=True, kw_only=True)
class DataShare:
    """One source of videos.

    Args:
        path: What `data.sources.open_source` opens: a manifest, a folder, ...
        weight: How often it is drawn, in proportion to the weights of the others. None, for all of them: every video
            is drawn equally often, as in the release.

    Raises:
        ValueError: The weight is not above 0.
    """

    path: str
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"the weight of {self.path} is {self.weight}, but must be a number above 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole pretraining run, checked.

    Attributes:
        name: What it is called; by default the file's name.
        model: Fields of `VJEPAConfig`.
        masks: Kinds of masks, one for each mask token of the predictor, in their order.
        training: Fields of `VJEPATrainingArguments`, and `global_batch_size`: clips of one optimiser step over all
            processes, which is reached by accumulation.
        clips: How clips are taken.
        data: Where videos come from; empty where they are given later.
        synthetic: Video that is made where there is no data.
        initial: Weights to start from.
        description: One line.
        published: Facts of the published run that no code reads.

    Raises:
        ValueError: Values that do not go together.
    """

    name: str
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    masks: tuple[MaskKind, ...] = MASK_NAMES["multi-block"]
    clips: ClipRecipe = field(default_factory=ClipRecipe)
    data: tuple[DataShare, ...] = ()
    synthetic: SyntheticVideoSettings | None = None
    initial: str | None = None
    description: str = ""
    published: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, grid = self.config(), self.grid()
        if len(self.masks) > config.pred_num_mask_tokens:
            raise ValueError(
                f"the recipe has {len(self.masks)} kinds of masks, but the predictor has "
                f"{config.pred_num_mask_tokens} mask tokens; set model.pred_num_mask_tokens={len(self.masks)}"
            )
        for settings in self.masks:
            require_possible(settings, grid)
        self._check_weights()

    def _check_weights(self) -> None:
        num_weights = sum(share.weight is not None for share in self.data)
        if num_weights not in (0, len(self.data)):
            raise ValueError(
                f"{num_weights} of {len(self.data)} sources of data have a weight; give one to each, or to none"
            )
        if self.clips.stream and num_weights:
            raise ValueError("data has weights, but a stream has none; leave them out, or set clips.stream=false")

    @property
    def global_batch_size(self) -> int | None:
        """Clips of one optimiser step over all processes; None: what batches and accumulation give."""
        return self.training.get(GLOBAL_BATCH_SIZE)

    def argument(self, name: str) -> Any:
        """The value of a field of `VJEPATrainingArguments`: the recipe's, or the default."""
        return self.training.get(name, getattr(VJEPATrainingArguments, name))

    def config(self) -> VJEPAConfig:
        """A new configuration of the model."""
        return VJEPAConfig(**self.model)

    def grid(self) -> TokenGrid:
        """The tokens of a clip."""
        return TokenGrid.from_config(self.config())

    def clip_spec(self) -> ClipSpec:
        """The frames of a clip."""
        sampling = {name: getattr(self.clips, name) for name in FrameSampling.model_fields}
        return ClipSpec(frames_per_clip=self.config().frames_per_clip, **sampling)

    def arguments(self, output_dir: str | Path) -> VJEPATrainingArguments:
        """The arguments of the Trainer on this machine, for the processes that were started.

        Args:
            output_dir: Folder of the run.

        Raises:
            ValueError: The global batch cannot be made of the batches of the processes.
        """
        given = {name: value for name, value in self.training.items() if name != GLOBAL_BATCH_SIZE}
        arguments = VJEPATrainingArguments(output_dir=str(output_dir), **given)
        if self.global_batch_size is not None:
            arguments.gradient_accumulation_steps = accumulation_steps(
                self.global_batch_size,
                batch_size=arguments.per_device_train_batch_size,
                num_processes=arguments.world_size,
            )
        return arguments

    def with_overrides(self, overrides: Mapping[str, Any] | Iterable[str]) -> "Recipe":
        """A recipe with other values.

        Args:
            overrides: `{"training.learning_rate": 1e-3}` or `["learning_rate=1e-3"]`, in which the value is YAML. A
                key is the way to the value, with dots (`masks.0.num_blocks`), or a field's own name where only one
                section has it.

        Raises:
            KeyError: There is no such key, or more than one; the message names the nearest.
            ValueError: The value is of another type, or does not go together with the rest.
        """
        pairs = overrides.items() if isinstance(overrides, Mapping) else [_split_override(text) for text in overrides]
        tree = self.to_dict()
        for key, value in pairs:
            path = _locate(key, synthetic=self.synthetic)
            _assign(tree, path, value)
            if path == ["synthetic", "kind"] and self.synthetic is not None:
                _leave_to_other_kind(tree["synthetic"], self.synthetic)
        return recipe_from_dict(tree, name=self.name)

    def with_inputs(
        self,
        *,
        data: str | Path | Sequence[str | Path | DataShare] | None = None,
        initial: str | Path | None = None,
    ) -> "Recipe":
        """A recipe with other data and first weights, where any are given. Paths that exist become absolute.

        Args:
            data: Where videos come from: paths that `open_source` takes.
            initial: Weights to start from: a registered name, a folder, a released file, or a name on the Hub.
        """
        overrides: dict[str, Any] = {}
        if data is not None:
            given = [data] if isinstance(data, str | Path) else data
            shares = [share if isinstance(share, DataShare) else DataShare(path=str(share)) for share in given]
            overrides["data"] = [{"path": _absolute(share.path), "weight": share.weight} for share in shares]
        if initial is not None:
            overrides["initial"] = _absolute(initial)
        return self.with_overrides(overrides)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, which `recipe_from_dict` takes back."""
        return {
            "name": self.name,
            "description": self.description,
            "initial": self.initial,
            "model": _plain(dict(self.model)),
            "masks": [_mask_to_dict(settings) for settings in self.masks],
            "clips": self.clips.to_tree(),
            "data": [dataclasses.asdict(share) for share in self.data],
            "synthetic": None if self.synthetic is None else _synthetic_to_dict(self.synthetic),
            "training": _plain(dict(self.training)),
            "published": _plain(dict(self.published)),
        }

    def settings(self) -> dict[str, Any]:
        """All values by their keys with dots, such as `training.learning_rate`."""
        return _flatten(self.to_dict())

    def to_yaml(self) -> str:
        """The text of a recipe file, which `load_recipe` reads back as an equal recipe."""
        return write_yaml(self.to_dict())


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else str(path)


def recipe_names() -> list[str]:
    """The bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A bundled recipe by its name, or a recipe file.

    Raises:
        KeyError: There is no such recipe and no such file, or the file has an unknown key.
        ValueError: The file is no YAML, or a value is wrong; the message names it.
    """
    path = Path(name_or_path)
    if str(name_or_path) in recipe_names():
        path = RECIPES / f"{name_or_path}.yaml"
    elif not path.is_file():
        known = recipe_names()
        raise KeyError(
            f"'{name_or_path}' is neither a recipe nor a file; recipes: {', '.join(known)}; the nearest is "
            f"'{nearest(str(name_or_path), known)}'"
        )
    return recipe_from_dict(read_yaml(path.read_text(encoding="utf-8"), source=str(path)), name=path.stem)


def recipe_from_dict(tree: Any, *, name: str) -> Recipe:
    """A recipe from plain values, all of which are checked.

    Args:
        tree: As `Recipe.to_dict` returns it; what is missing takes its default.
        name: The recipe's, where the tree has none.

    Raises:
        KeyError: An unknown key; the message names the nearest.
        ValueError: A value is of the wrong type, or outside its range.
    """
    tree = dict(as_mapping("the recipe", tree))
    require_known("the recipe", tree, [entry.name for entry in dataclasses.fields(Recipe)])
    return Recipe(
        name=checked("name", tree.get("name") or name, str),
        description=checked("description", tree.get("description") or "", str),
        initial=checked("initial", tree.get("initial"), str | None),
        model=checked_fields("model", tree.get("model"), _model_fields()),
        masks=_masks(tree.get("masks") or "multi-block"),
        clips=ClipRecipe.from_tree(tree.get("clips") or {}),
        data=_data(tree.get("data")),
        synthetic=_synthetic(tree.get("synthetic")),
        training=_training(tree.get("training")),
        published=as_mapping("published", tree.get("published")),
    )


def accumulation_steps(global_batch_size: int, *, batch_size: int, num_processes: int) -> int:
    """Batches that each process accumulates for one optimiser step.

    Args:
        global_batch_size: Clips of one optimiser step, over all processes.
        batch_size: Clips of one batch of one process.
        num_processes: Processes that train together.

    Raises:
        ValueError: It does not come out even; the message gives the nearest numbers that do.
    """
    at_once = batch_size * num_processes
    if global_batch_size >= 1 and global_batch_size % at_once == 0:
        return global_batch_size // at_once
    remedies = [f"{GLOBAL_BATCH_SIZE}={max(1, round(global_batch_size / at_once)) * at_once}"]
    if global_batch_size >= 1 and global_batch_size % num_processes == 0:
        share = global_batch_size // num_processes
        divisors = [size for size in range(1, min(batch_size, share) + 1) if share % size == 0]
        remedies.append(f"per_device_train_batch_size={divisors[-1]}")
    raise ValueError(
        f"{GLOBAL_BATCH_SIZE} is {global_batch_size}, but must be a multiple of per_device_train_batch_size x "
        f"processes = {batch_size} x {num_processes}; set {' or '.join(remedies)}"
    )


def differing_keys(first: Recipe, second: Recipe) -> list[str]:
    """The keys, with dots, at which two recipes have different values."""
    one, other = first.settings(), second.settings()
    return [key for key in {**one, **other} if (key in one, one.get(key)) != (key in other, other.get(key))]


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


def _model_fields() -> dict[str, Any]:
    hints = dict(VJEPAConfig.__annotations__)
    del hints["weights_origin"]  # written by the run
    return {**hints, "attn_implementation": str}


def _training_fields() -> dict[str, Any]:
    names = {entry.name for entry in dataclasses.fields(VJEPATrainingArguments)} - _REFUSED.keys()
    hints = {name: hint for name, hint in typing.get_type_hints(VJEPATrainingArguments).items() if name in names}
    return {**hints, GLOBAL_BATCH_SIZE: int, **dict.fromkeys(_checkpointing_aliases(), bool)}


def _checkpointing_aliases() -> tuple[str, ...]:
    """The names that transformers' versions have for gradient checkpointing; a recipe may use any."""
    return "gradient_checkpointing", "activation_checkpointing"


def _training(tree: Any) -> dict[str, Any]:
    for name, reason in _REFUSED.items():
        if name in as_mapping("training", tree):
            raise KeyError(f"training has the key '{name}', but a recipe cannot hold it: {reason}")
    training = checked_fields("training", tree, _training_fields())
    if GLOBAL_BATCH_SIZE in training and "gradient_accumulation_steps" in training:
        raise ValueError(
            f"training has {GLOBAL_BATCH_SIZE} and gradient_accumulation_steps, but the second follows from the "
            "first; leave one of them out"
        )
    for alias in _checkpointing_aliases():
        if alias != CHECKPOINTING and alias in training:
            training[CHECKPOINTING] = training.pop(alias)
    return training


def _data(tree: Any) -> tuple[DataShare, ...]:
    if isinstance(tree, str):
        tree = [tree]
    if not isinstance(tree, list | tuple | None):
        raise ValueError(f"data is {tree!r}, but must be a list of paths, or of {{path, weight}}")
    return tuple(
        build_checked(DataShare, {"path": entry} if isinstance(entry, str) else entry, f"data.{place}")
        for place, entry in enumerate(tree or ())
    )


def _synthetic(tree: Any) -> SyntheticVideoSettings | None:
    if tree is None:
        return None
    fields = dict(as_mapping("synthetic", tree))
    kind = fields.pop("kind", SHAPES)
    if kind not in MADE_KINDS:
        raise KeyError(f"synthetic.kind is '{kind}', but must be {' or '.join(MADE_KINDS)}")
    return build_checked(MADE_KINDS[kind], fields, "synthetic")


def _synthetic_to_dict(settings: SyntheticVideoSettings) -> dict[str, Any]:
    return {"kind": kind_of(settings), **dataclasses.asdict(settings)}


def _masks(tree: Any) -> tuple[MaskKind, ...]:
    entries = tree if isinstance(tree, list | tuple) else [tree]
    kinds = [kind for place, entry in enumerate(entries) for kind in _mask_kinds(entry, f"masks.{place}")]
    if not kinds:
        raise ValueError(f"masks is empty, but training needs a kind of masks, such as {', '.join(MASK_NAMES)}")
    return tuple(replace(kind, mask_index=index) for index, kind in enumerate(kinds))


def _mask_kinds(entry: Any, where: str) -> tuple[MaskKind, ...]:
    if isinstance(entry, str):
        if entry not in MASK_NAMES:
            raise KeyError(unknown_key(where, entry, MASK_NAMES))
        return MASK_NAMES[entry]
    settings = dict(as_mapping(where, entry))
    kind = settings.pop("kind", None)
    if kind not in MASK_CLASSES:
        raise KeyError(f"{where}.kind is '{kind}', but must be {' or '.join(MASK_CLASSES)}")
    return (build_checked(MASK_CLASSES[kind], settings, where, left_out=("mask_index",)),)


def _mask_to_dict(settings: MaskKind) -> dict[str, Any]:
    kind = next(name for name, cls in MASK_CLASSES.items() if isinstance(settings, cls))
    fields = dataclasses.asdict(settings)
    del fields["mask_index"]  # its place in the list
    return {"kind": kind, **_plain(fields)}


# ---------------------------------------------------------------------------------------------------------------------
# Overrides
# ---------------------------------------------------------------------------------------------------------------------


def _split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"'{text}' is no override; write key=value, such as learning_rate=1e-3")
    return key.strip(), read_yaml(value, source=f"the value of '{text}'")


def _section_fields(synthetic: SyntheticVideoSettings | None) -> dict[str, Iterable[str]]:
    sections: dict[str, Iterable[str]] = {
        "model": _model_fields(),
        "clips": ClipRecipe.model_fields,
        "training": [*_training_fields(), *_REFUSED],
    }
    if synthetic is not None:
        sections["synthetic"] = [entry.name for entry in dataclasses.fields(synthetic)]
    return sections


def _locate(key: str, *, synthetic: SyntheticVideoSettings | None) -> list[str]:
    """The way to a key: itself with dots, or by way of the only section that has it."""
    parts = key.split(".")
    top = [entry.name for entry in dataclasses.fields(Recipe)]
    if parts[0] in top:
        return parts
    sections = _section_fields(synthetic)
    owners = [section for section, names in sections.items() if key in names]
    if len(owners) == 1:
        return [owners[0], key]
    if owners:
        choices = " or ".join(f"{section}.{key}" for section in owners)
        raise KeyError(f"'{key}' stands in more than one section; write {choices}")
    raise KeyError(unknown_key("the recipe", key, [*top, *(name for names in sections.values() for name in names)]))


def _assign(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set the value at the end of a way through mappings and lists. The sections check it afterwards."""
    place: Any = tree
    for part in path[:-1]:
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = place[_key_in(place, part, path)]
    place[_key_in(place, path[-1], path)] = value


def _leave_to_other_kind(tree: dict[str, Any], before: SyntheticVideoSettings) -> None:
    """Take out what only video of the kind before has."""
    names, old_names = (
        {entry.name for entry in dataclasses.fields(kind)} for kind in (MADE_KINDS.get(tree["kind"], before), before)
    )
    for name in old_names - names:
        tree.pop(name, None)


def _key_in(place: Any, part: str, path: Sequence[str]) -> str | int:
    """The key, or the place in a list, that a part of a way stands for."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise KeyError(f"'{'.'.join(path)}': there is {place!r}, which has no '{part}'")
    if not part.isdigit() or int(part) >= len(place):
        raise KeyError(f"'{'.'.join(path)}': the list has {len(place)} entries, counted from 0, and no '{part}'")
    return int(part)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by their keys with dots."""
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if entries is None:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in entries:
        leaves |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _plain(value: Any) -> Any:
    """Tuples become lists, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
