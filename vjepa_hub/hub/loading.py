"""From a name, a folder or a released file to a model that is ready to compute features.

Released models are downloaded and converted once. What is cached is a folder of safetensors for `from_pretrained`,
in huggingface_hub's cache (`HF_HUB_CACHE`, or below `HF_HOME`) and in its layout: `hf cache` lists and removes it.

    models--vjepa_hub--vjepa-vitl16/snapshots/converter-1/         encoder and predictor
    models--vjepa_hub--vjepa-vitl16-k400/snapshots/converter-1/    a probe, with a copy of the encoder
    models--vjepa_hub--vjepa-vitl16/blobs/                         the download, while it is needed
    models--vjepa_hub--vjepa-vitl16/kept/                          the download, with keep_download=True

The downloaded file (5 GB for ViT-L, most of it optimiser state) is deleted after a good conversion. A package whose
converter has another version converts again, from a kept file or from a new download. The environment variable
`VJEPA_HUB_BASE_URL` sets the address of a mirror (see `registry`), `HF_HUB_OFFLINE=1` forbids every request.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from safetensors.torch import load_file

from ..core.files import folder_written_whole, put_in_place
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import (
    VJEPAForVideoClassification,
    VJEPAModel,
    VJEPAPreTrainedModel,
)
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .class_names import UNCERTAIN, known_class_names
from .conversion import (
    CONVERTER_VERSION,
    ConversionError,
    attach_original_probe,
    convert_file,
    convert_original_features,
    find_configs,
    write_folder,
)
from .default_processor import default_processor
from .download import DownloadError, download_file
from .registry import (
    EVALUATION_SETS,
    MODELS,
    RELEASE_LICENSES,
    ModelEntry,
    download_address,
    find_bundled,
    find_model,
    require_model,
)
from .safety import (
    CONFIG_FILE,
    RefusedModelError,
    check_folder,
    check_size,
    fetch_repository,
    is_transformers_folder,
    read_config,
    weights_files,
)
from .transformers_vjepa2 import from_transformers_state

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=VJEPAPreTrainedModel)
DeviceMap = str | dict[str, int | str | torch.device] | None

# The Hub has no account with an underscore in its name: no repository of it can be meant
CACHE_ACCOUNT = "vjepa_hub"
# How the origin of weights that no training has touched begins, in the configuration that travels with them
UNTRAINED = "untrained"
PROCESSOR_FILE = "video_preprocessor_config.json"


@dataclass(frozen=True)
class OpenedModel:
    """A model with what is needed to use it and to say what it was.

    Attributes:
        name: A registry name, a folder, a file, or a Hub name.
        model: In eval mode.
        processor: The video processor that belongs to it.
        weights: A sentence on where the weights come from, to be written into what is made with them.
        is_trained: False where the weights are an initialisation.
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
    device_map: DeviceMap = None,
    keep_download: bool = False,
) -> VJEPAModel:
    """Load encoder and predictor for features, as `open_model` does, and return the model alone.

    Example:
        >>> import vjepa_hub
        >>> model = vjepa_hub.load("vjepa-vitl16")  # downloads and converts at the first time
    """
    return open_model(
        name_or_path, config=config, device=device, dtype=dtype, device_map=device_map, keep_download=keep_download
    ).model


