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


def test_families_other_than_the_internets_stay_the_kernels(start):
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
        for what in (lambda: socket.create_connection(("127.0.0.1", 80), 5),
                     lambda: http.client.HTTPConnection("127.0.0.1").request("GET", "/"),
                     lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
                     lambda: socket.socket(socket.AF_INET, socket.SOCK_RDM)):
            try:
                what()
            except OSError as error:
                print(error.strerror)
        print(socket.has_ipv6, socket.has_dualstack_ipv6())
        """)).splitlines() == [
        *["Connection refused"] * 2,
        "Address family not supported by protocol",
        "Socket type not supported",
        "False False",
    ]


def test_a_module_with_arguments(start, tmp_path):
    (tmp_path / "thing.py").write_text("import sys, socket\nprint(__name__, sys.argv[1:], socket.socket.__module__)\n"
                                       "sys.exit(3)\n")
    (tmp_path / "helper.py").write_text("value = 5\n")
    assert output(start("", "-m", "thing", "--name", "x"), 3) == "__main__ ['--name', 'x'] socket\n"
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
        """)).splitlines() == ["socket", "socket"]
    assert usernet.socket.__module__ == "usernet.sockets.endpoint"


def test_one_class_for_all(start):
    assert output(start("""
        from socket import socket as early
        import socket, _socket, select
        class Own(socket.socket):
            def recv(self, *arguments):
                return b"own " + super().recv(*arguments)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_UNIX) as b, \\
                Own(socket.AF_INET, socket.SOCK_DGRAM) as c:
            print(type(a) is type(b) is socket.socket is early, isinstance(c, Own), socket.SocketType is early)
            c.bind(("10.0.0.2", 0))
            a.sendto(b"x", c.getsockname())
            print(select.select([c], [], [], 20)[0] == [c], c.recv(5))
            with a.dup() as copy:
                print(type(copy) is early, copy.getsockname() == a.getsockname(), copy.timeout, copy.family.name)
            number = a.detach()
            with socket.socket(fileno=number) as again:
                print(again.getsockname()[0], a.fileno())
        """)).splitlines() == ["True True True", "True b'own x'", "True True None AF_INET", "0.0.0.0 -1"]


WEB = """
    import http.server, http.client, threading, urllib.request, ssl, sys, asyncio, socket
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            body = b"x" * int(self.path[1:])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("10.0.0.2", 0), Handler)
    host, port = server.server_address
    if SECURE:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    trusted = ssl.create_default_context(cafile=sys.argv[1]) if SECURE else None
    scheme = "https" if SECURE else "http"
    print(len(urllib.request.urlopen(f"{scheme}://{host}:{port}/300000", context=trusted, timeout=20).read()))
    kind = http.client.HTTPSConnection if SECURE else http.client.HTTPConnection
    client = kind(host, port, timeout=20, **({"context": trusted} if SECURE else {}))
    for size in (1, 70000):
        client.request("GET", f"/{size}")
        print(len(client.getresponse().read()))
    client.close()
    async def ask():
        reader, writer = await asyncio.open_connection(host, port, ssl=trusted)
        writer.write(b"GET /100000 HTTP/1.0\\r\\n\\r\\n")
        print((await reader.read()).count(b"x"))
        writer.close()
        await writer.wait_closed()
        served = asyncio.Event()
        async def serve(reader, writer):
            writer.write((await reader.readline()).upper())
            writer.close()
            served.set()
        async with await asyncio.start_server(serve, "10.0.0.2", 0) as local:
            reader, writer = await asyncio.open_connection(*local.sockets[0].getsockname())
            writer.write(b"line\\n")
            print(await reader.read())
            writer.close()
            await served.wait()
    asyncio.run(ask())
    server.shutdown()
    server.server_close()
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path, "-out", f"{path}.crt",
                    "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:10.0.0.2"], check=True,
                   capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_name("both.pem.crt").read_bytes())
    return path


@pytest.mark.parametrize("secure", [False, True])
def test_the_web(start, tmp_path, certificate, secure):
    program = tmp_path / "web.py"
    program.write_text(textwrap.dedent(WEB.replace("SECURE", str(secure)).replace("\\\\", "\\")))
    assert output(start("", str(program), str(certificate), PYTHONWARNINGS="default")).splitlines() == [
        "300000", "1", "70000", "100000", "b'LINE\\n'"]


TLS_ECHO = """
    import MODULE, ssl, sys, threading
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(sys.argv[1])
    client_side = ssl.create_default_context(cafile=sys.argv[1])
    server = NAME.create_server(("10.0.0.2", 0))
    def serve():
        with server_side.wrap_socket(server.accept()[0], server_side=True) as one:
            while data := one.recv(70000):
                one.sendall(data)
    thread = threading.Thread(target=serve)
    thread.start()
    plain = NAME.create_connection(server.getsockname(), timeout=20)
    with client_side.wrap_socket(plain, server_hostname="10.0.0.2") as one:
        print(isinstance(one, ssl.SSLSocket), one.version(), plain.fileno())
        data = bytes(range(256)) * 2000
        sender = threading.Thread(target=one.sendall, args=(data,))
        sender.start()
        got = b""
        while len(got) < len(data):
            got += one.recv(65536)
        sender.join()
        one.setblocking(False)
        try:
            one.recv(1)
        except ssl.SSLWantReadError as error:
            print(got == data, type(error).__name__)
        one.settimeout(20)
        one.unwrap().close()
    thread.join()
    server.close()
"""


@pytest.mark.parametrize(("module", "name"), [("socket", "socket"), ("usernet", "usernet")])
def test_tls_with_the_standard_context(start, tmp_path, certificate, service, module, name):
    program = tmp_path / "tls.py"
    program.write_text(textwrap.dedent(TLS_ECHO.replace("MODULE", module).replace("NAME", name)))
    if module == "socket":
        out = output(start("", str(program), str(certificate), PYTHONWARNINGS="default"))
    else:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "USERNET_DIR": str(service.run_dir)}
        out = subprocess.run([sys.executable, program, certificate], env=environment, text=True, check=True,
                             capture_output=True, timeout=PATIENCE_S).stdout
    assert out.splitlines() == ["True TLSv1.3 -1", "True SSLWantReadError"]


STRAYS = """
    import _socket, socket
    try:
        _socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        _socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        print("made")
    except PermissionError:
        print("refused")
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
"""


def test_programs_that_go_past_the_stack_are_warned_or_refused(start, tmp_path):
    process = start(STRAYS)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, err) == ("made\n", "usernet: a socket of AF_INET uses the kernel's network, not the stack: "
                                    "it was made past socket.socket\n")
    program = tmp_path / "strict.py"
    program.write_text(textwrap.dedent(STRAYS))
    assert output(start("", "--strict", str(program))) == "refused\n"
    (tmp_path / "uvloop.py").write_text("")
    process = start("import uvloop")
    assert "usernet: uvloop uses the kernel's network" in process.communicate(timeout=PATIENCE_S)[1]


def test_our_own_pipes_are_not_told(start, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()\nprint('fine')\n")
    process = start("", "--strict", str(program), USERNET_PIPES="zmq", PYTHONWARNINGS="default")
    assert process.communicate(timeout=PATIENCE_S) == ("fine\n", "")
