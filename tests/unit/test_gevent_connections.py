"""How long a gevent worker keeps a connection, and what its listener leaves as it is; without monkey patching."""

from __future__ import annotations

import math
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.pool import Pool

from zdworker.workers.drain import Drain
from zdworker.workers.gevent.connections import ClientSocket, ConnectionRecord, Listener, end_input
from zdworker.workers.gevent.server import DrainingGeventWorker
from zdworker.workers.http2 import name_last_stream

ACCEPTED = 100.0
BEGUN = 102.0
KEEPALIVE = 2
TIMEOUT = 30
UNUSED_S = 5.0
"""The longer of ``keepalive`` and 5."""

LIGHT = """
import sys
import zdworker

zdworker.GeventWorker, zdworker.TornadoWorker
heavy = {name.partition(".")[0] for name in sys.modules} & {"gevent", "greenlet", "tornado", "asyncio", "ssl"}
print(sorted(heavy - set(sys.argv[1:])))
"""


def limit(leaving: bool, **facts: Any) -> float:
    """Return until when a connection accepted at ``ACCEPTED`` is kept, in a drain from ``BEGUN`` on or in none."""
    record = ConnectionRecord(ACCEPTED)
    cfg = SimpleNamespace(keepalive=KEEPALIVE, timeout=facts.pop("timeout", TIMEOUT))
    for name, value in facts.items():
        setattr(record, name, value)
    drain: Any = Drain(None, None, keepalive_s=KEEPALIVE)  # type: ignore[arg-type]  # only its times are used
    if leaving:
        drain.begun_at, drain.unused_until = BEGUN, BEGUN + UNUSED_S
    worker: Any = SimpleNamespace(cfg=cfg, _drain=drain)
    return DrainingGeventWorker._limit(worker, record)  # noqa: SLF001  # of this very class


def test_a_connection_never_used_has_keepalive_and_5_seconds() -> None:
    assert limit(False) == ACCEPTED + KEEPALIVE + 5
    assert limit(True) == max(ACCEPTED + KEEPALIVE + 5, BEGUN + UNUSED_S)
    assert limit(True, since=BEGUN - 60) == BEGUN + UNUSED_S


def test_an_idle_connection_has_its_keep_alive_time() -> None:
    for leaving in (False, True):
        assert limit(leaving, answered=True, since=103.0, received_at=102.9) == 103.0 + KEEPALIVE


def test_a_head_has_keepalive_seconds_from_its_last_byte_and_timeout_in_all() -> None:
    assert limit(False, received_at=101.0) == 101.0 + KEEPALIVE
    assert limit(False, received_at=ACCEPTED + TIMEOUT - 0.1) == ACCEPTED + TIMEOUT
    assert limit(False, received_at=129.0, timeout=0) == 129.0 + KEEPALIVE


def test_a_head_has_timeout_and_5_seconds_from_its_last_byte_in_a_drain() -> None:
    assert limit(True, received_at=101.0) == ACCEPTED + TIMEOUT
    assert limit(True, received_at=129.0) == 129.0 + UNUSED_S
    assert limit(True, answered=True, since=103.0, received_at=104.0, timeout=2) == 104.0 + UNUSED_S
    assert limit(True, received_at=101.0, timeout=0) == math.inf


def test_what_came_behind_a_request_counts_as_begun() -> None:
    alone, pipelined = ConnectionRecord(ACCEPTED), ConnectionRecord(ACCEPTED)
    for record, more in ((alone, False), (pipelined, True)):
        record.busy = True
        record.note_answered(more)
    assert (alone.busy, alone.answered, alone.begun) == (False, True, False)
    assert (pipelined.busy, pipelined.answered, pipelined.begun) == (False, True, True)


class Connection:
    """What is used of Gunicorn's ``HTTP2ServerConnection``."""

    def __init__(self) -> None:
        self.h2_conn = SimpleNamespace(highest_inbound_stream_id=7)
        self.closed: list[tuple[int, int | None]] = []

    def close(self, error_code: int = 0, last_stream_id: int | None = None) -> None:
        self.closed.append((error_code, last_stream_id))


def test_goaway_names_the_last_stream_unless_gunicorn_knows_better() -> None:
    connection = Connection()
    name_last_stream(connection)
    connection.close()
    connection.close(error_code=1)
    connection.close(last_stream_id=5)
    assert connection.closed == [(0, 7), (1, 7), (0, 5)]


