"""What the drain knows of connections of Gunicorn's ASGI stack, asked of the real protocol on a socket pair."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gunicorn
import pytest
from gunicorn.config import Config

from tests.harness.worker_classes import PARSERS
from zdworker.workers.closing import ConnectionState
from zdworker.workers.event_loop import transports
from zdworker.workers.gunicorn_asgi.connections import Connection

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
CALLBACKS = gunicorn.version_info >= (25, 2)  # parsers with callbacks; before, a stream reader
moves_connections = pytest.mark.skipif(not CALLBACKS, reason="no connection is handed over with a stream reader")


class Log(logging.Logger):
    """What Gunicorn's logger has that the protocol asks for."""

    access_log_enabled = False

    def access(self, *arguments: Any) -> None:
        """No access log."""


class Stage:
    """One connection, its client's end, and an application that answers when the test says so.

    It stands for the server and the worker too.
    """

    alive = True
    nr = nr_conns = 0
    max_requests = 1000

    def __init__(self, theirs: socket.socket, parser: str) -> None:
        self.theirs = theirs
        self.cfg = Config()
        if "http_parser" in self.cfg.settings:
            self.cfg.set("http_parser", parser)
        self.cfg.set("keepalive", 5)
        self.log = Log("test")
        self.state: dict[str, Any] = {}
        self.draining = False
        self.drain: Any = SimpleNamespace(gives=False, told_to_close=0)
        self.websocket_app = self.asgi
        self.open: set[Any] = set()
        self.offered: list[Any] = []
        self.reads = True
        self.go = asyncio.Event()
        self.after = asyncio.Event()
        self.after.set()
        self.finished = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.loop = asyncio.get_running_loop()
        self.connection: Any = Connection(self, self)

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        while self.reads and (await receive()).get("more_body"):
            pass
        await self.go.wait()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2"), *self.headers]}
        )
        await send({"type": "http.response.body", "body": b"ok"})
        await self.after.wait()
        self.finished += 1

    def announce_or_offer(self, connection: Any) -> None:
        self.offered.append(connection)

    def begin_drain(self) -> None:
        self.draining = True
        self.connection.zd_end_responses()

    async def feed(self, data: bytes) -> None:
        self.theirs.send(data)
        await self.turn()

    async def turn(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0.001)

    async def answer(self) -> bytes:
        """Let the application answer; return what the client has got."""
        self.go.set()
        await self.turn()
        return self.got()

    def got(self) -> bytes:
        try:
            return self.theirs.recv(65536)
        except BlockingIOError:
            return b""

    def ended(self) -> bool:
        """Whether the client sees the end."""
        try:
            return self.theirs.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False

    def connection_state(self) -> ConnectionState:
        state: ConnectionState = self.connection.zd_state()
        return state

    def tend(self, later: float, unused_until: float = 0.0) -> None:
        now = time.monotonic()
        self.connection.zd_tend(now + later, SimpleNamespace(keepalive_s=5.0, unused_until=now + unused_until))


