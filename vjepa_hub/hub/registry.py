"""The models that go by a name: one table, which loading, cards and the README table read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..model.configuration_vjepa import VJEPAConfig

RELEASE_ADDRESS = "https://dl.fbaipublicfiles.com/jepa/"


@dataclass(frozen=True)
class ModelEntry:
    """A named model.

    Attributes:
        name: What users call it.
        description: One line for tables.
        fields: The fields of its configuration that differ from the defaults (ViT-L/16).
        checkpoint: Address of the released file, or None where the model is this package's own.
        probes: Address of each released attentive probe, by its data set.
        license: Licence of the weights, a Hub identifier.
        seed: Seed of the initialisation, for a model that has no trained weights yet.
    """

    name: str
    description: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    probes: Mapping[str, str] = field(default_factory=dict)
    license: str = "cc-by-nc-4.0"
    seed: int | None = None

    @property
    def is_trained(self) -> bool:
        """Whether there are trained weights of this model."""
        return self.seed is None

    def config(self) -> VJEPAConfig:
        """A new configuration of this model."""
        return VJEPAConfig(**self.fields)


def _released(name: str, description: str, folder: str, **fields) -> ModelEntry:
    probes = ("k400", "ssv2", "in1k", "places", "inat")
    return ModelEntry(
        name=name,
        description=description,
        fields=fields,
        checkpoint=f"{RELEASE_ADDRESS}{folder}/{folder}.pth.tar",
        probes={probe: f"{RELEASE_ADDRESS}{folder}/{probe}-probe.pth.tar" for probe in probes},
    )


_VITH16 = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}

_ENTRIES = (
    _released("vjepa-vitl16", "ViT-L/16, 224 pixels", "vitl16"),
    _released("vjepa-vith16", "ViT-H/16, 224 pixels", "vith16", **_VITH16),
    _released("vjepa-vith16-384", "ViT-H/16, 384 pixels", "vith16-384", crop_size=384, **_VITH16),
    ModelEntry(
        name="vjepa-vit-tiny",
        description="ViT-Ti/8, 112 pixels; untrained so far",
        fields={
            "patch_size": 8,
            "crop_size": 112,
            "hidden_size": 192,
            "num_hidden_layers": 12,
            "num_attention_heads": 3,
            "pred_hidden_size": 96,
            "pred_num_hidden_layers": 6,
            "pred_num_attention_heads": 3,
        },
        license="apache-2.0",
        seed=0,
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def find_model(name: str) -> ModelEntry:
    """The entry of a name.

    Raises:
        KeyError: There is no such model; the message lists those that there are.
    """
    if name not in MODELS:
        raise KeyError(f"unknown model '{name}'; available: {', '.join(MODELS)}")
    return MODELS[name]
