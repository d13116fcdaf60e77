import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForVideoClassification, pipeline

from tests.conftest import FEW_VIDEOS
from tests.forked import call_in_pair
from tests.other_run import HOST, at_work_in
from vjepa_hub import VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.core.distributed import join_processes
from vjepa_hub.core.folder_lock import FolderInUseError
from vjepa_hub.core.run_files import read_run
from vjepa_hub.data.video import open_video
from vjepa_hub.evaluation import probe_run
from vjepa_hub.evaluation.encoders.opening import VJEPAClipEncoder
from vjepa_hub.evaluation.label_efficiency import read_split
from vjepa_hub.evaluation.labelled import open_labelled
from vjepa_hub.evaluation.probe_run import ProbeSettings, evaluate_classifier, run_probe
from vjepa_hub.evaluation.protocols import find_protocol
from vjepa_hub.evaluation.results import read_results
from vjepa_hub.heads.pooling import HeadSettings
from vjepa_hub.publishing.verification import verify_folder

HEADS = (
    HeadSettings(pooling="attentive", learning_rate=1e-3, weight_decay=0.01),
    HeadSettings(pooling="average", learning_rate=1e-2, weight_decay=0.01),
)


def settings_in(folder, **values):
    """Two epochs of three heads' worth of work at most, a second or two."""
    protocol = find_protocol("plain").with_values(num_epochs=2, frame_step=2, batch_size=16)
    defaults = {
        "encoders": [str(folder / "model")],
        "protocol": protocol,
        "train": folder / "train" / "motion.csv",
        "validation": folder / "test" / "motion.csv",
        "num_classes": 8,
        "heads": HEADS,
    }
    return ProbeSettings(**{**defaults, **values})


def plain_protocol(settings):
    return settings.protocol.with_values(augmentation=None)


def run_in(folder, output_dir, **values):
    return run_probe(settings_in(folder, **values), output_dir)


def test_folder_of_another_run_at_work_is_left_alone(labelled_folder, tmp_path):
    with at_work_in(tmp_path), pytest.raises(FolderInUseError, match=HOST):
        run_in(labelled_folder, tmp_path)


