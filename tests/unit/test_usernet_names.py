"""Names: what needs no name server, and what is asked of one through the stack."""

from __future__ import annotations

import socket as std
import subprocess
import sys
import threading

import pytest
from usernet_service import ADDRESS, REPOSITORY, Service

import usernet
from usernet import dns as resolver

dns_message = pytest.importorskip("dns.message")
import dns.flags  # noqa: E402
import dns.rcode  # noqa: E402
import dns.rrset  # noqa: E402

PATIENCE_S = 20
ADDRESSES = ["192.0.2.1", "192.0.2.2"]

ZONE = {
    ("www.example.org.", "A"): [("www.example.org.", "CNAME", ["example.org."]),
                                ("example.org.", "A", ADDRESSES)],
    ("example.org.", "A"): [("example.org.", "A", ADDRESSES)],
    ("localhost.example.", "A"): [("localhost.example.", "A", [ADDRESS])],
    ("only-mail.example.", "A"): [],
    ("1.2.0.192.in-addr.arpa.", "PTR"): [("1.2.0.192.in-addr.arpa.", "PTR", ["example.org."])],
}


class NameServer:
    """A name server on the stack itself; `mood` is what it does with a query before the answer."""

    def __init__(self, stack):
        self.queries = []
        self.mood = None
        self._socket = stack.socket(std.AF_INET, std.SOCK_DGRAM)
        self._socket.bind((ADDRESS, 53))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            data, peer = self._socket.recvfrom(2048)
            if data == b"end":
                return
            query = dns_message.from_wire(data)
            self.queries.append(query)
            question = query.question[0]
            response = dns_message.make_response(query, recursion_available=True)
            answer = ZONE.get((question.name.to_text(), std_type(question)))
            if answer is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
            for owner, kind, values in answer or ():
                response.answer.append(dns.rrset.from_text(owner, 60, "IN", kind, *values))
            if self.mood is None or self.mood(self._socket, response, peer):
                self._socket.sendto(response.to_wire(), peer)

    def close(self):
        with usernet.socket(std.AF_INET, std.SOCK_DGRAM) as end:
            end.sendto(b"end", (ADDRESS, 53))
            self._thread.join(PATIENCE_S)
        self._socket.close()


def std_type(question):
    import dns.rdatatype

    return dns.rdatatype.to_text(question.rdtype)


@pytest.fixture(scope="module")
def service():
    service = Service(dns=[ADDRESS])
    yield service
    service.down()


@pytest.fixture
def server(service, monkeypatch):
    monkeypatch.setenv("USERNET_DIR", str(service.run_dir))
    monkeypatch.setattr(resolver, "LIFETIME_S", PATIENCE_S)
    resolver._made.cache_clear()
    server = NameServer(usernet.Stack())
    yield server
    server.close()


@pytest.fixture
def no_server(monkeypatch):
    service = Service()
    monkeypatch.setenv("USERNET_DIR", str(service.run_dir))
    yield service
    service.down()


# -- without a name server -------------------------------------------------------------------------------------------

NUMERIC = ["10.0.0.2", "10.2", "0x7f.1", "", "<broadcast>", "localhost", b"10.0.0.2"]


@pytest.mark.parametrize("name", NUMERIC)
def test_numeric_names_resolve_as_in_the_standard_module_and_take_no_stack(name, tmp_path, monkeypatch):
    monkeypatch.setenv("USERNET_DIR", str(tmp_path))
    assert usernet.gethostbyname(name) == std.gethostbyname(name)


@pytest.mark.parametrize("call", [
    lambda module: module.gethostbyname("::1"), lambda module: module.gethostbyname_ex("::1"),
    lambda module: module.getnameinfo(("10.0.0.1", -1), std.NI_NUMERICHOST),
])
def test_impossible_addresses_fail_as_in_the_standard_module(call):
    errors = []
    for module in (usernet, std):
        with pytest.raises(std.gaierror) as failure:
            call(module)
        errors.append(failure.value.errno)
    assert errors[0] == errors[1]
    numbers = ("10.0.0.1", 70000), std.NI_NUMERICHOST | std.NI_NUMERICSERV
    assert usernet.getnameinfo(*numbers) == std.getnameinfo(*numbers)


