"""Importing a package without what it imports but does not use for rendering."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar


class Stub(types.ModuleType):
    """A module that is not installed: every name in it is a class that fails when it is called.

    While others are being imported an object of it is made: decorators, default folders; and
    classes stand in annotations and as bases.
    """

    # A package: submodules are stubs, too. In the class, as __getattr__ answers for objects.
    __path__: ClassVar[list[str]] = []  # ty: ignore[incompatible-attribute-override]
    importing = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Missing,), {"__module__": self.__name__})


class _Missing:
    """A name of a module that is not installed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        if not Stub.importing:
            module = type(self).__module__
            name = f"{module}.{type(self).__name__}"
            raise ImportError(f"{name} is needed, but {module} is not installed")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last: finds the packages that no other finder has."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.split(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def stubbed(names: Sequence[str]) -> Iterator[None]:
    """Inside, an import of one of these top-level packages succeeds also if it is missing.

    Those that are installed are imported as ever; no stub stays behind in sys.modules.
    """
    finder = _Finder(names)
    sys.meta_path.append(finder)
    Stub.importing += 1
    try:
        yield
    finally:
        Stub.importing -= 1
        sys.meta_path.remove(finder)
        for name in [n for n, m in sys.modules.items() if isinstance(m, Stub)]:
            del sys.modules[name]
