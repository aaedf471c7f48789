"""What the drain knows of uvicorn's connections, asked of the real protocols on a transport made of lists."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import uvicorn
from uvicorn.server import ServerState

from tests.harness.worker_classes import uvicorn_has
from zdworker.workers.closing import CLOSE, ConnectionState, with_close
from zdworker.workers.event_loop import transports
from zdworker.workers.http2 import GOAWAY_NOTICE
from zdworker.workers.uvicorn.connections import (
    CarefulTransport,
    ClosingHeaders,
    IdleReaper,
    PatientTimeout,
    ZttpRest,
    announce,
    announce_current,
    cycle_of,
    drainable,
    may_close,
    request_of,
    state_of,
    when_answered,
)

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"

DRAIN: Any = SimpleNamespace(told_to_close=0)
"""As much of a drain as counts."""


@dataclasses.dataclass
class Times:
    """The times of a drain that began at 0."""

    keepalive_s: float = 5.0
    begun_at: float = 0.0
    unused_until: float = 10.0
    notice_at: float = math.inf


TIMES = Times()
Scenario = Callable[["Connection"], Awaitable[None]]


class Transport(asyncio.Transport):
    """A transport over one end of a socket pair, so that the kernel can be asked about it."""

    def __init__(self, ours: socket.socket) -> None:
        self.extra: dict[str, Any] = {"socket": ours, "sockname": ("a", 1), "peername": ("b", 2)}
        super().__init__(self.extra)
        self.written = b""
        self.closed = self.half_closed = self.aborted = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        """Nothing is read here."""

    def resume_reading(self) -> None:
        """Nothing is read here."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol  # type: ignore[no-any-return]


class Connection:
    """A protocol of uvicorn with an application that answers when the test says so."""

    def __init__(self, http: str, ours: socket.socket, theirs: socket.socket) -> None:
        self.go = asyncio.Event()
        self.early = False
        config = uvicorn.Config(self.app, http=http, interface="asgi3", ws="none", log_config=None, lifespan="off")
        config.load()
        self.transport = Transport(ours)
        self.theirs = theirs
        self.protocol: Any = drainable(config.http_protocol_class)(
            config=config, server_state=ServerState(), app_state={}, _loop=asyncio.get_running_loop()
        )
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)
        self.sends: list[Any] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.sends.append(send)
        if not self.early:
            while (await receive()).get("more_body"):
                pass
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def feed(self, data: bytes) -> None:
        self.protocol.data_received(data)
        await self.turn()

    async def answer(self) -> None:
        self.go.set()
        await self.turn()

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def state(self) -> ConnectionState:
        return state_of(self.protocol)


@pytest.fixture(params=["httptools", "h11", "zttp"])
def play(request: pytest.FixtureRequest) -> Iterator[Callable[[Scenario], None]]:
    if not {"httptools": find_spec("httptools"), "h11": True, "zttp": uvicorn_has("zttp_impl")}[request.param]:
        pytest.skip(f"there is no {request.param}")
    ours, theirs = socket.socketpair()

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            await scenario(Connection(request.param, ours, theirs))

        asyncio.run(main())

    with ours, theirs:
        yield run


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"
WHOLE = POST + b"abcd"


@pytest.mark.parametrize(
    ("pieces", "rest"),
    [
        ([HEAD], False),
        ([HEAD[:3]], True),
        ([HEAD[:3], HEAD[3:]], False),
        ([HEAD[:-1], HEAD[-1:]], False),
        ([HEAD + b"\r\n"], False),
        ([HEAD + HEAD[:3]], True),
        ([HEAD + HEAD], True),
        ([HEAD, HEAD[:3]], True),
        ([HEAD, HEAD], True),
        ([WHOLE], False),
        ([POST, b"ab"], False),
        ([POST, b"ab", b"cd"], False),
        ([POST, b"ab", b"cd" + HEAD], True),
        ([POST + b"ab", b"cdG"], True),
        ([WHOLE + HEAD], True),
        ([WHOLE, b"G"], True),
        ([CHUNKED], False),
        ([CHUNKED[:-7], CHUNKED[-7:]], False),
        ([CHUNKED + HEAD], True),
        ([CHUNKED, HEAD[:3]], True),
    ],
)
def test_what_zttp_holds_behind_a_request(pieces: list[bytes], rest: bool) -> None:
    if not uvicorn_has("zttp_impl"):
        pytest.skip("this uvicorn has no zttp")
    ours, theirs = socket.socketpair()

    async def main() -> None:
        c = Connection("zttp", ours, theirs)
        await c.feed(WHOLE)  # not the first on its connection
        await c.answer()
        c.go.clear()
        for piece in pieces:
            await c.feed(piece)
        assert bool(c.protocol.zd_rest) is rest
        await c.answer()

    with ours, theirs:
        asyncio.run(main())