@pytest.mark.parametrize("arguments", [
    ("10.0.0.2", 53), ("10.0.0.2", "53"), ("10.0.0.2", "domain"), (None, 53), ("10.0.0.2", None), (None, b"domain"),
    ("10.0.0.2", 53, std.AF_INET, std.SOCK_DGRAM, std.IPPROTO_UDP), ("10.0.0.2", "no such service"),
    ("10.0.0.2", 53, std.AF_INET, std.SOCK_DGRAM, 0, std.AI_CANONNAME),
    ("10.0.0.2", "domain", std.AF_INET, std.SOCK_DGRAM, 0, std.AI_NUMERICSERV),
    (None, 53, std.AF_INET, std.SOCK_DGRAM, 0, std.AI_PASSIVE), ("name", 53, std.AF_INET, 0, 0, std.AI_NUMERICHOST),
    ("10.0.0.2", 53, std.AF_INET, std.SOCK_STREAM),
])
def test_addresses_for_datagrams_as_in_the_standard_module(arguments):
    host, port, *rest = arguments
    rest = [std.AF_INET, std.SOCK_DGRAM, *rest[2:]] if len(rest) < 2 or not rest[1] else rest

    def outcome(module):
        try:
            return module.getaddrinfo(host, port, *rest)
        except OSError as error:
            return type(error), error.errno

    assert outcome(usernet) == outcome(std)


@pytest.mark.parametrize(("arguments", "number"), [
    (("10.0.0.2", 53, std.AF_INET6), std.EAI_FAMILY), (("10.0.0.2", 53, 0, std.SOCK_RAW), std.EAI_SERVICE),
])
def test_a_name_that_the_stack_cannot_resolve_fails_with_the_errno_of_glibc(arguments, number):
    with pytest.raises(std.gaierror) as failure:
        usernet.getaddrinfo(*arguments)
    assert failure.value.errno == number


def test_a_stack_without_name_servers_says_what_to_do(no_server):
    with pytest.raises(std.gaierror, match="up --dns ADDRESS") as failure:
        usernet.gethostbyname("example.org")
    assert failure.value.errno == std.EAI_NONAME
    assert usernet.getnameinfo(("10.0.0.1", 53), 0)[0] == "10.0.0.1"
    with pytest.raises(std.gaierror):
        usernet.getnameinfo(("10.0.0.1", 53), std.NI_NAMEREQD)


def test_without_dnspython_the_error_says_what_to_install(service):
    code = ("import sys; sys.modules['dns'] = None\n"
            "import usernet, socket\n"
            "print(usernet.gethostbyname('localhost'))\n"
            "try: usernet.gethostbyname('example.org')\n"
            "except socket.gaierror as error: print(error.errno, error.strerror)\n")
    environment = {"PYTHONPATH": str(REPOSITORY), "USERNET_DIR": str(service.run_dir)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=30)
    assert done.stdout.splitlines()[0] == "127.0.0.1"
    assert done.stdout.splitlines()[1].startswith("-2 Name or service not known: ")
    assert "pip install 'usernet[dns]'" in done.stdout


# -- with one ----------------------------------------------------------------------------------------------------------


def test_a_name_its_aliases_and_addresses(server):
    assert usernet.gethostbyname("example.org") in ADDRESSES
    name, aliases, addresses = usernet.gethostbyname_ex("www.example.org")
    assert (name, aliases, sorted(addresses)) == ("example.org", ["www.example.org"], ADDRESSES)
    assert usernet.gethostbyname_ex("10.2") == ("10.2", [], ["10.0.0.2"])
    entries = usernet.getaddrinfo("www.example.org", "domain", type=std.SOCK_DGRAM, flags=std.AI_CANONNAME)
    assert sorted(address for *_, address in entries) == [("192.0.2.1", 53), ("192.0.2.2", 53)]
    datagrams = (std.AF_INET, std.SOCK_DGRAM, std.IPPROTO_UDP)
    assert [entry[:4] for entry in entries] == [(*datagrams, "example.org"), (*datagrams, "")]