def echo(client: Any, _address: Any) -> None:
    while data := client.recv(100):
        client.sendall(data)


@pytest.fixture
def listener() -> Any:
    bound = gevent.socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    made = Listener(bound, echo, spawn=Pool(10))
    made.start()
    yield made
    made.pool.kill()
    made.close()


def test_a_retired_listener_accepts_no_more_and_leaves_its_connections_alone(listener: Any) -> None:
    with gevent.socket.create_connection(listener.address, 5) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        listener.retire()
        with pytest.raises(ConnectionRefusedError):
            gevent.socket.create_connection(listener.address, 5)
        client.sendall(b"b")
        assert client.recv(1) == b"b"
    with gevent.Timeout(5):
        listener.pool.join()


def test_a_connection_accepted_just_before_is_handled(listener: Any) -> None:
    """With TLS too its handler is looked up only when its greenlet begins: ``close()`` would have deleted it."""
    handled = []
    listener._handle = lambda client, address: handled.append(address)  # noqa: SLF001
    ours, theirs = socket.socketpair()
    listener.do_handle(gevent.socket.socket(fileno=theirs.detach()), "address")
    listener.retire()
    with gevent.Timeout(5):
        listener.pool.join()
    ours.close()
    assert handled == ["address"]


def test_tls_is_begun_by_the_handler(listener: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made = Listener(gevent.socket.socket(), echo, ssl_context=context)
    made.socket.close()
    assert made.ssl_args == {"server_side": True, "do_handshake_on_connect": False}
    assert context.sslsocket_class.__name__ == "TLSClientSocket"


def test_the_end_of_input_comes_behind_what_has_arrived() -> None:
    ours, theirs = socket.socketpair()
    client = gevent.socket.socket(fileno=theirs.detach())
    ours.sendall(b"late")
    end_input(client)
    assert client.recv(100) == b"late"
    assert client.recv(100) == b""
    client.close()
    end_input(client)
    ours.close()


def test_the_light_halves_load_nothing_heavy() -> None:
    before = subprocess.run(
        [sys.executable, "-c", "import sys, gunicorn.workers.base\nprint(*{n.partition('.')[0] for n in sys.modules})"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    out = subprocess.run([sys.executable, "-c", LIGHT, *before], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.fixture
def pair() -> Iterator[tuple[ClientSocket, Any]]:
    """A client's socket as the worker has it, whose buffer is small, and the client's end."""
    ours, its = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel takes its least
    with (
        ClientSocket(ours.family, ours.type, ours.proto, fileno=ours.detach()) as server,
        gevent.socket.socket(its.family, its.type, its.proto, fileno=its.detach()) as client,
    ):
        server.record = ConnectionRecord(ACCEPTED)
        yield server, client


@pytest.mark.parametrize(
    "data",
    [b"an answer", b"x" * 1_000_000, bytearray(b"y" * 300_000), memoryview(b"z" * 9)],
    ids=["small", "larger than the buffer", "bytearray", "memoryview"],
)
@pytest.mark.parametrize("full", [False, True], ids=["empty buffer", "full buffer"])
def test_an_answer_is_sent_whole(pair: tuple[ClientSocket, Any], data: Any, full: bool) -> None:
    server, client = pair
    before = fill(server) if full else 0
    expected = bytes(data)

    def send() -> None:
        server.sendall(data)
        server.shutdown(socket.SHUT_WR)

    sender = gevent.spawn(send)
    with gevent.Timeout(10):
        received = b"".join(iter(lambda: client.recv(65536), b""))
        sender.get()
    assert received[before:] == expected


def fill(server: ClientSocket) -> int:
    """Send until the kernel takes no more, and return how many bytes it took."""
    sent = 0
    server.setblocking(False)
    try:
        while True:
            sent += server.send(b" " * 1000)
    except BlockingIOError:
        return sent
    finally:
        server.setblocking(True)


def test_nothing_is_sent_of_an_empty_piece_and_a_broken_connection_raises(pair: tuple[ClientSocket, Any]) -> None:
    server, client = pair
    client.close()
    server.sendall(b"")  # as gevent does: an empty piece touches no socket
    with pytest.raises(BrokenPipeError):
        server.sendall(b"an answer")


def test_an_answer_waits_for_no_longer_than_the_socket_s_timeout(pair: tuple[ClientSocket, Any]) -> None:
    server, _client = pair
    fill(server)
    server.settimeout(0.01)
    with pytest.raises(TimeoutError):
        server.sendall(b"an answer")
