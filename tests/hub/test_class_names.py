"""Names of classes are given where their order is certain, and nowhere else."""

import pytest

from vjepa_hub.hub.class_names import UNCERTAIN, known_class_names
from vjepa_hub.hub.registry import EVALUATION_SETS


def test_imagenets_classes_are_in_the_order_of_their_wordnet_ids():
    names = known_class_names("in1k")
    assert len(names) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {number: names[number].split(",")[0] for number in known} == known


def test_no_two_classes_of_imagenet_have_the_same_name():
    names = known_class_names("in1k")
    assert len(set(names)) == 1000
    assert all(names)
    cranes = [number for number, name in enumerate(names) if name.split(",")[0].split(" (")[0] == "crane"]
    assert cranes == [134, 517]


@pytest.mark.parametrize("name", [*UNCERTAIN, "plain", "no data set"])
def test_no_names_are_given_where_the_order_is_not_certain(name):
    assert known_class_names(name) is None


def test_every_released_probe_has_names_or_a_reason():
    assert {name for name in EVALUATION_SETS if known_class_names(name) is None} == set(UNCERTAIN)
    assert all(len(reason) > 20 for reason in UNCERTAIN.values())
