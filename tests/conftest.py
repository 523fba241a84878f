"""All tests: what they say of the ledger (tests/ledger/verdict.py) decides about the run, too.

`--dist loadgroup` deals out tests one by one, but those that share what their module has made (a booted stack, mostly)
run in one worker, in order: each worker that had some of them would make it again.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator

import pytest

from tests.ledger.verdict import Verdict


def pytest_configure(config: pytest.Config) -> None:
    """The process that xdist's workers report to, if there are any; what tests start can be interrupted.

    A shell that runs pytest in the background has it ignore SIGINT, and what is ignored is inherited. Where the
    environment forbids Python to keep what it has compiled, each start of the launcher would compile the product again,
    which takes 0.25 s of a processor.
    """
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Verdict())


DESCRIPTORS_MORE = 200
_held = 0  # descriptors after the last collection


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Mappings of memory in cycles keep their descriptors until the collector finds them, and a layer that starts in a
    test freezes all that there is; select(2) takes no descriptor above 1023."""
    global _held
    done = yield
    if len(os.listdir("/proc/self/fd")) > _held + DESCRIPTORS_MORE:
        gc.unfreeze()
        gc.collect()
        _held = len(os.listdir("/proc/self/fd"))
    return done


CHEAP = {"home"}  # fixtures of a module that any worker may make


@pytest.hookimpl(tryfirst=True)  # xdist's own takes the groups from the items
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A group for each module of tests that use a fixture of the module's."""
    for item in items:
        known = getattr(item, "_fixtureinfo", None)
        shared = {name for name, defined in known.name2fixturedefs.items() if defined[-1].scope == "module"} - CHEAP \
            if known else set()
        if "judged" in shared and item.get_closest_marker("tcp") is None:
            shared.remove("judged")  # looks at nothing
        if shared:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
