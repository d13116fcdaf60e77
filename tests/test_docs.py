"""README and docs do what they say: their blocks run page by page, in order, each page in a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# The two commands of the README set up an environment of their own: `.ci/run` runs them
SET_UP = "python3 -m venv"
# Hosts on which a project has its repository, its site or its index; pages of papers and released files are others
HOSTS = r"https?://(?:[\w-]+\.)*(?:github\.com|github\.io|readthedocs\.io|pypi\.org|colab\.research\.google\.com)\S*"


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and text of a page's blocks that run as they stand."""
    found = re.findall(r"^```(python|bash)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if SET_UP not in text]


@pytest.mark.docs
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.name)
def test_blocks_of_the_page_run(page, tmp_path):
    (tmp_path / "hubconf.py").symlink_to(ROOT / "hubconf.py")  # for torch.hub.load(".")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "100"}
    for language, text in blocks_of(page):
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_pages_have_blocks_that_run():
    assert {page.name for page in PAGES if blocks_of(page)} >= {"README.md", "features.md", "pretrain.md"}


def test_readme_has_at_most_150_lines():
    assert len(README.read_text().splitlines()) <= 150


def test_addresses_of_the_project_come_from_one_place():
    section = (ROOT / "pyproject.toml").read_text().partition("[project.urls]")[2].partition("\n[")[0]
    own = re.findall(r'"(https?://[^"]+)"', section)
    for page in [*PAGES, *(ROOT / "model_cards").glob("*.md")]:
        for address in re.findall(HOSTS, page.read_text()):
            assert any(address.startswith(url) for url in own), f"{page.name} has {address}, which is no project URL"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
