"""When an HTTP/2 connection ends in a drain, and with which frame: the decisions that all servers share."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from zdworker.workers.http2 import GOAWAY_NOTICE, Liveness, goaway_at, name_last_stream, notice_is_due


class Times:
    """The times of a drain that began at 100."""

    keepalive_s = 2.0
    begun_at = 100.0
    unused_until = 105.0
    notice_at = 115.0


TIMES = Times()


@pytest.mark.parametrize(
    ("idle_since", "used", "answered", "expected"),
    [
        (90.0, False, False, 105.0),  # never used
        (90.0, True, False, 102.0),  # idle since before the drain: the keep-alive time from its beginning
        (100.5, True, False, 102.5),
        (101.0, True, True, 101.2),  # between two requests
    ],
)
def test_when_a_connection_without_streams_gets_goaway(
    idle_since: float, used: bool, answered: bool, expected: float
) -> None:
    due = goaway_at(TIMES, idle_since=idle_since, used=used, answered_in_drain=answered)
    assert due == pytest.approx(expected)


def test_a_client_that_was_asked_has_some_time_to_acknowledge() -> None:
    due = goaway_at(TIMES, idle_since=101.0, used=True, answered_in_drain=True, asked_at=101.2)
    assert due == pytest.approx(103.2)


def test_a_goaway_in_one_piece_with_the_answer_needs_no_pause() -> None:
    assert goaway_at(TIMES, idle_since=101.0, used=True, answered_in_drain=True, delay_s=0.0) == 101.0


def test_only_streams_that_overlap_for_long_get_the_notice() -> None:
    assert not notice_is_due(TIMES, 114.9, 2)
    assert notice_is_due(TIMES, 115.0, 2)
    assert not notice_is_due(TIMES, 115.0, 0)


def test_the_notice_is_a_goaway_frame_that_refuses_nothing() -> None:
    assert bytes.fromhex("000008 07 00 00000000 7fffffff 00000000") == GOAWAY_NOTICE


def test_gunicorn_s_goaway_names_the_last_stream() -> None:
    said: list[tuple[int, int]] = []
    connection: Any = SimpleNamespace(
        close=lambda error_code, last: said.append((error_code, last)),
        h2_conn=SimpleNamespace(highest_inbound_stream_id=7),
    )
    name_last_stream(connection)
    connection.close()
    connection.close(2, 3)
    assert said == [(0, 7), (2, 3)]


def test_the_asynchronous_one_still_returns_its_coroutine() -> None:
    said: list[int] = []

    async def close(error_code: int, last: int) -> None:
        said.append(last)

    connection: Any = SimpleNamespace(close=close, h2_conn=SimpleNamespace(highest_inbound_stream_id=7))
    name_last_stream(connection)
    asyncio.run(connection.close(last_stream_id=0))
    assert said == [7]


def connected() -> tuple[h2.connection.H2Connection, h2.connection.H2Connection]:
    """Return a server's and a client's connection that know each other's settings."""
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server.initiate_connection()
    client.initiate_connection()
    for _ in range(2):
        server.receive_data(client.data_to_send())
        client.receive_data(server.data_to_send())
    return server, client


def ask(client: h2.connection.H2Connection, number: int) -> bytes:
    head = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
    client.send_headers(number, head, end_stream=True)
    return client.data_to_send()


class Client:
    """A socket with a client behind it that sends ``late`` with its first acknowledgement."""

    def __init__(self, client: h2.connection.H2Connection, late: bytes = b"") -> None:
        self._client, self._late = client, late
        self.pings = 0

    def gettimeout(self) -> float | None:
        return None

    def settimeout(self, seconds: float | None) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        self.pings += sum(isinstance(event, h2.events.PingReceived) for event in self._client.receive_data(data))

    def recv(self, _size: int) -> bytes:
        data, self._late = self._client.data_to_send() + self._late, b""
        if not data:
            raise TimeoutError
        return data


def test_the_acknowledgement_shows_that_a_client_is_alive() -> None:
    server, client = connected()
    liveness, sock = Liveness(server), Client(client)
    server.receive_data(ask(client, 1))
    liveness.ask(sock)
    assert not liveness.shown
    acknowledgement = sock.recv(65536)
    server.receive_data(acknowledgement[:5])
    assert not liveness.shown
    server.receive_data(acknowledgement[5:])
    assert liveness.asked_at is not None
    assert liveness.shown


def test_a_request_that_crosses_the_ping_is_answered_first() -> None:
    server, client = connected()
    liveness, sock = Liveness(server), Client(client)
    late = ask(client, 1)
    liveness.ask(sock)
    server.receive_data(late + client.data_to_send())
    assert not liveness.shown
    assert liveness.asked_at is None


def test_a_client_that_never_pauses_is_quiet_when_it_has_acknowledged_often_enough() -> None:
    server, client = connected()
    server.receive_data(ask(client, 1))
    liveness, sock = Liveness(server), Client(client, ask(client, 3) + ask(client, 5))
    assert liveness.drop_until_quiet(sock)
    assert sock.pings == 4  # two streams were dropped
    assert server.highest_inbound_stream_id == 1  # and GOAWAY names the one before them


def test_a_client_that_has_sent_nothing_pauses() -> None:
    server, client = connected()
    liveness, sock = Liveness(server), Client(client)
    assert not liveness.drop_until_quiet(sock)
    assert sock.pings == 1