Scenario = Callable[[Stage], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture(params=PARSERS)
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            stage = Stage(theirs, request.param)
            await asyncio.get_running_loop().create_unix_connection(lambda: stage.connection, sock=ours)
            await stage.turn()
            await scenario(stage)
            stage.after.set()
            stage.go.set()
            stage.connection.transport.abort()
            await stage.turn()

        asyncio.run(main())

    yield run
    theirs.close()


def test_what_a_connection_is_in_the_middle_of(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.connection_state() is ConnectionState.UNUSED
        await stage.feed(HEAD[:1])
        assert stage.connection_state() is ConnectionState.READING
        await stage.feed(HEAD[1:])
        assert stage.connection_state() is ConnectionState.BUSY
        assert stage.connection.zd_running() == 1
        assert b"200 OK" in await stage.answer()
        assert stage.connection_state() is ConnectionState.IDLE
        assert stage.connection.zd_running() == 0
        await stage.feed(HEAD[:10])
        assert stage.connection_state() is ConnectionState.READING
        stage.connection.transport.close()
        assert stage.connection_state() is ConnectionState.CLOSING

    play(scenario)


def test_a_response_ends_the_connection_once_the_drain_has_begun(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.feed(HEAD)
        stage.begin_drain()
        assert (await stage.answer()).lower().count(b"connection: close") == 1
        assert stage.ended()
        stage.theirs.close()
        await stage.turn()
        assert not stage.open

    play(scenario)


def test_nobody_is_told_before_the_drain(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.feed(POST + b"abcd")
        assert b"connection" not in (await stage.answer()).lower()
        await stage.feed(HEAD)
        assert b"200 OK" in stage.got()
        assert not stage.ended()

    play(scenario)


def test_the_application_s_keep_alive_is_not_believed(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.headers = [(b"Connection", b"keep-alive")]
        await stage.feed(HEAD)
        stage.begin_drain()
        answer = (await stage.answer()).lower()
        assert answer.count(b"connection:") == 1
        assert b"connection: close" in answer
        assert stage.ended()

    play(scenario)


def test_a_client_that_still_sends_is_read_to_its_end(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.reads = False
        stage.begin_drain()
        await stage.feed(POST + b"ab")
        assert b"200 OK" in await stage.answer()
        assert stage.ended()
        assert stage.open
        await stage.feed(b"cd")
        stage.theirs.close()
        await stage.turn()
        assert not stage.open

    play(scenario)


def test_reading_on_is_bounded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "LINGER_S", 0.01)

    async def scenario(stage: Stage) -> None:
        stage.reads = False
        stage.begin_drain()
        await stage.feed(POST + b"ab")
        await stage.answer()
        await stage.turn()
        assert not stage.open

    play(scenario)


@pytest.mark.skipif(
    (25, 2) <= gunicorn.version_info < (27,), reason="what is sent behind a request is dropped there, drain or not"
)
def test_pipelined_requests_are_all_answered_the_last_as_the_last(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.feed(HEAD + HEAD + HEAD)
        stage.begin_drain()
        answers = (await stage.answer()).lower()
        assert answers.count(b"200 ok") == 3
        assert answers.count(b"connection: close") == 1
        assert b"connection: close" in answers.rpartition(b"http/1.1 200 ok")[2]
        assert stage.ended()

    play(scenario)


def test_an_idle_connection_ends_with_its_time_and_a_half_read_one_does_not(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.feed(HEAD)
        await stage.answer()
        stage.begin_drain()
        stage.tend(0.0)
        stage.tend(4.9)
        assert stage.open
        stage.theirs.send(b"G")  # not read yet: it is no longer idle
        stage.tend(5.1)
        await stage.turn()
        assert stage.connection_state() is ConnectionState.READING
        stage.tend(60.0)
        assert stage.open
        await stage.feed(HEAD[1:])
        assert b"connection: close" in stage.got().lower()

    play(scenario)


def test_an_idle_connection_that_is_left_alone(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.feed(HEAD)
        await stage.answer()
        stage.begin_drain()
        stage.tend(0.0)
        stage.tend(5.1)
        await stage.turn()
        assert stage.ended()
        assert not stage.open

    play(scenario)


def test_an_unused_connection_has_its_time(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.begin_drain()
        stage.tend(6.9, 7.0)
        await stage.turn()
        assert stage.open
        stage.tend(7.1, 7.0)
        await stage.turn()
        assert not stage.open

    play(scenario)


@pytest.mark.skipif(not CALLBACKS, reason="an empty line is taken for nothing at all")
def test_empty_lines_are_no_request(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.feed(HEAD)
        await stage.answer()
        await stage.feed(b"\r\n")
        assert stage.connection_state() in (
            ConnectionState.IDLE,
            ConnectionState.CLOSING,
        )  # 26 takes it for a bad request

    play(scenario)


@pytest.mark.skipif(gunicorn.version_info < (27,), reason="an empty line before a request is a bad request")
@pytest.mark.parametrize(
    ("before", "held"),
    [(b"", b"\r"), (HEAD, b"\r"), (HEAD + b"\r", b""), (POST + b"abc\r\r", b""), (POST + b"abc\r", None)],
    ids=["unused", "idle", "behind a request", "behind a body", "a body's last byte"],
)
def test_half_an_empty_line_does_not_move(play: Play, before: bytes, held: bytes | None) -> None:
    """A parser does not show that it holds it, and a successor would get its other half alone, a bad request."""

    async def scenario(stage: Stage) -> None:
        stage.go.set()
        if before:
            await stage.feed(before)
        if held:
            await stage.feed(held)
        if held is not None:
            assert stage.connection.zd_detach() is None
            await stage.feed(b"\n")
        moved = stage.connection.zd_detach()
        assert moved is not None
        moved.sock.close()

    play(scenario)


@moves_connections
@pytest.mark.parametrize("moves", [True, False])
def test_the_next_request_of_a_client_that_never_rests_stays_in_the_socket(play: Play, moves: bool) -> None:
    """From its response on, though the application is not through with it, until the connection moves or reads on."""

    async def scenario(stage: Stage) -> None:
        stage.drain.gives = True
        stage.connection.zd_offer_when_answered(lambda: None)
        stage.after.clear()
        await stage.feed(HEAD)
        assert b"200 OK" in await stage.answer()
        await stage.feed(HEAD)
        stage.after.set()
        await stage.turn()
        assert stage.finished == 1
        if moves:
            moved = stage.connection.zd_detach()
            assert moved is not None
            assert moved.sock.recv(65536) == HEAD
            moved.sock.close()
        else:
            stage.connection.zd_read_on()
            await stage.turn()
            assert b"200 OK" in stage.got()

    play(scenario)


@moves_connections
def test_the_next_request_is_read_once_no_successor_comes(play: Play) -> None:
    """The head was written before that was known, so the response does not end the connection."""

    async def scenario(stage: Stage) -> None:
        stage.drain.gives = True
        stage.connection.zd_offer_when_answered(lambda: None)
        await stage.feed(HEAD)
        stage.drain.gives = False
        assert b"200 OK" in await stage.answer()
        await stage.feed(HEAD)
        assert b"200 OK" in stage.got()

    play(scenario)


@moves_connections
def test_a_connection_that_the_loop_tells_of_behind_the_listeners_close_moves_too(play: Play) -> None:
    """A client that never rests would stay with the old worker forever, and be cut at the deadline."""

    async def scenario(stage: Stage) -> None:
        stage.draining = stage.drain.gives = True
        late = Connection(stage, stage)
        ours, theirs = socket.socketpair()
        transport, _ = await stage.loop.create_unix_connection(lambda: late, sock=ours)
        await stage.turn()
        assert stage.offered == [late]
        transport.abort()
        theirs.close()

    play(scenario)


def test_the_call_goes_on_when_the_client_has_left_as_it_was_told(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.cfg.set("asgi_disconnect_grace_period", 1)
        stage.after.clear()
        stage.begin_drain()
        await stage.feed(HEAD)
        assert b"connection: close" in (await stage.answer()).lower()
        stage.theirs.close()
        await stage.turn()
        await asyncio.sleep(1.1)
        assert stage.open
        assert stage.connection.zd_running() == 1
        stage.after.set()
        await stage.turn()
        assert stage.finished == 1
        assert not stage.open

    play(scenario)


def test_the_application_hears_of_the_cut(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.feed(POST + b"ab")
        stage.go.set()
        stage.connection.zd_signal_disconnect()
        await stage.turn()
        assert stage.finished == 1

    play(scenario)


def test_the_request_has_a_name_until_its_call_is_over(play: Play) -> None:
    """The call goes on behind the response, whose connection may have the next request by then (27)."""

    async def scenario(stage: Stage) -> None:
        def names() -> list[tuple[str, str]]:
            return list(stage.connection.zd_requests())

        stage.after.clear()
        await stage.feed(HEAD[:3])
        assert names() == []
        await stage.feed(HEAD[3:].replace(b"/", b"/export?token=1", 1))
        assert names() == [("GET", "/export")]
        await stage.answer()
        assert names() == [("GET", "/export")]
        stage.after.set()
        await stage.turn()
        assert names() == []

    play(scenario)
