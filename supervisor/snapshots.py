"""Code as it was on disk at one moment, in memory.

The keeper imports every layer when it boots, so that a fork of it need import nothing (8 of a restart's milliseconds).
A planned restart takes a snapshot of the files and imports `bus`, the layer and what the bus shares with applications
from that. A crash starts again whichever of the two served last; and if new code fails, the former is still there,
whatever the files say by then.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parent.parent


# What the process of a layer has beside the layer's own package; usernet.pipe is all that it has of the library.
SHARED = ("bus", "bus.runtime", "bus.durable", "packets", "layers.common", "usernet.pipe")


def packages_of(layer: str) -> tuple[str, ...]:
    """The packages that the process of `layer` is made of."""
    return (*SHARED, f"layers.{layer}")


class Booted:
    """The code that the keeper itself has imported."""

    def __init__(self, layer: str) -> None:
        importlib.import_module(f"layers.{layer}.__main__")

    def install(self) -> None:
        """Nothing to do: a fork has it."""


class Snapshot(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The code of a layer as it is on disk now, compiled. SyntaxError, ValueError for files that do not compile."""

    def __init__(self, layer: str) -> None:
        self._packages = packages_of(layer)
        self._modules: dict[str, tuple[CodeType, str, bool]] = {}
        for path in source_files(self._packages):
            relative = path.relative_to(ROOT).with_suffix("")
            is_package = relative.name == "__init__"
            name = ".".join(relative.parts[:-1] if is_package else relative.parts)
            # Never from __pycache__: that takes a file for unchanged that has the same size and second (1 ms a file).
            code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
            self._modules[name] = (code, str(path), is_package)

    def install(self) -> None:
        """In a fresh fork: forget these packages, and import them from here from now on."""
        for name in list(sys.modules):
            if name.startswith(("bus", "packets", "layers", "usernet.pipe")):
                del sys.modules[name]
        vars(sys.modules.get("usernet", sys)).pop("pipe", None)  # `from usernet import pipe` would look there first
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
        exec(code, module.__dict__)


Code = Booted | Snapshot


def source_files(packages: Iterable[str]) -> list[Path]:
    """The source files of `packages` and modules (dotted names below the checkout)."""
    places = [ROOT / package.replace(".", "/") for package in packages]
    found = [path for place in places for path in place.glob("*.py")]
    found += [path for path in (place.with_suffix(".py") for place in places) if path.is_file()]
    return sorted(found)


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
