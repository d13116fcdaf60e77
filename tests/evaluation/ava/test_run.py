"""The whole of action localisation on small videos: a square's colour is what it does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.ava.test_roi_features import Clips, model, stored, values_of  # noqa: F401  (a fixture)
from vjepa_hub import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.core.progress import no_progress
from vjepa_hub.core.run_files import read_run
from vjepa_hub.evaluation.ava.boxes import read_annotations, read_detections
from vjepa_hub.evaluation.ava.metrics import evaluate_detections
from vjepa_hub.evaluation.ava.protocol import LocalisationProtocol
from vjepa_hub.evaluation.ava.roi_features import LayerFeatures
from vjepa_hub.evaluation.ava.run import LocalisationSettings, detect_actions, run_localisation
from vjepa_hub.heads.pooling import build_head

FPS, SIDE, SECONDS = 8, 64, 6
COLOURS = ((230, 40, 40), (40, 60, 230), (230, 220, 60))
LABEL_MAP = "".join(f'item {{\n  name: "{name}"\n  id: {place}\n}}\n' for place, name in enumerate("abc", 1))
PROTOCOL = LocalisationProtocol().with_values(
    num_classes=3,
    clip_fps=8.0,
    frames_per_clip=4,
    frame_step=1,
    roi_size=3,
    batch_size=4,
    num_epochs=40,
    num_warmup_epochs=1,
    learning_rate=0.02,
)


def square_of(video: int, lane: int, frame: int) -> tuple[int, int]:
    """Left and top edge of a square of 20 pixels: there is one in the upper and one in the lower half."""
    return 4 + (7 * video + 2 * frame * (1 + lane)) % 40, 6 + 32 * lane


def action_of(video: int, lane: int, frame: int) -> int:
    """It changes every two seconds, so that a clip at another time shows another action."""
    return (video + lane + frame // (2 * FPS)) % 3


def write_video(path: Path, video: int) -> None:
    av = pytest.importorskip("av", reason="PyAV writes the test videos (pip install av)")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"threads": "1", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(SECONDS * FPS):
            pixels = np.full((SIDE, SIDE, 3), 110, dtype=np.uint8)
            for lane in range(2):
                left, top = square_of(video, lane, number)
                pixels[top : top + 20, left : left + 20] = COLOURS[action_of(video, lane, number)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def rows_of(video: int, seconds) -> list[str]:
    rows = []
    for second in seconds:
        for lane in range(2):
            left, top = square_of(video, lane, second * FPS)
            box = ",".join(f"{value / SIDE:.4f}" for value in (left, top, left + 20, top + 20))
            rows.append(f"v{video},{900 + second:04d},{box},{action_of(video, lane, second * FPS) + 1}")
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("localisation")
    (folder / "videos").mkdir()
    for video in range(3):
        write_video(folder / "videos" / f"v{video}.mp4", video)
    (folder / "videos" / "broken.mp4").write_bytes(b"no video")
    train = [*rows_of(0, (1, 3, 5)), *rows_of(1, (1, 3, 5)), "broken,0903,0.1,0.1,0.5,0.5,1"]
    (folder / "train.csv").write_text("\n".join(train) + "\n")
    (folder / "val.csv").write_text("\n".join(rows_of(2, (1, 3, 5))) + "\n")
    proposals = [f"{row.rpartition(',')[0]},,0.9" for row in rows_of(2, (1, 3, 5))]
    (folder / "proposals.csv").write_text("\n".join([*proposals, "v2,0901,0.1,0.8,0.3,1,,0.2"]) + "\n")
    (folder / "map.pbtxt").write_text(LABEL_MAP)
    save_model(folder / "model")
    return folder


def save_model(path: Path) -> None:
    config = VJEPAConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        patch_size=8,
        crop_size=64,
        frames_per_clip=4,
        pred_hidden_size=24,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
        weights_origin="untrained, seed 0",
    )
    torch.manual_seed(0)
    VJEPAModel(config).save_pretrained(path)
    VJEPAVideoProcessor(crop_size=64).save_pretrained(path)


def run(folder: Path, output: str, *, val: str = "val.csv", progress=no_progress, **values) -> dict:
    given = {
        "model": str(folder / "model"),
        "train": folder / "train.csv",
        "validation": folder / val,
        "videos": folder / "videos",
        "label_map": folder / "map.pbtxt",
        "protocol": PROTOCOL,
        "start_second": 900,
        "device": "cpu",
    }
    run_localisation(LocalisationSettings(**{**given, **values}), folder / output, progress)
    return json.loads((folder / output / "results.json").read_text())


@pytest.fixture(scope="module")
def results(folder) -> dict:
    return run(folder, "run", val_proposals=folder / "proposals.csv")


def test_trained_head_names_the_actions_and_untrained_ones_do_not(folder, results):
    """Judged on the key frames that it was trained on."""
    untrained = PROTOCOL.with_values(
        num_epochs=1, num_warmup_epochs=1, learning_rate=1e-9, warmup_learning_rate=0.0, final_learning_rate=0.0
    )
    before = [
        run(folder, f"untrained-{seed}", val="train.csv", protocol=untrained, seed=seed)["mean_average_precision"]
        for seed in range(4)
    ]
    after = run(folder, "trained", val="train.csv")["mean_average_precision"]
    assert after > 0.9  # not 1: one box is in a video that cannot be read
    assert after > np.mean(before) + 0.15
    assert after > max(before)
    assert results["losses"][-1] < 0.5 * results["losses"][0]


def test_head_names_the_actions_in_a_video_that_it_has_not_seen(results):
    assert results["mean_average_precision"] > 0.6


def test_results_say_what_was_done_and_what_differs_from_the_paper(results):
    assert results["layers"] == [1, 3]
    assert results["names"] == {"1": "a", "2": "b", "3": "c"}
    assert sum(results["num_ground_truths"].values()) == 6
    assert results["protocol"]["sources"]["num_epochs"] == "set by the caller"
    assert results["protocol"]["sources"]["batch_size"] == "set by the caller"
    assert results["protocol"]["sources"]["weight_decay"].startswith("Bardes et al. 2024")
    assert "num_epochs is 40; the protocol has 30" in results["differences"]
    assert not any("annotated boxes" in difference for difference in results["differences"])


def test_unreadable_key_frames_are_counted_and_named(results):
    assert results["train"]["num_key_frames"] == 7
    assert results["train"]["num_unreadable"] == 1
    assert results["train"]["unreadable"] == ["broken,0903"]
    assert results["val"]["num_unreadable"] == 0


def test_proposals_of_a_low_score_are_not_classified(results):
    assert results["val"]["num_boxes"] == 6


def test_detections_file_has_the_result_that_the_results_state(folder, results):
    truth, found = read_annotations(folder / "val.csv"), read_detections(folder / "run" / "detections.csv")
    again = evaluate_detections(truth, found, class_ids=(1, 2, 3))
    assert again.mean_average_precision == results["mean_average_precision"]


def test_resumed_run_equals_an_uninterrupted_one(folder, results):
    steps = []

    def stop(what, done, total):
        steps.append(done)
        if (what, done) == ("training", 15):  # the first of the two steps of the eighth epoch, which is lost
            raise KeyboardInterrupt

    def keep(what, done, total):
        if what == "training":
            steps.append(done)

    options = {"val_proposals": folder / "proposals.csv"}
    with pytest.raises(KeyboardInterrupt):
        run(folder, "stopped", progress=stop, **options)
    steps.clear()
    assert run(folder, "stopped", progress=keep, **options) == results
    assert steps == list(range(15, 2 * PROTOCOL.num_epochs + 1))
    for name in ("detections.csv", "results.json"):
        assert (folder / "stopped" / name).read_bytes() == (folder / "run" / name).read_bytes()


def test_detections_are_the_highest_scores_of_each_key_frame_with_their_boxes_and_actions(model, tmp_path):  # noqa: F811
    source = stored(LayerFeatures(model, (4,)), Clips(broken=(1,)), tmp_path)
    source.fill()
    head = build_head("average", hidden_size=24, num_attention_heads=1, num_classes=3, seed=0)
    found = detect_actions(head, source, class_ids=(2, 3), max_detections=3, batch_size=2)
    assert set(found.class_ids) <= {2, 3}
    assert sorted(set(found.frame_indices)) == [0, 2, 3, 4]
    for place in (0, 2, 3, 4):
        with torch.no_grad():
            scores = head(values_of(source, [place])[:, None]).sigmoid().double()
        rows = np.flatnonzero(found.frame_indices == place)
        kept = np.sort(scores[:, 1:].numpy().ravel())[-3:]
        np.testing.assert_allclose(np.sort(found.scores[rows]), kept, rtol=1e-5)
        for row in rows:
            (box,) = np.flatnonzero((source.dataset.key_frames[place].boxes == found.boxes[row]).all(axis=1))
            assert found.scores[row] == pytest.approx(scores[box, found.class_ids[row] - 1].item(), rel=1e-5)


def test_record_of_the_run_states_command_number_and_changed_settings(folder, results):
    record = read_run(folder / "run")
    assert (record.kind, record.state) == ("localise", "complete")
    assert {"videos", "train", "validation", "validation proposals"} <= {fact.role for fact in record.data}
    assert record.command[:2] == ("localise", str(folder / "model"))
    assert record.changed["num_epochs"] == 40
    assert "untrained" in record.model.weights
    assert [result.value for result in record.results] == [round(100 * results["mean_average_precision"], 2)]


def test_head_of_other_annotations_or_settings_is_not_gone_on_with(folder, results):
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "relabelled.csv").write_text("\n".join(f"{line[:-1]}1" for line in lines) + "\n")
    for values in (
        {"train": folder / "relabelled.csv"},
        {"seed": 1},
        {"protocol": PROTOCOL.with_values(epsilon=1e-6)},
    ):
        with pytest.raises(ValueError, match="other settings"):
            run(folder, "run", val_proposals=folder / "proposals.csv", **values)


def test_missing_validation_video_lowers_the_result(folder, results):
    (folder / "more.csv").write_text("\n".join([*rows_of(2, (1, 3, 5)), *rows_of(7, (1, 3, 5))]) + "\n")
    proposals = [f"{row.rpartition(',')[0]},,0.9" for video in (2, 7) for row in rows_of(video, (1, 3, 5))]
    (folder / "more-proposals.csv").write_text("\n".join(proposals) + "\n")
    more = run(folder, "missing", val="more.csv", val_proposals=folder / "more-proposals.csv")
    assert more["val"]["num_unreadable"] == 3
    assert any("3 key frames could not be read" in difference for difference in more["differences"])
    assert sum(more["num_ground_truths"].values()) == 12
    assert more["mean_average_precision"] < 0.7 * results["mean_average_precision"]


def test_annotated_boxes_and_shared_videos_are_named_as_differences(folder):
    shared = run(folder, "trained", val="train.csv")
    assert any("annotated boxes were classified" in difference for difference in shared["differences"])
    assert any("3 videos are in both sets, such as broken" in difference for difference in shared["differences"])


def test_proposals_of_other_videos_are_refused_before_anything_is_computed(folder):
    (folder / "other.csv").write_text("other,0902,0,0,1,1,0.9\n")
    with pytest.raises(ValueError, match=r"other\.csv has no box of a score of 0\.8 or more on the 3 key frames"):
        run(folder, "refused", val_proposals=folder / "other.csv")
    assert not (folder / "refused").exists()


def test_actions_beyond_the_number_of_classes_are_refused(folder):
    with pytest.raises(ValueError, match="action 3 is to be evaluated, but num_classes is 2"):
        run(folder, "refused", protocol=PROTOCOL.with_values(num_classes=2))
