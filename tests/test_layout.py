"""The walls between the rooms, and the places that state the same fact twice."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from vjepa_hub.hub.registry import MODELS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vjepa_hub"
BELOW = {
    "core": set(),
    "model": set(),
    "data": {"core"},
    "heads": {"model", "data", "core"},
    "hub": {"model", "data", "core"},
    "viz": {"heads", "hub", "model", "data", "core"},
    "publishing": {"viz", "heads", "hub", "model", "data", "core"},
    "features": {"viz", "heads", "hub", "model", "data", "core"},
    "pretraining": {"viz", "publishing", "heads", "hub", "model", "data", "core"},
    "evaluation": {"viz", "publishing", "features", "heads", "hub", "model", "data", "core"},
}
BELOW["reproduction"] = {*BELOW}
BELOW["cli"] = {*BELOW}
ROOMS = {room: {room} | below for room, below in BELOW.items()}
MODEL_FILES = sorted((PACKAGE / "model").glob("*_vjepa.py"))
MODEL_LIBRARIES = {"torch", "numpy", "PIL", "transformers", "huggingface_hub"}
DECODERS = {"decord", "av", "torchcodec"}


def _imports(path: Path) -> list[tuple[int, str]]:
    """(level, dotted name) of every import in a file, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module or alias.name) for alias in node.names]
    return found


def _room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def _rooms_entered(path: Path) -> set[str]:
    depth = len(path.relative_to(PACKAGE).parts) - 1  # folders between the package and the file
    rooms = set()
    for level, name in _imports(path):
        if level == depth + 1:
            rooms.add(name.split(".")[0])
        elif level == 0 and name.startswith("vjepa_hub."):
            rooms.add(name.split(".")[1])
    return rooms & set(ROOMS)


FILES_IN_ROOMS = [path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py"))]


def _files_of(module: Path) -> set[Path]:
    return {file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()}


@functools.lru_cache
def _modules_of(path: Path) -> set[Path]:
    """Files of the package that a file imports, those for types too."""
    folder, found = path.parent, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder
            for _ in range(node.level - 1):
                base = base.parent
            base = base.joinpath(*(node.module or "").split(".")) if node.module else base
            named = {file for alias in node.names for file in _files_of(base / alias.name)}
            found |= named if len(named) == len(node.names) else named | _files_of(base)
    return found - {path, PACKAGE / "__init__.py"}


@pytest.mark.parametrize("path", FILES_IN_ROOMS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    assert _rooms_entered(path) <= ROOMS[_room_of(path)]


def test_import_across_rooms_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    for line in ("from ..model.modeling_vjepa import VJEPAModel", "import vjepa_hub.model", "from .. import model"):
        (tmp_path / "data" / "bad.py").write_text(f"def f():\n    {line}\n")
        assert _rooms_entered(tmp_path / "data" / "bad.py") == {"model"}


def test_every_folder_of_the_package_is_a_known_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(ROOMS)


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda p: p.name)
def test_model_files_travel_alone(path):
    siblings = {file.stem for file in MODEL_FILES}
    for level, name in _imports(path):
        top = name.split(".")[0]
        allowed = MODEL_LIBRARIES | set(sys.stdlib_module_names) if level == 0 else siblings
        assert level <= 1
        assert top in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda p: p.name)
def test_every_import_line_of_model_files_is_an_import(path):
    """transformers finds the files to copy by a regular expression, which takes docstring lines for imports too."""
    tree = ast.parse(path.read_text())
    lines = {node.lineno for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if re.match(r"\s*(import|from)\s+\S", line) and not line.strip().endswith((",", ".")):
            assert number in lines, f"{path.name}:{number} begins like an import"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_decoders_are_imported_where_they_are_used(path):
    """The package has to import on machines without decord, PyAV or torchcodec."""
    statements = ast.parse(path.read_text()).body
    imported = {alias.name.split(".")[0] for s in statements if isinstance(s, ast.Import) for alias in s.names}
    imported |= {(s.module or "").split(".")[0] for s in statements if isinstance(s, ast.ImportFrom)}
    assert not imported & DECODERS


def test_lowest_versions_of_ci_are_the_lower_bounds_of_the_package():
    bounds = dict(re.findall(r'^    "([\w-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / ".ci" / "lowest.txt").read_text(), re.MULTILINE))
    assert tested.keys() == bounds.keys() - {"decord"}
    for name, version in tested.items():
        assert Version(version) == Version(bounds[name]), name


def test_readme_s_table_names_each_model_of_the_registry_once():
    table = (ROOT / "README.md").read_text().split("## Models")[1].split("\n## ")[0]
    assert sorted(re.findall(r"`(vjepa[\d.]*-[\w-]+)`", table)) == sorted(MODELS)


def _circle_from(path: Path) -> list[Path]:
    """Files on a way from a file back to itself; empty where there is none."""
    ways, seen = [[path]], set()
    while ways:
        way = ways.pop()
        for file in _modules_of(way[-1]):
            if file == path:
                return way
            if file not in seen:
                seen.add(file)
                ways.append([*way, file])
    return []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_is_imported_by_what_it_imports(path):
    assert [str(file.relative_to(PACKAGE)) for file in _circle_from(path)] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_begin_with_a_noun_or_a_verb(path):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    docstrings = [ast.get_docstring(node) for node in nodes]
    assert [text for text in docstrings if text and re.match(r"(What|Whether|See)\b", text)] == []
