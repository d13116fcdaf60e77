"""The parts of a card's text: tables, code blocks, licence, citation, and the mark that tells whose text it is."""

import hashlib
import json
import re
from collections.abc import Mapping

from ..hub.registry import EVALUATION_SETS, PAPER, ModelEntry
from ..model.configuration_vjepa import VJEPAConfig
from ..model.video_processing_vjepa import VJEPAVideoProcessor

_MARK = re.compile(r"<!-- written by vjepa_hub, sha256 ([0-9a-f]{64}); a changed card is kept -->\n\Z")

LICENSE_TEXTS: Mapping[str | None, str] = {
    "cc-by-nc-4.0": "The weights are under [CC BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/), the "
    "licence of the release that they come from: in short, they may be shared and adapted with credit to their "
    "authors and a note of what was changed, and not for commercial purposes. What counts is the licence itself.",
    "apache-2.0": "The weights are under [Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0).",
    None: "Nothing is stated about the licence of the weights: ask those who published them before you use them.",
}
_CODE_LICENSE = (
    "The code, with the Python files that travel with the weights, is under "
    "[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0)."
)

CITATION = """```bibtex
@article{bardes2024revisiting,
  title   = {Revisiting Feature Prediction for Learning Visual Representations from Video},
  author  = {Bardes, Adrien and Garrido, Quentin and Ponce, Jean and Chen, Xinlei and Rabbat, Michael and LeCun, Yann
             and Assran, Mahmoud and Ballas, Nicolas},
  journal = {arXiv:2404.08471},
  year    = {2024}
}
```"""
BY_FEATURE_PREDICTION = f"without labels by feature prediction (V-JEPA, [Bardes et al. 2024]({PAPER}))"

FEATURES_USE = (
    "Features of videos: for a probe on the frozen encoder, for search and clustering, as a start for fine-tuning, "
    "and, by the predictor, for what a masked part of a clip is expected to look like in feature space."
)
CLASSIFIER_USE = (
    "Classification of short videos into the classes that it was trained on, and as a start for fine-tuning."
)
FEATURES_LIMITS = (
    "Features for a probe or for fine-tuning, not answers: nothing was trained on labels. They know what the training "
    "videos show, with their gaps and biases; videos of the web show some people, places and actions far more often "
    "than others."
)
CLASSIFIER_LIMITS = (
    "It knows its classes and no others: each video gets one of them, whatever it shows. Encoder and classifier have "
    "the gaps and biases of the videos that they were trained on. The probabilities are not calibrated."
)
NOT_INTENDED = (
    "Not for decisions about people, and not for a use where an error does harm and nobody looks at what came out."
)


def with_mark(text: str) -> str:
    """A card with a last line that tells `is_ours` whether a person has changed the rest."""
    return f"{text}<!-- written by vjepa_hub, sha256 {_checksum(text)}; a changed card is kept -->\n"


def is_ours(text: str) -> bool:
    """Whether a card is, to the letter, as this package wrote it."""
    mark = _MARK.search(text)
    return mark is not None and mark.group(1) == _checksum(text[: mark.start()])


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fact_table(rows: Mapping[str, str]) -> str:
    """A table of two columns without a heading."""
    return "\n".join(["| | |", "|---|---|", *(table_row(name, value) for name, value in rows.items())])


def table_row(*cells: str) -> str:
    """A line of a table. Bars and line breaks would end a cell, and are replaced."""
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"


def architecture_facts(config: VJEPAConfig, *, is_classifier: bool) -> dict[str, str]:
    """What a card says of the architecture; `check_card` compares these rows with the configuration.

    Args:
        config: Of the model.
        is_classifier: Whether it has a classifier in place of the predictor.
    """
    depth, height, width = config.token_grid
    facts = {
        "encoder": f"width {config.hidden_size}, {config.num_hidden_layers} layers",
        "predictor": f"width {config.pred_hidden_size}, {config.pred_num_hidden_layers} layers",
        "patches": f"{config.patch_size} x {config.patch_size} pixels of {config.tubelet_size} frames",
        "clip": f"{config.frames_per_clip} frames of {config.crop_size} x {config.crop_size} pixels, "
        f"{depth} x {height} x {width} tokens",
    }
    if is_classifier:
        del facts["predictor"]
        facts["classes"] = f"{config.num_labels:,}"
    return facts


def features_shape(config: VJEPAConfig) -> str:
    """The shape of one clip's features, as the code blocks state it."""
    depth, height, width = config.token_grid
    return f"(1, {depth * height * width}, {config.hidden_size})"


def license_section(license_id: str | None) -> str:
    """What may be done with the weights and with the code."""
    weights = LICENSE_TEXTS.get(license_id, f"The weights are under the licence `{license_id}`.")
    return f"{weights}\n\n{_CODE_LICENSE}"


# ---------------------------------------------------------------------------------------------------------------------
# Use
# ---------------------------------------------------------------------------------------------------------------------

_WITHOUT = (
    "With transformers alone, where vjepa_hub is not installed. `trust_remote_code=True` runs the three Python files "
    "beside the weights; read them first, and name a `revision` to get what you have read:"
)


