"""Modules that must be told about a stack's sockets after they are imported, without importing them: ssl."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any


def watch() -> None:
    """Make contexts of ssl wrap a stack's sockets, whether ssl is imported already or later."""
    if "ssl" in sys.modules:
        _install()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _install() -> None:
    from usernet.compat import tls

    tls.install()


class _Finder(MetaPathFinder):
    """A finder that notices the import of ssl, once."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The ordinary spec of ssl with an additional step after it."""
        if name != "ssl":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _install()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
