"""The table of pipes holds together, and layers and launcher keep to it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from bus import memory, table
from bus.counters import PipeCounters
from usernet import protocol

ROOT = Path(__file__).resolve().parents[2]
# What the bus says itself, on every pipe.
GREETINGS = {table.HELLO, table.RESUME}


def test_every_pipe_joins_two_layers_that_exist_and_is_there_once():
    ends = [(pipe.producer, pipe.consumer) for pipe in table.PIPES]
    assert len(set(ends)) == len(ends)
    assert {layer for pair in ends for layer in pair} == set(table.LAYERS)
    assert all(producer != consumer for producer, consumer in ends)


def test_every_pipe_has_one_the_other_way_for_greetings_are_answered():
    ends = {(pipe.producer, pipe.consumer) for pipe in table.PIPES}
    assert {(consumer, producer) for producer, consumer in ends} == ends


def test_every_pipe_has_a_contract_of_its_own():
    contracts = {pipe.contract for pipe in table.PIPES}
    assert all(contracts)
    assert len(contracts) == len(table.PIPES)


def test_kinds_are_told_apart_by_their_numbers_and_have_names():
    kinds = set().union(*(pipe.kinds for pipe in table.PIPES))
    assert kinds <= set(table.KIND_NAMES)
    numbers = [value for name, value in vars(table).items() if name in table.KIND_NAMES.values()]
    assert len(set(numbers)) == len(numbers) == len(table.KIND_NAMES)
    assert max(numbers) < 256
    assert not GREETINGS & kinds


def test_the_table_can_be_read_from_either_end():
    for pipe in table.PIPES:
        assert table.inputs(pipe.consumer)[pipe.producer] == pipe.kinds
        assert pipe.consumer in table.outputs(pipe.producer)
    assert sum(len(table.inputs(layer)) for layer in table.LAYERS) == len(table.PIPES)
    assert sum(len(table.outputs(layer)) for layer in table.LAYERS) == len(table.PIPES)


@pytest.mark.parametrize("layer", table.ALWAYS)
def test_the_pipes_of_a_layer_that_is_not_booted_do_not_exist(layer):
    assert table.OPTIONAL
    assert set(table.inputs(layer)) - set(table.inputs(layer, table.ALWAYS)) <= table.OPTIONAL
    assert set(table.outputs(layer)) - set(table.outputs(layer, table.ALWAYS)) <= table.OPTIONAL
    assert not table.OPTIONAL & {*table.inputs(layer, table.ALWAYS), *table.outputs(layer, table.ALWAYS)}


def test_applications_and_layers_speak_of_the_same_kinds():
    for name in ("SEND", "DATAGRAM", "HELLO", "RESUME", "REQUEST", "REPLY", "CREDIT", "SOCKET_ERROR"):
        assert getattr(table, name) == getattr(protocol, name)


def test_ids_and_counters_have_their_cells_to_themselves():
    top = max(table.LAYERS.values())
    assert table.MEDIUM not in table.LAYERS.values()
    assert memory.POISON + memory.POISON_MAX <= memory.DONE
    assert memory.DONE + top < memory.SENT
    assert memory.SENT + top < memory.BUS_COUNTERS
    assert memory.BUS_COUNTERS + memory.BUS_COUNTERS_MAX <= memory.COUNTERS
    assert memory.COUNTERS + memory.COUNTERS_MAX <= memory.GUESTS
    assert len(PipeCounters.declared) <= memory.BUS_COUNTERS_MAX
    single = [value for name, value in vars(memory).items()
              if name.isupper() and isinstance(value, int) and 0 < value < memory.POISON
              and not name.startswith("GUEST") and not name.endswith("_MAX")]
    assert len(set(single)) == len(single)
    of_layers = {base + number for base in (memory.DONE, memory.SENT) for number in range(top + 1)}
    assert not {memory.WRITTEN, memory.BLAMELESS} & of_layers


@pytest.mark.parametrize("layer", table.LAYERS)
def test_a_layers_counters_fit_their_cells_and_each_has_a_sentence(layer):
    counters = importlib.import_module(f"layers.{layer}.counters").Counters
    assert len(counters.declared) <= memory.COUNTERS_MAX
    for name, counter in counters.declared.items():
        assert counter.sentence.endswith("."), name
        assert counter.role in ("in", "out", "drop", "event")
        assert counters.declared[name] is list(counters.declared.values())[getattr(counters, name)]


def names_of(path: Path) -> set[str]:
    """What a module takes from bus.table."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    return ({name.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "bus.table"
             for name in node.names}
            | {node.attr for node in nodes if isinstance(node, ast.Attribute)
               and isinstance(node.value, ast.Name) and node.value.id == "table"})


@pytest.mark.parametrize("layer", table.LAYERS)
def test_a_layer_speaks_of_all_its_kinds_and_of_no_others(layer):
    kinds = set(table.KIND_NAMES.values())
    of_layer = list((ROOT / "layers" / layer).glob("*.py"))
    shared = [ROOT / "bus" / f"{name}.py" for name in ("transport", "direct")]  # of cores, too
    text = "".join(path.read_text() for path in of_layer)
    modules = of_layer + [module for module in shared if f"from bus.{module.stem} import" in text]
    mentioned = set().union(*map(names_of, modules)) & kinds
    allowed = {table.KIND_NAMES[kind] for pipe in table.PIPES if layer in (pipe.producer, pipe.consumer)
               for kind in pipe.kinds}
    beyond = {"link": {"ETHERNET", "HELLO"}, "sockets": {"REQUEST", "REPLY", "CREDIT"}}.get(layer, set()) | {"NOTICES"}
    assert allowed - beyond <= mentioned <= allowed | beyond