def registered_usage(entry: ModelEntry) -> str:
    """Use of a model that goes by a name of the registry: by that name, from a folder, and by torch.hub."""
    folder, shape = f"weights/{entry.name}", features_shape(entry.config())
    first = (
        "downloads and converts the released file at the first time"
        if entry.checkpoint
        else "the weights are in the package"
    )
    parts = [
        "With vjepa_hub, by name; the last two lines write a folder for transformers, which can be pushed to the Hub:",
        _python(
            "from vjepa_hub.hub.loading import open_model",
            "",
            f'opened = open_model("{entry.name}")  # {first}',
            'inputs = opened.processor("video.mp4", return_tensors="pt")',
            f"features = opened.model(**inputs).last_hidden_state  # {shape}",
            "",
            f'opened.model.save_pretrained("{folder}")',
            f'opened.processor.save_pretrained("{folder}")',
        ),
        *_features_by_transformers(folder, shape),
        "With torch.hub, in a checkout of vjepa_hub (or by its name on GitHub in place of the point):",
        _python(
            "import torch",
            "",
            f'model = torch.hub.load(".", "{entry.torch_hub_entry}", source="local")',
            'processor = torch.hub.load(".", "vjepa_video_processor", source="local", '
            f"crop_size={entry.config().crop_size}{_own_clips(entry)})",
            f'features = model(**processor("video.mp4", return_tensors="pt")).last_hidden_state  # {shape}',
        ),
    ]
    return "\n\n".join(parts + (_released_probes(entry) if entry.probes else []))


def _own_clips(entry: ModelEntry) -> str:
    """Arguments of the processor where clips are not those of the release."""
    if entry.bundled_folder is None:
        return ""
    processor = VJEPAVideoProcessor.from_pretrained(entry.bundled_folder)
    return f", num_frames={processor.num_frames}, frame_step={processor.frame_step}"


def _released_probes(entry: ModelEntry) -> list[str]:
    sets = ", ".join(f"`{probe}` ({EVALUATION_SETS[probe].name})" for probe in entry.probes)
    return [
        f"A classifier, with a released attentive probe: {sets}. The released files hold no names of classes: those "
        "of ImageNet are known, the labels of the others are LABEL_0, LABEL_1, ...",
        _python(
            "from vjepa_hub.hub.loading import load_classifier",
            "",
            f'classifier = load_classifier("{entry.name}", "{next(iter(entry.probes))}")',
        ),
    ]


def features_usage(name: str, config: VJEPAConfig) -> str:
    """Use of a features or pretraining folder.

    Args:
        name: The folder, or its name on the Hub.
        config: Of the model.
    """
    shape = features_shape(config)
    parts = [
        "With vjepa_hub:",
        _python(
            "from vjepa_hub.hub.loading import open_model",
            "",
            f"opened = open_model({_quoted(name)})  # a folder, or owner/name on the Hub",
            'inputs = opened.processor("video.mp4", return_tensors="pt")',
            f"features = opened.model(**inputs).last_hidden_state  # {shape}",
        ),
        *_features_by_transformers(name, shape),
    ]
    return "\n\n".join(parts)


def _features_by_transformers(name: str, shape: str) -> list[str]:
    def block(option: str, first_lines: tuple[str, ...]) -> str:
        return _python(
            *first_lines,
            f"model = AutoModel.from_pretrained({_quoted(name)}{option})",
            f"processor = AutoVideoProcessor.from_pretrained({_quoted(name)}{option})",
            f'features = model(**processor("video.mp4", return_tensors="pt")).last_hidden_state  # {shape}',
        )

    imports = "from transformers import AutoModel, AutoVideoProcessor"
    return [
        "With transformers' own names, where vjepa_hub is installed:",
        block("", (imports, "", "import vjepa_hub  # makes transformers know the family", "")),
        _WITHOUT,
        block(", trust_remote_code=True", (imports, "")),
    ]


def classifier_usage(name: str) -> str:
    """Use of a classifier folder.

    Args:
        name: The folder, or its name on the Hub.
    """
    parts = [
        "With transformers, where vjepa_hub is installed:",
        _python(
            "from transformers import pipeline",
            "",
            "import vjepa_hub  # makes transformers know the family",
            "",
            f'classify = pipeline("video-classification", model={_quoted(name)})',
            'classify("video.mp4")  # labels with their probabilities',
        ),
        _WITHOUT,
        _python(
            "from transformers import AutoModelForVideoClassification, AutoVideoProcessor",
            "",
            f"model = AutoModelForVideoClassification.from_pretrained({_quoted(name)}, trust_remote_code=True)",
            f"processor = AutoVideoProcessor.from_pretrained({_quoted(name)}, trust_remote_code=True)",
            'logits = model(**processor("video.mp4", return_tensors="pt")).logits',
            "label = model.config.id2label[logits.argmax(-1).item()]",
        ),
        "torch.hub has entries for the features models of vjepa_hub's registry, not for classifiers.",
    ]
    return "\n\n".join(parts)


def _quoted(name: str) -> str:
    """A name as Python writes it: a path may hold quotation marks and backslashes."""
    return json.dumps(name, ensure_ascii=False)


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
