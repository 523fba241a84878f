"""No circle of imports anywhere; those for type checkers only do not count, as they are not made."""

from __future__ import annotations

import sys

import grimp
import pytest
from usernet_service import REPOSITORY

PACKAGES = ("packets", "bus", "layers", "supervisor", "cli", "switch", "usernet")


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan, SIAM J. Comput. 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for imported in imports.get(module, ()):
            if imported not in number:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in stack:
                lowest[module] = min(lowest[module], number[imported])
        if lowest[module] == number[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in imports:
        if module not in number:
            visit(module)
    return found


def test_the_search_finds_circles():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}) == [
        ["a", "b", "c"], ["e", "f"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("package", [PACKAGES, ("usernet",)])
def test_no_circle_of_imports(monkeypatch, package):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    graph = grimp.build_graph(*package, cache_dir=None,
                               exclude_type_checking_imports=package == PACKAGES)
    assert sys.getrecursionlimit() > len(graph.modules)
    assert circles({module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)}) == []
