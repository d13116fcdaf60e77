"""The models that go by a name: one table, which loading, cards and the README table read.

The package's own models lie in it, in `weights/NAME`, with the recipe, log and record of their training. Released
files are fetched below `RELEASE_ADDRESSES`. The environment variable `VJEPA_HUB_BASE_URL` sets another base address,
which stands for each of them: that of a mirror with the same folders and file names:

    VJEPA_HUB_BASE_URL=https://mirror.example.org/jepa/ vjepa-hub features street.mp4 --model vjepa-vitl16
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..core.names import nearest

if TYPE_CHECKING:
    from ..model.configuration_vjepa import VJEPAConfig

RELEASE_ADDRESS = "https://dl.fbaipublicfiles.com/jepa/"
RELEASE_ADDRESS_2 = "https://dl.fbaipublicfiles.com/vjepa2/"
RELEASE_ADDRESSES = (RELEASE_ADDRESS, RELEASE_ADDRESS_2)
RELEASE_LICENSES = {
    "cc-by-nc-4.0": "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/), which excludes commercial use",
    "mit": "the MIT licence (https://opensource.org/license/mit)",
}
BASE_ADDRESS_VARIABLE = "VJEPA_HUB_BASE_URL"
CHECKPOINT_ENDINGS = frozenset((".tar", ".pth", ".pt", ".bin", ".safetensors"))


class Paper(NamedTuple):
    """Paper of a generation of the family.

    Attributes:
        family: Name of the generation.
        authors: For a reference, with the year.
        address: Where it is read.
    """

    family: str
    authors: str
    address: str


PAPERS = {
    "sincos": Paper("V-JEPA", "Bardes et al. 2024", "https://arxiv.org/abs/2404.08471"),
    "rotary_tiled": Paper("V-JEPA 2", "Assran et al. 2025", "https://arxiv.org/abs/2506.09985"),
    "rotary": Paper("V-JEPA 2.1", "Mur-Labadia et al. 2026", "https://arxiv.org/abs/2603.14482"),
}
"""By the configuration's `position_embedding`, in which the generations differ."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A data set that the papers judge frozen encoders on, with a released attentive probe.

    Attributes:
        name: The data set's own name.
        task: The Hub's name of the task.
        num_classes: Its classes.
        clips: What of an item the probe sees, in words.
        metric: Of the published numbers.
        refusal: Why the released probes are not loaded; empty where they are.
    """

    name: str
    task: str
    num_classes: int
    clips: str
    metric: str = "top-1 accuracy (%)"
    refusal: str = ""


_IMAGE_CLIP = "the image repeated to a clip, centre crop"

EVALUATION_SETS: Mapping[str, EvaluationSet] = {
    "k400": EvaluationSet(
        name="Kinetics-400",
        task="video-classification",
        num_classes=400,
        clips="8 segments x 3 views, segments attended together, views averaged",
    ),
    "ssv2": EvaluationSet(
        name="Something-Something v2",
        task="video-classification",
        num_classes=174,
        clips="2 segments x 3 views, segments attended together, views averaged",
    ),
    "in1k": EvaluationSet(name="ImageNet-1k", task="image-classification", num_classes=1000, clips=_IMAGE_CLIP),
    "places205": EvaluationSet(name="Places205", task="image-classification", num_classes=205, clips=_IMAGE_CLIP),
    "inat21": EvaluationSet(
        name="iNaturalist 2021", task="image-classification", num_classes=10_000, clips=_IMAGE_CLIP
    ),
    "diving48": EvaluationSet(
        name="Diving48",
        task="video-classification",
        num_classes=48,
        clips="4 segments x 3 views of 32 frames, the tokens of four blocks and all segments attended together, views "
        "averaged",
    ),
    "ek100": EvaluationSet(
        name="EPIC-KITCHENS-100",
        task="video-classification",
        num_classes=3568,
        clips="32 frames, 8 a second, that end one second before the action",
        metric="mean-class recall at 5 of anticipated actions (%)",
        refusal="it takes features that the predictor gives for the second ahead, and has three heads (verb, noun, "
        "action): the protocol of action anticipation is not here yet",
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
        probe_fields: Fields of the configuration in which the classifier with a probe differs, by its data set.
        license: Licence of the weights, a Hub identifier.
        torch_hub_entry: Its function in `hubconf.py`; empty where there is none.
        recipe: The bundled recipe that repeats its pretraining; None where there is none.
        datasets: What it was trained on, as the card's metadata name it.
        training: Facts of its training for the card, as text, which no record beside the weights tells.
        limits: For the card; empty for what holds for each model of its kind.
        results: Published number of the frozen encoder with an attentive probe, by evaluation set.
    """

    name: str
    description: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    probes: Mapping[str, str] = field(default_factory=dict)
    probe_fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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

    def config(self, dataset: str | None = None) -> "VJEPAConfig":
        """A new configuration of this model, or of its classifier for a data set of `probes`."""
        from ..model.configuration_vjepa import VJEPAConfig  # heavy: the table is read without it, for completion too

        return VJEPAConfig(**{**self.fields, **(self.probe_fields.get(dataset, {}) if dataset else {})})