def test_zttp_is_followed_where_uvicorn_chooses_it_beside_http2(monkeypatch: pytest.MonkeyPatch) -> None:
    if not uvicorn_has("auto_zttp_impl"):
        pytest.skip("this uvicorn has no HTTP/2")
    auto: Any = import_module("uvicorn.protocols.http.auto_zttp_impl")
    monkeypatch.setattr(auto, "ZttpProtocol", auto.ZttpProtocol)
    for _ in range(2):
        assert drainable(auto.AutoZttpProtocol) is auto.AutoZttpProtocol
    assert auto.ZttpProtocol.zd_rest == b""
    assert auto.ZttpProtocol.mro()[1:3] == [ZttpRest, PatientTimeout]


def test_the_request_of_a_call_has_a_name_until_that_has_ended(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        await c.feed(HEAD.replace(b"/", b"/export?token=1", 1))
        (task,) = c.protocol.tasks
        assert request_of(task) == ("GET", "/export")
        await c.answer()
        assert request_of(task) is None
        stop_timer(c.protocol)

    play(scenario)


def test_a_websocket_and_a_task_of_another_kind_are_no_requests() -> None:
    class WebSocket:
        """As much of a protocol of uvicorn as counts."""

        scope: ClassVar[dict[str, str]] = {"type": "websocket", "path": "/chat"}

        async def run_asgi(self) -> None:
            await asyncio.sleep(0)

    async def main() -> None:
        for call in (WebSocket().run_asgi(), asyncio.sleep(0)):
            task = asyncio.get_running_loop().create_task(call)
            assert request_of(task) is None
            await task

    asyncio.run(main())


def test_requests_behind_each_other_come_off_what_zttp_holds(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        await c.feed(HEAD + WHOLE + HEAD + HEAD[:3])
        await c.answer()
        assert c.transport.written.count(b"200 OK") == 3
        assert c.state() is ConnectionState.READING
        await c.feed(HEAD[3:])
        assert c.transport.written.count(b"200 OK") == 4
        assert c.state() is ConnectionState.IDLE
        stop_timer(c.protocol)

    play(scenario)


def stop_timer(protocol: Any) -> None:
    protocol.timeout_keep_alive_task.cancel()
    protocol.timeout_keep_alive_task = None


Play = Callable[[Scenario], None]


def test_what_a_connection_is_in_the_middle_of(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        assert c.state() is ConnectionState.UNUSED
        await c.feed(HEAD[:1])
        assert c.state() is ConnectionState.READING
        await c.feed(HEAD[1:])
        assert c.state() is ConnectionState.BUSY
        await c.answer()
        assert c.state() is ConnectionState.IDLE
        await c.feed(HEAD[:10])
        assert c.state() is ConnectionState.READING
        c.transport.close()
        assert c.state() is ConnectionState.CLOSING

    play(scenario)


def test_a_response_ends_the_connection_once_the_drain_has_begun(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        await c.feed(HEAD)
        announce_current(c.protocol, DRAIN)
        await c.answer()
        assert c.transport.written.lower().count(b"connection: close") == 1
        assert c.transport.closed

    play(scenario)


def test_a_body_that_still_arrives_keeps_the_connection(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        c.early = True
        await c.feed(POST + b"ab")
        announce_current(c.protocol, DRAIN)
        await c.answer()
        assert b"connection" not in c.transport.written.lower()
        assert not c.transport.closed
        await c.feed(b"cd" + HEAD)
        assert c.transport.written.count(b"200 OK") == 2

    play(scenario)


def test_a_body_that_arrives_before_the_answer_does_not(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        await c.feed(POST + b"ab")
        announce_current(c.protocol, DRAIN)
        await c.feed(b"cd")
        await c.answer()
        assert b"connection: close" in c.transport.written.lower()
        assert c.transport.closed

    play(scenario)


def test_of_pipelined_requests_only_the_last_ends_the_connection(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        await c.feed(HEAD)
        announce_current(c.protocol, DRAIN)
        await c.feed(HEAD + HEAD[:7])  # further requests arrive after the announcement
        await c.answer()
        assert b"connection: close" not in c.transport.written.lower()
        assert not c.transport.closed

    play(scenario)


def test_bytes_in_the_kernel_keep_the_connection(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        await c.feed(HEAD)
        announce_current(c.protocol, DRAIN)
        c.theirs.send(HEAD)
        assert not may_close(c.protocol.cycle, c.protocol)
        await c.answer()
        assert b"connection" not in c.transport.written.lower()

    play(scenario)


def test_a_client_that_is_done_but_still_sends_is_read_to_its_end(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        c.early = True
        await c.feed(POST.replace(b"Host", b"Connection: close\r\nHost") + b"ab")
        announce_current(c.protocol, DRAIN)
        await c.answer()
        assert c.transport.written.endswith(b"ok")
        assert c.transport.half_closed
        assert not c.transport.closed
        assert c.state() is ConnectionState.CLOSING
        assert c.protocol.timeout_keep_alive_task is None
        c.transport.protocol.data_received(b"cd")
        c.transport.protocol.connection_lost(None)
        assert c.protocol not in c.protocol.server_state.connections

    play(scenario)


def test_reading_on_is_bounded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "LINGER_S", 0.01)

    async def scenario(c: Connection) -> None:
        c.early = True
        await c.feed(POST.replace(b"Host", b"Connection: close\r\nHost"))
        announce_current(c.protocol, DRAIN)
        await c.answer()
        await asyncio.sleep(0.05)
        assert c.transport.closed

    play(scenario)


def test_a_kept_connection_without_a_timer_gets_one(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        await c.feed(HEAD)
        await c.answer()
        reaper = IdleReaper()
        timer = c.protocol.timeout_keep_alive_task
        reaper.check(c.protocol, 1.0, TIMES)
        assert c.protocol.timeout_keep_alive_task is timer  # its own goes on
        stop_timer(c.protocol)  # as an empty line does on httptools
        c.protocol.timeout_keep_alive = 0.01
        reaper.check(c.protocol, 1.0, TIMES)
        await asyncio.sleep(0.05)
        assert c.transport.closed

    play(scenario)


def test_an_unused_connection_has_its_time_and_a_half_read_one_has_more(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        reaper = IdleReaper()
        reaper.check(c.protocol, 9.9, TIMES)
        assert not c.transport.closed
        c.theirs.send(b"G")  # not read yet: it is no longer unused
        reaper.check(c.protocol, 10.0, TIMES)
        assert not c.transport.closed
        await c.feed(c.transport.get_extra_info("socket").recv(10))
        reaper.check(c.protocol, 11.0, TIMES)
        assert not c.transport.closed

    play(scenario)


def test_an_unused_connection_is_closed_in_the_end(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        IdleReaper().check(c.protocol, 10.0, TIMES)
        assert c.transport.closed

    play(scenario)


def test_a_tls_client_that_does_not_say_goodbye_is_not_waited_for(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        reaper = IdleReaper()
        c.transport.extra["sslcontext"] = True
        c.transport.close()
        reaper.check(c.protocol, 1.0, TIMES)
        reaper.check(c.protocol, 2.5, TIMES)
        assert not c.transport.aborted
        c.transport.get_extra_info("socket").send(b"not taken by the client yet")
        reaper.check(c.protocol, 3.5, TIMES)
        assert not c.transport.aborted
        c.theirs.recv(100)
        reaper.check(c.protocol, 3.6, TIMES)
        assert c.transport.aborted

    play(scenario)


def test_the_cycle_behind_send_is_known_to_the_wrapper(play: Play) -> None:
    async def scenario(c: Connection) -> None:
        await c.feed(HEAD)
        assert cycle_of(c.sends[0]) == (c.protocol.cycle, c.protocol)
        announce(c.protocol.cycle, c.protocol, DRAIN)
        announce(c.protocol.cycle, c.protocol, DRAIN)
        assert isinstance(c.protocol.cycle.default_headers, ClosingHeaders)
        assert isinstance(c.protocol.cycle.transport, CarefulTransport)

    play(scenario)


def test_an_unknown_server_is_let_alone() -> None:
    async def send(message: Any) -> None:
        """Belong to nobody."""

    assert cycle_of(send) is None
    assert state_of(object()) is ConnectionState.CLOSING


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], [CLOSE]),
        ([(b"a", b"b")], [(b"a", b"b"), CLOSE]),
        ([(b"Connection", b"keep-alive")], [CLOSE]),
        ([(b"Connection", b"Close")], [(b"Connection", b"Close")]),
        ([(b"connection", b"upgrade")], [(b"connection", b"upgrade")]),
        ([(b"connection", b"te")], [(b"connection", b"te"), CLOSE]),
    ],
)
def test_the_connection_header(given: list[Any], expected: list[Any]) -> None:
    assert with_close(given) == expected


class Http2Protocol:
    """As much of uvicorn's HTTP/2 protocol as the drain looks at."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        transport.protocol = self
        self.cycles: dict[int, Any] = {}
        self.timeout_keep_alive_task: asyncio.TimerHandle | None = None
        self.shutdown_requested = False
        self.goaways: list[bool] = []

    def on_stream_closed(self) -> None:
        if self.shutdown_requested and not self.cycles:
            self.goaways.append(True)

    def shutdown(self) -> None:
        self.shutdown_requested = True
        self.on_stream_closed()


@pytest.fixture
def streams() -> Iterator[tuple[Http2Protocol, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Http2Protocol(Transport(ours)), theirs


def test_http2_ends_with_its_last_stream(streams: tuple[Http2Protocol, socket.socket]) -> None:
    protocol, _theirs = streams
    protocol.cycles = {1: None, 3: None}
    announce_current(protocol, DRAIN)
    announce_current(protocol, DRAIN)
    del protocol.cycles[1]
    protocol.on_stream_closed()
    assert not protocol.shutdown_requested  # it would answer further streams with 503
    del protocol.cycles[3]
    protocol.on_stream_closed()
    assert protocol.goaways == [True]


def test_http2_does_not_end_while_something_is_on_its_way(streams: tuple[Http2Protocol, socket.socket]) -> None:
    protocol, theirs = streams
    protocol.cycles = {1: None}
    announce_current(protocol, DRAIN)
    theirs.send(b"another stream")
    protocol.cycles.clear()
    protocol.on_stream_closed()
    assert not protocol.goaways


def test_http2_behind_a_handshake_that_ended_during_the_drain(streams: tuple[Http2Protocol, socket.socket]) -> None:
    protocol, _theirs = streams
    protocol.cycles = {1: None}
    IdleReaper().check(protocol, 1.0, TIMES)
    protocol.cycles.clear()
    protocol.on_stream_closed()
    assert protocol.goaways == [True]


def test_http2_that_never_ends_by_itself_gets_one_notice(streams: tuple[Http2Protocol, socket.socket]) -> None:
    protocol, _theirs = streams
    reaper = IdleReaper()
    protocol.cycles = {1: None}
    for now in (4.9, 5.0, 5.1):
        reaper.check(protocol, now, Times(notice_at=5.0))
    assert protocol.transport.written == GOAWAY_NOTICE
    assert not protocol.goaways


def test_http2_that_is_never_used_ends_with_its_time(streams: tuple[Http2Protocol, socket.socket]) -> None:
    protocol, _theirs = streams
    reaper = IdleReaper()
    reaper.check(protocol, 9.9, TIMES)
    assert not protocol.goaways
    reaper.check(protocol, 10.0, TIMES)
    assert protocol.goaways == [True]


def test_a_response_that_is_awaited_often_offers_once_and_is_known(play: Callable[[Scenario], None]) -> None:
    """Of pipelined requests each asks again for the last one's end; each level of calls would take from the stack."""

    async def scenario(c: Connection) -> None:
        offers: list[None] = []
        await c.feed(HEAD)
        for _ in range(2000):
            when_answered(c.protocol, lambda: offers.append(None))
        assert cycle_of(c.sends[0]) == (c.protocol.cycle, c.protocol)
        await c.answer()
        assert len(offers) == 1
        assert c.state() is ConnectionState.IDLE

    play(scenario)
