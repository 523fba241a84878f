"""The page in the browser and the requests that it makes, served on 127.0.0.1 only.

A request must contain the token of the URL, its Host must be this server's, and its Origin must not be another page. So
neither another user of the machine nor a page from elsewhere gets an answer, not even through a DNS name that resolves
to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import argparse
import secrets
import shlex
import signal
import threading
from collections.abc import Callable
from hmac import compare_digest
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from bottle import Bottle, HTTPResponse, request

from cli import connections, impair, restart, stack, why
from cli.board import Board
from cli.capture import line, packets
from cli.counters import counts
from cli.failures import naming
from cli.pipes import chosen
from cli.watching import Watch
from supervisor.control import NotRunning, Refused
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

PAGE = Path(__file__).with_name("page.html")
LAYERS = Path(__file__).parent.parent / "layers"
PACKETS_SHOWN, WATCH_S = 30, 1.0
PLOTTED_S, EVENTS_SHOWN = 2.0, 12  # of a connection
_HEADERS = {"Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
            "connect-src 'self'; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Pages:
    """The pages of one stack. Requests must contain `token`."""

    def __init__(self, name: str | None, token: str) -> None:
        self.token = token
        self._name = name
        self._board: Board | None = None
        self._lock = threading.Lock()  # protects the board: requests arrive in several threads
        self.port = 0
        self.application = app = Bottle()
        for method, path, call in (("GET", "/", self._page), ("GET", "/state", self._state),
                                   ("GET", "/layer/<layer>", self._layer), ("GET", "/pipe/<pipe>", self._pipe),
                                   ("GET", "/connections", self._connections),
                                   ("GET", "/connection/<connection>", self._connection), ("POST", "/do", self._do)):
            app.route(path, method, self._guarded(call))

    def _guarded(self, call: Callable[..., HTTPResponse]) -> Callable[..., HTTPResponse]:
        def guarded(**arguments: str) -> HTTPResponse:
            here = {f"{host}:{self.port}" for host in ("127.0.0.1", "localhost")}
            origin = request.get_header("Origin")
            if request.get_header("Host") not in here or origin not in {None, *(f"http://{host}" for host in here)}:
                return _answer(403, "this page is only served to 127.0.0.1")
            if not compare_digest(request.query.token.encode(), self.token.encode()):
                return _answer(403, "the token in the URL is missing or wrong: `launcher.py web` prints it")
            try:
                return call(**arguments)
            except (NotRunning, ConnectionError):
                return _json(503, {"error": "the stack is not running"})
            except OSError as error:  # TimeoutError: the keeper is stopped, or hangs
                status = 504 if isinstance(error, TimeoutError) else 503
                return _json(status, {"error": error.strerror or str(error)})
            except (Refused, UsageError, ValueError) as error:
                return _json(400, {"error": str(error)})

        return guarded

    def _page(self) -> HTTPResponse:
        return HTTPResponse(PAGE.read_text(), 200, {**_HEADERS, "Content-Type": "text/html; charset=utf-8"})

    def _state(self) -> HTTPResponse:
        with self._lock:
            if self._board is None:
                self._board = Board(self._name)
            try:
                return _json(200, self._board.tick())
            except (NotRunning, ConnectionError):
                self._board.close()
                self._board = None
                raise

    def _layer(self, layer: str) -> HTTPResponse:
        status = stack.query(run_dir(self._name), "status")
        found = [count._asdict() for count in counts(status, layer) if count.value]
        readme = LAYERS / layer / "README.md"  # `counts` has checked that this is the name of a layer
        return _json(200, {"counters": found, "readme": readme.read_text() if readme.exists() else ""})

    def _pipe(self, pipe: str) -> HTTPResponse:
        layers = stack.query(run_dir(self._name), "status")["layers"]
        seen: list[str] = []
        with Watch(self._name, chosen([pipe], layers)) as watch:
            timer = threading.Timer(WATCH_S, watch.stop)
            timer.start()
            for batch in watch:
                for records in batch:
                    seen += [line(records, octets) for octets in packets(records, watch.with_vnet, True)]
            timer.cancel()
        return _json(200, {"packets": seen[-PACKETS_SHOWN:]})

    def _connections(self) -> HTTPResponse:
        return _json(200, {"connections": connections.listed(self._name)})

    def _connection(self, connection: str) -> HTTPResponse:
        answer = connections.plot(self._name, connection, PLOTTED_S)
        answer["events"] = why.lines(why.events(self._name, why.ends(connection)))[-EVENTS_SHOWN:]
        return _json(200, answer)

    def _do(self) -> HTTPResponse:
        order = request.json if isinstance(request.json, dict) else {}
        action, layer = order.get("action"), str(order.get("layer"))
        if action == "kill":
            stack.query(run_dir(self._name), "sabotage", layer=layer, fault="kill")
        elif action == "restart":
            restart.restart(run_dir(self._name), [layer])
        elif action == "impair":
            _impair(self._name, str(order.get("words", "")))
        else:
            raise ValueError(f"unknown action {action!r}; the actions are kill, restart and impair")
        return _json(200, {})


def _impair(name: str | None, words: str) -> None:
    """Impair as the command line does."""
    parser = argparse.ArgumentParser(prog="impair", add_help=False, exit_on_error=False, allow_abbrev=False)
    impair.arguments(parser)
    try:
        given = parser.parse_args(shlex.split(words))
    except (argparse.ArgumentError, SystemExit) as error:
        raise ValueError(f"impair: {error}") from error
    given.name = name
    impair.run(given)


def _answer(status: int, text: str) -> HTTPResponse:
    return HTTPResponse(text, status, {**_HEADERS, "Content-Type": "text/plain; charset=utf-8"})


def _json(status: int, value: Any) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(value), status, {**_HEADERS, "Content-Type": "application/json"})


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log no requests."""


def serve(name: str | None, port: int) -> int:
    """Until Ctrl-C. OSError: the port is not available."""
    pages = Pages(name, secrets.token_urlsafe(16))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # also for the threads
    with naming(f"127.0.0.1:{port} (--port 0 takes any free port)"):
        made = make_server("127.0.0.1", port, pages.application, _Server, _Quiet)
    with made as server:
        pages.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"open http://127.0.0.1:{pages.port}/?token={pages.token}\nCtrl-C ends it", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
        server.shutdown()
    return 0
