"""Recipes: a whole pretraining run as one YAML file, any value of which can be overridden.

The bundled ones lie in `recipes/`. A recipe has these keys, of which all but `name` may be missing (a file's name is
the default):

    name, description     title, and one line about it
    initial               weights to start from, as `run.pretrain` takes them; null: a seeded initialisation
    model                 fields of `VJEPAConfig`
    masks                 kinds of masks: a name of `MASK_NAMES`, or settings with their `kind`
    clips                 fields of `ClipRecipe`
    data                  list of {path, weight}
    synthetic             settings of synthetic video, with their `kind` (by default shapes), for a run without data
    training              fields of `VJEPATrainingArguments`, and `global_batch_size`
    published             facts of the published run that no code reads

Keys and values are checked as `core.settings` says.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from ..core.files import read_utf8
from ..core.names import nearest
from ..core.settings import Settings, SettingsError, UnknownSettingError, read_yaml, write_yaml
from ..data.clip_sampling import ClipSpec, FrameSampling
from ..data.crop_spec import CropSpec
from ..data.items import ITEM_TIMEOUT
from ..data.masking import (
    CAUSAL,
    LONG_RANGE,
    RANDOM_TUBE,
    SHORT_RANGE,
    MaskKind,
    TokenGrid,
    require_possible,
)
from ..data.synthetic.videos import VideoSettings
from ..model.configuration_vjepa import VJEPAConfig
from .arguments import CHECKPOINTING, VJEPATrainingArguments
from .recipes import recipe_names, recipe_path

if TYPE_CHECKING:
    from typing_extensions import Self

MASK_NAMES: dict[str, tuple[MaskKind, ...]] = {
    "multi-block": (SHORT_RANGE, LONG_RANGE),
    "short-range": (SHORT_RANGE,),
    "long-range": (LONG_RANGE,),
    "random-tube": (RANDOM_TUBE,),
    "causal": (CAUSAL,),
}
GLOBAL_BATCH_SIZE = "global_batch_size"
# Arguments of the Trainer that a recipe cannot hold, and where they belong
_REFUSED = {
    "output_dir": "it is given beside the recipe (--output-dir)",
    "resume_from_checkpoint": "resuming is asked for beside the recipe (--resume)",
    "hub_token": "the recipe is stored with the run; log in with `hf auth login`, or set HF_TOKEN",
    "lr_scheduler_type": "the curves are those of the recipe: start_learning_rate, warmup_steps, learning_rate, ...",
    "lr_scheduler_kwargs": "the curves are those of the recipe: start_learning_rate, warmup_steps, learning_rate, ...",
}
# Gradient checkpointing in the versions of transformers; a recipe may use either name
_CHECKPOINTING_NAMES = ("gradient_checkpointing", "activation_checkpointing")


# ------------------------------------------------------------------------------------------------ sections


class _GivenFields(Settings):
    """Settings of a library's class: only the fields that are given are stored and handed on."""

    @model_serializer(mode="wrap")
    def _leave_defaults_out(self, serialize: typing.Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}


