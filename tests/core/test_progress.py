"""One progress bar: on terminals, in logs, in several processes."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from vjepa_hub.core import progress
from vjepa_hub.core.progress import ProgressBar, no_progress


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def shown_on(console: Console) -> str:
    """Text on a console, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_bar_shows_what_is_at_work_and_how_much_is_done_and_goes_away():
    console = terminal()
    with ProgressBar(console) as bar:
        for done in range(4):
            bar("clip [1].mp4 (2 of 5)", done, 3)
    assert "clip [1].mp4 (2 of 5)" in shown_on(console)
    assert "3/3" in shown_on(console)
    assert console.file.getvalue().endswith("\x1b[2K")  # the line is erased


def test_nothing_is_shown_before_the_work_begins():
    console = terminal()
    with ProgressBar(console):
        pass
    assert shown_on(console) == ""


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_log_of_a_batch_job_gets_a_line_a_minute_with_rate_and_time_left(clock):
    log = io.StringIO()
    with ProgressBar(Console(file=log, width=200)) as bar:
        for done in range(0, 1201, 10):
            clock[0] = done / 10  # ten a second
            bar("checking", done, 12_000)
    lines = log.getvalue().splitlines()
    assert lines == [
        "checking: 600 of 12,000, 10.0/s, 0:19:00 left",
        "checking: 1,200 of 12,000, 10.0/s, 0:18:00 left",
    ]


def test_work_with_another_total_or_less_done_has_a_rate_of_its_own(clock):
    log = io.StringIO()
    with ProgressBar(Console(file=log, width=200)) as bar:
        for done in range(100):
            bar("encoding", done, 100)  # in no time at all
        for step in range(4):
            clock[0] = 30.0 * step
            bar("training", step, 100)
    assert log.getvalue().splitlines() == ["training: 2 of 100, 30.0 s each, 0:49:00 left"]


@pytest.mark.parametrize("console", [terminal(), Console(file=io.StringIO(), force_terminal=True, quiet=True)])
def test_other_processes_and_quiet_consoles_show_nothing(monkeypatch, console):
    if not console.quiet:
        monkeypatch.setenv("RANK", "1")
    with ProgressBar(console) as bar:
        bar("checking", 1, 2)
    no_progress("checking", 1, 2)
    assert console.file.getvalue() == ""


LOADS_WEIGHTS = """
import sys
from vjepa_hub.core.progress import hide_library_bars

hide_library_bars()
assert not {"torch", "transformers", "datasets"} & set(sys.modules)
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

assert not logging.is_progress_bar_enabled()
assert not are_progress_bars_disabled()
"""


def test_bars_of_transformers_are_hidden_without_importing_it_and_downloads_keep_theirs():
    subprocess.run([sys.executable, "-c", LOADS_WEIGHTS], check=True, timeout=120)
