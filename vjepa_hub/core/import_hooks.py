"""Actions that wait until somebody else imports a module, so that `import vjepa_hub` need not import it."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def run_after_import(name: str, action: Callable[[], object], *, within: str | None = None) -> None:
    """Run an action once, as soon as a module has been imported; at once where it has been already.

    Args:
        name: Dotted name of the module.
        action: It may import the module, and others of the same package.
        within: Package of which no module may be half imported when the action runs, since the action imports from
            it; the module itself by default.
    """
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _ImportHook(name, action, within or name))


class _ImportHook(importlib.abc.MetaPathFinder):
    """Finder that leaves the search to the others, follows the imports of a package, and then removes itself."""

    def __init__(self, name: str, action: Callable[[], object], within: str) -> None:
        self.name = name
        self.action = action
        self.within = within
        self.half_imported: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec that the other finders give, with a loader that reports to this one."""
        finders = list(sys.meta_path)
        if self not in finders or not f"{fullname}.".startswith(f"{self.within}."):
            return None
        others = finders[finders.index(self) + 1 :]  # those before were asked already
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._follow(fullname, spec.loader)
        return spec

    def _follow(self, fullname: str, loader: importlib.abc.Loader) -> None:
        execute = loader.exec_module

        def execute_and_report(module: ModuleType) -> None:
            loader.exec_module = execute  # type: ignore[method-assign]  # some loaders serve many modules
            self.half_imported.add(fullname)
            try:
                execute(module)
            finally:
                self.half_imported.discard(fullname)
            if self.name in sys.modules and not self.half_imported and self in sys.meta_path:
                sys.meta_path.remove(self)  # first: the action's own imports come here too
                self.action()

        loader.exec_module = execute_and_report  # type: ignore[method-assign]
