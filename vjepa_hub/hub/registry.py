"""The models that go by a name: one table, which loading, cards and the README table read.

The package's own models lie in it, in `weights/NAME`, with the recipe, log and record of their training. Released
files are fetched below `RELEASE_ADDRESS`. The environment variable `VJEPA_HUB_BASE_URL` sets another base address,
that of a mirror with the same folders and file names:

    VJEPA_HUB_BASE_URL=https://mirror.example.org/jepa/ vjepa-hub features street.mp4 --model vjepa-vitl16
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..core.names import nearest

if TYPE_CHECKING:
    from ..model.configuration_vjepa import VJEPAConfig

RELEASE_ADDRESS = "https://dl.fbaipublicfiles.com/jepa/"
RELEASE_LICENSE = "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/), which excludes commercial use"
BASE_ADDRESS_VARIABLE = "VJEPA_HUB_BASE_URL"
PAPER = "https://arxiv.org/abs/2404.08471"
CHECKPOINT_ENDINGS = frozenset((".tar", ".pth", ".pt", ".bin", ".safetensors"))


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A data set that the paper judges frozen encoders on, with a released attentive probe.

    Attributes:
        name: The data set's own name.
        task: The Hub's name of the task.
        num_classes: Its classes.
        probe: Name of the released probe's file, without its ending.
        clips: What of an item the probe sees, in words.
    """

    name: str
    task: str
    num_classes: int
    probe: str
    clips: str


_IMAGE_CLIP = "the image repeated to a clip, centre crop"

EVALUATION_SETS: Mapping[str, EvaluationSet] = {
    "k400": EvaluationSet(
        name="Kinetics-400",
        task="video-classification",
        num_classes=400,
        probe="k400-probe",
        clips="8 segments x 3 views, segments attended together, views averaged",
    ),
    "ssv2": EvaluationSet(
        name="Something-Something v2",
        task="video-classification",
        num_classes=174,
        probe="ssv2-probe",
        clips="2 segments x 3 views, segments attended together, views averaged",
    ),
    "in1k": EvaluationSet(
        name="ImageNet-1k", task="image-classification", num_classes=1000, probe="in1k-probe", clips=_IMAGE_CLIP
    ),
    "places205": EvaluationSet(
        name="Places205", task="image-classification", num_classes=205, probe="places-probe", clips=_IMAGE_CLIP
    ),
    "inat21": EvaluationSet(
        name="iNaturalist 2021", task="image-classification", num_classes=10_000, probe="inat-probe", clips=_IMAGE_CLIP
    ),
}
"""By the name of the evaluation protocol (`vjepa-hub probe --protocol`) and of the released probe."""


@dataclass(frozen=True)
class ModelEntry:
    """A named model.

    Attributes:
        name: What users call it.
        description: One line for tables.
        fields: The fields of its configuration that differ from the defaults (ViT-L/16).
        checkpoint: Address of the released file, or None where the weights are in the package.
        probes: Address of each released attentive probe, by its data set.
        license: Licence of the weights, a Hub identifier.
        torch_hub_entry: Its function in `hubconf.py`; empty where there is none.
        recipe: The bundled recipe that repeats its pretraining; None where there is none.
        datasets: What it was trained on, as the card's metadata name it.
        training: Facts of its training for the card, as text, which no record beside the weights tells.
        limits: For the card; empty for what holds for each model of its kind.
        results: Published top-1 accuracy in percent of the frozen encoder with an attentive probe, by evaluation set.
    """

    name: str
    description: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    probes: Mapping[str, str] = field(default_factory=dict)
    license: str = "cc-by-nc-4.0"
    torch_hub_entry: str = ""
    recipe: str | None = None
    datasets: tuple[str, ...] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""
    results: Mapping[str, float] = field(default_factory=dict)

    @property
    def bundled_folder(self) -> Path | None:
        """Where its weights lie in the package; None for a released model, which is downloaded."""
        return Path(__file__).parent / "weights" / self.name if self.checkpoint is None else None

    def config(self) -> "VJEPAConfig":
        """A new configuration of this model."""
        from ..model.configuration_vjepa import VJEPAConfig  # heavy: the table is read without it, for completion too

        return VJEPAConfig(**self.fields)


# The parts of VideoMix2M
_VIDEOMIX2M = ("kinetics-710", "something-something-v2", "howto100m")


def _released(
    name: str, description: str, *, batch_size: int, entry: str, results: tuple[float, ...], **fields
) -> ModelEntry:
    """A released model.

    Args:
        name: As in the registry; without the prefix, the release's folder and the recipe.
        description: One line for tables.
        batch_size: Clips in an optimiser step of its pretraining.
        entry: Its function in `hubconf.py`.
        results: Published accuracies in the order of `EVALUATION_SETS`.
        fields: Of the configuration, where they differ from the defaults.
    """
    folder = name.removeprefix("vjepa-")
    return ModelEntry(
        name=name,
        description=description,
        fields=fields,
        checkpoint=f"{RELEASE_ADDRESS}{folder}/{folder}.pth.tar",
        probes={name: f"{RELEASE_ADDRESS}{folder}/{found.probe}.pth.tar" for name, found in EVALUATION_SETS.items()},
        torch_hub_entry=entry,
        recipe=folder,
        datasets=_VIDEOMIX2M,
        training={
            "data": "VideoMix2M: Kinetics-710, Something-Something v2 and HowTo100M, 2 million videos without labels",
            "objective": "features of masked tokens, predicted; mean absolute error to the EMA target encoder's",
            "steps": f"90,000 of {batch_size:,} clips",
        },
        results=dict(zip(EVALUATION_SETS, results, strict=True)),
    )


