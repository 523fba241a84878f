"""The table of pipes holds together, and layers and launcher keep to it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from bus import messages, topology
from bus.counters import PipeCounters
from bus.durable import layout
from usernet.pipe import messages as application

ROOT = Path(__file__).resolve().parents[2]
# What the bus says itself, on every pipe.
GREETINGS = {messages.HELLO, messages.RESUME}


def test_every_pipe_joins_two_layers_that_exist_and_is_there_once():
    ends = [(pipe.producer, pipe.consumer) for pipe in topology.PIPES]
    assert len(set(ends)) == len(ends)
    assert {layer for pair in ends for layer in pair} == set(topology.LAYERS)
    assert all(producer != consumer for producer, consumer in ends)


def test_every_pipe_has_one_the_other_way_for_greetings_are_answered():
    ends = {(pipe.producer, pipe.consumer) for pipe in topology.PIPES}
    assert {(consumer, producer) for producer, consumer in ends} == ends


def test_every_pipe_has_a_contract_of_its_own():
    contracts = {pipe.contract for pipe in topology.PIPES}
    assert all(contracts)
    assert len(contracts) == len(topology.PIPES)


def test_kinds_are_told_apart_by_their_numbers_and_have_names():
    kinds = set().union(*(pipe.kinds for pipe in topology.PIPES))
    assert kinds <= set(messages.KIND_NAMES)
    numbers = [value for name, value in vars(messages).items() if name in messages.KIND_NAMES.values()]
    assert len(set(numbers)) == len(numbers) == len(messages.KIND_NAMES)
    assert max(numbers) < 256
    assert not GREETINGS & kinds


def test_the_table_can_be_read_from_either_end():
    for pipe in topology.PIPES:
        assert topology.inputs(pipe.consumer)[pipe.producer] == pipe.kinds
        assert pipe.consumer in topology.outputs(pipe.producer)
    assert sum(len(topology.inputs(layer)) for layer in topology.LAYERS) == len(topology.PIPES)
    assert sum(len(topology.outputs(layer)) for layer in topology.LAYERS) == len(topology.PIPES)


@pytest.mark.parametrize("layer", topology.ALWAYS)
def test_the_pipes_of_a_layer_that_is_not_booted_do_not_exist(layer):
    assert topology.OPTIONAL
    assert set(topology.inputs(layer)) - set(topology.inputs(layer, topology.ALWAYS)) <= topology.OPTIONAL
    assert set(topology.outputs(layer)) - set(topology.outputs(layer, topology.ALWAYS)) <= topology.OPTIONAL
    assert not topology.OPTIONAL & {*topology.inputs(layer, topology.ALWAYS), *topology.outputs(layer, topology.ALWAYS)}


def test_applications_and_layers_speak_of_the_same_kinds():
    for name in ("SEND", "DATAGRAM", "HELLO", "RESUME", "REQUEST", "REPLY", "CREDIT", "SOCKET_ERROR"):
        assert getattr(messages, name) == getattr(application, name)


def test_kinds_have_numbers_of_their_own():
    source = ast.parse((ROOT / "bus" / "messages.py").read_text())
    (names,) = (node.value for node in ast.walk(source) if isinstance(node, ast.Assign | ast.AnnAssign)
                and "KIND_NAMES" in ast.unparse(node).partition("=")[0])
    assert len(names.keys) == len(messages.KIND_NAMES)


def test_ids_and_counters_have_their_cells_to_themselves():
    top = max(topology.LAYERS.values())
    assert topology.DEVICE not in topology.LAYERS.values()
    assert layout.POISON + layout.POISON_MAX <= layout.DONE
    assert layout.DONE + top < layout.SENT
    assert layout.SENT + top < layout.BUS_COUNTERS
    assert layout.BUS_COUNTERS + layout.BUS_COUNTERS_MAX <= layout.COUNTERS
    assert layout.COUNTERS + layout.COUNTERS_MAX <= layout.PIPE_WAITING
    assert top + 1 < layout.PIPE_CELLS == layout.PIPE_DROPPED - layout.PIPE_WAITING
    assert layout.PIPE_CELLS == layout.PIPE_DROPPED_IN - layout.PIPE_DROPPED
    assert layout.PIPE_DROPPED_IN + layout.PIPE_CELLS <= layout.OFFENDERS
    assert layout.OFFENDERS + layout.OFFENDERS_MAX <= layout.CLIENTS
    assert len(PipeCounters.declared) <= layout.BUS_COUNTERS_MAX
    single = [value for name, value in vars(layout).items()
              if name.isupper() and isinstance(value, int) and 0 < value < layout.POISON
              and not name.startswith("CLIENT") and not name.endswith("_MAX")]
    assert len(set(single)) == len(single)
    of_layers = {base + number for base in (layout.DONE, layout.SENT) for number in range(top + 1)}
    assert not {layout.WRITTEN, layout.BLAMELESS} & of_layers


@pytest.mark.parametrize("layer", topology.LAYERS)
def test_a_layers_counters_fit_their_cells_and_each_has_a_sentence(layer):
    counters = importlib.import_module(f"layers.{layer}.counters").Counters
    assert len(counters.declared) <= layout.COUNTERS_MAX
    for name, counter in counters.declared.items():
        assert counter.sentence.endswith("."), name
        assert counter.role in ("in", "out", "drop", "event")
        assert counters.declared[name] is list(counters.declared.values())[getattr(counters, name)]


def names_of(path: Path) -> set[str]:
    """What a module takes from bus.messages."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    return ({name.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "bus.messages"
             for name in node.names}
            | {node.attr for node in nodes if isinstance(node, ast.Attribute)
               and isinstance(node.value, ast.Name) and node.value.id == "messages"})


@pytest.mark.parametrize("layer", topology.LAYERS)
def test_a_layer_speaks_of_all_its_kinds_and_of_no_others(layer):
    kinds = set(messages.KIND_NAMES.values())
    of_layer = list((ROOT / "layers" / layer).glob("*.py"))
    shared = [ROOT / "layers/common" / f"{name}.py" for name in ("transport", "raw_transport")]  # of cores, too
    text = "".join(path.read_text() for path in of_layer)
    modules = of_layer + [module for module in shared if f"from layers.common.{module.stem} import" in text]
    mentioned = set().union(*map(names_of, modules)) & kinds
    allowed = {messages.KIND_NAMES[kind] for pipe in topology.PIPES if layer in (pipe.producer, pipe.consumer)
               for kind in pipe.kinds}
    streams = {"STREAM", "READ", "ROOM", "ACCEPT", "ACCEPTED", "STREAM_RESET", "STREAM_INFO", "STREAM_HELD",
               "STREAM_MEMORY"}  # to come
    beyond = {"link": {"ETHERNET", "ETHERNET_HELD", "HELLO"},
              "sockets": {"REQUEST", "REPLY", "CREDIT"} | streams}.get(layer, set())
    beyond |= {"NOTICES"}
    assert allowed - beyond <= mentioned <= allowed | beyond
