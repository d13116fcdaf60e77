"""Names of the classes of the published data sets, where their order is certain; elsewhere, why it is not.

The files of the released probes hold no names. The number of a class is what the authors' own lists of files said, so
names can only be given where the data set itself fixes the order.
"""

from collections.abc import Mapping
from typing import Any

UNCERTAIN: dict[str, str] = {
    "k400": "the released probe does not number the classes of Kinetics-400 in alphabetical order, and its own order "
    "was not published",
    "ssv2": "the released probe was trained on a list of files that was not published; whether it numbers the classes "
    "as the data set's labels.json does is not known here",
    "places205": "the released probe was trained on a copy of the data set whose folders are not known here",
    "inat21": "the ten thousand names are not part of this package; the order is that of the data set's folders",
    "diving48": "the released probe was trained on a list of files that was not published; whether it numbers the "
    "classes as the data set's vocabulary does is not known here",
    "ek100": "the released probe is not loaded",
}
"""By the name of the released probe: why labels stay LABEL_0, LABEL_1, ...; pass a file of names to have them."""


def known_class_names(dataset: str) -> tuple[str, ...] | None:
    """The names of a data set's classes in the order of their numbers; None where the order is not certain.

    ImageNet's classes are numbered in the order of their WordNet ids, which are its folders' names.

    Args:
        dataset: Name of a released probe, as in `registry.EVALUATION_SETS`.
    """
    if dataset != "in1k":
        return None
    from timm.data import ImageNetInfo  # torch.hub's entries can do without timm

    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(number) for number in range(info.num_classes())]
    twice = {name for name in names if names.count(name) > 1}
    return tuple(f"{name} ({number})" if name in twice else name for number, name in enumerate(names))


def chosen_names(id2label: Mapping[Any, str] | None) -> tuple[str, ...] | None:
    """The names of a model's classes in the order of their numbers; None where they are LABEL_0, LABEL_1, ...

    Args:
        id2label: Of the model's configuration.
    """
    names = tuple(name for _, name in sorted((id2label or {}).items()))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