# The parts of VideoMix2M
_VIDEOMIX2M = ("kinetics-710", "something-something-v2", "howto100m")
_OBJECTIVE = "features of masked tokens, predicted; mean absolute error to the EMA target encoder's"
_PROBES = {
    "k400": "k400-probe",
    "ssv2": "ssv2-probe",
    "in1k": "in1k-probe",
    "places205": "places-probe",
    "inat21": "inat-probe",
}


def _released(
    name: str, description: str, *, batch_size: int, entry: str, results: tuple[float, ...], **fields
) -> ModelEntry:
    """A released model.

    Args:
        name: As in the registry; without the prefix, the release's folder and the recipe.
        description: One line for tables.
        batch_size: Clips in an optimiser step of its pretraining.
        entry: Its function in `hubconf.py`.
        results: Published accuracies in the order of `_PROBES`.
        fields: Of the configuration, where they differ from the defaults.
    """
    folder = name.removeprefix("vjepa-")
    return ModelEntry(
        name=name,
        description=description,
        fields=fields,
        checkpoint=f"{RELEASE_ADDRESS}{folder}/{folder}.pth.tar",
        probes={dataset: f"{RELEASE_ADDRESS}{folder}/{file}.pth.tar" for dataset, file in _PROBES.items()},
        torch_hub_entry=entry,
        recipe=folder,
        datasets=_VIDEOMIX2M,
        training={
            "data": "VideoMix2M: Kinetics-710, Something-Something v2 and HowTo100M, 2 million videos without labels",
            "objective": _OBJECTIVE,
            "steps": f"90,000 of {batch_size:,} clips",
        },
        results=dict(zip(_PROBES, results, strict=True)),
    )


_VITH16 = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
_VITG16 = {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 22, "mlp_ratio": 48 / 11}

# What all encoders of V-JEPA 2 and 2.1 share
_FIELDS_2 = {
    "crop_size": 256,
    "frames_per_clip": 64,
    "pred_num_attention_heads": 12,
    "pred_num_mask_tokens": 10,
    "position_embedding": "rotary_tiled",
    "mask_token_selection": "clip_length",
    "rescale_initial_weights": True,
}
_FIELDS_2_1 = {
    **_FIELDS_2,
    "crop_size": 384,
    "pred_num_mask_tokens": 8,
    "position_embedding": "rotary",
    "rotary_reference_grid": 16,
    "image_tokenizer": True,
    "modality_embeddings": True,
    "pred_predicts_context": True,
}
_FOUR_LEVELS = {"pred_num_hidden_layers": 24, "pred_num_feature_levels": 4, "pred_rotary_reference_grid": 16}
_POOLER_2 = {"num_pooler_layers": 4, "num_pooler_heads": 16}


