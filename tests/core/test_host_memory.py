"""Memory that a command has freed stays with its process, and an import changes nothing."""

import ctypes
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from vjepa_hub import cli
from vjepa_hub.core.host_memory import reuse_freed_memory

MEGABYTES = 256
# Prints how many pages a second block of the size of one that was freed takes from the system
COUNT_PAGES = f"""
import resource
import numpy as np

def write_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty({MEGABYTES} << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

write_block()
print(write_block())
"""


def has_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def pages_of_second_block(preparation: str) -> int:
    child = subprocess.run(
        [sys.executable, "-c", f"{preparation}\n{COUNT_PAGES}"], capture_output=True, text=True, check=True
    )
    return int(child.stdout.split()[-1])


@pytest.mark.skipif(not has_glibc(), reason="the allocator is not glibc's")
def test_a_freed_block_is_used_again():
    kept = pages_of_second_block(
        "from vjepa_hub.core.host_memory import reuse_freed_memory\nassert reuse_freed_memory()"
    )
    returned = pages_of_second_block("import vjepa_hub")
    assert returned >= MEGABYTES // 2  # or more: huge pages have 2 MB
    assert kept < returned / 10


@pytest.mark.parametrize("problem", [OSError, TypeError])
def test_another_c_library_is_left_alone(problem, monkeypatch):
    def refuse(name):
        raise problem("no such library")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert not reuse_freed_memory()


def test_a_library_without_glibcs_name_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not reuse_freed_memory()


def test_commands_keep_what_they_free(monkeypatch):
    calls = []
    monkeypatch.setattr("vjepa_hub.cli.commands.reuse_freed_memory", lambda: calls.append("told"))
    assert CliRunner().invoke(cli.app, ["list", "--json"]).exit_code == 0
    assert calls == ["told"]
