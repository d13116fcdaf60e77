"""The models that go by a name: one table, which loading, cards and the README table read.

Released files are fetched below `RELEASE_ADDRESS`. The environment variable `VJEPA_HUB_BASE_URL` sets another base
address, that of a mirror with the same folders and file names:

    VJEPA_HUB_BASE_URL=https://mirror.example.org/jepa/ vjepa-hub features street.mp4 --model vjepa-vitl16
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..model.configuration_vjepa import VJEPAConfig

RELEASE_ADDRESS = "https://dl.fbaipublicfiles.com/jepa/"
RELEASE_LICENSE = "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/), which excludes commercial use"
BASE_ADDRESS_VARIABLE = "VJEPA_HUB_BASE_URL"


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
