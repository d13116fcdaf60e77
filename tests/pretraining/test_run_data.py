"""The labelled clips of the online probe are those of an evaluation, and so are the numbers that it finds on them."""

import pytest
import torch

from vjepa_hub import VJEPAModel
from vjepa_hub.data.sources import open_source
from vjepa_hub.evaluation.clips import ClipFormat, EvaluationClips
from vjepa_hub.evaluation.encoders.opening import open_encoder
from vjepa_hub.evaluation.labelled import open_labelled
from vjepa_hub.evaluation.probe_run import ProbeSettings, run_probe
from vjepa_hub.evaluation.protocols import find_protocol
from vjepa_hub.evaluation.tokens import EncodedClips, EncodingSettings
from vjepa_hub.heads.metrics import compute_metrics
from vjepa_hub.heads.neighbours import predict_by_neighbours
from vjepa_hub.heads.pooling import HeadSettings
from vjepa_hub.pretraining.probe import LabelledClips, OnlineProbe, OnlineProbeSettings
from vjepa_hub.pretraining.recipe import load_recipe
from vjepa_hub.pretraining.run_data import read_labelled_clips

OPTIMISATION = {"num_epochs": 25, "batch_size": 16, "learning_rate": 5e-3}
PROTOCOL = find_protocol("plain").with_values(frame_step=2, num_segments=1, augmentation=None, **OPTIMISATION)
TASK = "appearance"


@pytest.fixture(scope="module")
def clips(labelled_folder) -> dict[str, LabelledClips]:
    sizes = ["crop_size=32", "frames_per_clip=4", "hidden_size=48"]
    recipe = load_recipe("tiny").with_overrides([f"model.{size}" for size in sizes])
    sources = {split: open_source(labelled_folder / split / f"{TASK}.csv") for split in ("train", "test")}
    return {
        split: read_labelled_clips(recipe, {TASK: source}, range(len(source))) for split, source in sources.items()
    }


@pytest.fixture(scope="module")
def encoder(labelled_folder):
    return VJEPAModel.from_pretrained(labelled_folder / "model").encoder


def online_accuracy(kind, clips, encoder) -> float:
    """Of the clips that it learns from: others of ten classes are too hard for so few."""
    probe = OnlineProbe(kind, clips["train"], clips["train"], settings=OnlineProbeSettings(**OPTIMISATION))
    return probe.evaluate(encoder)[f"probe/{TASK}_accuracy"]


def test_clips_of_the_online_probe_are_those_of_an_evaluation(clips, labelled_folder):
    labelled = open_labelled(labelled_folder / "test" / f"{TASK}.csv")
    expected = EvaluationClips(labelled, PROTOCOL, ClipFormat(crop_size=32, frames_per_clip=4))
    assert len(expected) == len(clips["test"])
    assert clips["test"].labels[TASK].tolist() == labelled.labels.tolist()
    for place in range(len(expected)):
        pixels = expected[place]["pixel_values_videos"][0, 0]
        assert torch.equal(clips["test"].pixel_values_videos[place], pixels.half())


@pytest.mark.parametrize("kind", ["attentive", "average"])
def test_online_number_of_a_trained_head_is_the_final_one(kind, clips, encoder, labelled_folder, tmp_path):
    settings = ProbeSettings(
        encoders=[str(labelled_folder / "model")],
        protocol=PROTOCOL,
        train=labelled_folder / "train" / f"{TASK}.csv",
        validation=labelled_folder / "train" / f"{TASK}.csv",
        heads=[HeadSettings(pooling=kind, learning_rate=5e-3, weight_decay=0.01)],
        cache=tmp_path / "cache",
        device="cpu",
    )
    (row,) = run_probe(settings, tmp_path)
    assert online_accuracy(kind, clips, encoder) == row.top1.mean
    assert 0.1 < row.top1.mean < 1  # neither nothing nor all is learned


def test_online_number_of_neighbours_is_the_final_one(clips, encoder, labelled_folder):
    frozen = open_encoder(str(labelled_folder / "model"))
    labelled = open_labelled(labelled_folder / "train" / f"{TASK}.csv")
    clip_format = ClipFormat(crop_size=32, frames_per_clip=4)
    source = EncodedClips(frozen, EvaluationClips(labelled, PROTOCOL, clip_format), EncodingSettings())
    found = predict_by_neighbours(source, source)
    final = compute_metrics(found.probabilities[0], labelled.labels, found.is_readable)
    assert online_accuracy("knn", clips, encoder) == final.top1
