"""Work around the first import of a module, hooked by a `sitecustomize`: the program need not know of it."""

import sys
import types
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec


def around_import(name: str, after: Callable[[], None], before: Callable[[], None] = lambda: None) -> None:
    """Calls `before` when the module is about to run, and `after` once it has."""
    sys.meta_path.insert(0, _Finder(name, before, after))


class _Finder(MetaPathFinder):
    def __init__(self, name: str, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._name, self._before, self._after = name, before, after

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        assert spec
        assert spec.loader
        spec.loader = _Around(spec.loader, self._before, self._after)
        return spec


class _Around(Loader):
    def __init__(self, loader: Loader, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._loader, self._before, self._after = loader, before, after

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self._before()
        self._loader.exec_module(module)
        self._after()
