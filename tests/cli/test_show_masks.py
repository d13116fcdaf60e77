from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vjepa_hub.cli import app
from vjepa_hub.viz.masks import MASK_KINDS, TRAINING_KINDS, MaskSampler, count_tokens, token_grid

SMALL = ("--model", "vjepa-vit-tiny", "--size", "48x64")


def run_show_masks(*arguments: object):
    return CliRunner().invoke(app, ["show-masks", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def printed_counts(output: str) -> dict[str, list[str]]:
    rows = [line.split() for line in output.splitlines() if line.strip()]
    return {row[0]: row[1:] for row in rows if row[0] in MASK_KINDS}


def test_sample_clip_and_the_kinds_of_training_are_the_default(tmp_path):
    output = tmp_path / "masks.png"
    result = run_show_masks(*SMALL, "--output", output)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["masks.png"]
    with Image.open(output) as image:
        assert (image.text["step"], image.text["seed"]) == ("0", "0")
    assert list(printed_counts(result.output)) == list(TRAINING_KINDS)


def test_printed_counts_are_those_of_the_masks(tmp_path):
    options = ["--step", 3, "--seed", 4, "--batch-size", 5, "--kind", "long-range", "--kind", "random-tube"]
    result = run_show_masks(*SMALL, *options, "--output", tmp_path / "masks.png")
    assert result.exit_code == 0, result.output
    grid = token_grid("vjepa-vit-tiny", "48x64")
    rows = printed_counts(result.output)
    for kind in ("long-range", "random-tube"):
        mask = MaskSampler(grid=grid, step=3, seed=4, batch_size=5).sample(kind)
        assert rows[kind] == list(count_tokens(mask, grid).values())
    assert f"4 x 3 x 4 = {grid.num_tokens} tokens" in result.output


def test_masks_made_by_hand_take_their_place_from_the_options(tmp_path):
    options = ["--kind", "future", "--frame", 4, "--kind", "box", "--box", 0, 0, 16, 32]
    result = run_show_masks(*SMALL, *options, "--output", tmp_path / "masks.png")
    assert result.exit_code == 0, result.output
    rows = printed_counts(result.output)
    assert rows["future"][:2] == [str(2 * 12), str(2 * 12)]
    assert rows["box"][1] == str(4 * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "shortrange"], "short-range"),
        (["--size", "50"], "must be a multiple of patch_size=16"),
        (["--size", "big"], "size is 'big'"),
        (["--box", "0", "0", "8", "8"], "add it"),
        (["--kind", "future", "--frame", "99"], "give a frame from 2 to 7"),
        (["--kind", "box", "--box", "9", "0", "3", "8"], "0 <= first < end <= 48"),
        (["--step", "-1"], "step is -1"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--backend", "decorb"], "decorb"),
    ],
)
def test_bad_option_is_a_usage_error_that_names_the_rule(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_show_masks(*SMALL, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_picture_never_replaces_the_image_that_it_is_drawn_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), (200, 10, 10)).save("frame.png")
    before = Path("frame.png").read_bytes()
    assert run_show_masks("frame.png", *SMALL, "--output", "frame.png").exit_code == 2
    assert Path("frame.png").read_bytes() == before
    (tmp_path / "mine.png").write_bytes((tmp_path / "frame.png").read_bytes())
    assert run_show_masks("frame.png", *SMALL, "--output", "mine.png").exit_code == 2
    for _ in range(2):  # its own picture is replaced
        assert run_show_masks("frame.png", *SMALL, "--output", "masks.png").exit_code == 0
