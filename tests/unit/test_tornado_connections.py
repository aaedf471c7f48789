"""What the drain knows of Tornado's connections, asked of its real server over a pair of sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, RequestHandler, stream_request_body

from zdworker.ipc import hand_over
from zdworker.workers.closing import ConnectionState
from zdworker.workers.tornado import connections
from zdworker.workers.tornado.connections import (
    Request,
    Server,
    detach,
    end_with_responses,
    hand_over_with_responses,
    keep_connections,
    request_of,
    state_of,
    unread,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
REFUSED = b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n"
TORNADOS_TIME_S = 3600
"""Seconds that Tornado keeps an idle connection."""
Scenario = Callable[["Connection"], Awaitable[None]]


class Plain(RequestHandler):
    """Answers at once."""

    def get(self) -> None:
        self.finish("ok")


class Slow(RequestHandler):
    """Answers when the test says so."""

    async def get(self) -> None:
        await self.application.settings["go_on"].wait()
        self.finish("ok")


@stream_request_body
class Refuse(RequestHandler):
    """Answers before the body has come."""

    def prepare(self) -> None:
        self.set_status(413)
        self.finish("no")

    def data_received(self, chunk: bytes) -> None:
        """Do nothing with it."""


class Connection:
    """A client's end, and the server's object for it."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.server = Server(Application([("/", Plain), ("/slow", Slow), ("/refuse", Refuse)], go_on=self.go_on))
        ours, theirs = socket.socketpair()
        self.client = IOStream(ours)
        self.server.handle_stream(IOStream(theirs), ("127.0.0.1", 0))
        (self.connection,) = self.server.connections

    @property
    def state(self) -> ConnectionState:
        return state_of(self.connection)

    async def until(self, what: ConnectionState) -> None:
        """Let the server work until the connection is in the middle of ``what``."""
        while self.state is not what:  # noqa: ASYNC110  # there is no event: the state is asked of Tornado
            await asyncio.sleep(0.001)

    async def reply(self) -> tuple[int, str]:
        """Return status and ``Connection`` of the next answer."""
        head = (await self.client.read_until(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        await self.client.read_bytes(int(headers["content-length"]))
        return int(head[0].split()[1]), headers.get("connection", "")


def play(scenario: Scenario) -> None:
    """Run a scenario on a connection of its own."""

    async def run() -> None:
        connection = Connection()
        try:
            await scenario(connection)
        finally:
            connection.client.close()
            await connection.server.close_all_connections()

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.fixture(autouse=True)
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No drain to begin with, and none behind."""
    monkeypatch.setattr(Request, "ends", False)
    monkeypatch.setattr(Request, "write_headers", Request.write_headers)
    yield
    Request.ends = False


def test_what_a_connection_is_in_the_middle_of() -> None:
    async def scenario(it: Connection) -> None:
        assert it.state is ConnectionState.UNUSED
        await it.client.write(SLOW[:10])
        await it.until(ConnectionState.READING)
        await it.client.write(SLOW[10:])
        await it.until(ConnectionState.BUSY)
        it.go_on.set()
        assert await it.reply() == (200, "")
        await it.until(ConnectionState.IDLE)
        assert it.server.answered == 1

    play(scenario)


def test_a_drain_begins_before_the_connection_has_run() -> None:
    async def scenario(it: Connection) -> None:
        it.server.begin_drain()
        end_with_responses()
        assert it.state is ConnectionState.UNUSED
        await it.client.write(GET)
        assert await it.reply() == (200, "close")

    play(scenario)


def test_a_connection_that_has_not_run_yet_moves() -> None:
    async def scenario(it: Connection) -> None:
        moved = detach(it.connection)
        assert moved is not None
        while it.server.connections:  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.001)
        await it.client.write(GET)
        assert moved.sock.recv(1000) == GET
        moved.sock.close()

    play(scenario)


def test_a_request_under_way_ends_its_connection() -> None:
    async def scenario(it: Connection) -> None:
        await it.client.write(SLOW)
        await it.until(ConnectionState.BUSY)
        assert [request_of(connection) for connection in it.server.connections] == [("GET", "/slow")]
        it.server.begin_drain()
        end_with_responses()
        it.go_on.set()
        assert await it.reply() == (200, "close")
        assert await it.client.read_until_close() == b""

    play(scenario)


def test_of_pipelined_requests_the_last_ends_the_connection() -> None:
    async def scenario(it: Connection) -> None:
        await it.client.write(SLOW + GET + GET)
        await it.until(ConnectionState.BUSY)
        it.server.begin_drain()
        end_with_responses()
        it.go_on.set()
        assert [await it.reply() for _ in range(3)] == [(200, ""), (200, ""), (200, "close")]

    play(scenario)


def test_an_early_answer_waits_for_the_body() -> None:
    async def scenario(it: Connection) -> None:
        await it.client.write(REFUSED + b"abc")
        assert await it.reply() == (413, "")
        await it.client.write(b"def" + GET)
        assert await it.reply() == (200, "")

    play(scenario)


def test_an_early_answer_to_a_client_that_ends_the_connection_waits_too() -> None:
    async def scenario(it: Connection) -> None:
        await it.client.write(REFUSED.replace(b"Host: a", b"Host: a\r\nConnection: close") + b"abc")
        assert (await it.reply())[0] == 413
        await it.client.write(b"def")
        assert await it.client.read_until_close() == b""

    play(scenario)


def test_a_body_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 0.05)

    async def scenario(it: Connection) -> None:
        await it.client.write(REFUSED)
        assert await it.reply() == (413, "")
        assert await it.client.read_until_close() == b""

    play(scenario)


def test_what_comes_behind_the_last_request_does_not_reset_its_answer() -> None:
    async def scenario(it: Connection) -> None:
        await it.client.write(SLOW)
        await it.until(ConnectionState.BUSY)
        it.server.begin_drain()
        end_with_responses()
        request: Any = it.connection.zd_request
        request._nothing_follows = lambda: True  # noqa: SLF001  # as if the next had come a moment later
        await it.client.write(GET)
        assert unread(it.connection.stream) == len(GET)
        it.go_on.set()
        assert await it.reply() == (200, "close")
        assert await it.client.read_until_close() == b""

    play(scenario)


def test_the_time_that_a_connection_has_left_moves_along() -> None:
    """Tornado would count its hour from the hand-over on."""

    async def scenario(it: Connection) -> None:
        await it.client.write(GET)
        assert await it.reply() == (200, "")
        await it.until(ConnectionState.IDLE)
        moved = detach(it.connection)
        assert moved is not None
        assert moved.idle_until is not None
        assert moved.idle_until == pytest.approx(time.monotonic() + TORNADOS_TIME_S, abs=5)
        it.server.take(IOStream(moved.sock), dataclasses.replace(moved, idle_until=time.monotonic() + 0.05))
        with pytest.raises(StreamClosedError):
            await it.client.read_bytes(1)

    play(scenario)


def test_behind_its_next_request_a_connection_that_moved_has_the_usual_time() -> None:
    async def scenario(it: Connection) -> None:
        ours, theirs = socket.socketpair()
        it.client.close()
        it.client = IOStream(ours)
        await it.client.write(GET)
        it.server.take(IOStream(theirs), hand_over.Connection(theirs, time.monotonic() - 1))
        assert await it.reply() == (200, "")
        await asyncio.sleep(0.05)
        await it.client.write(GET)
        assert await it.reply() == (200, "")

    play(scenario)


def test_a_busy_client_s_connection_moves_between_two_requests() -> None:
    """Its next request comes in the turn of the loop in which its answer is written, and stays in the socket."""

    async def scenario(it: Connection) -> None:
        given: list[hand_over.Connection] = []
        hand_over_with_responses(given.append)
        try:
            await it.client.write(GET)
            assert await it.reply() == (200, "")
            assert len(given) == 1
            await it.client.write(GET)
            await asyncio.sleep(0.01)
            with given[0].sock as moved:
                assert moved.recv(65536) == GET
            assert given[0].idle_until == pytest.approx(time.monotonic() + TORNADOS_TIME_S, abs=10)
            assert not it.server.connections
            assert it.server.answered == 1
        finally:
            keep_connections()

    play(scenario)


def test_a_connection_whose_next_request_was_read_stays() -> None:
    async def scenario(it: Connection) -> None:
        given: list[hand_over.Connection] = []
        hand_over_with_responses(given.append)
        try:
            await it.client.write(GET + GET)
            assert await it.reply() == (200, "")
            assert not given
            assert await it.reply() == (200, "")
            assert len(given) == 1
            given[0].sock.close()
        finally:
            keep_connections()

    play(scenario)