def _released_2(
    name: str,
    description: str,
    file: str,
    *,
    entry: str,
    fields: Mapping[str, Any],
    results: Mapping[str, float],
    probes: Mapping[str, str] | None = None,
    probe_fields: Mapping[str, Mapping[str, Any]] | None = None,
) -> ModelEntry:
    """A released model of V-JEPA 2 or 2.1.

    Args:
        name: As in the registry.
        description: One line for tables.
        file: Name of the released file, without its ending.
        entry: Its function in `hubconf.py`.
        fields: Of the configuration, where they differ from those that its generation shares.
        results: Published numbers, by evaluation set.
        probes: Names of the released probes' files, without their ending, by evaluation set.
        probe_fields: Of the classifier's configuration, beside `_POOLER_2`, by evaluation set.
    """
    is_2_1 = name.startswith("vjepa2.1")
    training = {"data": "videos of the web and pictures, without labels", "objective": _OBJECTIVE}
    if "pred_output_size" in fields:
        training["objective"] = "distilled: trained to predict the last features of ViT-G, which stayed frozen"
    elif is_2_1:
        training["objective"] += "; at four depths, and with a weight of 0.5 at the visible tokens too"
    return ModelEntry(
        name=name,
        description=description,
        fields={**(_FIELDS_2_1 if is_2_1 else _FIELDS_2), **fields},
        checkpoint=f"{RELEASE_ADDRESS_2}{file}.pt",
        probes={dataset: f"{RELEASE_ADDRESS_2}evals/{probe}.pt" for dataset, probe in (probes or {}).items()},
        probe_fields={dataset: {**_POOLER_2, **own} for dataset, own in (probe_fields or {}).items()},
        license="mit",
        torch_hub_entry=entry,
        training=training,
        results=results,
    )


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
    _released_2(
        "vjepa2-vitl16",
        "V-JEPA 2 ViT-L/16, 256 pixels",
        "vitl",
        entry="vjepa2_vit_large",
        fields={},
        results={"ssv2": 73.7, "diving48": 89.0, "ek100": 32.7},
        probes={"ssv2": "ssv2-vitl-16x2x3", "diving48": "diving48-vitl-256", "ek100": "ek100-vitl-256"},
        probe_fields={
            "ssv2": {"frames_per_clip": 16},
            "diving48": {"frames_per_clip": 32, "pooler_feature_layers": [17, 19, 21, 23]},
        },
    ),
    _released_2(
        "vjepa2-vith16", "V-JEPA 2 ViT-H/16, 256 pixels", "vith", entry="vjepa2_vit_huge", fields=_VITH16, results={}
    ),
    _released_2(
        "vjepa2-vitg16", "V-JEPA 2 ViT-g/16, 256 pixels", "vitg", entry="vjepa2_vit_giant", fields=_VITG16, results={}
    ),
    _released_2(
        "vjepa2-vitg16-384",
        "V-JEPA 2 ViT-g/16, 384 pixels",
        "vitg-384",
        entry="vjepa2_vit_giant_384",
        fields={**_VITG16, "crop_size": 384},
        results={"ssv2": 77.3, "diving48": 90.2, "ek100": 39.7},
        probes={"ssv2": "ssv2-vitg-384-64x2x3", "diving48": "diving48-vitg-384-32x4x3", "ek100": "ek100-vitg-384"},
        probe_fields={
            "ssv2": {"frames_per_clip": 64},
            "diving48": {"frames_per_clip": 32, "pooler_feature_layers": [24, 29, 34, 39]},
        },
    ),
    _released_2(
        "vjepa2.1-vitb16-384",
        "V-JEPA 2.1 ViT-B/16, 384 pixels, distilled from ViT-G",
        "vjepa2_1_vitb_dist_vitG_384",
        entry="vjepa2_1_vit_base_384",
        fields={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "feature_levels": [2, 5, 8, 11],
            "pred_output_size": 1664,
        },
        results={},
    ),
    _released_2(
        "vjepa2.1-vitl16-384",
        "V-JEPA 2.1 ViT-L/16, 384 pixels, distilled from ViT-G",
        "vjepa2_1_vitl_dist_vitG_384",
        entry="vjepa2_1_vit_large_384",
        fields={"feature_levels": [5, 11, 17, 23], "pred_output_size": 1664},
        results={"ssv2": 76.5},
    ),
    _released_2(
        "vjepa2.1-vitg16-384",
        "V-JEPA 2.1 ViT-g/16, 384 pixels",
        "vjepa2_1_vitg_384",
        entry="vjepa2_1_vit_giant_384",
        fields={**_VITG16, **_FOUR_LEVELS, "feature_levels": [9, 19, 29, 39]},
        results={"k400": 87.0, "ssv2": 76.9, "in1k": 84.8, "diving48": 89.0},
    ),
    _released_2(
        "vjepa2.1-vitgg16-384",
        "V-JEPA 2.1 ViT-G/16, 384 pixels",
        "vjepa2_1_vitG_384",
        entry="vjepa2_1_vit_gigantic_384",
        fields={
            "hidden_size": 1664,
            "num_hidden_layers": 48,
            "num_attention_heads": 26,
            "mlp_ratio": 64 / 13,
            "feature_levels": [11, 23, 37, 47],
            **_FOUR_LEVELS,
        },
        results={"k400": 87.7, "ssv2": 77.7, "in1k": 85.5, "diving48": 89.2, "ek100": 40.8},
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
        raise KeyError(f"unknown model '{name}'; available: {', '.join(MODELS)}; {_meant(name)}")
    return MODELS[name]


def _meant(name: str) -> str:
    if "vitG" in name:  # capital alone tells ViT-G from ViT-g in the release's names
        return "ViT-G is 'vjepa2.1-vitgg16-384', ViT-g 'vjepa2-vitg16' or 'vjepa2.1-vitg16-384'"
    return f"the nearest is '{nearest(name, MODELS)}'"


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
            f"registered: {', '.join(MODELS)}; {_meant(name)}"
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
        address: A `checkpoint` or probe of a `ModelEntry`. One that is below no release's address stays as it is.

    Raises:
        ValueError: `VJEPA_HUB_BASE_URL` is set, but is no http or https address.
    """
    base = os.environ.get(BASE_ADDRESS_VARIABLE)
    release = next((release for release in RELEASE_ADDRESSES if address.startswith(release)), None)
    if not base or release is None:
        return address
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{BASE_ADDRESS_VARIABLE} is '{base}', but has to be an http or https address; give that of the folder "
            f"which stands for {release}, or unset it"
        )
    return f"{base.rstrip('/')}/{address.removeprefix(release)}"
