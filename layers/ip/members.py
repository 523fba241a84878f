"""The members of one multicast group, and the filter of the host that follows from theirs (RFC 3376 section 3.2).

Sources are counted, so that a change takes as long with 30,000 members as with two.
"""

from __future__ import annotations

from collections import Counter

from layers.ip.igmp import Filter

# The host wants all sources of a group instead of more: a filter only saves work, because udp and raw look at that of
# each socket, and a report about these fills a packet already.
INCLUDED_MAX = 256


class Members:
    """The filters of the sockets that are members of a group, by their handles."""

    __slots__ = ("_excluded", "_excluding", "_included", "_including")

    def __init__(self) -> None:
        self._excluding: dict[int, Filter] = {}
        self._including: dict[int, Filter] = {}
        self._excluded: Counter[bytes] = Counter()  # {source: members that exclude it}, without zeros
        self._included: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._excluding) + len(self._including)

    def put(self, handle: int, chosen: Filter) -> None:
        """The filter of a member, instead of its former one."""
        self.remove(handle)
        (self._excluding if chosen.exclude else self._including)[handle] = chosen
        (self._excluded if chosen.exclude else self._included).update(chosen.sources)

    def remove(self, handle: int) -> None:
        """The socket is no member any more."""
        for filters, counts in ((self._excluding, self._excluded), (self._including, self._included)):
            former = filters.pop(handle, None)
            for source in former.sources if former is not None else ():
                counts[source] -= 1
                if not counts[source]:
                    del counts[source]

    def merged(self) -> Filter:
        """All sources but those that each excludes and none includes; or, if none excludes any, the included ones."""
        excluding = self._excluding
        if excluding:
            some = next(reversed(excluding.values())).sources
            everywhere = [source for source in some if self._excluded[source] == len(excluding)]
            return Filter(True, frozenset(source for source in everywhere if source not in self._included))
        if len(self._included) > INCLUDED_MAX:
            return Filter(True, frozenset())
        return Filter(False, frozenset(self._included))