def open_model(
    name_or_path: str | Path,
    *,
    config: VJEPAConfig | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: DeviceMap = None,
    keep_download: bool = False,
) -> OpenedModel:
    """Open a model for features, with its processor and a sentence on its weights.

    A released model (`vjepa-vitl16`, ...) is downloaded and converted at the first time, and comes from the cache
    from then on, offline too; the module's docstring says where things lie. Its licence is logged each time.

    Args:
        name_or_path: A name of the registry; a folder written by `save_pretrained` (features, pretraining or
            classifier); a released file (`*.pth.tar`); or a name on the Hub (`owner/name`).
        config: Configuration, or a JSON file of one, for a released file that is none of the registry's models.
        device: Where the model goes; the CPU by default.
        dtype: Number format of the weights, such as "bfloat16"; by default as stored.
        device_map: As of transformers' `from_pretrained`, in place of `device`: "auto" spreads the model over the
            accelerators and the memory.
        keep_download: Keep the downloaded file beside its conversion, so that another version of the converter finds
            it. By default it is deleted; nothing is downloaded for the sake of being kept.

    Raises:
        KeyError: No such name, folder or file.
        ValueError: The released file fits no configuration, a configuration was passed where the model has its own,
            `device_map` beside `device` or for a released file, or the files are damaged or lie about themselves
            (`safety.RefusedModelError`).
        DownloadError: A released model is not in the cache and could not be downloaded; an OSError.
        OSError: transformers could not load the folder or Hub name.
        ImportError: The weights are quantised, and the library that they were quantised with is not installed.
    """
    require_model(name_or_path)
    path, options = Path(name_or_path), _loading_options(device, dtype, device_map)
    if path.is_file():
        if device_map is not None:
            raise ValueError(
                f"device_map was passed for the released file {path}, but only a folder of safetensors can be spread; "
                "write one with `vjepa-hub convert`, and load that"
            )
        opened = _open_released_file(path, config)
        cast(torch.nn.Module, opened.model).to(dtype=options.get("dtype"))
    elif config is not None:
        raise ValueError(f"a configuration was passed for '{name_or_path}', but only a released file needs one")
    elif path.is_dir():
        opened = _open_pretrained(str(name_or_path), "folder", options)
    elif str(name_or_path) in MODELS:
        opened = _open_registered(MODELS[str(name_or_path)], keep_download, options)
    else:
        opened = _open_pretrained(str(name_or_path), "Hub repository", options)
    if device_map is None:
        cast(torch.nn.Module, opened.model).to(device=device)
    opened.model.eval()
    return opened


def load_processor(name_or_path: str | Path) -> VJEPAVideoProcessor:
    """Load the video processor that belongs to a model: its crop size, and how it takes frames from a video.

    For a released model nothing is downloaded; of a Hub repository all is fetched that `load` needs of it.

    Args:
        name_or_path: As for `load`: a name of the registry, a folder, a released file, or a name on the Hub.

    Raises:
        KeyError: No such name, folder or file.
        ValueError: The folder's processor is damaged, or the released file fits no configuration.
        OSError: There is no such repository.

    Example:
        >>> import vjepa_hub
        >>> processor = vjepa_hub.load_processor("vjepa-vitl16")
    """
    require_model(name_or_path)
    name, path = str(name_or_path), Path(name_or_path)
    if path.is_file():
        return default_processor(resolve_config(path, None))
    if name in MODELS and not path.is_dir():
        folder = find_bundled(name) or find_cached(name)
        if folder is None:
            return default_processor(MODELS[name].config())
    else:
        folder = path if path.is_dir() else fetch_repository(name)
    return _find_processor(folder, name, check_folder(folder))


