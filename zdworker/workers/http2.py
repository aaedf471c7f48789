"""The end of an HTTP/2 connection in a drain: the frame and the decision that all servers share.

Rules:

* GOAWAY goes out when no stream is open, and names the last stream that has come (RFC 9113 6.8). A client knows then
  that all it had is answered, and that what it has sent since may be sent again elsewhere. The protocol allows an
  earlier one, but clients such as httpx let the streams that are open fail.
* Until then new streams are answered. A connection on which streams overlap all the time gets the shutdown notice
  (:data:`GOAWAY_NOTICE`) once half of the drain's time is over.
* Each server asks its own connections and writes in its own way; nothing of h2 is imported here.
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

GOAWAY_NOTICE = struct.pack(">HBBBIII", 0, 8, 7, 0, 0, 2**31 - 1, 0)
"""The shutdown notice, a frame: GOAWAY with NO_ERROR that names the highest possible stream, and so asks for no further
ones and refuses none yet (RFC 9113 4.1, 6.8)."""

GOAWAY_DELAY_S = 0.2
"""Seconds between an answer and the GOAWAY that is not sent in one piece with it. httpx fails a request whose answer it
reads together with a GOAWAY when another request's task does the reading."""


class DrainTimes(Protocol):
    """What the end of a connection depends on, of a :class:`zdworker.workers.drain.Drain`; by ``time.monotonic()``."""

    keepalive_s: float
    begun_at: float
    unused_until: float

    @property
    def notice_at(self) -> float:
        """When connections on which streams overlap all the time get the notice."""


def goaway_at(
    drain: DrainTimes, *, idle_since: float, used: bool, answered_in_drain: bool, delay_s: float = GOAWAY_DELAY_S
) -> float:
    """Return when a connection without open streams gets GOAWAY, if nothing comes on it until then.

    :param idle_since: when its last stream ended.
    :param used: whether a stream was ever opened on it.
    :param answered_in_drain: whether a stream was answered since the drain began: then its client is in the middle of
        its requests, and is to go elsewhere with the next one.
    :param delay_s: seconds from such an answer to GOAWAY; 0 where both go out in one piece.
    """
    if not used:
        return drain.unused_until
    if answered_in_drain:
        return idle_since + delay_s
    return max(idle_since, drain.begun_at) + drain.keepalive_s


def notice_is_due(drain: DrainTimes, now: float, open_streams: int) -> bool:
    """Return whether a connection that has not got :data:`GOAWAY_NOTICE` yet gets it now."""
    return bool(open_streams) and now >= drain.notice_at


def name_last_stream(connection: Any) -> None:
    """Have Gunicorn's HTTP/2 connection name in its GOAWAY the last stream that it has answered.

    Since 26.1 it would name 0 where no stream is open, and its client would believe that none of its requests was
    looked at. Before, h2 names the right one.

    :param connection: a ``gunicorn.http2.connection.HTTP2ServerConnection``, or the asynchronous one, whose ``close``
        returns a coroutine.
    """
    close, h2_conn = connection.close, connection.h2_conn

    def close_with_last_stream(error_code: int = 0, last_stream_id: int | None = None) -> Any:
        return close(error_code, last_stream_id or h2_conn.highest_inbound_stream_id)

    connection.close = close_with_last_stream