class _TrainingRules(_GivenFields):
    @model_validator(mode="before")
    @classmethod
    def _name_checkpointing(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {CHECKPOINTING if name in _CHECKPOINTING_NAMES else name: value for name, value in values.items()}

    @model_validator(mode="after")
    def _require_one_batch_size(self) -> "Self":
        if {GLOBAL_BATCH_SIZE, "gradient_accumulation_steps"} <= self.model_fields_set:
            raise ValueError(
                f"training has {GLOBAL_BATCH_SIZE} and gradient_accumulation_steps, but the second follows from the "
                "first; leave one of them out"
            )
        return self


def _refused(name: str, reason: str) -> Any:
    def refuse(value: Any) -> Any:
        raise UnknownSettingError(f"training has the key '{name}', but a recipe cannot hold it: {reason}")

    return Annotated[Any, BeforeValidator(refuse)], None


def _training_fields() -> dict[str, Any]:
    hints = typing.get_type_hints(VJEPATrainingArguments, include_extras=True)
    hints |= {name: float | int for name, hint in hints.items() if hint is float}  # so that 10 stays 10
    fields: dict[str, Any] = {
        entry.name: (hints[entry.name], None if entry.default is dataclasses.MISSING else entry.default)
        for entry in dataclasses.fields(VJEPATrainingArguments)
    }
    checkpointing = dict.fromkeys(_CHECKPOINTING_NAMES, (bool | None, None))
    return fields | checkpointing | {name: _refused(name, reason) for name, reason in _REFUSED.items()}


def _model_fields() -> dict[str, Any]:
    hints = {name: hint for name, hint in VJEPAConfig.__annotations__.items() if name != "weights_origin"}
    return {name: (hint, getattr(VJEPAConfig, name)) for name, hint in hints.items()}


class ModelFields(create_model("_ModelFields", __base__=_GivenFields, **_model_fields())):  # type: ignore[misc]
    """Fields of `VJEPAConfig`, but for `weights_origin`, which the run writes."""

    attn_implementation: str | None = None


class TrainingFields(create_model("_TrainingFields", __base__=_TrainingRules, **_training_fields())):  # type: ignore[misc]
    """Fields of `VJEPATrainingArguments`.

    Args:
        global_batch_size: Clips of one optimiser step over all processes, which is reached by accumulation. None: what
            batches and accumulation give.
    """

    global_batch_size: int | None = None


class ClipRecipe(CropSpec, FrameSampling):
    """Sampling, augmentation and reading of clips; the number of their frames is the model's.

    Args:
        frame_step: Video frames from one frame of a clip to the next.
        clip_duration: Seconds that a clip spans, whatever the frame rate; in place of `frame_step`.
        fps: Frames of a clip per second, whatever the frame rate; in place of `frame_step`.
        scale: Smallest and largest area of the random crop, as a part of the frame's.
        ratio: Smallest and largest width of the random crop, divided by its height.
        flip_probability: Probability of a horizontal flip.
        max_tries: Videos that are tried for a clip before the run stops.
        item_timeout: Seconds without a new frame after which a video is given up.
        backend: pyav, torchcodec or decord; none: as for `vjepa_hub.data.video.open_video`.
        stream: Read tar files from beginning to end, again and again, rather than by number.
        max_memory_gib: GiB of decoded frames that may be kept in memory, over all processes of this machine. If all
            videos fit, each is decoded once; 0 keeps none. It changes no clip.
    """

    max_tries: PositiveInt = 10
    item_timeout: PositiveFloat = ITEM_TIMEOUT
    backend: str | None = None
    stream: bool = False
    max_memory_gib: NonNegativeFloat = 3.0


class DataShare(Settings):
    """One source of videos.

    Args:
        path: A manifest, a folder, ... as `data.sources.open_source` takes it; a text alone is a path.
        weight: How often it is sampled, in proportion to the weights of the others. None, for all of them: every video
            is sampled equally often, as in the release.
    """

    path: str
    weight: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


# ------------------------------------------------------------------------------------------------ recipe


class Recipe(Settings):
    """A whole pretraining run.

    Args:
        name: Title; by default the file's name.
        description: One line.
        initial: Weights to start from.
        model: Architecture.
        masks: Kinds of masks, one for each mask token of the predictor, in their order.
        clips: Sampling, augmentation and reading of clips.
        data: Sources of videos; empty where they are given later.
        synthetic: Synthetic video for a run without data.
        training: Arguments of the Trainer.
        published: Facts of the published run that no code reads.
    """

    name: str
    description: str = ""
    initial: str | None = None
    model: ModelFields = ModelFields()
    masks: Annotated[tuple[MaskKind, ...], Field(min_length=1)] = MASK_NAMES["multi-block"]
    clips: ClipRecipe = ClipRecipe()
    data: tuple[DataShare, ...] = ()
    synthetic: VideoSettings | None = None
    training: TrainingFields = TrainingFields()
    published: dict[str, Any] = Field(default_factory=dict)

    @field_validator("masks", mode="before")
    @classmethod
    def _read_masks(cls, entries: Any) -> Any:
        if not isinstance(entries, list | tuple):
            entries = [entries]
        kinds: list[Any] = []
        for place, entry in enumerate(entries):
            if isinstance(entry, str) and entry not in MASK_NAMES:
                raise UnknownSettingError(
                    f"masks.{place} is '{entry}', but must be {' or '.join(MASK_NAMES)}, or have a kind; the nearest "
                    f"is '{nearest(entry, MASK_NAMES)}'"
                )
            kinds += MASK_NAMES[entry] if isinstance(entry, str) else [entry]
        return [
            {**kind, "mask_index": index} if isinstance(kind, Mapping) else kind.with_values(mask_index=index)
            for index, kind in enumerate(kinds)
        ]

    @field_validator("synthetic", mode="before")
    @classmethod
    def _read_kind(cls, value: Any) -> Any:
        return {"kind": "shapes", **value} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _require_possible(self) -> "Self":
        config, grid = self.config(), self.grid()
        if len(self.masks) > config.pred_num_mask_tokens:
            raise ValueError(
                f"the recipe has {len(self.masks)} kinds of masks, but the predictor has "
                f"{config.pred_num_mask_tokens} mask tokens; set model.pred_num_mask_tokens={len(self.masks)}"
            )
        for settings in self.masks:
            require_possible(settings, grid)
        if self.initial is not None and self.training.initial_checkpoint is not None:
            raise ValueError(
                f"the recipe has both initial '{self.initial}' and initial_checkpoint "
                f"'{self.training.initial_checkpoint}', but a run begins with one of them; leave the other out"
            )
        num_weights = sum(share.weight is not None for share in self.data)
        if num_weights not in (0, len(self.data)):
            raise ValueError(
                f"{num_weights} of {len(self.data)} sources of data have a weight; give one to each, or to none"
            )
        if self.clips.stream and num_weights:
            raise ValueError("data has weights, but a stream has none; leave them out, or set clips.stream=false")
        return self

    def config(self) -> VJEPAConfig:
        """A new configuration of the model."""
        return VJEPAConfig(**self.model.to_tree())

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
        given = self.training.to_tree()
        global_batch_size = given.pop(GLOBAL_BATCH_SIZE, None)
        arguments = VJEPATrainingArguments(output_dir=str(output_dir), **given)
        if global_batch_size is not None:
            arguments.gradient_accumulation_steps = accumulation_steps(
                global_batch_size,
                batch_size=arguments.per_device_train_batch_size,
                num_processes=arguments.world_size,
            )
        return arguments

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
        values: dict[str, Any] = {}
        if data is not None:
            given = [data] if isinstance(data, str | Path) else data
            shares = [share if isinstance(share, DataShare) else DataShare(path=str(share)) for share in given]
            values["data"] = [share.with_values(path=_absolute(share.path)) for share in shares]
        if initial is not None:
            values["initial"] = _absolute(initial)
        return self.with_values(**values)

    def to_yaml(self) -> str:
        """The text of a recipe file, which `load_recipe` reads back as an equal recipe."""
        return write_yaml(self.to_tree())


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else str(path)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A bundled recipe by its name, or a recipe file.

    Raises:
        KeyError: There is no such recipe and no such file, or the file has an unknown key.
        ValueError: The file is no YAML, or a value is wrong; the message names it.
    """
    path, known = Path(name_or_path), recipe_names()
    if str(name_or_path) in known:
        path = recipe_path(str(name_or_path))
    elif not path.is_file():
        raise KeyError(
            f"'{name_or_path}' is neither a recipe nor a file; recipes: {', '.join(known)}; the nearest is "
            f"'{nearest(str(name_or_path), known)}'"
        )
    tree = read_yaml(read_utf8(path), source=str(path))
    if not isinstance(tree, Mapping):
        raise SettingsError(f"{path} is no recipe: it must have keys and values")
    try:
        return Recipe.from_tree({"name": path.stem, **tree})
    except SettingsError as error:
        raise type(error)(f"{error} (in {path})") from error


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
    one, other = first.flatten(), second.flatten()
    return [key for key in {**one, **other} if (key in one, one.get(key)) != (key in other, other.get(key))]
