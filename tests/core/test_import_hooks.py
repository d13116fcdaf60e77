import importlib
import sys

import pytest

from vjepa_hub.core.import_hooks import run_after_import


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `outer` whose module `first` imports `second` before it is whole; unimported afterwards."""
    folder = tmp_path / "outer"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "first.py").write_text("from . import second\nname = 'first'\n")
    (folder / "second.py").write_text("name = 'second'\n")
    (folder / "broken.py").write_text("raise OSError('no disk')\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield "outer"
    for name in [name for name in sys.modules if name.partition(".")[0] == "outer"]:
        del sys.modules[name]
    sys.meta_path[:] = finders


def test_action_runs_once_after_the_module(package):
    calls = []
    run_after_import("outer.second", lambda: calls.append(sys.modules["outer.second"].name))
    import_module("outer")
    assert calls == []
    import_module("outer.second")
    import_module("outer.first")
    assert calls == ["second"]


def test_action_runs_at_once_where_the_module_is_there(package):
    import_module("outer.second")
    calls, finders = [], list(sys.meta_path)
    run_after_import("outer.second", lambda: calls.append(1))
    assert calls == [1]
    assert sys.meta_path == finders


def test_action_waits_until_no_module_of_the_package_is_half_imported(package):
    calls = []
    run_after_import("outer.second", lambda: calls.append(sys.modules["outer.first"].name), within="outer")
    import_module("outer.first")
    assert calls == ["first"]


def test_finder_removes_itself_and_leaves_the_loaders_as_they_were(package):
    finders = list(sys.meta_path)
    run_after_import("outer.second", lambda: None, within="outer")
    module = import_module("outer.second")
    assert sys.meta_path == finders
    assert module.__spec__.loader.exec_module.__qualname__ == type(module.__spec__.loader).exec_module.__qualname__


def test_an_import_that_fails_is_tried_again(package):
    calls = []
    run_after_import("outer.broken", lambda: calls.append(1))
    with pytest.raises(OSError, match="no disk"):
        import_module("outer.broken")
    assert calls == []
    (file := sys.modules["outer"].__path__[0] + "/broken.py")
    with open(file, "w") as stream:
        stream.write("mended = True\n")
    import_module("outer.broken")
    assert calls == [1]


def import_module(name):
    importlib.invalidate_caches()
    return importlib.import_module(name)
