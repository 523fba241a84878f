"""The code of a layer as it was on disk at one moment, in memory that outlives the process that read it.

The keeper imports every layer when it boots, so that a fork of it need import nothing (8 of a restart's milliseconds).
The successor of a planned restart reads and compiles the files itself, for they may be anything, and leaves what came
of it in a memfd of the keeper's; later processes import from there. A crash starts again whichever code served last;
and if new code fails, the former is still there, whatever the files say by then.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import io
import marshal
import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parent.parent

_FRAME = re.compile(r'  File "([^"]+)", line (\d{1,6}), in ')
FILE_OCTETS_MAX = 1 << 20  # of one source file
# What the process of a layer has beside the layer's own package; usernet.pipe is all that it has of the library.
SHARED = ("bus", "bus.runtime", "bus.durable", "packets", "layers.common", "usernet.pipe")
_PREFIXES = ("bus", "packets", "layers", "usernet.pipe")


def packages_of(layer: str) -> tuple[str, ...]:
    """The packages that the process of `layer` is made of."""
    return (*SHARED, f"layers.{layer}")


class Booted:
    """The code that the keeper itself has imported."""

    descriptor = -1

    def __init__(self, layer: str) -> None:
        importlib.import_module(f"layers.{layer}.__main__")

    def install(self) -> None:
        """Nothing to do: a fork has it."""


class Snapshot(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The code of a layer as it is on disk at the first `install`, which later ones find here."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._file = io.FileIO(os.memfd_create(f"usernet-code-{layer}", os.MFD_CLOEXEC), "r+")
        self.descriptor = self._file.fileno()
        self._modules: dict[str, tuple[CodeType, str, bool]] = {}

    def compile(self) -> None:
        """Read the files and compile them. SyntaxError, ValueError, OSError and more, for they may hold anything."""
        modules = {}
        for path in source_files(packages_of(self._layer)):
            relative = path.relative_to(ROOT).with_suffix("")
            is_package = relative.name == "__init__"
            name = ".".join(relative.parts[:-1] if is_package else relative.parts)
            # Never from __pycache__: that takes a file for unchanged that has the same size and second (1 ms a file).
            modules[name] = (compile(_source(path), str(path), "exec", dont_inherit=True), str(path), is_package)
        octets = marshal.dumps(modules)
        os.pwrite(self.descriptor, octets, 0)

    def load(self) -> None:
        """Make the modules known to this process; compiled now, where no process has done it before."""
        if not os.fstat(self.descriptor).st_size:
            self.compile()
        self._modules = marshal.loads(os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0))

    def install(self) -> None:
        """In a fresh fork: forget these packages, and import them from here from now on."""
        self.load()
        for name in list(sys.modules):
            if name.startswith(_PREFIXES):
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


def _source(path: Path) -> bytes:
    """A source file's octets; OSError or ValueError for what cannot be one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if status.st_size > FILE_OCTETS_MAX:
            raise ValueError(f"{path} has {status.st_size} octets, at most {FILE_OCTETS_MAX} are read")
        return file.read(FILE_OCTETS_MAX)


def source_files(packages: Iterable[str]) -> list[Path]:
    """The source files of `packages` (dotted names below the checkout), without those of packages in them."""
    return sorted(path for package in packages for path in (ROOT / package.replace(".", "/")).glob("*.py"))


def fingerprint(packages: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Modification time and size by file: differs when the code may."""
    found = {}
    for path in source_files(packages):
        try:
            status = path.stat()
        except OSError:
            continue  # renamed between the listing and now
        found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


def with_source(told: str, layer: str) -> str:
    """A traceback of a process that can read no file any more, with the lines of code as they are on disk now.

    Of that layer's files only, whatever it tells.
    """
    known = {str(path) for path in source_files(packages_of(layer))}
    lines: list[str] = []
    for line in told.splitlines():
        if lines and (frame := _FRAME.match(lines[-1])) and frame[1] in known and not line.startswith("    "):
            with contextlib.suppress(OSError, ValueError, IndexError):
                lines.append(f"    {_source(Path(frame[1])).decode().splitlines()[int(frame[2]) - 1].strip()}")
        lines.append(line)
    return "\n".join(lines)
