"""Code as it was on disk at one moment."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from supervisor import snapshots
from supervisor.snapshots import FILE_OCTETS_MAX, Booted, Snapshot, fingerprint, packages_of

ROOT = Path(__file__).resolve().parents[2]
NOW_NS = 1_700_000_000_500_000_000


class Checkout:
    """A small tree of sources, all written in the same second."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path in ("bus/__init__.py", "bus/common.py", "layers/toy/__init__.py", "layers/toy/core.py",
                     "usernet/pipe/frame.py", "usernet/sockets/endpoint.py"):
            self.write(path, f"WHO = {path!r}\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.utime(file, ns=(NOW_NS, NOW_NS))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "ROOT", tmp_path)
    return Checkout(tmp_path)


def taken() -> Snapshot:
    """A snapshot of the small tree as it is now."""
    snapshot = Snapshot("toy")
    snapshot.load()
    return snapshot


def load(snapshot: Snapshot, name: str) -> ModuleType:
    """The module as an import would make it."""
    spec = snapshot.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_snapshot_has_bus_the_layer_and_the_protocol_and_nothing_else(checkout):
    snapshot = taken()
    for name, path in {"bus": "bus/__init__.py", "bus.common": "bus/common.py",
                       "layers.toy": "layers/toy/__init__.py", "layers.toy.core": "layers/toy/core.py",
                       "usernet.pipe.frame": "usernet/pipe/frame.py"}.items():
        module = load(snapshot, name)
        assert (module.WHO, module.__file__) == (path, str(checkout.root / path))
        assert hasattr(module, "__path__") is path.endswith("__init__.py")
    for name in ("os", "layers", "layers.toy.none", "usernet", "usernet.sockets.endpoint", "supervisor.keeper"):
        assert snapshot.find_spec(name) is None


def test_a_module_changed_later_keeps_the_old_code_in_the_old_snapshot(checkout):
    checkout.write("layers/toy/core.py", "TTL = 64\n")
    old = taken()
    checkout.write("layers/toy/core.py", "TTL = 65\n")
    (checkout.root / "bus/common.py").unlink()
    new = taken()
    assert load(old, "layers.toy.core").TTL == 64
    assert load(old, "bus.common").WHO == "bus/common.py"
    assert load(new, "layers.toy.core").TTL == 65
    assert new.find_spec("bus.common") is None


def test_a_change_that_keeps_size_and_second_is_seen_whatever_python_has_cached(checkout):
    path = checkout.root / "layers/toy/core.py"
    checkout.write("layers/toy/core.py", "TTL = 64\n")
    spec = importlib.util.spec_from_file_location("toy_core", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # writes __pycache__, where Python may
    checkout.write("layers/toy/core.py", "TTL = 65\n")
    assert load(taken(), "layers.toy.core").TTL == 65


@pytest.mark.parametrize("text", ["def broken(:\n", "x = '\n", "\0", "# coding: none\n", "\tx = 1\n  y = 2\n"])
def test_code_that_does_not_compile_is_refused_and_named(checkout, text):
    checkout.write("layers/toy/core.py", text)
    with pytest.raises((SyntaxError, ValueError)):
        taken()
    checkout.write("layers/toy/core.py", "def broken(:\n")
    with pytest.raises(SyntaxError) as error:
        taken()
    assert error.value.filename == str(checkout.root / "layers/toy/core.py")


@pytest.mark.parametrize("make", [
    lambda path: os.mkfifo(path), lambda path: path.mkdir(),
    lambda path: path.write_bytes(b"#" * (FILE_OCTETS_MAX + 1)),
    lambda path: path.write_text("x = " + "1+" * 20_000 + "1\n"), lambda path: path.symlink_to("nowhere"),
], ids=["fifo", "directory", "too long", "too deep", "dangling link"])
def test_a_file_that_is_no_source_is_an_error_and_blocks_nothing(checkout, make):
    make(checkout.root / "layers/toy/odd.py")
    with pytest.raises((OSError, ValueError, RecursionError, MemoryError)):
        taken()


def test_a_later_process_finds_what_the_first_one_compiled(checkout):
    snapshot = taken()
    checkout.write("layers/toy/core.py", "def broken(:\n")
    assert in_a_fork(lambda: [snapshot.load(), load(snapshot, "layers.toy.core").WHO]) == [None, "layers/toy/core.py"]


def test_code_is_compiled_and_not_run(checkout):
    checkout.write("layers/toy/core.py", "raise RuntimeError('at import')\n")
    snapshot = taken()
    with pytest.raises(RuntimeError, match="at import"):
        load(snapshot, "layers.toy.core")


def test_fingerprints_differ_when_the_code_may(checkout):
    packages = packages_of("toy")
    first = fingerprint(packages)
    assert fingerprint(packages) == first
    (checkout.root / "layers/toy/core.py").write_text("WHO = 'layers/toy/core.py'\n")
    assert fingerprint(packages) != first
    (checkout.root / "layers/toy/new.py").write_text("")
    assert len(fingerprint(packages)) == len(first) + 1
    assert len(first) == 5
    changed = fingerprint(packages)
    (checkout.root / "usernet/pipe/frame.py").write_text("VERSION = 99\n")
    assert fingerprint(packages) != changed


def in_a_fork(function: Callable[[], object]) -> object:
    """What `function` returns in a fork of this process, which is where a layer's code is installed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result: object = function()
        except BaseException as error:
            result = repr(error)
        os.write(writer, msgspec.json.encode(result))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        octets = pipe.read()
    os.waitpid(pid, 0)
    return msgspec.json.decode(octets)


@pytest.mark.parametrize("layer", ["link", "arp", "ip", "icmp", "udp", "sockets"])
def test_a_layer_imported_from_a_snapshot_takes_nothing_from_elsewhere(layer):
    Booted(layer)
    snapshot = Snapshot(layer)

    def install() -> object:
        snapshot.install()
        others = set(sys.modules)  # of this process, the tests'
        main = importlib.import_module(f"layers.{layer}.__main__")
        # All of the project that was imported for it, whatever package it is in.
        loaders = {name: module.__loader__ is snapshot for name, module in sys.modules.items()
                   if name not in others and name not in ("layers", "usernet")
                   and str(getattr(module, "__file__", "")).startswith(str(ROOT)) and ".venv" not in module.__file__}
        shared = {sys.modules["usernet"].pipe, sys.modules["usernet.pipe"]}
        return [callable(main.main), sorted(name for name, ours in loaders.items() if not ours), len(loaders) > 10,
                len(shared)]

    assert in_a_fork(install) == [True, [], True, 1]


def test_the_code_that_the_keeper_booted_needs_no_import_in_a_fork():
    booted = Booted("arp")
    before = sys.modules["layers.arp.__main__"]
    booted.install()
    assert sys.modules["layers.arp.__main__"] is before


@pytest.mark.parametrize("layer", ["link", "ip", "tcp", "sockets"])
def test_an_edit_of_any_module_that_a_layer_runs_is_seen_and_loaded(layer, tmp_path, monkeypatch):
    for package in ("bus", "packets", "layers", "usernet"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    names = in_a_fork(lambda: [importlib.import_module(f"layers.{layer}.__main__").__name__, sorted(
        name for name, module in sys.modules.items() if name.startswith(("bus", "packets", "layers.", "usernet.pipe"))
        and (name.split(".")[1:2] in ([layer], ["common"]) or not name.startswith("layers.")))])[1]
    monkeypatch.setattr(snapshots, "ROOT", tmp_path)
    assert len(names) > 20
    prints = fingerprint(packages_of(layer))
    for name in names:  # one after the other
        path = tmp_path / name.replace(".", "/")
        with open(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"), "a") as file:
            file.write("\nEDITED = True\n")
        prints, before = fingerprint(packages_of(layer)), prints
        assert prints != before, name
    snapshot = Snapshot(layer)

    def not_edited() -> list[str]:
        snapshot.install()
        importlib.import_module(f"layers.{layer}.__main__")
        return [name for name in names if not getattr(importlib.import_module(name), "EDITED", False)]

    assert in_a_fork(not_edited) == []
