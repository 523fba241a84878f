"""The load generators for bulk over TCP, with the kernel's sockets or as an application of the stack."""

from __future__ import annotations

import socket as kernel
import time

import usernet
from usernet.client import connection

SEND_OCTETS, RECEIVE_OCTETS = 1 << 18, 1 << 20


def _in_records() -> None:
    """From now on this application has no shared memory, like a program that cannot map any."""
    def refused(directory: str) -> None:
        raise OSError("not wanted")

    connection.Memory = refused  # type: ignore[assignment, misc]


def source(address: str, port: str, seconds: str) -> dict:
    """An application that sends for `seconds`."""
    return _pour(usernet.create_connection((address, int(port))), float(seconds))


def source_in_records(address: str, port: str, seconds: str) -> dict:
    """The same without shared memory."""
    _in_records()
    return source(address, port, seconds)


def kernel_source(address: str, port: str, seconds: str) -> dict:
    """The same with the kernel's sockets."""
    return _pour(kernel.create_connection((address, int(port))), float(seconds))


def sink(address: str, port: str) -> dict:
    """An application that receives until the end of the stream: Mbit/s since the first octet."""
    return _drain(usernet.socket(usernet.AF_INET, usernet.SOCK_STREAM), address, int(port))


def sink_in_records(address: str, port: str) -> dict:
    """The same without shared memory."""
    _in_records()
    return sink(address, port)


def kernel_sink(address: str, port: str) -> dict:
    """The same with the kernel's sockets."""
    return _drain(kernel.socket(kernel.AF_INET, kernel.SOCK_STREAM), address, int(port))


def _pour(endpoint, seconds: float) -> dict:
    data, end, octets = bytes(SEND_OCTETS), time.perf_counter() + seconds, 0
    with endpoint:
        while time.perf_counter() < end:
            octets += endpoint.send(data)
    return {"octets": octets}


def _drain(listener, address: str, port: int) -> dict:
    with listener:
        listener.setsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        print("ready", flush=True)
        endpoint, _ = listener.accept()
    with endpoint:
        octets, started = len(endpoint.recv(RECEIVE_OCTETS)), time.perf_counter()
        while received := len(endpoint.recv(RECEIVE_OCTETS)):
            octets += received
        return {"mbit_s": octets * 8e-6 / (time.perf_counter() - started)}


ROLES = {"stream-source": source, "stream-source-in-records": source_in_records,
         "kernel-stream-source": kernel_source, "stream-sink": sink, "stream-sink-in-records": sink_in_records,
         "kernel-stream-sink": kernel_sink}
