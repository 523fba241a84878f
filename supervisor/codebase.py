"""Code as it was on disk at one moment, in memory.

A layer's process imports `bus` and its own package from a snapshot. A crash restarts the snapshot that served well; a
planned restart takes a new one; and if the new code fails, the former is still there, whatever the files say by then.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parent.parent
SHARED = ("bus",)  # besides its own package, what a layer imports from the checkout anew


class Snapshot(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The modules of some packages, compiled. Raises SyntaxError for files that do not compile."""

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = tuple(packages)
        self._modules: dict[str, tuple[CodeType, str, bool]] = {}
        for path in source_files(self.packages):
            relative = path.relative_to(ROOT).with_suffix("")
            is_package = relative.name == "__init__"
            name = ".".join(relative.parts[:-1] if is_package else relative.parts)
            code = importlib.machinery.SourceFileLoader(name, str(path)).get_code(name)
            assert isinstance(code, CodeType)
            self._modules[name] = (code, str(path), is_package)

    @classmethod
    def of_layer(cls, layer: str) -> Snapshot:
        """What the process of `layer` is made of."""
        return cls((*SHARED, f"layers.{layer}"))

    def install(self) -> None:
        """In a fresh fork: forget these packages, and import them from here from now on."""
        for name in list(sys.modules):
            if name in self._modules or name.split(".")[0] in self.packages:
                del sys.modules[name]
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname, path=None, target=None):
        """importlib.abc.MetaPathFinder."""
        found = self._modules.get(fullname)
        if found is None:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=found[1], is_package=found[2])

    def create_module(self, spec) -> ModuleType | None:
        """importlib.abc.Loader: the usual kind of module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """importlib.abc.Loader."""
        code, path, _ = self._modules[module.__name__]
        module.__file__ = path
        exec(code, module.__dict__)  # noqa: S102  (this is what a loader does)


def source_files(packages: Iterable[str]) -> list[Path]:
    """The source files of `packages` (dotted names below the checkout)."""
    return sorted(path for package in packages for path in (ROOT / package.replace(".", "/")).glob("*.py"))


def fingerprint(packages: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Modification time and size by file: differs when the code may."""
    found = {}
    for path in source_files(packages):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # renamed between the listing and now
        found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found
