"""What the thread worker asks of its HTTP/2 connections (``gunicorn.http2.connection.HTTP2ServerConnection``).

Rules:

* The library, h2, is not imported here: Gunicorn makes the connections, and they are only asked.
* GOAWAY is sent when nothing is on its way, in either direction, as far as that can be brought about: the protocol
  allows more, but clients in use fail requests then (:mod:`zdworker.workers.http2`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from zdworker.syscalls import unread
from zdworker.workers.http2 import GOAWAY_DELAY_S
from zdworker.workers.wsgi.request_heads import is_readable

SETTLE_LIMIT_S = 2.0
"""Seconds at most until a client sends no more when its requests are no longer read."""


def open_streams(protocol: Any) -> int:
    """Return how many requests have begun to arrive and are not answered yet.

    Before Gunicorn 27 the table of streams keeps those that the client has reset.

    :param protocol: a ``gunicorn.http2.connection.HTTP2ServerConnection``.
    """
    return sum(1 for stream in list(protocol.streams.values()) if not stream.response_complete)


def last_stream(protocol: Any) -> int:
    """Return the number of the last stream that the client has opened on such a connection, 0 if none."""
    return int(protocol.h2_conn.highest_inbound_stream_id)


def wait_until_settled(sock: Any) -> None:
    """Wait until the client sends no more before it gets an answer, for :data:`SETTLE_LIMIT_S` at most."""
    end = time.monotonic() + SETTLE_LIMIT_S
    while time.monotonic() < end:
        before = unread(sock)
        time.sleep(GOAWAY_DELAY_S)
        if unread(sock) == before:
            return


def has_input(sock: Any) -> bool:
    """Tell whether something has arrived: in the kernel or, on a TLS connection, decrypted already."""
    pending: Callable[[], int] | None = getattr(sock, "pending", None)
    return bool(pending and pending()) or is_readable(sock)