_VITH16 = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}

_ENTRIES = (
    _released(
        "vjepa-vitl16",
        "ViT-L/16, 224 pixels",
        batch_size=3072,
        entry="vjepa_vit_large",
        results=(80.8, 69.5, 74.8, 60.3, 67.8),
    ),
    _released(
        "vjepa-vith16",
        "ViT-H/16, 224 pixels",
        batch_size=3072,
        entry="vjepa_vit_huge",
        results=(82.0, 71.4, 75.9, 61.7, 67.9),
        **_VITH16,
    ),
    _released(
        "vjepa-vith16-384",
        "ViT-H/16, 384 pixels",
        batch_size=2400,
        entry="vjepa_vit_huge_384",
        results=(81.9, 72.2, 77.4, 62.8, 72.6),
        crop_size=384,
        **_VITH16,
    ),
    ModelEntry(
        name="vjepa-vit-tiny",
        description="width 128, 6 layers, 64 pixels, 8 frames",
        fields={
            "patch_size": 16,
            "crop_size": 64,
            "frames_per_clip": 8,
            "hidden_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "initializer_range": 0.05,
            "pred_hidden_size": 64,
            "pred_num_hidden_layers": 4,
            "pred_num_attention_heads": 4,
        },
        license="apache-2.0",
        torch_hub_entry="vjepa_vit_tiny",
        recipe="vit-tiny",
        datasets=("zalando-datasets/fashion_mnist",),
        training={"pictures in the videos": "Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), MIT licence"},
        limits="It is small, and has seen nothing but grey pictures of clothes that move in grain. It is there so "
        "that every command has a trained model without a download, and so that anyone can train it again. It was not "
        "judged on real video: use a released model for that. An attentive head on all pixels of a clip (256 tokens "
        "in place of 64, and no encoder) comes to 37.4 and 72.7 % in the two tasks (`python benchmarks/claims.py "
        "--recipe vit-tiny`, one seed): as much as these features in motion, at a higher cost for each head.",
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def find_model(name: str) -> ModelEntry:
    """The entry of a name.

    Raises:
        KeyError: There is no such model; the message lists those that there are.
    """
    if name not in MODELS:
        raise KeyError(
            f"unknown model '{name}'; available: {', '.join(MODELS)}; the nearest is '{nearest(name, MODELS)}'"
        )
    return MODELS[name]


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form of a repository on the Hub, `owner/name`, and not of a released file."""
    is_pair = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None
    return is_pair and os.path.splitext(name)[1] not in CHECKPOINT_ENDINGS


def require_model(name_or_path: str | Path) -> None:
    """Refuse what cannot be a model: no name of the registry, folder, file, or name on the Hub.

    Raises:
        KeyError: It is none of these; the message lists the registered names.
    """
    name = str(name_or_path)
    if name not in MODELS and not is_hub_name(name) and not os.path.exists(name):
        raise KeyError(
            f"'{name}' is neither a folder, nor a file, nor a Hub name (owner/name), nor a registered model; "
            f"registered: {', '.join(MODELS)}; the nearest is '{nearest(name, MODELS)}'"
        )


def refuse_names_in_transformers() -> None:
    """Make transformers say how a model of this table is loaded, where it would ask the Hub for one of that name."""
    from transformers.utils import hub

    find_files = hub.cached_files  # through which all of its `from_pretrained` find their files

    @wraps(find_files)
    def find_files_of_others(path_or_repo_id: Any, *args: Any, **kwargs: Any) -> Any:
        name = str(path_or_repo_id)
        if name in MODELS and not os.path.isdir(name):
            raise OSError(
                f"'{name}' is a model of vjepa_hub, not a repository on the Hub: load it by vjepa_hub.load('{name}') "
                f"and vjepa_hub.load_processor('{name}')"
            )
        return find_files(path_or_repo_id, *args, **kwargs)

    hub.cached_files = find_files_of_others


def find_bundled(name: str) -> Path | None:
    """Where the weights of a name lie in the package; None for a released model, and for any other name."""
    return MODELS[name].bundled_folder if name in MODELS else None


def download_address(address: str) -> str:
    """Where a released file is fetched: its address in the table, or the same file below the user's base address.

    Args:
        address: A `checkpoint` or probe of a `ModelEntry`. One that is not below `RELEASE_ADDRESS` stays as it is.

    Raises:
        ValueError: `VJEPA_HUB_BASE_URL` is set, but is no http or https address.
    """
    base = os.environ.get(BASE_ADDRESS_VARIABLE)
    if not base or not address.startswith(RELEASE_ADDRESS):
        return address
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{BASE_ADDRESS_VARIABLE} is '{base}', but has to be an http or https address; give that of the folder "
            f"which stands for {RELEASE_ADDRESS}, or unset it"
        )
    return f"{base.rstrip('/')}/{address.removeprefix(RELEASE_ADDRESS)}"
