"""Places, such as those for connections, and how many of them each process has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


def _nobody_is(pid: int) -> bool:
    return False


class Places:
    """`most` places in all. Each is taken by a process and told from others by its number only."""

    __slots__ = ("_held", "is_known", "most", "taken")

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._held: Counter[int] = Counter()  # {pid: places}, without zeros, in the order of their first ones
        self.is_known: Callable[[int], bool] = _nobody_is  # whether a process may keep its only place

    def add(self, pid: int) -> None:
        """The process has one more."""
        self.taken += 1
        self._held[pid] += 1

    def remove(self, pid: int) -> None:
        """The process has one less."""
        self.taken -= 1
        self._held[pid] -= 1
        if not self._held[pid]:
            del self._held[pid]

    def has_one_for(self, pid: int) -> bool:
        """Whether the process may have another place.

        Once half of the places are taken, a process gets its first one as long as there is any, and no more than it
        would have if a quarter of the rest were shared among all that have some. So the rest lasts for many processes,
        also if each takes what it can get.
        """
        free, held = self.most - self.taken, self._held.get(pid, 0)
        if free > self.most // 2:
            return True
        return free > 0 and (not held or held < free // (4 * len(self._held)))

    def gives_way_to(self, pid: int) -> int:
        """The process that must give one of its places to `pid`; 0: some are left, or none has to.

        That is the one with the most. If each has one only, it is the one of those that are not known that has had its
        place for the longest time.
        """
        if self.taken < self.most:
            return 0
        (most, places), = self._held.most_common(1)
        held = self._held.get(pid, 0)
        if places > held + 1:
            return most
        return 0 if held else next((each for each in self._held if not self.is_known(each)), 0)

    def admits(self, pid: int, take_from: Callable[[int], object]) -> bool:
        """Whether there is a place for the process; perhaps `take_from` had to take one of another process, which it
        passes to `remove`."""
        if self.has_one_for(pid):
            return True
        most = self.gives_way_to(pid)
        if most:
            take_from(most)
        return most > 0

    def has(self, pid: int) -> bool:
        """Whether the process has a place."""
        return pid in self._held

    def by_number(self) -> list[tuple[int, int]]:
        """(pid, places) of all, those with the most first."""
        return self._held.most_common()
