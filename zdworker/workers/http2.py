"""The end of an HTTP/2 connection in a drain: the frames and the decision that all servers share.

Rules:

* GOAWAY goes out when no stream is open, and names the last stream that has come (RFC 9113 6.8). A client knows then
  that all it had is answered, and that what it has sent since may be sent again elsewhere. The protocol allows an
  earlier one, but clients such as httpx let the streams that are open fail.
* A client may be held up in the middle of beginning its next requests, and httpx fails each that it begins to send, or
  has not taken the answer of, when another one's task reads GOAWAY. So a client with pauses gets a PING before GOAWAY:
  its acknowledgement shows that it is not held up, and has sent nothing (:class:`Liveness`).
* Until then new streams are answered. A connection on which streams overlap all the time gets the shutdown notice
  (:data:`GOAWAY_NOTICE`) once half of the drain's time is over.
* Each server asks its own connections and writes in its own way; nothing of h2 is imported here.
"""

from __future__ import annotations

import contextlib
import struct
import time
from typing import Any, Protocol

GOAWAY_NOTICE = struct.pack(">HBBBIII", 0, 8, 7, 0, 0, 2**31 - 1, 0)
"""The shutdown notice, a frame: GOAWAY with NO_ERROR that names the highest possible stream, and so asks for no further
ones and refuses none yet (RFC 9113 4.1, 6.8)."""

GOAWAY_DELAY_S = 0.2
"""Seconds without anything from the client, behind an answer, until it gets the PING that comes before GOAWAY."""

PING_LIMIT_S = 2.0
"""Seconds that a client has to acknowledge it. One that reads nothing between two requests does not; httpx does not use
an idle connection again on which something has come."""


class DrainTimes(Protocol):
    """What the end of a connection depends on, of a :class:`zdworker.workers.drain.Drain`; by ``time.monotonic()``."""

    keepalive_s: float
    begun_at: float
    unused_until: float

    @property
    def notice_at(self) -> float:
        """When connections on which streams overlap all the time get the notice."""


def goaway_at(
    drain: DrainTimes,
    *,
    idle_since: float,
    used: bool,
    answered_in_drain: bool,
    asked_at: float | None = None,
    delay_s: float = GOAWAY_DELAY_S,
) -> float:
    """Return when a connection without open streams gets GOAWAY, or the PING before it, if nothing comes until then.

    :param idle_since: when its last stream ended.
    :param used: whether a stream was ever opened on it.
    :param answered_in_drain: whether a stream was answered since the drain began: then its client is in the middle of
        its requests, and is to go elsewhere with the next one.
    :param asked_at: when such a client got the PING, if it has.
    :param delay_s: seconds from such an answer on; 0 where GOAWAY goes out in one piece with it.
    """
    if not used:
        return drain.unused_until
    if answered_in_drain:
        return idle_since + delay_s if asked_at is None else asked_at + PING_LIMIT_S
    return max(idle_since, drain.begun_at) + drain.keepalive_s


def notice_is_due(drain: DrainTimes, now: float, open_streams: int) -> bool:
    """Return whether a connection that has not got :data:`GOAWAY_NOTICE` yet gets it now."""
    return bool(open_streams) and now >= drain.notice_at


class Liveness:
    """Asks the client of a connection by PING (RFC 9113 6.7) whether it runs, has read all, and has nothing to send.

    :param h2_conn: an ``h2.connection.H2Connection``. Its ``receive_data`` is replaced, of this object alone.
    """

    def __init__(self, h2_conn: Any) -> None:
        self._h2 = h2_conn
        self._receive_data = h2_conn.receive_data
        self._pings = 0
        self.asked_at: float | None = None
        """When the PING was sent, by ``time.monotonic()``; None if something else has come since."""
        self.shown = False
        """Whether it was acknowledged, and nothing else has come since it was sent."""
        h2_conn.receive_data = self.receive_data

    def ask(self, sock: Any) -> None:
        """Send a PING."""
        self._pings += 1
        self.asked_at, self.shown = time.monotonic(), False
        # Not by h2, which refuses it when the client has said that it leaves.
        with contextlib.suppress(OSError):  # reading finds a client that has left
            sock.sendall(struct.pack(">HBBBIQ", 0, 8, 6, 0, 0, self._pings))

    def receive_data(self, data: bytes) -> Any:
        """Do as h2 does with what has been read, and look for the acknowledgement in it."""
        events = self._receive_data(data)
        if self.asked_at is not None and events:
            expected = struct.pack(">Q", self._pings)
            self.shown = all(getattr(event, "ping_data", None) == expected for event in events)
            if not self.shown:
                self.asked_at = None
        return events

    def drop_until_quiet(self, sock: Any) -> bool:
        """Read what a client sends, and answer nothing of it, until it sends no more; :data:`PING_LIMIT_S` at most.

        It has to acknowledge one PING more than streams are dropped. The tasks of httpx read in turn, each until
        something has come, and those of dropped streams may be ahead of one that has not taken its answer up.

        :return: False if it has sent nothing at all: it pauses, and is asked.
        """
        end, timeout = time.monotonic() + PING_LIMIT_S, sock.gettimeout()
        last, shown, silent = self._h2.highest_inbound_stream_id, 0, True
        sock.settimeout(GOAWAY_DELAY_S)
        while time.monotonic() < end:
            try:
                data = sock.recv(65536)
            except TimeoutError:
                if self.asked_at is None:
                    self.ask(sock)
                if silent:
                    break
                continue
            silent = False
            if not data:
                break
            with contextlib.suppress(Exception):  # a client that breaks the protocol gets GOAWAY as well
                self._h2.receive_data(data)
            shown = shown + 1 if self.shown else 0
            if shown > 1 + (self._h2.highest_inbound_stream_id - last) // 2:
                break
            if self.shown:
                self.ask(sock)
        sock.settimeout(timeout)
        self._h2.highest_inbound_stream_id = last  # which Gunicorn 25 has h2 name in GOAWAY
        return not silent


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