def load_classifier(
    name: str | Path,
    dataset: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: DeviceMap = None,
    keep_download: bool = False,
) -> VJEPAForVideoClassification:
    """Load a released model with its attentive probe, downloaded, converted and cached as by `open_model`.

    The encoder comes from the cache where it is there already: then only the probe is fetched. Without a data set a
    folder or Hub repository is loaded that holds a classifier, of this package or of transformers' VJEPA2.

    Args:
        name: A released model of the registry, such as `vjepa-vitl16`; or a folder, or `owner/name` on the Hub.
        dataset: What the released probe was trained on: k400, ssv2, in1k, places205 or inat21; with V-JEPA 2 ssv2 or
            diving48.
        device: Where the model goes; the CPU by default.
        dtype: Number format of the weights, such as "bfloat16"; by default as stored.
        device_map: As of transformers' `from_pretrained`, in place of `device`: "auto" spreads the model over the
            accelerators and the memory.
        keep_download: As for `open_model`, for the probe and, if it is fetched, for the encoder.

    Returns:
        The classifier, in eval mode. The probe on ImageNet names its classes. The labels of the others are LABEL_0,
        LABEL_1, ...: the released files hold no names; the reason is logged once.

    Raises:
        KeyError: There is no such model, or no such probe of it.
        ValueError: The probe cannot be used yet; the message says why.
        RefusedModelError: A folder or repository is damaged, or holds no classifier; a ValueError.
        DownloadError: It is not in the cache and could not be downloaded; an OSError.

    Example:
        >>> from vjepa_hub.hub.loading import load_classifier
        >>> classifier = load_classifier("vjepa-vitl16", "k400")
    """
    options = _loading_options(device, dtype, device_map)
    if dataset is None:
        if str(name) in MODELS and not Path(name).is_dir():
            raise KeyError(f"'{name}' is a released model: name the data set of its probe too, such as ssv2")
        require_model(name)
        return _open_classifier_folder(name, options)[0]
    name = str(name)
    entry = find_model(name)
    if dataset not in entry.probes:
        known = ", ".join(entry.probes) or "none"
        raise KeyError(f"'{name}' has no probe for '{dataset}'; there are: {known}")
    if EVALUATION_SETS[dataset].refusal:
        usable = ", ".join(probe for probe in entry.probes if not EVALUATION_SETS[probe].refusal) or "none"
        raise ValueError(
            f"the probe of '{name}' for '{dataset}' cannot be used: {EVALUATION_SETS[dataset].refusal}. Load another: "
            f"{usable}"
        )
    folder = _cache_classifier(entry, dataset, keep_download)
    _log_license(name, entry)
    classifier = VJEPAForVideoClassification.from_pretrained(folder, **options)
    _name_classes(classifier, dataset)
    return classifier.eval() if device_map is not None else classifier.eval().to(device=device)


def load_untrained(
    name: str, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> VJEPAModel:
    """Build a registered architecture with random weights from torch's global generator; nothing is downloaded.

    Args:
        name: A model of the registry.
        device: Where the model goes; by default where torch builds it.
        dtype: Number format of the weights; by default torch's.

    Raises:
        KeyError: There is no such model.
    """
    config = find_model(name).config()
    config.weights_origin = f"{UNTRAINED}, random"
    options = _loading_options(device, dtype, None)
    return VJEPAModel(config).eval().to(device=device, dtype=options.get("dtype"))


def find_cached(name: str, dataset: str | None = None) -> Path | None:
    """The folder of a released model, or of its probe, in the cache; None where it has not been converted yet.

    Args:
        name: A model of the registry.
        dataset: A data set of its probes, for the classifier.

    Raises:
        KeyError: There is no such model.
    """
    snapshot = _snapshot(_cache_name(find_model(name), dataset))
    return snapshot if snapshot.is_dir() else None


def _loading_options(
    device: str | torch.device | None, dtype: str | torch.dtype | None, device_map: DeviceMap
) -> dict[str, Any]:
    """Options of `from_pretrained`: weights are read in their number format, and to where they belong."""
    number_format = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(number_format, torch.dtype) and number_format.is_floating_point):
        raise ValueError(f"dtype is '{dtype}', but must be a floating format such as float32, bfloat16 or float16")
    if device is not None and device_map is not None:
        raise ValueError(f"device is '{device}' and device_map {device_map!r}; give one of the two")
    options = {"dtype": number_format, "device_map": device_map}
    return {name: value for name, value in options.items() if value is not None}


def _open_registered(entry: ModelEntry, keep_download: bool, options: Mapping[str, Any]) -> OpenedModel:
    if entry.bundled_folder is not None:
        return _open_bundled(entry.name, entry.bundled_folder, options)
    folder = _cache_features(entry, keep_download)
    _log_license(entry.name, entry)
    address = str(entry.checkpoint)
    weights = f"{_describe_released(_file_name(address))} from {address}"
    processor = VJEPAVideoProcessor.from_pretrained(folder)
    model = VJEPAModel.from_pretrained(folder, **options)
    return OpenedModel(entry.name, model, processor, weights, is_trained=True)


def _open_bundled(name: str, folder: Path, options: Mapping[str, Any]) -> OpenedModel:
    model = VJEPAModel.from_pretrained(folder, **options)
    model.name_or_path = model.config.name_or_path = name
    processor = VJEPAVideoProcessor.from_pretrained(folder)
    return OpenedModel(name, model, processor, f"in vjepa_hub ({model.config.weights_origin})", is_trained=True)


