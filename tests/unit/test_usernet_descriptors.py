"""Sockets by the number of their descriptor, and servers in one call: as the kernel's, and what is no kernel's."""

from __future__ import annotations

import errno
import os
import select
import socket as std

import pytest
from usernet_service import ADDRESS, Service

import usernet

PATIENCE_S = 20


@pytest.fixture(scope="module")
def service():
    service = Service()
    yield service
    service.down()


@pytest.fixture(autouse=True)
def _which_stack(service, monkeypatch):
    monkeypatch.setenv("USERNET_DIR", str(service.run_dir))


def bound(module, port=0):
    endpoint = module.socket(std.AF_INET, std.SOCK_DGRAM)
    endpoint.bind((ADDRESS if module is usernet else "127.0.0.1", port))
    endpoint.settimeout(PATIENCE_S)
    return endpoint


def outcome(what, module):
    try:
        return what(module)
    except Exception as error:
        return type(error), error.args


def same(what):
    """The stack's outcome, which is the kernel's."""
    ours = outcome(what, usernet)
    assert ours == outcome(what, std)
    return ours


# -- detach and what takes it up again ---------------------------------------------------------------------------------


def test_a_detached_socket_lives_on_under_its_number():
    def what(module):
        endpoint = bound(module)
        name = endpoint.getsockname()
        number = endpoint.detach()
        told = number >= 0, endpoint.fileno(), endpoint.detach()
        with bound(module) as sender, module.socket(fileno=number) as again:
            again.settimeout(PATIENCE_S)
            sender.sendto(b"still here", name)
            readable = select.select([again], [], [], PATIENCE_S)[0] == [again]
            return (told, again.fileno() == number, again.getsockname() == name, readable, again.recv(20),
                    again.family, again.type, again.proto)

    assert same(what)[4] == b"still here"


def test_datagrams_that_arrive_while_it_is_detached_are_not_lost():
    def what(module):
        endpoint = bound(module)
        name, number = endpoint.getsockname(), endpoint.detach()
        with bound(module) as sender:
            sender.sendto(b"meanwhile", name)
            select.select([number], [], [], PATIENCE_S)
        with module.socket(fileno=number) as again:
            return again.recv(20, std.MSG_DONTWAIT)

    assert same(what) == b"meanwhile"


def test_a_detached_socket_can_be_used_no_more():
    def what(module):
        endpoint = bound(module)
        module.close(endpoint.detach())
        return endpoint.recv(1)

    assert same(what)[1][0] == errno.EBADF


def test_closing_the_number_frees_the_port():
    def what(module):
        endpoint = bound(module)
        port = endpoint.getsockname()[1]
        module.close(endpoint.detach())
        with bound(module, port) as again:
            return again.getsockname()[1] == port

    assert same(what) is True


def test_a_number_that_is_taken_up_twice_is_two_objects_of_one_socket():
    def what(module):
        with bound(module) as endpoint, module.fromfd(endpoint.fileno(), std.AF_INET, std.SOCK_DGRAM) as other:
            name, different = endpoint.getsockname(), other.fileno() != endpoint.fileno()
            endpoint.close()
            other.settimeout(PATIENCE_S)
            other.sendto(b"to itself", name)
            return different, other.recv(20)

    assert same(what) == (True, b"to itself")


@pytest.mark.parametrize("call", [
    lambda module, number: module.socket(fileno=number), lambda module, number: module.fromfd(number, 2, 2),
    lambda module, number: module.close(number)])
def test_a_number_that_stands_for_nothing(call):
    number = os.open(os.devnull, os.O_RDONLY)
    os.close(number)
    assert same(lambda module: call(module, number))[1][0] == errno.EBADF


def test_a_number_of_the_kernels_is_the_kernels():
    with bound(std) as endpoint, usernet.fromfd(endpoint.fileno(), std.AF_INET, std.SOCK_DGRAM) as other:
        assert isinstance(other, std.socket)
        assert other.getsockname() == endpoint.getsockname()


def test_a_number_closed_without_the_library_belongs_to_its_new_owner():
    number = bound(usernet).detach()
    with bound(std) as theirs:
        os.dup2(theirs.fileno(), number)  # which closes it before
        with usernet.socket(fileno=number) as found:
            assert found.getsockname() == theirs.getsockname()
            assert isinstance(found, std.socket)


def test_a_child_has_no_part_in_what_its_parent_detached():
    number = bound(usernet).detach()
    pid = os.fork()
    if not pid:
        try:
            usernet.socket(fileno=number)
        except OSError as error:
            os._exit(error.errno)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EBADF
    usernet.close(number)


# -- create_server -----------------------------------------------------------------------------------------------------


def test_a_udp_server_in_one_call():
    with usernet.create_server((ADDRESS, 0), type=std.SOCK_DGRAM) as server, bound(usernet) as client:
        client.sendto(b"question", server.getsockname())
        assert server.recvfrom(20) == (b"question", client.getsockname())
        with pytest.raises(OSError, match=r"Address already in use \(while attempting to bind on address") as refused:
            usernet.create_server(server.getsockname(), type=std.SOCK_DGRAM)
        assert refused.value.errno == errno.EADDRINUSE


def test_udp_servers_that_share_a_port():
    with usernet.create_server((ADDRESS, 0), type=std.SOCK_DGRAM, reuse_port=True) as first:
        usernet.create_server(first.getsockname(), type=std.SOCK_DGRAM, reuse_port=True).close()


def test_a_server_that_there_cannot_be():
    with pytest.raises(OSError, match="Address family not supported"):
        usernet.create_server(("::1", 0), family=std.AF_INET6)
    with pytest.raises(ValueError, match="dualstack_ipv6 not supported"):
        usernet.create_server((ADDRESS, 0), dualstack_ipv6=True)
