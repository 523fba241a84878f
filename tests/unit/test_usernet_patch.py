"""Programs that were written for the standard socket module, unmodified, over a stack: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from usernet_service import ADDRESS, REPOSITORY, Service

import usernet

PATIENCE_S = 30


@pytest.fixture(scope="module")
def service():
    service = Service(dns=[ADDRESS])
    yield service
    service.down()


@pytest.fixture
def start(service, tmp_path):
    """Starts a program's text, or with `arguments` a command line, under `python -m usernet`."""
    started = []

    def start(program, *arguments, **variables):
        name = tmp_path / f"program{len(started)}.py"
        name.write_text(textwrap.dedent(program))
        environment = {"PYTHONPATH": str(REPOSITORY), "USERNET_DIR": str(service.run_dir), "PYTHONWARNINGS": "error",
                       "PATH": os.environ["PATH"], **variables}
        command = [sys.executable, "-m", "usernet", *(arguments or [str(name)])]
        started.append(subprocess.Popen(command, text=True, env=environment, cwd=tmp_path, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def output(process, status=0):
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status, err
    return out


CLIENT = """
    import socket, sys
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        for text in (b"hello", b"world"):
            s.sendto(text, ("10.0.0.2", PORT))
            print(s.recvfrom(100))
"""


def answers(start, port):
    return output(start(CLIENT.replace("PORT", str(port)))).splitlines()


@pytest.mark.parametrize(("kind", "port"), [("UDPServer", 7001), ("ThreadingUDPServer", 7004)])
def test_socketserver(start, kind, port):
    server = start(f"""
        import socketserver
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                data, socket = self.request
                socket.sendto(data.upper(), self.client_address)
        with socketserver.{kind}(("10.0.0.2", {port}), Handler) as server:
            print("serving", server.server_address, flush=True)
            server.serve_forever(0.05)
        """)
    assert server.stdout.readline() == f"serving ('10.0.0.2', {port})\n"
    assert answers(start, port) == [f"(b'HELLO', ('10.0.0.2', {port}))", f"(b'WORLD', ('10.0.0.2', {port}))"]


def test_socketserver_of_lines(start):
    server = start("""
        import socketserver
        class Handler(socketserver.DatagramRequestHandler):
            def handle(self):
                self.wfile.write(self.rfile.read()[::-1])
        with socketserver.UDPServer(("", 7002), Handler) as server:
            print("serving", flush=True)
            server.serve_forever(0.05)
        """)
    assert server.stdout.readline() == "serving\n"
    assert answers(start, 7002)[0] == "(b'olleh', ('10.0.0.2', 7002))"


ASYNCIO_SERVER = """
    import asyncio
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport
        def datagram_received(self, data, peer):
            self.transport.sendto(data + b"!", peer)
    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("10.0.0.2", 7003))
        print("serving", transport.get_extra_info("sockname"), flush=True)
        await loop.run_in_executor(None, input)
        transport.close()
    asyncio.run(main())
"""

ASYNCIO_CLIENT = """
    import asyncio
    class Ask(asyncio.DatagramProtocol):
        def __init__(self):
            self.answers = asyncio.Queue()
        def datagram_received(self, data, peer):
            self.answers.put_nowait((data, peer))
    async def main():
        loop = asyncio.get_running_loop()
        transport, ask = await loop.create_datagram_endpoint(Ask, remote_addr=("10.0.0.2", 7003))
        for number in range(50):
            transport.sendto(b"%d" % number)
        print([int((await ask.answers.get())[0][:-1]) for _ in range(50)] == list(range(50)))
        transport.close()
        process = await asyncio.create_subprocess_exec("echo", "a child", stdout=asyncio.subprocess.PIPE)
        print((await process.communicate())[0])
    asyncio.run(main(), debug=True)
"""


def test_asyncio_server_and_client(start):
    server = start(ASYNCIO_SERVER)
    assert server.stdout.readline() == "serving ('10.0.0.2', 7003)\n"
    assert answers(start, 7003) == ["(b'hello!', ('10.0.0.2', 7003))", "(b'world!', ('10.0.0.2', 7003))"]
    assert output(start(ASYNCIO_CLIENT)).splitlines() == ["True", "b'a child\\n'"]
    server.communicate("\n", timeout=PATIENCE_S)
    assert server.returncode == 0


NAME_SERVER = """
    import socketserver, dns.message, dns.rrset
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            query = dns.message.from_wire(self.request[0])
            answer = dns.message.make_response(query)
            answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.7"))
            self.request[1].sendto(answer.to_wire(), self.client_address)
    with socketserver.UDPServer(("10.0.0.2", 53), Handler) as server:
        print("serving", flush=True)
        server.serve_forever(0.05)
"""


def test_dnspython_asks_through_the_stack(start):
    pytest.importorskip("dns")
    server = start(NAME_SERVER)
    assert server.stdout.readline() == "serving\n"
    assert output(start("""
        import dns.message, dns.query, dns.resolver, dns.asyncresolver, asyncio, socket
        answer = dns.query.udp(dns.message.make_query("example.org", "A"), "10.0.0.2", timeout=20)
        print(answer.answer[0][0])
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = ["10.0.0.2"]
        print(resolver.resolve("example.org", "A")[0])
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["10.0.0.2"]
        async def main():
            print((await resolver.resolve("example.org", "A"))[0])
        asyncio.run(main())
        print(socket.gethostbyname("example.org"), socket.getaddrinfo("example.org", 5, type=socket.SOCK_DGRAM)[0][4])
        """)).splitlines() == [*["192.0.2.7"] * 3, "192.0.2.7 ('192.0.2.7', 5)"]


def test_what_is_not_the_internets_stays_the_kernels(start):
    assert output(start("""
        import multiprocessing, socket, ssl, threading
        from socket import *
        def work(pipe):
            with socket(AF_INET, SOCK_DGRAM) as s:
                s.bind(("10.0.0.2", 0))
                pipe.send(s.getsockname()[0])
        if __name__ == "__main__":
            with socket(AF_UNIX, SOCK_STREAM) as listener:
                listener.bind("\\0usernet-test")
                listener.listen()
                with socket(AF_UNIX) as client:
                    client.connect("\\0usernet-test")
                    connection, _ = listener.accept()
                    with connection:
                        client.sendall(b"unix")
                        print(connection.recv(10), isinstance(connection, socket))
            a, b = socketpair()
            with a, b, a.dup() as c, fromfd(b.fileno(), b.family, b.type) as d:
                c.send(b"pair")
                print(d.recv(10))
            context = multiprocessing.get_context("fork")
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,))
            process.start()
            print(ours.recv(), process.join())
            with context.Manager() as manager:
                print(len(manager.list([1, 2])))
            with socket(AF_INET, SOCK_DGRAM) as s:
                print([isinstance(each, socket) for each in (s, a, 5)], issubclass(ssl.SSLSocket, socket))
        """)).splitlines() == ["b'unix' True", "b'pair'", "10.0.0.2 None", "2", "[True, True, False] True"]


def test_nothing_goes_past_the_stack(start):
    assert output(start("""
        import socket, http.client, ipaddress
        class Own(socket.socket):
            pass
        for what in (lambda: socket.create_connection(("127.0.0.1", 80), 5),
                     lambda: http.client.HTTPConnection("127.0.0.1").request("GET", "/"),
                     lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
                     lambda: socket.socket(socket.AF_INET, socket.SOCK_RDM),
                     lambda: Own(socket.AF_INET, socket.SOCK_DGRAM)):
            try:
                what()
            except OSError as error:
                print(error.strerror)
        print(socket.has_ipv6, socket.has_dualstack_ipv6())
        """)).splitlines() == [
        *["Connection refused"] * 2,
        "Address family not supported by protocol",
        "Socket type not supported",
        "Address family not supported by protocol: a subclass of the standard socket class cannot be a usernet socket; "
        "derive it from usernet.socket",
        "False False",
    ]


def test_a_module_with_arguments(start, tmp_path):
    (tmp_path / "thing.py").write_text("import sys, socket\nprint(__name__, sys.argv[1:], socket.socket.__module__)\n"
                                       "sys.exit(3)\n")
    (tmp_path / "helper.py").write_text("value = 5\n")
    assert output(start("", "-m", "thing", "--name", "x"), 3) == "__main__ ['--name', 'x'] usernet.compat.patching\n"
    (tmp_path / "script.py").write_text("import sys, helper\nprint(__name__, sys.argv, helper.value)\n")
    assert output(start("", "script.py", "-m", "--json")) == "__main__ ['script.py', '-m', '--json'] 5\n"


def test_errors_of_use_are_one_line(start, tmp_path):
    process = start("", "--name", "no-such-stack", "script.py", XDG_RUNTIME_DIR=str(tmp_path))
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("usernet: no usernet stack 'no-such-stack' is running")
    assert err.count("\n") == 1


def test_patching_from_within(start):
    assert output(start("""
        import socket
        print(socket.socket.__module__)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(("10.0.0.2", 0))
            print(type(s).__module__)
        """)).splitlines() == ["usernet.compat.patching", "usernet.sockets.endpoint"]
    assert usernet.socket.__module__ == "usernet.sockets.endpoint"
