"""Every counter of dropped packets names the clause of the RFC that demands the drop, which `trace` shows."""

from __future__ import annotations

import importlib
import re

import pytest

# Drops that no RFC demands: limits of our own, Linux's behaviour, records of other layers and of applications.
NO_CLAUSE = {
    "link": {"runt", "oversize", "other_host", "own_source", "unknown_type", "bad_offload", "bad_request",
             "device_refused", "wire_malformed"},
    "arp": {"own_packet", "bad_sender_address", "permanent_kept", "learn_limited", "resolve_malformed",
            "routes_malformed", "resolve_refused"},
    "ip": {"fragment_repeated", "reassembly_evicted", "no_route", "broadcast_denied", "bad_transmit", "bad_crafted",
           "neighbor_unreachable", "bad_announcement", "redirect_limited", "path_mtu_limited", "bad_membership",
           "state_unreadable"},
    "icmp": {"control_malformed", "state_unreadable", "send_malformed", "send_no_socket", "send_misplaced",
             "send_refused", "error_no_socket", "error_ignored", "report_malformed"},
    "udp": {"control_malformed", "state_unreadable", "send_malformed", "send_misplaced", "send_no_socket",
            "send_no_port", "send_no_destination", "send_bad_options", "send_no_route", "send_too_long",
            "error_ignored"},
    "tcp": {"control_malformed", "state_unreadable", "listen_dropped", "cookies_limited", "text_overwritten",
            "no_memory", "stream_no_socket", "stream_malformed", "stream_gap", "memory_refused", "stream_over"}}
WITHOUT_SECTIONS = {"768", "792", "826", "1256", "5722", "6633", "6918"}  # or the whole RFC is meant


@pytest.mark.parametrize("layer", NO_CLAUSE)
def test_every_drop_of_a_packet_names_its_clause(layer: str) -> None:
    declared = importlib.import_module(f"layers.{layer}.counters").Counters.declared
    drops = {name: counter.sentence for name, counter in declared.items() if counter.role == "drop"}
    assert {name for name, sentence in drops.items() if "RFC" not in sentence} == NO_CLAUSE[layer]
    for sentence in drops.values():
        for number, section in re.findall(r"RFC (\d+)( sections? \d[\d.]*)?", sentence):
            assert section or number in WITHOUT_SECTIONS, sentence
