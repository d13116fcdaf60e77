import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vjepa_hub.cli import app
from vjepa_hub.data.manifests import read_manifest_entries
from vjepa_hub.data.synthetic import shapes as synthetic
from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos, render_synthetic_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A folder with three small videos and `motion.csv`."""
    folder = tmp_path_factory.mktemp("videos")
    make_synthetic_videos(folder, SyntheticVideoSettings(num_videos=3, size=32, num_frames=4))
    return folder


@pytest.fixture
def with_bad(videos, tmp_path) -> Path:
    """A copy in which `video-00001.mp4` is cut."""
    folder = Path(shutil.copytree(videos, tmp_path / "data"))
    bad = folder / "video-00001.mp4"
    bad.write_bytes(bad.read_bytes()[:-99])
    return folder


def run_check(*arguments: object):
    return CliRunner().invoke(app, ["check-data", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_a_bad_file_in_a_manifest_is_named_and_left_out_of_the_good_ones(with_bad, tmp_path):
    output = tmp_path / "checked"
    result = run_check("--manifest", with_bad / "motion.csv", "--output-dir", output, "--processes", 1)
    assert result.exit_code == 1, result.output
    assert f"bad: {with_bad}/video-00001.mp4: the file is truncated" in result.output
    assert "3 videos: 2 good, 1 bad; 0 of them checked before" in result.output
    assert sorted(path.name for path in output.iterdir()) == ["bad.jsonl", "good-motion.csv", "report.jsonl"]
    kept = read_manifest_entries(with_bad / "motion.csv")
    good = read_manifest_entries(output / "good-motion.csv")
    assert [(Path(entry.path).name, entry.label) for entry in good] == [(kept[n].path, kept[n].label) for n in (0, 2)]
    assert [Path(entry.path).name for entry in read_manifest_entries(output / "bad.jsonl")] == ["video-00001.mp4"]


def test_a_folder_without_bad_files_succeeds_and_a_second_run_has_nothing_to_do(videos, tmp_path):
    for num_before in (0, 3):
        result = run_check(videos, "--output-dir", tmp_path, "--processes", 1)
        assert result.exit_code == 0, result.output
        assert f"3 videos: 3 good, 0 bad; {num_before} of them checked before" in result.output
    assert len((tmp_path / "report.jsonl").read_text().splitlines()) == 3
    assert len(read_manifest_entries(tmp_path / "good.txt")) == 3
    result = run_check(videos, "--output-dir", tmp_path, "--again", "--backend", "pyav")
    assert "0 of them checked before" in result.output
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["backend"] for line in lines[3:]] == ["pyav"] * 3


def test_causes_and_warnings_are_counted(with_bad, tmp_path):
    frames = render_synthetic_video(SyntheticVideoSettings(size=32, num_frames=2), 0).frames
    synthetic._write_video(with_bad / "single.mp4", frames[:1], fps=16)
    for name in ("x.mp4", "y.mp4"):
        (with_bad / name).write_bytes(b"")
    result = run_check(with_bad, "--output-dir", tmp_path / "checked")
    rows = [line.strip() for line in result.output.splitlines()]
    verdicts = [row.split(maxsplit=1)[1] for row in rows if row[:1].isdigit() and "videos" not in row]
    assert [" ".join(verdict.split()) for verdict in verdicts] == [
        "bad the file is empty",
        "bad the file is truncated",
        "good, but it has a single frame",
    ]
    assert [row[0] for row in rows if row[:1].isdigit() and "videos" not in row] == ["2", "1", "1"]


def test_lists_that_others_have_written_or_that_are_read_are_never_replaced(videos, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "good.txt").write_text("mine")
    result = run_check(videos, "--output-dir", output)
    assert result.exit_code == 2
    assert "vjepa_hub did not write it" in " ".join(result.output.replace("│", " ").split())
    assert [path.name for path in output.iterdir()] == ["good.txt"]
    (output / "good.txt").unlink()
    assert run_check(videos, "--output-dir", output).exit_code == 0
    assert run_check(videos, "--output-dir", output).exit_code == 0
    (output / "bad.jsonl").write_text('{"path": "a.mp4"}\n')
    result = run_check(output / "bad.jsonl", "--output-dir", output)
    assert result.exit_code == 2
    assert "is read by the same command" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["VIDEOS", "--item-timeout", "0"], "item_timeout is 0"),
        (["VIDEOS", "--processes", "0"], "processes is 0"),
        (["VIDEOS", "--backend", "decorb"], "'decorb' cannot be used"),
        (["--manifest", "VIDEOS/motion.csv", "--manifest", "VIDEOS/motion.csv"], "2 manifests are called"),
    ],
)
def test_wrong_use_is_a_usage_error_and_checks_nothing(videos, tmp_path, arguments, message):
    arguments = [argument.replace("VIDEOS", str(videos)) for argument in arguments]
    result = run_check(*arguments, "--output-dir", tmp_path / "checked")
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "checked").exists()
