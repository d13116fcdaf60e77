"""The command as a whole: help, completion, and mistakes that are told before anything heavy is imported."""

import json
import os
import resource
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import vjepa_hub
from tests.child_process import run_python
from tests.other_run import HOST, at_work_in
from vjepa_hub.cli import app
from vjepa_hub.core.folder_lock import FolderLock
from vjepa_hub.evaluation.protocols import PROTOCOLS
from vjepa_hub.hub.registry import MODELS
from vjepa_hub.pretraining.recipes import recipe_names

COMMANDS = [command.name for command in app.registered_commands]
# In one process: exit code and output of each line of arguments, and the libraries that were imported for all of them
RUN_LINES = """
    import json, sys
    from typer.testing import CliRunner
    from vjepa_hub.cli import app
    results = [CliRunner().invoke(app, line, env={"COLUMNS": "200"}) for line in json.loads(sys.argv[1])]
    heavy = {"torch", "transformers", "matplotlib", "PIL"} & set(sys.modules)
    print(json.dumps([[[result.exit_code, result.output] for result in results], sorted(heavy)]))
"""
MISTAKES = [
    ("features nonesuch.mp4", "SOURCE...", "nonesuch.mp4"),
    ("features", "", "--sample"),
    ("features --sample --no-dense --no-pooled", "--no-pooled", "--no-dense"),
    ("features --sample --no-dense --picture", "", "--no-dense"),
    ("features --sample --output-dir FILE", "--output-dir", "FILE"),
    ("features --sample --model vjepa-vitl14", "--model", "vjepa-vitl16"),
    ("features --sample --model ./nonesuch", "--model", "./nonesuch"),
    ("features --sample --config nonesuch.json", "--config", "nonesuch.json"),
    ("check-data nonesuch", "SOURCE...", "nonesuch"),
    ("check-data --manifest nonesuch.csv", "--manifest", "nonesuch.csv"),
    ("convert nonesuch.pth.tar out", "FILE", "nonesuch.pth.tar"),
    ("convert FILE out --model vjepa-vitl14", "--model", "vjepa-vitl16"),
    ("convert FILE out --model vjepa-vitl16 --config FILE", "", "--config"),
    ("show-masks nonesuch.mp4", "VIDEO", "nonesuch.mp4"),
    ("show-masks --frame 3", "--frame", "--kind future"),
    ("show-masks --output masks.jpg", "--output", ".png"),
    ("make-videos FILE", "FOLDER", "FILE"),
    ("make-videos out --scene grainy", "--scene", "fashion-mnist"),
    ("pretrain tinny", "RECIPE", "'tiny'"),
    ("pretrain tiny --data nonesuch.csv", "--data", "nonesuch.csv"),
    ("pretrain tiny --data FILE --weight 1 --weight 2", "--weight", "2"),
    ("pretrain tiny --init vjepa-vitl14", "--init", "vjepa-vitl16"),
    ("probe vjepa-vitl14 --val FILE --train FILE", "MODEL...", "vjepa-vitl16"),
    ("probe vjepa-vit-tiny --val nonesuch.csv --train FILE", "--val", "nonesuch.csv"),
    ("probe vjepa-vit-tiny --val FILE", "--train", "--eval-only"),
    ("probe vjepa-vit-tiny timm:vit_tiny --val FILE --eval-only", "--eval-only", "2"),
    ("probe vjepa-vit-tiny --val FILE --train FILE --protocol k600", "--protocol", "k400"),
    ("probe vjepa-vit-tiny --val FILE --train FILE --set num_epochs=0", "", "num_epochs"),
    ("probe vjepa-vit-tiny --val FILE --train FILE --set epochs=3", "", "num_epochs"),
    ("finetune vjepa-vitl14 --train FILE --val FILE", "MODEL", "vjepa-vitl16"),
    ("finetune vjepa-vit-tiny --train FILE --val nonesuch.csv", "--val", "nonesuch.csv"),
    ("localise vjepa-vit-tiny --train FILE --val FILE --videos nonesuch", "--videos", "nonesuch"),
    ("publish nonesuch --repo-id me/it", "FOLDER_OR_MODEL", "nonesuch"),
    ("export vjepa-vit-tiny out.txt", "", ".onnx"),
    ("verify nonesuch", "REPO_OR_FOLDER", "nonesuch"),
    ("verify vjepa-vitl16", "", "owner/name"),
    ("verify me/it --short", "--short", "--retrain"),
    ("reproduce tinny --short-steps 1 --output-dir out", "RECIPE", "'tiny'"),
    ("featurs", "", "features"),
    ("features --sample --otput-dir x", "", "--output-dir"),
]