def _name_classes(classifier: VJEPAForVideoClassification, dataset: str) -> None:
    names = known_class_names(dataset)
    if names is None:
        _log_unnamed_classes(dataset)
    elif len(names) != classifier.config.num_labels:
        raise ValueError(
            f"the probe for '{dataset}' has {classifier.config.num_labels} classes, but the data set has "
            f"{len(names)}: it is not the released one; fetch it anew"
        )
    else:
        classifier.config.id2label = dict(enumerate(names))
        classifier.config.label2id = {name: number for number, name in enumerate(names)}


@cache
def _log_unnamed_classes(dataset: str) -> None:
    """Log why the labels stay numbers, once in a process."""
    reason = UNCERTAIN.get(dataset, "no names of its classes are known here")
    logger.warning("the classes of '%s' stay LABEL_0, LABEL_1, ...: %s", dataset, reason)


def _log_license(name: str, entry: ModelEntry) -> None:
    logger.warning("the weights of %s are under %s", name, RELEASE_LICENSES[entry.license])


def _describe_released(file_name: str) -> str:
    return f"target encoder of the released file {file_name}, converter version {CONVERTER_VERSION}"


def _open_pretrained(name: str, kind: str, options: Mapping[str, Any]) -> OpenedModel:
    folder = Path(name) if kind == "folder" else fetch_repository(name)
    config = check_folder(folder)
    model = _load_checked(VJEPAModel, folder, config, **options)
    model.name_or_path = model.config.name_or_path = name
    processor = _find_processor(folder, name, config)
    origin = model.config.weights_origin or ""
    is_trained = not origin.startswith(UNTRAINED)
    if not is_trained:
        logger.warning("%s is %s", name, origin)
    weights = f"from the {kind} {name}" + (f" ({origin})" if origin else "")
    return OpenedModel(name, model, processor, weights, is_trained)


def load_folder(model_class: type[Model], name: str | Path) -> Model:
    """Load a folder or Hub repository as a model of this class, after `safety` has checked all that is read of it.

    Args:
        model_class: Of the family.
        name: A folder as `save_pretrained` writes it, or `owner/name` on the Hub.

    Raises:
        RefusedModelError: A file lies, is damaged, or leads out of the folder; a ValueError.
        OSError: There is no such folder or repository, or nothing to load in it.
    """
    folder = Path(name) if Path(name).is_dir() else fetch_repository(str(name))
    return _load_checked(model_class, folder, check_folder(folder))


def open_classifier(
    name: str | Path, dataset: str | None = None
) -> tuple[VJEPAForVideoClassification, VJEPAVideoProcessor]:
    """Open a classifier with its processor, checked as by `load_folder`; or a released model with its probe.

    Args:
        name: A folder, or `owner/name` on the Hub; with a data set a model of the registry.
        dataset: Of a released probe, as for `load_classifier`.

    Raises:
        KeyError: There is no such released model or probe.
        RefusedModelError: A file lies, is damaged, leads out of the folder, or holds no classifier; a ValueError.
        OSError: There is no such folder or repository, nothing to load in it, or no network.
    """
    if dataset is not None:
        classifier = load_classifier(str(name), dataset)
        return classifier, default_processor(classifier.config, is_classifier=True)
    return _open_classifier_folder(name, {})


def _open_classifier_folder(
    name: str | Path, options: Mapping[str, Any]
) -> tuple[VJEPAForVideoClassification, VJEPAVideoProcessor]:
    folder = Path(name) if Path(name).is_dir() else fetch_repository(str(name))
    config = check_folder(folder)
    if VJEPAForVideoClassification.__name__ not in (config.architectures or ()):
        raise RefusedModelError(
            f"{name} holds {' or '.join(config.architectures or ['no model'])}, not a classifier: it has no head that "
            "could classify; train one with `vjepa-hub probe` or `vjepa-hub finetune`"
        )
    model = _load_checked(VJEPAForVideoClassification, folder, config, **options)
    return model.eval(), _find_processor(folder, str(name), config)