@pytest.fixture(scope="module")
def finished(labelled_folder, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("finished")
    rows = run_in(labelled_folder, output_dir, class_names=[f"motion {number}" for number in range(8)])
    return output_dir, rows


def test_run_leaves_results_picture_table_and_classifier(finished):
    output_dir, rows = finished
    results = read_results(output_dir)
    assert results.protocol["num_epochs"] == 2
    assert results.encoder["description"].startswith("V-JEPA")
    assert not results.encoder["is_trained"]
    assert results.seeds == (0,)
    assert [head.pooling for head in results.heads] == ["attentive", "average"]
    assert results.heads[0].metrics.num_videos == FEW_VIDEOS["test"]
    assert len(results.data["training"]["losses"]) == 2
    assert {row.head: row.top1.mean for row in rows} == {
        str(head): found.metrics.top1 for head, found in zip(HEADS, results.heads, strict=True)
    }
    for name in ("confusion.png", "per_class.csv", "summary.json", "classifier/config.json", "head.safetensors"):
        assert (output_dir / name).is_file(), name


def test_record_of_a_run_has_its_settings_data_and_numbers(finished, labelled_folder):
    record = read_run(finished[0])
    assert (record.kind, record.state, record.num_starts) == ("probe", "complete", 1)
    assert record.command[:2] == ("probe", str(labelled_folder / "model"))
    assert record.changed["num_epochs"] == 2
    assert {fact.role: fact.num_videos for fact in record.data} == {
        "train": FEW_VIDEOS["train"],
        "validation": FEW_VIDEOS["test"],
    }
    assert record.model.sha256 == read_results(finished[0]).encoder["fingerprint"]
    assert {result.pooling for result in record.results} >= {"attentive"}
    assert verify_folder(finished[0]).passed


def test_record_of_a_run_that_fails_says_why(labelled_folder, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory at https://me:secret@host/a?key=1")

    monkeypatch.setattr(probe_run, "predict", fail)
    with pytest.raises(RuntimeError):
        run_in(labelled_folder, tmp_path, heads=HEADS[1:])
    record = read_run(tmp_path)
    assert (record.state, record.cause) == ("failed", "RuntimeError: out of memory at https://host/a")


def test_classifier_of_a_run_gives_the_stated_accuracy_by_the_pipeline_alone(finished, labelled_folder):
    output_dir, _ = finished
    model = AutoModelForVideoClassification.from_pretrained(output_dir / "classifier")
    assert model.config.id2label[7] == "motion 7"
    assert "attentive probe on motion.csv" in model.config.weights_origin
    stated = read_results(output_dir)
    processor = VJEPAVideoProcessor.from_pretrained(output_dir / "classifier")
    assert (processor.num_segments, processor.frame_step) == (2, 2)
    assert processor.num_frames == stated.encoder["frames_per_clip"] == model.config.frames_per_clip
    classify = pipeline("video-classification", model=str(output_dir / "classifier"))
    test = open_labelled(labelled_folder / "test" / "motion.csv", num_classes=8)
    answers = [classify(name, top_k=1)[0]["label"] for name in test.names]
    found = np.mean([answer == f"motion {label}" for answer, label in zip(answers, test.labels, strict=True)])
    assert found == stated.heads[0].metrics.top1


def test_eval_only_finds_again_what_the_run_found(finished, labelled_folder, tmp_path):
    output_dir, _ = finished
    model = VJEPAForVideoClassification.from_pretrained(output_dir / "classifier")
    processor = VJEPAVideoProcessor.from_pretrained(output_dir / "classifier")
    metrics = evaluate_classifier(model, processor, settings_in(labelled_folder), tmp_path)
    found = read_results(output_dir).heads[0].metrics
    assert metrics.top1 == found.top1
    assert metrics.top5 == found.top5
    assert "nothing was trained" in read_results(tmp_path).selected.rule


def test_probes_of_joined_blocks_train_in_one_pass_and_are_evaluated_again_as_a_classifier(
    labelled_folder, family_config, tmp_path, monkeypatch
):
    """Diving48's protocol in small: three probes of depth 4 on the tokens of all levels, or of two blocks."""
    num_encoded = []
    encode = VJEPAClipEncoder.encode_clips
    monkeypatch.setattr(
        VJEPAClipEncoder, "encode_clips", lambda self, clips: num_encoded.append(len(clips)) or encode(self, clips)
    )
    torch.manual_seed(0)
    VJEPAModel(family_config).save_pretrained(tmp_path / "model")
    VJEPAVideoProcessor(crop_size=32, num_frames=4).save_pretrained(tmp_path / "model")
    small = {"num_epochs": 1, "batch_size": 16, "num_classes": 8, "frame_step": 1, "frames_per_clip": 6}
    small |= {"num_segments": 1, "num_views": 1, "augmentation": None}
    small |= {"pooler_feature_layers": "released" if family_config.feature_levels else (0, 1)}
    protocol = find_protocol("diving48").with_values(**small)
    settings = settings_in(labelled_folder, encoders=[str(tmp_path / "model")], protocol=protocol, heads=())
    run_probe(settings, tmp_path / "run")
    assert sum(num_encoded) == sum(FEW_VIDEOS.values())
    results = read_results(tmp_path / "run")
    assert [(head.learning_rate, head.weight_decay) for head in results.heads] == list(protocol.heads)
    assert results.selected.metrics.top1 == max(head.metrics.top1 for head in results.heads)
    assert "highest top-1" in results.selected.rule
    model = VJEPAForVideoClassification.from_pretrained(tmp_path / "run" / "classifier")
    assert (model.config.num_pooler_layers, model.config.num_pooler_heads) == (4, 16)
    assert model.config.pooler_feature_layers == [0, 1]
    processor = VJEPAVideoProcessor.from_pretrained(tmp_path / "run" / "classifier")
    again = evaluate_classifier(model, processor, settings, tmp_path / "again")
    assert again.top1 == results.selected.metrics.top1
    assert model.config.frames_per_clip == (6 if family_config.has_rotary_positions else 4)


def test_same_command_again_does_nothing_anew(finished, labelled_folder, monkeypatch):
    output_dir, rows = finished
    monkeypatch.setattr(probe_run.SideBySideTraining, "run", lambda *a, **k: pytest.fail("trained again"))
    again = run_in(labelled_folder, output_dir, class_names=[f"motion {number}" for number in range(8)])
    assert again == rows


def test_folder_of_another_run_is_refused_and_overwritten_on_demand(labelled_folder, tmp_path):
    run_in(labelled_folder, tmp_path, heads=HEADS[1:])
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(seeds differ\).*--overwrite"):
        run_in(labelled_folder, tmp_path, heads=HEADS[1:], seeds=(1,))
    assert (tmp_path / "results.json").read_bytes() == before
    run_in(labelled_folder, tmp_path, heads=HEADS[1:], seeds=(1,), overwrite=True)
    assert read_results(tmp_path).seeds == (1,)


def test_cache_changes_no_result_and_each_clip_is_encoded_once(labelled_folder, tmp_path, monkeypatch):
    protocol = plain_protocol(settings_in(labelled_folder))
    run_in(labelled_folder, tmp_path / "without", protocol=protocol)
    encoded = []
    batches = probe_run.EncodedClips.batches
    monkeypatch.setattr(
        probe_run.EncodedClips, "batches", lambda self, asked: encoded.extend(map(len, asked)) or batches(self, asked)
    )
    shares = {"label_fractions": (0.5, 1.0), "num_splits": 2, "seeds": (0, 1)}
    run_in(labelled_folder, tmp_path / "shares", protocol=protocol, cache=tmp_path / "cache", **shares)
    run_in(labelled_folder, tmp_path / "with", protocol=protocol, cache=tmp_path / "cache")
    assert sum(encoded) == sum(FEW_VIDEOS.values())
    without, cached = (read_results(tmp_path / name).heads for name in ("without", "with"))
    assert without == cached


def test_shares_of_the_labels_are_stratified_and_written_for_others(labelled_folder, tmp_path):
    protocol = plain_protocol(settings_in(labelled_folder))
    rows = run_in(labelled_folder, tmp_path, protocol=protocol, label_fractions=(0.4,), num_splits=2, heads=HEADS[:1])
    assert [(row.fraction, row.top1.num_splits) for row in rows] == [(0.4, 2)]
    results = [read_results(tmp_path / f"labels-0.4-split-{split}") for split in range(2)]
    assert rows[0].top1.mean == pytest.approx(np.mean([found.heads[0].metrics.top1 for found in results]))
    split = read_split(tmp_path / "splits" / "labels-0.4-split-1.csv")
    counts = np.bincount(open_labelled(labelled_folder / "train" / "motion.csv").labels)
    assert split.counts == {label: max(1, round(0.4 * count)) for label, count in enumerate(counts)}
    reopened = open_labelled(tmp_path / "splits" / "labels-0.4-split-1.csv", num_classes=8)
    with open_video(reopened.names[0]) as reader:
        assert reader.num_frames == 12


def test_corrupt_validation_videos_count_as_wrong(labelled_folder, tmp_path):
    shutil.copytree(labelled_folder / "test", tmp_path / "test")
    videos = sorted((tmp_path / "test").rglob("*.mp4"))
    for video in videos[:6]:
        video.write_bytes(b"no video")
    run_in(labelled_folder, tmp_path / "out", validation=tmp_path / "test" / "motion.csv", heads=HEADS[:1])
    metrics = read_results(tmp_path / "out").heads[0].metrics
    assert (metrics.num_videos, metrics.num_unreadable) == (24, 6)
    assert metrics.top1 <= 18 / 24


def test_several_encoders_make_one_table_at_one_protocol(labelled_folder, tmp_path):
    model = str(labelled_folder / "model")
    encoders = [model, f"untrained:{model}"]
    rows = run_in(labelled_folder, tmp_path, encoders=encoders, heads=HEADS[:1])
    assert [row.encoder for row in rows] == encoders
    assert json.loads((tmp_path / "summary.json").read_text())[1]["encoder"] == encoders[1]


def run_in_group(folder):
    """Work of one of two processes."""
    run_in(folder, folder / "two")
    processes = join_processes()
    (folder / f"process-{processes.rank}-of-{processes.count}").touch()


def test_two_processes_find_what_one_finds(labelled_folder, tmp_path):
    for name in ("model", "train", "test"):
        (tmp_path / name).symlink_to(labelled_folder / name)
    rows = run_in(tmp_path, tmp_path / "one")
    assert call_in_pair(run_in_group, tmp_path) == [0, 0]
    names = sorted(path.name for path in tmp_path.glob("process-*"))
    assert names == ["process-0-of-2", "process-1-of-2"]  # not two that are alone
    one, two = (read_results(tmp_path / name) for name in ("one", "two"))
    for ours, theirs in zip(one.data["training"]["losses"], two.data["training"]["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert [row.top1.mean for row in rows] == [head.metrics.top1 for head in two.heads]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("a.mp4 9\n", r"1 labels of bad\.csv are outside 0 to 7: 9"),
        ("a.mp4 none\n", "label"),
    ],
)
def test_labels_that_cannot_be_are_refused_before_anything_runs(labelled_folder, tmp_path, manifest, message):
    (tmp_path / "bad.csv").write_text(manifest)
    with pytest.raises(ValueError, match=message):
        run_in(labelled_folder, tmp_path / "out", train=tmp_path / "bad.csv")
    assert not (tmp_path / "out").exists()


def test_a_class_without_a_training_video_is_refused(labelled_folder, tmp_path):
    lines = (labelled_folder / "train" / "motion.csv").read_text().splitlines()
    kept = [line for line in lines if not line.endswith(" 3")]
    (tmp_path / "train.csv").write_text("\n".join(str(labelled_folder / "train" / line) for line in kept))
    with pytest.raises(ValueError, match="1 classes of the validation set have no training video: 3"):
        run_in(labelled_folder, tmp_path / "out", train=tmp_path / "train.csv")


def test_the_same_thing_twice_is_refused(labelled_folder):
    with pytest.raises(ValueError, match="seeds has '1' twice"):
        settings_in(labelled_folder, seeds=(1, 1))


def test_images_are_evaluated_as_still_clips(labelled_folder, tmp_path):
    for split, num_images in (("train", 8), ("val", 4)):
        for number in range(num_images):
            folder = tmp_path / split / ("bright" if number % 2 else "dark")
            folder.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 60, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise + np.uint8(180 * (number % 2))).save(folder / f"{number}.png")
    protocol = find_protocol("plain-image").with_values(num_epochs=15, batch_size=8, augmentation=None)
    heads = [HeadSettings(pooling="average", learning_rate=0.1, weight_decay=0.0)]
    sets = {"train": tmp_path / "train", "validation": tmp_path / "val", "num_classes": None}
    rows = run_in(labelled_folder, tmp_path / "out", protocol=protocol, heads=heads, **sets)
    assert rows[0].top1.mean == 1.0
    table = (tmp_path / "out" / "per_class.csv").read_text()
    assert "bright" in table
