"""Records in durable state whose keys are octets, such as addresses of any width.

State has integer keys of 64 bits. Each octet string gets a number when it is first stored and keeps it until it is
deleted; the record contains the octet string.
"""

from __future__ import annotations

from bus.layer import State

_NUMBERS = 1 << 32


class KeyedState:
    """The keys of `state` from `base`, a multiple of 2**32, up to the next multiple. A key has at most 255 octets."""

    def __init__(self, state: State, base: int) -> None:
        self._state = state
        self._base = base
        self._numbers: dict[bytes, int] = {}
        self._free: list[int] = []  # free numbers below the highest in use

    def holds(self, number: int) -> bool:
        """True if a key of `state` belongs to this range."""
        return self._base <= number < self._base + _NUMBERS

    def load(self) -> dict[bytes, bytes]:
        """Restore the stored records. Records without a valid key are deleted."""
        found: dict[bytes, bytes] = {}
        for number in filter(self.holds, list(self._state)):
            record = self._state[number]
            end = 1 + record[0] if record else 1
            if 1 < end <= len(record) and record[1:end] not in found:
                found[record[1:end]] = record[end:]
                self._numbers[record[1:end]] = number
            else:
                del self._state[number]
        used = set(self._numbers.values())
        self._free = [number for number in range(self._base, max(used, default=self._base)) if number not in used]
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """Store a record, replacing an older one."""
        number = self._numbers.get(key)
        if number is None:
            number = self._free.pop() if self._free else self._base + len(self._numbers)
            self._numbers[key] = number
        self._state[number] = bytes((len(key),)) + key + value

    def discard(self, key: bytes) -> None:
        """Delete a record if it exists."""
        number = self._numbers.pop(key, None)
        if number is not None:
            self._free.append(number)
            del self._state[number]
