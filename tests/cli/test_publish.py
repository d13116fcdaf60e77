import json
import shlex
import shutil
from functools import partial

import pytest
from huggingface_hub import HfApi, constants
from rich.console import Console
from typer.testing import CliRunner

from tests.hub_server import OWNER_TOKEN
from tests.pretraining.test_run import RECIPE
from vjepa_hub import VJEPAForVideoClassification, VJEPAVideoProcessor
from vjepa_hub.cli import app
from vjepa_hub.core.run_files import read_run
from vjepa_hub.evaluation.slice_evaluation import find_stated_protocol
from vjepa_hub.pretraining.recipe import Recipe
from vjepa_hub.pretraining.run import pretrain
from vjepa_hub.publishing.card import read_card
from vjepa_hub.publishing.verification import verify_folder

QUICK = ("--num-epochs", "1", "--batch-size", "16", "--num-workers", "0", "--num-classes", "8")


def command(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


def plain(result) -> str:
    return " ".join(result.output.replace("│", " ").split())


@pytest.fixture
def server(hub_server, monkeypatch, tmp_path):
    """The Hub of the commands, with a cache of its own and the owner's token."""
    for module in ("publishing", "verification"):
        monkeypatch.setattr(f"vjepa_hub.publishing.{module}.HfApi", partial(HfApi, endpoint=hub_server.endpoint))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
    return hub_server


@pytest.fixture
def features(labelled_folder, tmp_path):
    """A features folder of random weights, which says that it is trained."""
    folder = shutil.copytree(labelled_folder / "model", tmp_path / "features")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"weights_origin": "made for a test"}))
    return folder


def test_a_probe_goes_from_its_training_to_a_verified_repository(labelled_folder, features, server, tmp_path):
    out, data = tmp_path / "probe", labelled_folder / "test" / "motion.csv"
    training = ("--train", labelled_folder / "train" / "motion.csv", "--val", data, "--output-dir", out)
    result = command("probe", features, *training, *QUICK, "--set", "frame_step=2")
    assert result.exit_code == 0, result.output
    result = command("publish", out, "--repo-id", "tester/motion", "--license", "apache-2.0", "--with-plots")
    assert result.exit_code == 0, result.output
    assert "published" in result.output
    files = server.repositories["tester/motion"].files()
    assert {"results.json", "per_class.csv", "confusion.png", "model.safetensors"} <= files.keys()
    top1 = read_card(files["README.md"].data.decode()).data.eval_results[0]
    measured = json.loads((out / "results.json").read_text())["selected"]["metrics"]["top1"]
    assert top1.metric_value == round(100 * measured, 2)
    result = command("verify", "tester/motion", "--data", data, "--limit", "24")
    assert result.exit_code == 0, result.output
    assert f"{round(24 * measured)} of 24 right" in result.output  # the whole set, seen as it was in the evaluation
    assert "what it says of itself holds" in result.output