def _find_processor(folder: Path, name: str, config: VJEPAConfig) -> VJEPAVideoProcessor:
    is_classifier = VJEPAForVideoClassification.__name__ in (config.architectures or ())
    if is_transformers_folder(folder):  # the release's preprocessing, of which transformers' own differs
        return default_processor(config, is_classifier=is_classifier)
    if (folder / PROCESSOR_FILE).is_file():
        return _open_processor(folder)
    logger.warning("%s has no %s: the default of its configuration is used", name, PROCESSOR_FILE)
    return default_processor(config, is_classifier=is_classifier)


def _load_checked(model_class: type[Model], folder: Path, config: VJEPAConfig, **options: Any) -> Model:
    """Load the checked folder itself, by the checked configuration, from safetensors."""
    if is_transformers_folder(folder):
        stored = {name: tensor for file in weights_files(folder) for name, tensor in load_file(file).items()}
        state = from_transformers_state(stored, config)
        return model_class.from_pretrained(None, config=config, state_dict=state, **options)
    try:
        return model_class.from_pretrained(folder, config=config, use_safetensors=True, **options)
    except (TypeError, AttributeError, LookupError) as error:  # settings that some version of transformers trips over
        raise RefusedModelError(
            f"transformers cannot load {folder} by its {CONFIG_FILE} ({type(error).__name__}: {error}). Remove the "
            "settings there that the model does not need"
        ) from error


def _open_processor(folder: Path) -> VJEPAVideoProcessor:
    try:
        return VJEPAVideoProcessor.from_pretrained(folder)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise RefusedModelError(
            f"{folder / PROCESSOR_FILE} is no video processor of the family ({type(error).__name__}: {error}). "
            "Correct it, or delete it and have the default of the model's crop size"
        ) from error


def _open_released_file(file: Path, config: VJEPAConfig | str | Path | None) -> OpenedModel:
    if config is None:
        entry = _find_entry(file)
        _log_license(str(file), entry)
        config = entry.config()
    config = resolve_config(file, config)
    model = convert_original_features(file, config)
    processor = default_processor(config)
    return OpenedModel(str(file), model, processor, _describe_released(file.name), is_trained=True)


