"""The data path: records are passed on unchanged; only their handle is read.

Owns the accounting of receive buffers, by the CREDIT records of applications.
"""

from __future__ import annotations

from bus import messages, topology
from bus.durable.held import held_octets
from bus.layer import CounterWords, Send
from bus.messages import CREDIT_RECORD, CREDIT_TOTAL, DATAGRAM_COST, DATAGRAM_HEADER, DATAGRAM_OVERHEAD, SEGMENT_SIZE
from layers.sockets.counters import Counters
from layers.sockets.entry import Entry, Sharing
from layers.sockets.table import Table
from packets.ip_options import split

_from_bytes = int.from_bytes


class Traffic:
    """The records between applications and transports; the table contains the owners."""

    def __init__(self, table: Table, counters: CounterWords) -> None:
        self._entries = table.entries
        self._clients = table.clients
        self.counters = counters

    def send(self, client: int, records: list[bytes]) -> list[Send]:
        """SEND records of an application, each to the transport of its socket."""
        consumers = self._clients.get(client, {})
        sends = []
        kind = messages.SEND
        for record in records:
            consumer = consumers.get(_from_bytes(record[:4], "little"))
            if consumer:
                sends.append((consumer, kind, record))
        self.counters[Counters.sent] += len(sends)
        self.counters[Counters.send_foreign] += len(records) - len(sends)
        return sends

    def send_segments(self, client: int, records: list[bytes]) -> list[Send]:
        """Many datagrams in one record, only for udp."""
        consumers = self._clients.get(client, {})
        sends = []
        for record in records:
            if consumers.get(_from_bytes(record[:4], "little")) == topology.UDP:
                sends.append((topology.UDP, messages.SEND_SEGMENTS, record))
                self.counters[Counters.sent] += _segments_in(record, DATAGRAM_HEADER.size)
            else:
                self.counters[Counters.send_foreign] += 1
        return sends

    def send_segments_held(self, client: int, records: list[bytes]) -> list[Send]:
        """The same with a reference to the datagrams."""
        consumers = self._clients.get(client, {})
        sends = []
        for record in records:
            if consumers.get(_from_bytes(record[:4], "little")) == topology.UDP:
                sends.append((topology.UDP, messages.SEND_SEGMENTS_HELD, record))
                self.counters[Counters.sent] += _count(
                    record, DATAGRAM_HEADER.size, min(held_octets(record), messages.PACKET_HELD_MAX))
            else:
                self.counters[Counters.send_foreign] += 1
        return sends

    def deliver(self, sender: int, records: list[bytes]) -> list[Send]:
        """DATAGRAM records of a transport, as far as the receive buffers have room."""
        entries = self._entries
        sends: list[Send] = []
        kind = messages.DATAGRAM
        delivered = 0
        for record in records:
            entry = entries.get(_from_bytes(record[:4], "little"))
            if entry is None:
                self.counters[Counters.closed] += 1
                continue
            if entry.sharing is not None:
                self._hold(entry, entry.sharing, kind, record, len(record) + DATAGRAM_COST, sends)
                continue
            outstanding = entry.outstanding
            used = outstanding + len(record) + DATAGRAM_COST
            if used > entry.limit and outstanding:  # an empty buffer accepts a datagram of any size, as on Linux
                self._overflow(entry, sends)
                continue
            entry.outstanding = used
            delivered += 1
            sends.append((entry.client, kind, record))
        self.counters[Counters.delivered] += delivered
        return sends

    def deliver_options(self, sender: int, records: list[bytes]) -> list[Send]:
        """As `deliver`; IP options before the payload do not count."""
        sends: list[Send] = []
        for record in records:
            entry = self._entries.get(_from_bytes(record[:4], "little"))
            found = split(record[DATAGRAM_HEADER.size :])
            if entry is None or found is None:
                self.counters[Counters.closed] += 1
                continue
            if entry.sharing is not None:
                cost = DATAGRAM_OVERHEAD + len(found[1])
                self._hold(entry, entry.sharing, messages.DATAGRAM_OPTIONS, record, cost, sends)
                continue
            used = entry.outstanding + DATAGRAM_OVERHEAD + len(found[1])
            if used > entry.limit and entry.outstanding:
                self._overflow(entry, sends)
                continue
            entry.outstanding = used
            self.counters[Counters.delivered] += 1
            sends.append((entry.client, messages.DATAGRAM_OPTIONS, record))
        return sends

    def deliver_segments(self, sender: int, records: list[bytes]) -> list[Send]:
        """As `deliver`: of the datagrams in a record as many as fit, from the first on."""
        sends: list[Send] = []
        start = DATAGRAM_HEADER.size + SEGMENT_SIZE.size
        for record in records:
            entry = self._entries.get(_from_bytes(record[:4], "little"))
            count = _segments_in(record, DATAGRAM_HEADER.size)
            if entry is None or not count:
                self.counters[Counters.closed] += count
                continue
            (size,) = SEGMENT_SIZE.unpack_from(record, DATAGRAM_HEADER.size)
            if entry.kept is None or not entry.kept.segments or entry.sharing is not None:
                header = record[: DATAGRAM_HEADER.size]
                cut = [header + record[at : at + size] for at in range(start, len(record), size)]
                sends += self.deliver(sender, cut)
                continue
            used = entry.outstanding + count * DATAGRAM_OVERHEAD + len(record) - start
            fitting = count
            if used > entry.limit:
                room = (entry.limit - entry.outstanding) // (size + DATAGRAM_OVERHEAD)
                fitting = max(room, 0 if entry.outstanding else 1)
                record = record[: start + fitting * size]
                used = entry.outstanding + fitting * (size + DATAGRAM_OVERHEAD)
            if fitting:
                entry.outstanding = used
                self.counters[Counters.delivered] += fitting
                sends.append((entry.client, messages.DATAGRAM_SEGMENTS, record))
            if fitting < count:
                self._overflow(entry, sends, count - fitting)
        return sends

    def _hold(self, entry: Entry, sharing: Sharing, kind: int, record: bytes, cost: int, sends: list[Send]) -> None:
        """A datagram for several processes: it goes to the one that has waited longest, else it waits."""
        if sharing.readers:
            client = next(iter(sharing.readers))
            sharing.handed_to(client, (kind, record, cost))
            self.counters[Counters.delivered] += 1
            sends.append((client, kind, record))
        elif entry.outstanding and entry.outstanding + cost > entry.limit:
            self.counters[Counters.buffer_full] += 1
            entry.drops += 1
        else:
            entry.outstanding += cost
            sharing.datagrams.append((kind, record, cost))

    def _overflow(self, entry: Entry, sends: list[Send], count: int = 1) -> None:
        self.counters[Counters.buffer_full] += count
        entry.drops += count
        if not entry.told:
            # Datagrams lost on the way, or a restart, may have made the accounting wrong, and an application that has
            # nothing queued sends no CREDIT: ask it.
            sends.append(question(entry))

    def credit(self, client: int, records: list[bytes]) -> list[Send]:
        """CREDIT records: an application has read, or reports the total that is queued."""
        for record in records:
            if len(record) == CREDIT_RECORD.size:
                handle, octets = CREDIT_RECORD.unpack(record)
                entry = self._entries.get(handle)
                if entry is not None and entry.sharing is not None:
                    continue  # only what waits here counts
                if entry is not None and entry.client == client:
                    if octets & CREDIT_TOTAL:
                        entry.outstanding = octets & ~CREDIT_TOTAL
                    else:
                        entry.outstanding = max(0, entry.outstanding - octets)
                    entry.told = False
                    continue
            self.counters[Counters.credit_foreign] += 1
        return []

    def report(self, sender: int, records: list[bytes]) -> list[Send]:
        """SOCKET_ERROR records of a transport."""
        sends = []
        for record in records:
            entry = self._entries.get(_from_bytes(record[:4], "little"))
            if entry is None:
                self.counters[Counters.closed] += 1
            else:
                readers = entry.sharing.readers if entry.sharing is not None else None
                sends.append((next(iter(readers)) if readers else entry.client, messages.SOCKET_ERROR, record))
        self.counters[Counters.errors] += len(sends)
        return sends


def question(entry: Entry) -> Send:
    """Ask the application how much it has queued, because it reports what it has read only in batches."""
    entry.told = True
    octets = min(entry.outstanding, CREDIT_TOTAL - 1)
    return entry.client, messages.CREDIT, CREDIT_RECORD.pack(entry.handle, octets)


def _segments_in(record: bytes, header_octets: int) -> int:
    """The number of datagrams in a record of segments; 0: malformed."""
    return _count(record, header_octets, len(record) - header_octets - SEGMENT_SIZE.size)


def _count(record: bytes, header_octets: int, octets: int) -> int:
    """The same for so many octets of payload."""
    start = header_octets + SEGMENT_SIZE.size
    size = SEGMENT_SIZE.unpack_from(record, header_octets)[0] if len(record) > start else 0
    return -(-octets // size) if size else 0
