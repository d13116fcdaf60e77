"""From a name, a folder or a released file to a model that is ready to compute features."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import VJEPAModel
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .conversion import convert_original_features, find_config
from .registry import MODELS, ModelEntry

logger = logging.getLogger(__name__)

PROCESSOR_FILE = "video_preprocessor_config.json"


@dataclass(frozen=True)
class OpenedModel:
    """A model with what is needed to use it and to say what it was.

    Attributes:
        name: A registry name, a folder, a file, or a Hub name.
        model: In eval mode.
        processor: The video processor that belongs to it.
        weights: A sentence on where the weights come from, to be written into what is made with them.
        is_trained: False where the weights are a seeded initialisation.
    """

    name: str
    model: VJEPAModel
    processor: VJEPAVideoProcessor
    weights: str
    is_trained: bool


def load(
    name_or_path: str | Path,
    *,
    config: VJEPAConfig | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> VJEPAModel:
    """Load encoder and predictor for features, as `open_model` does, and return the model alone.

    Example:
        >>> import vjepa_hub
        >>> model = vjepa_hub.load("vjepa-vit-tiny")
    """
    return open_model(name_or_path, config=config, device=device, dtype=dtype).model


def open_model(
    name_or_path: str | Path,
    *,
    config: VJEPAConfig | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> OpenedModel:
    """Open a model for features, with its processor and a sentence on its weights.

    Args:
        name_or_path: `vjepa-vit-tiny`; a folder written by `save_pretrained` (features, pretraining or classifier); a
            released file (`*.pth.tar`); or a name on the Hub (`owner/name`).
        config: Configuration, or a JSON file of one, for a released file that is none of the registry's models.
        device: Where the model goes; the CPU by default.
        dtype: Number format of the weights, such as "bfloat16"; by default as stored.

    Raises:
        KeyError: No such name, folder or file.
        ValueError: The released file fits no configuration, or a configuration was passed where the model has its own.
        OSError: transformers could not load the folder or Hub name.
    """
    path = Path(name_or_path)
    if path.is_file():
        opened = _open_released_file(path, config)
    elif config is not None:
        raise ValueError(f"a configuration was passed for '{name_or_path}', but only a released file needs one")
    elif path.is_dir():
        opened = _open_pretrained(str(name_or_path), "folder")
    elif str(name_or_path) in MODELS:
        opened = _open_registered(MODELS[str(name_or_path)])
    elif str(name_or_path).count("/") == 1 and not path.suffix:
        opened = _open_pretrained(str(name_or_path), "Hub repository")
    else:
        raise KeyError(
            f"'{name_or_path}' is neither a folder, nor a file, nor a Hub name (owner/name), nor a registered model; "
            f"registered: {', '.join(MODELS)}"
        )
    number_format = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    opened.model.eval().to(device=device, dtype=number_format)
    return opened


def _open_registered(entry: ModelEntry) -> OpenedModel:
    if entry.seed is None:
        raise ValueError(
            f"'{entry.name}' has to be downloaded first: get {entry.checkpoint} (licence {entry.license}) "
            "and pass the file's path in place of the name"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entry.seed)
        model = VJEPAModel(entry.config())
    weights = f"untrained, seed {entry.seed}"
    logger.warning("%s is %s: its features show that things work, and no more", entry.name, weights)
    processor = VJEPAVideoProcessor(crop_size=model.config.crop_size)
    return OpenedModel(entry.name, model, processor, weights, is_trained=False)


def _open_pretrained(name: str, kind: str) -> OpenedModel:
    model = VJEPAModel.from_pretrained(name)
    is_processor_missing = kind == "folder" and not Path(name, PROCESSOR_FILE).is_file()
    if is_processor_missing:
        logger.warning("%s has no %s: the default of its crop size is used", name, PROCESSOR_FILE)
        processor = VJEPAVideoProcessor(crop_size=model.config.crop_size)
    else:
        processor = VJEPAVideoProcessor.from_pretrained(name)
    return OpenedModel(name, model, processor, f"from the {kind} {name}", is_trained=True)


def _open_released_file(file: Path, config: VJEPAConfig | str | Path | None) -> OpenedModel:
    config = resolve_config(file, config)
    model = convert_original_features(file, config)
    processor = VJEPAVideoProcessor(crop_size=config.crop_size)
    weights = f"target encoder of the released file {file.name}"
    return OpenedModel(str(file), model, processor, weights, is_trained=True)


def resolve_config(file: Path, config: VJEPAConfig | str | Path | None) -> VJEPAConfig:
    """The configuration of a released file: the given one, that of a JSON file, or the registry's that fits.

    Raises:
        ValueError: None was given, and no registered model fits the file.
    """
    if isinstance(config, VJEPAConfig):
        return config
    if config is not None:
        return VJEPAConfig.from_pretrained(str(config))
    candidates = [entry.config() for entry in MODELS.values() if entry.checkpoint is not None]
    found = find_config(file, candidates)
    if found is None:
        raise ValueError(
            f"{file} fits none of the released architectures ({', '.join(MODELS)}); pass its configuration, "
            "a JSON file such as save_pretrained writes"
        )
    return found