def run_lines(lines: list[list[str]]) -> tuple[list[tuple[int, str]], list[str]]:
    results, heavy = json.loads(run_python(RUN_LINES, os.environ, arguments=(json.dumps(lines),)))
    return [(code, " ".join(output.replace("│", " ").split())) for code, output in results], heavy


def test_every_command_has_a_help_with_an_example_that_loads_nothing_heavy():
    results, heavy = run_lines([["--help"], *([name, "--help"] for name in COMMANDS)])
    assert heavy == []
    assert all(name in results[0][1] for name in COMMANDS)
    for name, (code, output) in zip(COMMANDS, results[1:], strict=True):
        assert code == 0
        assert f"vjepa-hub {name} " in output.split("Example")[-1]


def test_help_breaks_its_lines_where_the_terminal_ends():
    output = CliRunner().invoke(app, ["pretrain", "--help"], env={"COLUMNS": "300"}).output
    assert "two CPU cores, and ends with plots. The folder gets the recipe" in output


def test_mistakes_are_told_before_anything_heavy_is_imported(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("a.mp4 0\n")
    lines = [[str(file) if word == "FILE" else word for word in line.split()] for line, _, _ in MISTAKES]
    results, heavy = run_lines(lines)
    for (line, option, remedy), (code, output) in zip(MISTAKES, results, strict=True):
        expected = str(file) if remedy == "FILE" else remedy
        assert (code, option.lower() in output.lower(), expected in output) == (2, True, True), f"{line}: {output}"
        assert "[Errno" not in output
    assert heavy == []


WRITING = [
    "features --sample --output-dir",
    "check-data FILE --output-dir",
    "convert FILE",
    "make-videos",
    "pretrain tiny --output-dir",
    "probe vjepa-vit-tiny --val FILE --train FILE --output-dir",
    "finetune vjepa-vit-tiny --val FILE --train FILE --output-dir",
    "localise vjepa-vit-tiny --val FILE --train FILE --videos . --output-dir",
    "reproduce tiny --short-steps 1 --output-dir",
]


def test_folder_of_another_run_is_refused_with_its_holder_before_anything_heavy_is_imported(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("a.mp4 0\n")
    busy = tmp_path / "busy"
    lines = [[*(str(file) if word == "FILE" else word for word in line.split()), str(busy)] for line in WRITING]
    with at_work_in(busy):
        results, heavy = run_lines(lines)
    for line, (code, output) in zip(WRITING, results, strict=True):
        assert (code, HOST in output, "another output folder" in output) == (2, True, True), f"{line}: {output}"
    assert heavy == []


@pytest.mark.parametrize(
    "words", ["check-data vjepa.mp4 --output-dir out", "make-videos out --num-videos 1", "convert vjepa.mp4 out"]
)
def test_commands_without_a_run_of_their_own_lock_their_folder_too(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vjepa.mp4").write_bytes(b"no video")
    locked: list[str] = []
    monkeypatch.setattr(FolderLock, "acquire", lambda lock: locked.append(lock.folder.name))
    CliRunner().invoke(app, words.split())
    assert locked == ["out"]


def test_output_that_cannot_be_written_ends_with_1_the_path_the_cause_and_a_remedy(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        result = CliRunner().invoke(app, ["make-videos", str(tmp_path / "out"), "--num-videos", "1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == 1
    for told in (str(tmp_path / "out"), "File too large", "ulimit"):
        assert told in result.output
    assert "Usage" not in result.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pretr", {"pretrain"}),
        ("pretrain ", set(recipe_names())),
        ("pretrain tiny --init vjepa", set(MODELS)),
        ("features --model vjepa-vitl", {"vjepa-vitl16"}),
        ("probe vjepa-vit-tiny --protocol pl", {name for name in PROTOCOLS if name.startswith("pl")}),
        ("show-masks --kind r", {"random-tube"}),
        ("finetune ", set(MODELS)),
    ],
)
def test_tab_completes_commands_recipes_models_protocols_and_masks(words, expected):
    code = (
        "import sys; from vjepa_hub.cli import main; sys.argv = ['vjepa-hub'];"
        "import atexit; atexit.register(lambda: print('HEAVY' * ('torch' in sys.modules), end=''));main()"
    )
    environment = {
        "_VJEPA_HUB_COMPLETE": "complete_bash",
        "COMP_WORDS": f"vjepa-hub {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    child = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert set(child.stdout.split()) == expected


def test_version_is_that_of_the_package():
    assert vjepa_hub.__version__ in CliRunner().invoke(app, ["--version"]).output
