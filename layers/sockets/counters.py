"""The counters of the socket service."""

from __future__ import annotations

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """See bus.counters."""

    sent = Out("Datagrams passed on from applications to a transport.")
    delivered = In("Datagrams passed on from a transport to an application.")
    requests = Event("Requests of applications.")
    refused = Event("Requests answered by an error.")
    errors = Event("Errors about sent datagrams, passed on to an application.")
    limit = Event("Sockets, memberships and requests refused because their application has as much as is free.")
    sockets_opened = Event("Sockets made.")
    sockets_closed = Event("Sockets closed, by their application or after its end.")
    answers_unasked = Event("Replies of a transport without a pending request, which are harmless after a restart.")
    state_unreadable = Event("Stored sockets or routes that this version cannot read; they are lost.")
    answer_garbled = Drop("Replies of a transport that cannot be decoded.")
    send_foreign = Drop("Datagrams to send by a socket that the application does not own.")
    buffer_full = Drop("Datagrams dropped because the receive buffer was full: the application reads too slowly.")
    closed = Drop("Datagrams and errors for a closed socket.")
    request_garbled = Drop("Requests that are too long, not JSON or without an id.")
    credit_foreign = Drop("Credits that are malformed or for a socket that the application does not own.")
    want_foreign = Drop("Requests for the next datagram or connection at a socket that the application does not own.")
    streams_resumed = Event("Losses of frames on a pipe after which streams were asked for again.")
    kind_unknown = Drop("Records of a kind that is unknown or not allowed from that sender.")
    routes_refused = Drop("Invalid route announcements; the former routes stay in use.")
    streamed_down = Out("Stream records passed on from applications to tcp.")
    streamed_up = In("Stream records passed on from tcp to applications.")
