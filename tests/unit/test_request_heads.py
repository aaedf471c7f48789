"""Whether a request has arrived, asked of real sockets, because the kernel gives the answer."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.unreader import IterUnreader

from zdworker.syscalls import unread
from zdworker.workers.wsgi.request_heads import (
    HEAD_LIMIT_BYTES,
    body_is_read,
    has_begun,
    has_read_ahead,
    is_readable,
    read_head,
    shows_heads,
    speaks_proxy_protocol,
    wait_until,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The two ends of a connection: the client's, the worker's."""
    client, worker = socket.socketpair()
    with client, worker:
        yield client, worker


def test_head_that_comes_in_parts(pair: Pair) -> None:
    client, worker = pair
    head = bytearray()
    assert not read_head(worker, head)
    for part in (b"GET / HTTP/1.1\r\n", b"Host: a\r\n\r"):
        client.sendall(part)
        assert not read_head(worker, head)
    client.sendall(b"\n")
    assert read_head(worker, head)
    assert head == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "part",
    [
        b"G",
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r",
        b"\r\nGET / HTTP/1.1\r\nA",
        b"custom-method /x HTTP/1.0\r\nA: b\r\n",
        b"GET / HTTP/1.1\r\nHost: caf\xc3\xa9\r\n",
    ],
)
def test_what_may_become_a_head_is_waited_for(pair: Pair, part: bytes) -> None:
    client, worker = pair
    head = bytearray()
    client.sendall(part)
    assert not read_head(worker, head)
    assert head == part


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS on the plain port
        b"GET /\r\n",  # HTTP/0.9
        b"EHLO example.org\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"\n",
        b" GET / HTTP/1.1",
    ],
)
def test_what_cannot_become_a_head_gets_an_end(pair: Pair, data: bytes) -> None:
    client, worker = pair
    head = bytearray()
    client.sendall(data)
    assert read_head(worker, head)
    assert head == data + b"\r\n\r\n"


V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12)
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("header", [V1, V2])
def test_a_header_of_the_proxy_protocol_is_no_part_of_a_head(pair: Pair, header: bytes) -> None:
    """Whatever part of it has arrived: no thread takes the connection, and no request has begun."""
    client, worker = pair
    for length in range(len(header)):
        part = header[:length]
        assert not has_begun(part, proxied=True), part
        if length:
            client.sendall(part)
            assert not read_head(worker, bytearray(), proxied=True), part
    head = bytearray()
    client.sendall(header)
    assert not read_head(worker, head, proxied=True)
    assert not has_begun(head, proxied=True)
    client.sendall(REQUEST[:1])
    assert not read_head(worker, head, proxied=True)
    assert has_begun(head, proxied=True)
    client.sendall(REQUEST[1:])
    assert read_head(worker, head, proxied=True)
    assert head == header + REQUEST


def test_a_request_without_that_header(pair: Pair) -> None:
    client, worker = pair
    head = bytearray()
    client.sendall(REQUEST)
    assert read_head(worker, head, proxied=True)
    assert head == REQUEST


@pytest.mark.parametrize(("setting", "speaks"), [(False, False), ("off", False), (True, True), ("v2", True)])
def test_proxy_protocol_setting(setting: object, speaks: bool) -> None:
    assert speaks_proxy_protocol(SimpleNamespace(proxy_protocol=setting)) is speaks


def test_head_behind_which_the_client_ends(pair: Pair) -> None:
    client, worker = pair
    head = bytearray()
    client.sendall(b"GET /")
    client.shutdown(socket.SHUT_WR)
    assert not read_head(worker, head)
    assert read_head(worker, head)
    assert head == b"GET /"


def test_head_that_is_longer_than_the_limit(pair: Pair) -> None:
    """Gunicorn reads the rest, and applies its own limit."""
    client, worker = pair
    head = bytearray()
    client.sendall(b"x" * (HEAD_LIMIT_BYTES - 1))
    assert not read_head(worker, head)
    client.sendall(b"x")
    assert read_head(worker, head)


def test_closed_socket_is_left_to_gunicorn(pair: Pair) -> None:
    _client, worker = pair
    worker.close()
    assert read_head(worker, bytearray())
    assert is_readable(worker)
    assert unread(worker) == 0


def test_asking_reads_nothing_and_does_not_wait(pair: Pair) -> None:
    client, worker = pair
    worker.settimeout(30)  # Python would wait that long before it asks the kernel
    asked = time.monotonic()
    assert not is_readable(worker)
    assert time.monotonic() - asked < 5
    client.sendall(b"abc")
    assert is_readable(worker)
    assert unread(worker) == 3
    assert worker.recv(10) == b"abc"
    client.close()
    assert is_readable(worker)


def config(**settings: Any) -> SimpleNamespace:
    defaults = {"is_ssl": False, "protocol": "http", "http_protocols": ["h1"], "keepalive": 2, "timeout": 30}
    return SimpleNamespace(**{**defaults, **settings})


def test_where_heads_can_be_seen() -> None:
    assert shows_heads(config())
    assert not shows_heads(config(is_ssl=True))
    assert not shows_heads(config(protocol="uwsgi"))
    assert not shows_heads(config(http_protocols=["h2", "h1"]))


def request(reader: Any) -> SimpleNamespace:
    return SimpleNamespace(body=Body(reader))


def test_body_of_known_length() -> None:
    empty = request(LengthReader(IterUnreader([]), 0))
    assert body_is_read(empty)
    upload = request(LengthReader(IterUnreader([b"ab", b"cd"]), 4))
    assert not body_is_read(upload)
    assert upload.body.read() == b"abcd"
    assert body_is_read(upload)


def test_chunked_body() -> None:
    chunks = [b"2\r\nab\r\n", b"0\r\n\r\n"]
    upload = request(ChunkedReader(SimpleNamespace(), IterUnreader(chunks)))
    assert not body_is_read(upload)
    assert upload.body.read() == b"ab"
    assert body_is_read(upload)


def test_unknown_counts_as_not_read() -> None:
    assert not body_is_read(None)
    assert not body_is_read(SimpleNamespace(body=None))
    assert not body_is_read(request(SimpleNamespace()))


def test_what_was_read_ahead(pair: Pair) -> None:
    unreader = IterUnreader([])
    assert not has_read_ahead(unreader, pair[1])
    unreader.unread(b"GET")
    assert has_read_ahead(unreader, pair[1])
    decrypted: Any = SimpleNamespace(pending=lambda: 3)
    assert has_read_ahead(IterUnreader([]), decrypted)


def test_how_long_a_connection_waits() -> None:
    """Never used: 5 seconds and ``keepalive``, in a drain until its bound. Half-read: ``timeout`` from each byte."""
    now = time.monotonic()
    assert wait_until(config(), False, math.inf) == pytest.approx(now + 7, abs=1)
    assert wait_until(config(), False, now + 4) == pytest.approx(now + 4, abs=1)
    assert wait_until(config(keepalive=9), False, now + 4) == pytest.approx(now + 9, abs=1)
    assert wait_until(config(), True, now + 4) == pytest.approx(now + 30, abs=1)
    assert wait_until(config(timeout=0), True, math.inf) == math.inf
