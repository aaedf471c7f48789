"""Parked connections: real sockets in the worker's poll, and a worker that only notes what it is handed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker.workers.closing import LINGER_S, LINGER_TOTAL_S
from zdworker.workers.wsgi import parked, poller
from zdworker.workers.wsgi.parked import Parked

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
WAIT_S = 7.0


class Connection:
    """One end of a pair of sockets; the other one is the client's."""

    def __init__(self) -> None:
        self.client, self.sock = socket.socketpair()
        self.zd_head = bytearray()

    def unread_by_client(self) -> bytes:
        self.client.setblocking(False)
        return self.client.recv(100)


class Worker:
    """Has parked connections, and a clock that goes on only when a test says so."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.wait_s = WAIT_S
        self.poller = poller.make()
        cfg = SimpleNamespace(is_ssl=False, protocol="http", http_protocols=["h1"], proxy_protocol="off")
        self.parked = Parked(self, self.poller, cfg)
        self.calls: list[tuple[str, Any]] = []

    def zd_serve(self, conn: Any) -> None:
        self.calls.append(("serve", conn))

    def zd_expired(self, conn: Any) -> None:
        self.calls.append(("expired", conn))

    def zd_close(self, conn: Any) -> None:
        self.calls.append(("close", conn))
        conn.sock.close()

    def zd_wait_until(self, conn: Any) -> float:
        return self.now + self.wait_s

    def turn(self, seconds: float = 0.0) -> list[tuple[str, Any]]:
        """Take a turn of the loop after ``seconds``, and return what was called in it."""
        self.now += seconds
        self.calls = []
        for key, _events in self.poller.select(0.0):
            key.data(key.fileobj)
        self.parked.expire(self.now)
        return self.calls


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker()
    monkeypatch.setattr(parked, "time", SimpleNamespace(monotonic=lambda: made.now))
    yield made
    made.poller.close()


@pytest.fixture
def conn() -> Iterator[Connection]:
    made = Connection()
    yield made
    made.client.close()
    made.sock.close()


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_a_request_is_served_when_its_head_is_whole(worker: Worker, conn: Connection) -> None:
    worker.parked.wait(conn)
    assert (len(worker.parked), worker.turn()) == (1, [])
    conn.client.sendall(HEAD[:10])
    assert worker.turn() == []
    conn.client.sendall(HEAD[10:])
    assert worker.turn() == [("serve", conn)]
    assert conn.zd_head == HEAD
    assert not worker.parked
    conn.client.sendall(b"body")
    assert worker.turn() == []  # it is in the poll no longer


def test_each_byte_of_a_head_prolongs_the_wait(worker: Worker, conn: Connection) -> None:
    worker.parked.wait(conn)
    for byte in HEAD[:3]:
        assert worker.turn(WAIT_S - 1) == []
        conn.client.sendall(bytes([byte]))
        assert worker.turn() == []
    assert worker.turn(WAIT_S) == [("expired", conn)]
    assert not worker.parked


def test_what_has_arrived_since_the_last_turn_is_seen_before_the_time_is_over(worker: Worker, conn: Connection) -> None:
    worker.parked.wait(conn)
    conn.client.sendall(HEAD)
    worker.parked.expire(worker.now + WAIT_S)
    assert worker.calls == [("serve", conn)]


def test_a_drain_limits_only_connections_on_which_no_request_has_begun(worker: Worker, conn: Connection) -> None:
    begun = Connection()
    for each in (conn, begun):
        worker.parked.wait(each)
    begun.client.sendall(HEAD[:3])
    worker.turn()
    worker.wait_s = 2.0
    worker.parked.limit_silent()
    assert worker.turn(2.0) == [("expired", conn)]
    assert worker.turn(WAIT_S - 2.0) == [("expired", begun)]
    begun.client.close()
    begun.sock.close()


# -- lingering -------------------------------------------------------------------------------------------------------


def test_a_connection_with_nothing_unread_is_closed_at_once(worker: Worker, conn: Connection) -> None:
    worker.parked.end(conn, body_read=True)
    assert worker.calls == [("close", conn)]
    worker.parked.end(conn, body_read=False)  # it is closed already
    assert worker.calls == [("close", conn)] * 2
    assert not worker.parked


@pytest.mark.parametrize("body_read", [True, False])
def test_what_the_client_still_sends_is_read_until_it_closes(worker: Worker, conn: Connection, body_read: bool) -> None:
    conn.client.sendall(b"body")
    worker.parked.end(conn, body_read)
    assert conn.unread_by_client() == b""  # the writing half is closed
    assert worker.turn() == []
    conn.client.sendall(b"more")
    assert worker.turn() == []
    conn.client.close()
    assert worker.turn() == [("close", conn)]


def test_a_lingering_connection_is_closed_when_it_is_silent(worker: Worker, conn: Connection) -> None:
    worker.parked.end(conn, body_read=False)
    assert worker.turn(LINGER_S - 1) == []
    conn.client.sendall(b"x")
    assert worker.turn() == []
    assert worker.turn(LINGER_S - 1) == []
    assert worker.turn(1.0) == [("close", conn)]


def test_a_lingering_connection_is_closed_in_any_case(worker: Worker, conn: Connection) -> None:
    worker.parked.end(conn, body_read=False)
    for _ in range(round(LINGER_TOTAL_S)):
        assert worker.calls == []
        conn.client.sendall(b"x")
        worker.turn(1.0)
    assert worker.calls == [("close", conn)]


def test_a_client_that_is_gone_is_not_waited_for(worker: Worker, conn: Connection) -> None:
    conn.client.close()
    worker.parked.end(conn, body_read=False)
    assert worker.turn() == [("close", conn)]
