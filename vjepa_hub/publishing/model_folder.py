"""The files of a published model: which there are, and how they compare with what this package would write.

Whether they are whole, and safe to read, is `safety`'s to say.
"""

import json
from pathlib import Path, PurePosixPath

from .. import model as model_package
from ..hub.safety import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, RefusedModelError
from ..model import modeling_vjepa
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import AUTO_CLASSES, VJEPAPreTrainedModel

CARD_FILE, PROCESSOR_FILE = "README.md", "video_preprocessor_config.json"
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"  # names the same class to AutoImageProcessor
MODEL_CODE = ("configuration_vjepa.py", "modeling_vjepa.py", "video_processing_vjepa.py")
# Files that can run code when they are read without care
PICKLE_ENDINGS = frozenset((".bin", ".pt", ".pth", ".tar", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"))


def list_weight_files(folder: Path) -> list[str]:
    """The names of a folder's weights: the single file, or the index and its shards. `safety` has checked them.

    Args:
        folder: Of the model.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    return [INDEX_FILE, *sorted(set(index["weight_map"].values()))]


def find_model_class(config: VJEPAConfig) -> type[VJEPAPreTrainedModel]:
    """The class that wrote a folder, by its configuration.

    Raises:
        RefusedModelError: It names none of the family's.
    """
    name = (config.architectures or ["none"])[0]
    if name not in AUTO_CLASSES.values():
        known = ", ".join(AUTO_CLASSES.values())
        raise RefusedModelError(
            f"{CONFIG_FILE} names the class {name}, but the family's are {known}; save_pretrained the model anew"
        )
    return getattr(modeling_vjepa, name)


def package_code(name: str) -> bytes:
    """A model file of this package, as `save_pretrained` copies it.

    Args:
        name: One of `MODEL_CODE`.
    """
    return Path(str(model_package.__file__)).with_name(name).read_bytes()


def list_differing_code(folder: Path) -> list[str]:
    """The model files of a folder that differ from this package's; what is missing is not named."""
    files = [name for name in MODEL_CODE if (folder / name).is_file()]
    return [name for name in files if (folder / name).read_bytes() != package_code(name)]


def is_pickle(name: str) -> bool:
    """Return whether a file is of a kind that can run code when it is read, by its name."""
    return PurePosixPath(name.lower()).suffix in PICKLE_ENDINGS
