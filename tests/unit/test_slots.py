"""Slots: records of a fixed size that outlive the process."""

from __future__ import annotations

from struct import Struct

import pytest
from durable import dies
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.durable import slots as slots_module
from bus.durable.slots import FREE, SLOT_OCTETS, Slots

COUNT = 6
VALUE = 1  # a cell of the tests' slots
RECORD = Struct("=QQ240x")


def memory(count: int = COUNT, octets: int = SLOT_OCTETS) -> bytearray:
    return bytearray((count + 1) * octets)


def test_slots_are_numbered_from_one_and_end():
    slots = Slots(memoryview(memory()))
    assert [slots.allocate() for _ in range(COUNT + 1)] == [1, 2, 3, 4, 5, 6, 0]


def test_a_slot_counts_from_its_publication_on():
    octets = memory()
    slots = Slots(memoryview(octets))
    number = slots.allocate()
    slots.cells[number * slots.width + VALUE] = 7
    assert Slots(memoryview(octets)).used == []
    slots.publish(number, 3)
    successor = Slots(memoryview(octets))
    assert (successor.used, successor.state(number)) == ([1], 3)
    assert list(successor.records(RECORD)) == [(3, 7)]
    assert successor.allocate() == 2


def test_the_last_freed_is_the_next_and_of_another_generation():
    slots = Slots(memoryview(memory()))
    for _ in range(3):
        slots.publish(slots.allocate(), 1)
    slots.free(1)
    slots.free(3)
    assert (slots.used, slots.state(3), slots.generation(3), slots.generation(2)) == ([2], FREE, 1, 0)
    assert [slots.allocate(), slots.allocate(), slots.allocate()] == [3, 1, 4]
    slots.publish(3, 9)
    assert (slots.state(3), slots.generation(3)) == (9, 1)


def test_a_state_changes_without_changing_the_generation():
    slots = Slots(memoryview(memory()))
    slots.publish(slots.allocate(), 255)
    slots.free(1)
    slots.publish(slots.allocate(), 255)
    slots.publish(1, 1)
    assert (slots.state(1), slots.generation(1)) == (1, 1)


def test_pages_that_were_never_used_are_not_read():
    slots = Slots(memoryview(memory(1000)))
    slots.publish(slots.allocate(), 1)
    assert len(list(slots.records(RECORD))) == 1


def test_slots_of_32_octets():
    octets = memory(3, 32)
    slots = Slots(memoryview(octets), 32)
    for _ in range(3):
        slots.publish(slots.allocate(), 6)
    assert (slots.allocate(), slots.width, Slots(memoryview(octets), 32).used) == (0, 4, [1, 2, 3])


@pytest.mark.parametrize(("length", "octets"), [(1024, 100), (1000, 256), (256, 256), (0, 256)])
def test_memory_that_is_no_array(length: int, octets: int):
    with pytest.raises(ValueError):
        Slots(memoryview(bytearray(length)), octets)


def test_foreign_octets_in_the_count_are_no_exception():
    octets = memory()
    octets[:8] = b"\xff" * 8
    slots = Slots(memoryview(octets))
    assert (slots.used, slots.allocate()) == ([], 1)


class SlotsAgainstAModel(RuleBasedStateMachine):
    """A dict of what is published, with a crash before any line."""

    def __init__(self) -> None:
        super().__init__()
        self.octets = memory()
        self.slots = Slots(memoryview(self.octets))
        self.model: dict[int, tuple[int, int]] = {}  # number -> state, value
        self.generations = dict.fromkeys(range(1, COUNT + 1), 0)

    def make(self, state: int, value: int) -> None:
        number = self.slots.allocate()
        if number:
            self.slots.cells[number * self.slots.width + VALUE] = value
            self.slots.publish(number, state)

    @rule(state=st.integers(1, 255), value=st.integers(0, 2**64 - 1), line=st.integers(0, 12))
    def allocate(self, state, value, line):
        died = dies(line, (slots_module,), lambda: self.make(state, value))
        if died:
            self.slots = Slots(memoryview(self.octets))
        new = set(self.slots.used) - set(self.model)
        assert len(new) == (0 if died or len(self.model) == COUNT else 1) or died
        for number in new:
            self.model[number] = (state, value)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), line=st.integers(0, 6))
    def free(self, data, line):
        number = data.draw(st.sampled_from(sorted(self.model)))
        if dies(line, (slots_module,), lambda: self.slots.free(number)):
            self.slots = Slots(memoryview(self.octets))
            if number in self.slots.used:
                return
        del self.model[number]
        self.generations[number] += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data(), state=st.integers(1, 255))
    def change_state(self, data, state):
        number = data.draw(st.sampled_from(sorted(self.model)))
        self.slots.publish(number, state)
        self.model[number] = (state, self.model[number][1])

    @invariant()
    def both_agree_and_so_does_a_successor(self):
        for slots in (self.slots, Slots(memoryview(self.octets))):
            found = {number: (head & 255, value) for number, (head, value) in enumerate(slots.records(RECORD), 1)
                     if head & 255}
            assert found == self.model
            assert slots.used == sorted(self.model)
            assert all(slots.generation(number) == generation for number, generation in self.generations.items())


TestSlotsAgainstAModel = SlotsAgainstAModel.TestCase
TestSlotsAgainstAModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
