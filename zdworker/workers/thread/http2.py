"""What the thread worker asks of its HTTP/2 connections (``gunicorn.http2.connection.HTTP2ServerConnection``).

Rules:

* The library, h2, is not imported here: Gunicorn makes the connections, and they are only asked.
* GOAWAY is sent when nothing is on its way, in either direction, as far as that can be brought about: the protocol
  allows more, but clients in use fail requests then (:mod:`zdworker.workers.http2`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zdworker.workers.wsgi.request_heads import is_readable


def open_streams(protocol: Any) -> int:
    """Return how many requests have begun to arrive and are not answered yet.

    Before Gunicorn 27 the table of streams keeps those that the client has reset.

    :param protocol: a ``gunicorn.http2.connection.HTTP2ServerConnection``.
    """
    return sum(1 for stream in list(protocol.streams.values()) if not stream.response_complete)


def last_stream(protocol: Any) -> int:
    """Return the number of the last stream that the client has opened on such a connection, 0 if none."""
    return int(protocol.h2_conn.highest_inbound_stream_id)


def has_input(sock: Any) -> bool:
    """Tell whether something has arrived: in the kernel or, on a TLS connection, decrypted already."""
    pending: Callable[[], int] | None = getattr(sock, "pending", None)
    return bool(pending and pending()) or is_readable(sock)
