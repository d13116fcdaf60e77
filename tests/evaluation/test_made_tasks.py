import pytest
import torch

from vjepa_hub import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.data.manifests import read_manifest_entries
from vjepa_hub.data.synthetic.moving_pictures import FASHION_MNIST_CLASSES
from vjepa_hub.data.synthetic.shapes import APPEARANCES, MOTIONS
from vjepa_hub.evaluation import made_tasks
from vjepa_hub.evaluation.made_tasks import TASKS, MadeTaskSettings, make_task_videos, probe_tasks
from vjepa_hub.heads.pooling import HeadSettings

SMALL = MadeTaskSettings(
    num_train=80, num_test=8, size=32, num_frames=4, frame_step=1, num_epochs=1, has_pictures=False
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    make_task_videos(folder, SMALL)
    return folder


def test_both_splits_are_made_and_share_no_video(videos):
    found = {split: sorted((videos / split).glob("*.mp4")) for split in ("train", "test")}
    assert {split: len(paths) for split, paths in found.items()} == {"train": 80, "test": 8}
    contents = [path.read_bytes() for paths in found.values() for path in paths]
    assert len(set(contents)) == 88


def test_the_classes_are_those_of_both_kinds_of_video():
    assert {"appearance": len(APPEARANCES), "motion": len(MOTIONS)} == TASKS
    assert TASKS["appearance"] == len(FASHION_MNIST_CLASSES)


def test_pictures_of_each_split_are_its_own(tmp_path, monkeypatch):
    asked = []

    def make(folder, made, *, pictures, progress):
        asked.append((folder.name, made.split, made.scene, pictures))

    monkeypatch.setattr(made_tasks, "make_videos", make)
    settings = MadeTaskSettings(num_train=2, num_test=2, scene="grainy", pictures=tmp_path)
    make_task_videos(tmp_path / "made", settings)
    assert asked == [("train", "train", "grainy", tmp_path), ("test", "test", "grainy", tmp_path)]


def test_each_task_has_a_row_for_each_head_and_one_of_them_is_selected(videos, tmp_path):
    config = VJEPAConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        pred_hidden_size=12,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
    )
    torch.manual_seed(0)
    VJEPAModel(config).save_pretrained(tmp_path / "model")
    VJEPAVideoProcessor(crop_size=32, num_frames=4).save_pretrained(tmp_path / "model")
    heads = [HeadSettings(pooling="average", learning_rate=rate, weight_decay=0.0) for rate in (1e-3, 1e-2)]
    tables = probe_tasks([str(tmp_path / "model")], videos, tmp_path / "out", SMALL, heads=heads, seeds=(0,))
    assert list(tables) == list(TASKS)
    for task, rows in tables.items():
        assert [row.is_selected for row in rows].count(True) == 1
        assert len(rows) == 2
        labels = [int(entry.label) for entry in read_manifest_entries(videos / "test" / f"{task}.csv")]
        assert max(labels) < TASKS[task]
        assert all(8 * row.top1.mean == pytest.approx(round(8 * row.top1.mean)) for row in rows)