def test_an_answer_is_kept_for_its_time_to_live(server):
    assert len({*map(usernet.gethostbyname, ["example.org"] * 3)}) == 1
    assert len(server.queries) == 1


def test_names_of_addresses(server):
    assert usernet.gethostbyaddr("192.0.2.1") == ("example.org", [], ["192.0.2.1"])
    assert [usernet.getfqdn(name) for name in ("192.0.2.1", "example.org", "192.0.2.99", "127.0.0.1")] == [
        "example.org", "example.org", "192.0.2.99", "localhost"]
    assert usernet.getnameinfo(("192.0.2.1", 53), std.NI_DGRAM) == ("example.org", "domain")
    assert usernet.getnameinfo(("192.0.2.1", 53), std.NI_NUMERICHOST | std.NI_NUMERICSERV) == ("192.0.2.1", "53")
    assert usernet.getnameinfo(("127.0.0.1", 53), std.NI_NUMERICSERV) == ("localhost", "53")
    with pytest.raises(std.herror):
        usernet.gethostbyaddr("192.0.2.99")


@pytest.mark.parametrize("name", ["no-such-name.example", "only-mail.example", "a" * 70 + ".example", "a..b", "."])
def test_names_without_an_address(server, name):
    with pytest.raises(std.gaierror) as failure:
        usernet.gethostbyname(name)
    assert failure.value.errno == std.EAI_NONAME


def test_sockets_resolve_names_through_their_own_stack(server):
    with usernet.socket(std.AF_INET, std.SOCK_DGRAM) as one, usernet.socket(std.AF_INET, std.SOCK_DGRAM) as other:
        one.bind(("localhost.example", 0))
        port = one.getsockname()[1]
        other.sendto(b"by name", ("localhost.example", port))
        one.settimeout(PATIENCE_S)
        assert one.recv(10) == b"by name"
        other.connect(("localhost.example", port))
        assert other.getpeername() == (ADDRESS, port)


def test_guesses_and_garbage_are_not_answers(server):
    def forge(socket, response, peer):
        response.id ^= 1
        socket.sendto(response.to_wire(), peer)
        response.id ^= 1
        socket.sendto(b"garbage", peer)
        socket.sendto(b"", peer)
        return True

    server.mood = forge
    assert usernet.gethostbyname("example.org") in ADDRESSES


def test_a_query_that_is_lost_is_asked_again(server):
    server.mood = lambda *_: len(server.queries) > 1
    assert usernet.gethostbyname("example.org") in ADDRESSES


def test_a_truncated_answer_is_what_there_is(server):
    def truncate(socket, response, peer):
        response.flags |= dns.flags.TC
        return True

    server.mood = truncate
    assert usernet.gethostbyname("example.org") in ADDRESSES


def test_a_server_that_is_silent_fails_or_busy_is_a_temporary_failure(server, monkeypatch):
    monkeypatch.setattr(resolver, "LIFETIME_S", 1.0)

    def fail(socket, response, peer):
        response.set_rcode(dns.rcode.SERVFAIL)
        return True

    for mood in (lambda *_: False, fail):
        server.mood = mood
        with pytest.raises(std.gaierror) as failure:
            usernet.gethostbyname("example.org")
        assert failure.value.errno == std.EAI_AGAIN


def test_a_server_that_is_not_there(service, monkeypatch):
    monkeypatch.setenv("USERNET_DIR", str(service.run_dir))
    resolver._made.cache_clear()
    with pytest.raises(std.gaierror) as failure:
        usernet.gethostbyname("example.org")
    assert failure.value.errno == std.EAI_AGAIN
