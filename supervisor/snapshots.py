"""Snapshots of a layer's code on disk, in memory that outlives the process that read it.

The keeper imports every layer when it boots, so that its forks need not import anything (8 ms of a restart). The
successor of a planned restart reads and compiles the files itself, because they may contain anything, and leaves the
result in a memfd of the keeper, from which later processes import. A crash restarts the code that served last. If new
code fails, the former code is still available, whatever is in the files by then.
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
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parent.parent

_FRAME = re.compile(r'  File "([^"]+)", line (\d{1,6}), in ')
FILE_OCTETS_MAX = 1 << 20  # of one source file
# The packages of a layer's process beside the layer's own; it uses nothing of the library but usernet.pipe.
SHARED = ("bus", "bus.runtime", "bus.durable", "packets", "layers.common", "usernet.pipe")
_PREFIXES = ("bus", "packets", "layers", "usernet.pipe")


def packages_of(layer: str) -> tuple[str, ...]:
    """The packages of which the process of `layer` consists."""
    return (*SHARED, f"layers.{layer}")


class Booted:
    """The code that the keeper itself has imported."""

    descriptor = -1

    def __init__(self, layer: str) -> None:
        importlib.import_module(f"layers.{layer}.__main__")

    def install(self) -> None:
        """Nothing to do: a fork has the modules already."""


class Snapshot(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The code of a layer as it is on disk at the first `install`; later installs use the same code."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._file = io.FileIO(os.memfd_create(f"usernet-code-{layer}", os.MFD_CLOEXEC), "r+")
        self.descriptor = self._file.fileno()
        self._modules: dict[str, tuple[CodeType, str, bool]] = {}

    def compile(self) -> None:
        """Read and compile the files. SyntaxError, ValueError, OSError and others: the files may contain anything."""
        modules = {}
        for path in source_files(packages_of(self._layer)):
            relative = path.relative_to(ROOT).with_suffix("")
            is_package = relative.name == "__init__"
            name = ".".join(relative.parts[:-1] if is_package else relative.parts)
            # Never use __pycache__, which treats a file with the same size and second as unchanged (1 ms per file).
            modules[name] = (compile(_source(path), str(path), "exec", dont_inherit=True), str(path), is_package)
        octets = marshal.dumps(modules)
        os.pwrite(self.descriptor, octets, 0)

    def load(self) -> None:
        """Load the code objects into this process; compile them if no process has done so."""
        if not os.fstat(self.descriptor).st_size:
            self.compile()
        self._modules = marshal.loads(os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0))

    def install(self) -> None:
        """In a fresh fork: forget these packages, and import them from this snapshot from now on."""
        self.load()
        for name in list(sys.modules):
            if name.startswith(_PREFIXES):
                del sys.modules[name]
        # otherwise `from usernet import pipe` would find the old module
        vars(sys.modules.get("usernet", sys)).pop("pipe", None)
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
                  ) -> ModuleSpec | None:
        """importlib.abc.MetaPathFinder."""
        found = self._modules.get(fullname)
        if found is None:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=found[1], is_package=found[2])

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Use the default kind of module (importlib.abc.Loader)."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """importlib.abc.Loader."""
        code, path, _ = self._modules[module.__name__]
        module.__file__ = path
        exec(code, module.__dict__)


Code = Booted | Snapshot


def _source(path: Path) -> bytes:
    """The octets of a source file. OSError or ValueError: not a source file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for a writer
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if status.st_size > FILE_OCTETS_MAX:
            raise ValueError(f"{path} has {status.st_size} octets, at most {FILE_OCTETS_MAX} are read")
        return file.read(FILE_OCTETS_MAX)


def source_files(packages: Iterable[str]) -> list[Path]:
    """The source files of `packages` (dotted names below the checkout), without those of their subpackages."""
    return sorted(path for package in packages for path in (ROOT / package.replace(".", "/")).glob("*.py"))


def fingerprint(packages: Iterable[str]) -> dict[str, tuple[int, int]]:
    """{file: (modification time, size)}: differs if the code may have changed."""
    found = {}
    for path in source_files(packages):
        try:
            status = path.stat()
        except OSError:
            continue  # renamed since the listing
        found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


def with_source(told: str, layer: str) -> str:
    """A traceback of a process that cannot read files, with the source lines that are on disk now.

    Lines are added from that layer's files only, whatever the traceback contains.
    """
    try:
        known = {str(path) for path in source_files(packages_of(layer))}
    except OSError:  # no descriptor to read the directory
        return told
    lines: list[str] = []
    for line in told.splitlines():
        if lines and (frame := _FRAME.match(lines[-1])) and frame[1] in known and not line.startswith("    "):
            with contextlib.suppress(OSError, ValueError, IndexError):
                lines.append(f"    {_source(Path(frame[1])).decode().splitlines()[int(frame[2]) - 1].strip()}")
        lines.append(line)
    return "\n".join(lines)
