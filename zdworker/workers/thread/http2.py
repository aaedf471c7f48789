"""What the thread worker must know about its HTTP/2 connections (``gunicorn.http2.connection.HTTP2ServerConnection``).

Rules:

* The library, h2, is not imported: connections are asked, and Gunicorn has made them.
* GOAWAY is said when nothing is on its way, in either direction, as far as that can be brought about: the protocol
  allows more (RFC 9113 6.8), clients in use do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from zdworker.syscalls import unread
from zdworker.workers.wsgi.request_heads import has_come

PAUSE = 0.2
"""Seconds without a request after which an HTTP/2 connection that was answered in the drain is told so with GOAWAY.

While answers are on their way, or requests, httpx fails some of them when it reads a GOAWAY.
"""

SETTLE = 2.0
"""Seconds at most until such a pause comes about when requests are no longer read."""


def open_streams(protocol: Any) -> int:
    """Return how many requests have begun to come and are not answered yet.

    Before Gunicorn 27 the table of streams keeps those that the client has reset.

    :param protocol: a ``gunicorn.http2.connection.HTTP2ServerConnection``.
    """
    return sum(1 for stream in list(protocol.streams.values()) if not stream.response_complete)


def last_stream(protocol: Any) -> int:
    """Return the number of the last stream that the client has opened on such a connection, 0 if none."""
    return int(protocol.h2_conn.highest_inbound_stream_id)


def settle(sock: Any) -> None:
    """Wait until the client has nothing more to send before it gets an answer."""
    end = time.monotonic() + SETTLE
    while time.monotonic() < end:
        before = unread(sock)
        time.sleep(PAUSE)
        if unread(sock) == before:
            return


def readable(sock: Any) -> bool:
    """Tell whether something has come, in the kernel or, of a TLS connection, decrypted already."""
    pending: Callable[[], int] | None = getattr(sock, "pending", None)
    return bool(pending and pending()) or has_come(sock)
