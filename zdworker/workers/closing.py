"""Ending a connection so that the client loses nothing: what all servers have in common.

Rules:

* No server closes a connection on unread data: the kernel would answer that data with a reset, and the client would
  lose a response that was sent (RFC 9112 9.6). Such a connection is half closed and read to its end first, for a
  bounded time. The servers on an event loop do that with :func:`zdworker.workers.event_loop.transports.linger`.
* Only the standard library without asyncio is imported here, because the master imports some of the worker classes
  that use this file.
"""

from __future__ import annotations

import enum

Header = tuple[bytes, bytes]

CLOSE: Header = (b"connection", b"close")

LINGER_S = 5.0
"""Seconds without a byte after which the rest of a request body is no longer read (nginx: ``lingering_timeout``)."""

LINGER_TOTAL_S = 30.0
"""Seconds that such a rest is read at most (nginx: ``lingering_time``)."""


class ConnectionState(enum.Enum):
    """What a connection is in the middle of."""

    UNUSED = "no byte has come yet"
    READING = "a request's head has come in part"
    BUSY = "a request is being answered"
    IDLE = "kept alive between two requests"
    HTTP2 = "speaks HTTP/2: its streams say more"
    CLOSING = "closing, or upgraded: ends by itself"


def with_close(headers: list[Header]) -> list[Header]:
    """Return ``headers`` with one ``Connection: close``; those of an upgrade as they are (RFC 9110 7.8)."""
    kept = []
    for name, value in headers:
        if name.lower() == b"connection":
            tokens = [token.strip().lower() for token in value.split(b",")]
            if b"close" in tokens or b"upgrade" in tokens:
                return headers
            if tokens == [b"keep-alive"]:
                continue  # clients that read the first Connection header only would believe it
        kept.append((name, value))
    return [*kept, CLOSE]