def resolve_config(file: Path, config: VJEPAConfig | str | Path | None) -> VJEPAConfig:
    """The configuration of a released file: the given one, that of a JSON file, or the registry's that fits.

    Raises:
        ValueError: None was given, and no registered model fits the file; or the given one is no configuration, or
            describes a model that the file is too small for.
    """
    if config is not None:
        given = config if isinstance(config, VJEPAConfig) else _read_given_config(config)
        check_size(given, file.stat().st_size // 2, file)  # a number has two bytes at least
        return given
    return _find_entry(file).config()


def _find_entry(file: Path) -> ModelEntry:
    """The released model that a file fits; of several, which differ in the crop alone, that with the file's name."""
    released = [(entry.config(), entry) for entry in MODELS.values() if entry.checkpoint is not None]
    configs = find_configs(file, [config for config, _ in released])
    fitting = [entry for config, entry in released if any(config is found for found in configs)]
    if not fitting:
        raise ValueError(
            f"{file} fits none of the released architectures ({', '.join(MODELS)}); pass its configuration, "
            "a JSON file such as save_pretrained writes, or infer it (infer_config; `vjepa-hub convert FILE OUT "
            "--num-attention-heads ...`)"
        )
    named = [entry for entry in fitting if _file_name(str(entry.checkpoint)) == file.name]
    if len(fitting) > 1 and not named:
        raise ValueError(
            f"{file} fits {' and '.join(entry.name for entry in fitting)}, which differ in what no file tells, such "
            "as the crop size; give the file the name that it was released under, or pass the configuration "
            "(find_model(name).config(); `vjepa-hub convert FILE OUT --model NAME`)"
        )
    return (named or fitting)[0]


def _read_given_config(config: str | Path) -> VJEPAConfig:
    """The configuration of a JSON file, of a folder, or of a Hub name."""
    path = Path(config)
    if path.exists():
        return read_config(path / CONFIG_FILE if path.is_dir() else path)
    return VJEPAConfig.from_pretrained(str(config))


# ---------------------------------------------------------------------------------------------------------------------
# The cache of converted models
# ---------------------------------------------------------------------------------------------------------------------


def _cache_features(entry: ModelEntry, keep_download: bool) -> Path:
    """The folder of a released model, made if it is not there."""
    name = _cache_name(entry)
    snapshot = _snapshot(name)
    with _sole_maker(name, snapshot) as is_maker:
        if is_maker:
            file = _fetch_released(name, str(entry.checkpoint))
            with _refused_files(file, str(entry.checkpoint)), _written_at_once(snapshot) as folder:
                convert_file(file, folder, entry.config())
            _dispose(file, name, keep_download)
    return snapshot


def _cache_classifier(entry: ModelEntry, dataset: str, keep_download: bool) -> Path:
    """The folder of a released model with its probe, made if it is not there."""
    name = _cache_name(entry, dataset)
    snapshot = _snapshot(name)
    with _sole_maker(name, snapshot) as is_maker:
        if is_maker:
            features = _cache_features(entry, keep_download)
            probe_file = _fetch_released(name, entry.probes[dataset])
            with _refused_files(probe_file, entry.probes[dataset]), _written_at_once(snapshot) as folder:
                model, own = VJEPAModel.from_pretrained(features), entry.config(dataset)
                model.config.frames_per_clip = own.frames_per_clip
                classifier = attach_original_probe(
                    model,
                    probe_file,
                    index=0,  # of several heads the one that the release's own demonstration takes
                    num_pooler_heads=own.num_pooler_heads,
                    pooler_feature_layers=own.pooler_feature_layers,
                )
                write_folder(classifier, folder)
            _dispose(probe_file, name, keep_download)
    return snapshot


def _cache_name(entry: ModelEntry, dataset: str | None = None) -> str:
    return entry.name if dataset is None else f"{entry.name}-{dataset}"


def _cache_folder(name: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{CACHE_ACCOUNT}--{name}"


def _snapshot(name: str) -> Path:
    return _cache_folder(name) / "snapshots" / f"converter-{CONVERTER_VERSION}"


@contextmanager
def _sole_maker(name: str, snapshot: Path) -> Iterator[bool]:
    """Return whether the folder has to be made; if so no other process makes it meanwhile."""
    if snapshot.is_dir():
        yield False
        return
    lock_file = Path(constants.HF_HUB_CACHE) / ".locks" / _cache_folder(name).name / "conversion.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock_file):
        yield not snapshot.is_dir()


@contextmanager
def _written_at_once(snapshot: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when all is written; what a kill leaves has another name."""
    with folder_written_whole(snapshot, snapshot.parents[1] / "converting") as temporary:  # the lock is ours
        yield temporary
    # As in a repository's folder: without it `hf cache prune` takes the conversion for an abandoned one
    reference = snapshot.parents[1] / "refs" / "main"
    reference.parent.mkdir(exist_ok=True)
    reference.write_text(snapshot.name)


def _file_name(address: str) -> str:
    return address.rsplit("/", 1)[-1]


def _kept_file(name: str, file_name: str) -> Path:
    return _cache_folder(name) / "kept" / file_name


def _fetch_released(name: str, address: str) -> Path:
    """A released file: the kept one, what an interrupted conversion has left, or a download."""
    kept = _kept_file(name, _file_name(address))
    if kept.is_file():
        return kept
    file = _cache_folder(name) / "blobs" / _file_name(address)
    if not file.is_file():
        download_file(download_address(address), file)
    return file


@contextmanager
def _refused_files(file: Path, address: str) -> Iterator[None]:
    """Delete a file that cannot be converted, so that the next call fetches it anew."""
    try:
        yield
    except ConversionError as error:
        file.unlink()
        raise DownloadError(
            f"what {download_address(address)} sent is not the released file: {error}. It was deleted: call again to "
            "fetch it anew, or fetch it by other means and pass its path in place of the model's name"
        ) from error


def _dispose(file: Path, name: str, keep_download: bool) -> None:
    kept = _kept_file(name, file.name)
    if keep_download:
        kept.parent.mkdir(exist_ok=True)
        put_in_place(file, kept)
    elif file != kept:
        file.unlink()
