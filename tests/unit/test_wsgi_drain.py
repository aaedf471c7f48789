"""What the WSGI classes have in common, on Gunicorn's own requests and responses, without a server."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.http.parser import Parser
from gunicorn.http.wsgi import Response, create

from tests.harness.worker_classes import PARSERS
from zdworker.errors import WarmupFailed
from zdworker.workers.wsgi import drain
from zdworker.workers.wsgi.drain import WsgiDrain, answer
from zdworker.workers.wsgi.sync import WSGIWorker

PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class Base:
    """As much of a Gunicorn worker as the mixin needs."""

    beats = 0
    cfg = Config()

    def load_wsgi(self) -> None:
        self.wsgi = application

    def notify(self) -> None:
        self.beats += 1


class Worker(WsgiDrain, Base):
    """The mixin on that."""

    booted = False
    _drain: Any = SimpleNamespace(has_begun=True, gives=False, told_to_close=0)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(Response, "default_headers", Response.default_headers)  # put back what load_wsgi changes
    made = Worker()
    made.load_wsgi()
    return made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = socket.socketpair()
    with client, server:
        yield client, server


def respond(pair: tuple[socket.socket, socket.socket], sent: bytes, *, read_body: bool = True) -> str:
    """Return the ``Connection`` header of the response to the first request in ``sent``."""
    client, server = pair
    client.sendall(sent)
    cfg = Config()
    request = next(get_parser(cfg, server, ("127.0.0.1", 1)))
    if read_body:
        request.body.read()
    response = Response(request, server, cfg)
    response.start_response("200 OK", [("Content-Length", "2")])
    response.write(b"ok")
    head = client.recv(65536).decode()
    [line] = [line for line in head.split("\r\n") if line.startswith("Connection:")]
    assert (line == "Connection: close") == response.should_close()
    return line.partition(": ")[2]


def test_connections_are_kept_alive_before_the_drain(worker: Worker, pair: tuple[socket.socket, socket.socket]) -> None:
    assert respond(pair, PLAIN) == "keep-alive"


def test_connections_end_in_the_drain(worker: Worker, pair: tuple[socket.socket, socket.socket]) -> None:
    worker.zd_deadline = 1.0
    assert respond(pair, POST) == "close"


def test_body_that_is_not_read_is_no_further_request(worker: Worker, pair: tuple[socket.socket, socket.socket]) -> None:
    worker.zd_deadline = 1.0
    assert respond(pair, POST, read_body=False) == "close"


@pytest.mark.skipif(not hasattr(Parser, "finish_body"), reason="this Gunicorn does not drop what is left of a body")
def test_further_request_behind_a_body_that_is_not_read(
    worker: Worker, pair: tuple[socket.socket, socket.socket]
) -> None:
    worker.zd_deadline = 1.0
    assert respond(pair, POST + PLAIN, read_body=False) == "keep-alive"


@pytest.mark.parametrize("first", [PLAIN, POST])
def test_further_request_keeps_the_connection(
    worker: Worker, pair: tuple[socket.socket, socket.socket], first: bytes
) -> None:
    worker.zd_deadline = 1.0
    assert respond(pair, first + PLAIN) == "keep-alive"


def test_further_request_that_is_in_the_kernel(worker: Worker, pair: tuple[socket.socket, socket.socket]) -> None:
    worker.zd_deadline = 1.0
    assert respond(pair, PLAIN + b"x" * 100_000) == "keep-alive"


def test_heartbeat_is_sent_ten_times_a_second(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(drain, "time", SimpleNamespace(monotonic=lambda: now))
    for _ in range(5):
        worker.notify()
    assert worker.beats == 1
    now += drain.HEARTBEAT_INTERVAL_S
    worker.notify()
    assert worker.beats == 2
    assert worker.zd_deadline == math.inf


# -- warm-up ---------------------------------------------------------------------------------------------------------


def test_warm_up_answers_each_path(worker: Worker) -> None:
    seen: list[tuple[str, str]] = []

    def note(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append((environ["HTTP_HOST"], environ["PATH_INFO"]))
        return application(environ, start_response)

    worker.wsgi = note
    worker.zd_warm_up(["/a", "https://example.org/b"])
    assert seen == [("localhost", "/a"), ("example.org", "/b")]


@pytest.mark.parametrize("status", ["400 Bad Request", "503 Service Unavailable", "none"])
def test_warm_up_with_a_bad_status(worker: Worker, status: str) -> None:
    def bad(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, [])
        return []

    worker.wsgi = bad
    with pytest.raises(WarmupFailed, match="/a"):
        worker.zd_warm_up(["/a"])


def test_url_in_the_environment() -> None:
    seen: dict[str, Any] = {}

    def note(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.update(environ)
        return application(environ, start_response)

    assert answer(note, "https://example.org:8443/caf%C3%A9?a=b", Config()) == "200 OK"
    assert seen["PATH_INFO"].encode("latin-1").decode() == "/café"
    assert (seen["QUERY_STRING"], seen["wsgi.url_scheme"]) == ("a=b", "https")
    assert (seen["HTTP_HOST"], seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("example.org:8443", "example.org", "8443")
    assert seen["wsgi.input"].read() == b""


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("proxy", ["off", "auto"])
def test_a_warm_up_request_has_all_that_gunicorn_gives(
    pair: tuple[socket.socket, socket.socket], parser: str, proxy: str
) -> None:
    """A Django view may read REMOTE_ADDR, which no default of ``wsgiref`` has."""
    client, server = pair
    cfg = Config()
    if "http_parser" in cfg.settings:
        cfg.set("http_parser", parser)
    seen: dict[str, Any] = {}

    def note(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.update(environ)
        return application(environ, start_response)

    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\n\r\n")
    request = next(get_parser(cfg, server, ("127.0.0.1", 1)))
    _response, real = create(request, server, ("127.0.0.1", 1), ("127.0.0.1", 80), cfg)
    cfg.set("proxy_protocol", proxy)
    assert answer(note, "/", cfg) == "200 OK"
    assert seen.keys() == real.keys()
    assert {"REMOTE_ADDR", "RAW_URI", "wsgi.file_wrapper", "gunicorn.socket"} <= seen.keys()


def test_a_warm_up_request_below_a_script_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/site")
    seen: list[tuple[str, str]] = []

    def note(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append((environ["SCRIPT_NAME"], environ["PATH_INFO"]))
        return application(environ, start_response)

    assert answer(note, "/health", Config()) == "200 OK"
    assert answer(note, "/site/health", Config()) == "200 OK"
    assert seen == [("/site", "/health"), ("/site", "/health")]


def test_answer_is_closed_even_when_it_raises() -> None:
    closed: list[bool] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            raise RuntimeError("no")

        def close(self) -> None:
            closed.append(True)

    def broken(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Body()

    with pytest.raises(RuntimeError, match="no"):
        answer(broken, "/", Config())
    assert closed


def test_application_that_starts_no_response() -> None:
    with pytest.raises(WarmupFailed, match="start_response"):
        answer(lambda environ, start_response: [], "/", Config())


def test_told_to_leave_between_the_poll_and_the_accept() -> None:
    """The listener has been closed meanwhile: Gunicorn's has no socket then."""
    worker = WSGIWorker(1, 1, [], None, 30, Config(), logging.getLogger("test"))

    class Closed:
        @property
        def sock(self) -> None:
            worker.alive = False

    with pytest.raises(BlockingIOError):
        worker.accept(Closed())
    with pytest.raises(BlockingIOError):
        worker.accept(Closed())
    worker.tmp.close()