COMMANDS = {
    "probe": (
        ["--label-fraction", "0.5", "--splits", "1", "--crop-size", "40", "--set", "frame_step=2"],
        "classifier",
    ),
    "finetune": (["--num-segments", "2", "--set", "augmentation.scale=0.5,1", "--argument", "logging_steps=5"], "."),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_command_of_a_card_with_its_placeholders_filled_gives_the_same_number(
    labelled_folder, features, tmp_path, kind
):
    options, place = COMMANDS[kind]
    places = {
        "MODEL": features,
        "TRAIN_LABELS.csv": labelled_folder / "train" / "motion.csv",
        "VALIDATION_LABELS.csv": labelled_folder / "test" / "motion.csv",
    }
    sets = ("--train", places["TRAIN_LABELS.csv"], "--val", places["VALIDATION_LABELS.csv"])
    result = command(kind, features, *sets, "--output-dir", tmp_path / "first", *options, *QUICK)
    assert result.exit_code == 0, result.output
    (folder,) = {path.parent for path in (tmp_path / "first").rglob("run.json")}
    stated = read_card((folder / place / "README.md").read_text()).data.eval_results[0]
    words = shlex.split(stated.metric_args["command"])
    assert words[0] == "vjepa-hub"
    filled = [places.get(word, tmp_path / "again" if word == "RUN" else word) for word in words[1:]]
    assert command(*filled).exit_code == 0
    again = read_run(tmp_path / "again" / folder.relative_to(tmp_path / "first"))
    assert again.results[0].value == stated.metric_value
    assert again.differences(read_run(folder)) == []
    for part in ("50 % of the training labels", "crop_size=40", "frame_step=2") if kind == "probe" else ("scale=",):
        assert part in stated.metric_args["protocol"]
    assert verify_folder(folder).passed


def test_a_tuned_classifier_is_published_with_its_settings_and_log(labelled_folder, features, server, tmp_path):
    out = tmp_path / "tuned"
    sets = ("--train", labelled_folder / "train" / "motion.csv", "--val", labelled_folder / "test" / "motion.csv")
    result = command("finetune", features, *sets, "--output-dir", out, "--num-segments", "2", *QUICK)
    assert result.exit_code == 0, result.output
    result = command("publish", out, "--repo-id", "tester/tuned", "--license", "apache-2.0", "--dataset", "me/motion")
    assert result.exit_code == 0, result.output
    files = server.repositories["tester/tuned"].files()
    assert {"run.json", "metrics.json"} <= files.keys()
    assert not any("checkpoint" in name or name.endswith(".bin") for name in files)
    assert str(tmp_path).encode() not in files["config.json"].data + files["run.json"].data
    data = read_card(files["README.md"].data.decode()).data
    assert data.datasets == ["me/motion"]
    assert data.eval_results[0].dataset_name == "me/motion"
    assert find_stated_protocol(out).num_segments == 2


def test_a_pretraining_run_is_published_without_its_videos_and_with_what_its_own_card_says(server, tmp_path):
    out = tmp_path / "run"
    recipe = Recipe.from_tree({"name": "small-run", **RECIPE}).with_overrides({"probe": "none"})
    pretrain(recipe, output_dir=out, console=Console(quiet=True))
    result = command("publish", out, "--repo-id", "tester/small", "--license", "apache-2.0")
    assert result.exit_code == 0, result.output
    files = server.repositories["tester/small"].files()
    assert {"recipe.yaml", "metrics.csv", "README.md"} <= files.keys()
    assert not any("/" in name or name.endswith(".bin") for name in files)
    card = files["README.md"].data.decode()
    own = (out / "README.md").read_text()
    for row in (
        "| steps | 4 of 4 |",
        "| data | 12 videos that vjepa_hub made itself",
        "| Effective rank of the targets |",
    ):
        assert row in own
        assert row in card
    assert 'from_pretrained("tester/small"' in card
    assert command("verify", "tester/small").exit_code == 0


def test_a_dry_run_shows_files_and_checks_and_ends_with_1_where_one_fails(features, server):
    result = command("publish", features, "--repo-id", "tester/model", "--dry-run")
    assert result.exit_code == 1
    assert "model.safetensors" in result.output
    assert "checks: 1 problem" in result.output
    assert "no license" in result.output
    assert "(--license)" in result.output
    result = command("publish", features, "--repo-id", "tester/model", "--dry-run", "--license", "mit")
    assert "pipeline_tag: feature-extraction" in result.output
    assert "# tester/model" in result.output
    assert result.exit_code == 0
    assert "checks: no problems" in result.output
    assert not server.repositories


def test_the_same_command_again_says_that_nothing_differs(features, server):
    arguments = ("publish", features, "--repo-id", "tester/model", "--license", "mit", "--private")
    assert "published" in command(*arguments).output
    assert "no commit was made" in command(*arguments).output
    assert server.num_requests("commit") == 1
    assert server.repositories["tester/model"].is_private


def test_the_licence_in_the_folders_own_card_is_enough(features, server):
    (features / "README.md").write_text("---\nlicense: mit\n---\n# By hand\n")
    assert command("publish", features, "--repo-id", "tester/model").exit_code == 0
    assert b"# By hand" in server.repositories["tester/model"].files()["README.md"].data


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["FOLDER", "--repo-id", "a/b/c"], 1, "is no name of a repository"),
        (["FOLDER", "--repo-id", "other/model"], 1, "who may write to tester/..., org/..."),
        (["FOLDER", "--repo-id", "tester/model"], 1, "nothing was sent: - README.md: the metadata have no license"),
        (["EMPTY", "--repo-id", "tester/model"], 2, "holds no model"),
    ],
)
def test_what_cannot_be_published_is_told_without_a_traceback(
    features, server, tmp_path, arguments, exit_code, message
):
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": features, "EMPTY": tmp_path / "empty"}
    result = command("publish", *(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == exit_code, result.output
    assert message in plain(result)
    assert not server.repositories


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["tester/missing"], 1, "there is no such repository"),
        (["FOLDER", "--revision", "main"], 2, "--revision"),
        (["FOLDER", "--protocol", "k400"], 2, "no --data to evaluate on"),
        (["FOLDER"], 1, "there is no README.md"),
    ],
)
def test_what_cannot_be_verified_is_told(features, server, arguments, exit_code, message):
    result = command("verify", *(features if argument == "FOLDER" else argument for argument in arguments))
    assert result.exit_code == exit_code, result.output
    assert message in plain(result)


def test_a_card_that_states_too_much_is_found_by_its_slice(labelled_folder, small_config, server, tmp_path):
    folder = tmp_path / "classifier"
    small_config.num_labels = 8
    small_config.weights_origin = "made for a test"
    VJEPAForVideoClassification(small_config).save_pretrained(folder)
    VJEPAVideoProcessor(crop_size=32, frame_step=2).save_pretrained(folder)
    published = command("publish", folder, "--repo-id", "tester/boast", "--license", "mit")
    assert published.exit_code == 0, published.output
    boast = server.repositories["tester/boast"]
    card = boast.files()["README.md"].data.decode()
    index = (
        "model-index:\n- name: boast\n  results:\n  - task:\n      type: video-classification\n    dataset:\n"
        "      name: motion\n      type: motion\n    metrics:\n    - type: accuracy\n      name: top-1 accuracy (%)\n"
        "      value: 99.9\n"
    )
    text = card.replace("license: mit\n", f"license: mit\n{index}")
    boast.add_commit(
        "main", boast.files() | {"README.md": type(boast.files()["README.md"]).regular(text.encode())}, ""
    )
    result = command("verify", "tester/boast", "--data", labelled_folder / "test" / "motion.csv", "--limit", "20")
    assert result.exit_code == 1, result.output
    assert "of 20 right" in plain(result)
    assert "outside of" in plain(result)
