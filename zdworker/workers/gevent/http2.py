"""The end of an HTTP/2 connection of a gevent worker.

Rules:

* GOAWAY goes out when no stream is open, and names the last one that has come (RFC 9113 6.8): a client knows then that
  all it had is answered, and that what it sent since may be sent again elsewhere.
* Until then new streams are answered. A connection on which streams overlap all the time is told, when half of the
  drain's time is over, to open no more.
* A moment passes between an answer and GOAWAY: httpx fails a request whose answer it reads together with a GOAWAY when
  another request's task does the reading.
* Behind GOAWAY the connection stays open for its keep-alive time: a client that looks at an idle connection only to use
  it (httpx) would fail to write, and not know that its request was not looked at. So it reads that, and asks elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gevent

from zdworker.syscalls import unread
from zdworker.workers.gevent.connections import Standing, silence

PAUSE = 0.2
"""Seconds without a request after which a connection that was answered in the drain is told goodbye."""

BREATH = 0.05
"""Seconds that the client has to read its answer before GOAWAY, where there is no pause between its requests."""

FAREWELL = 1.0
"""Seconds that the client has at least to close after GOAWAY."""


class Farewell:
    """The drain of a worker, as far as its HTTP/2 connections must know it.

    :param begun: when it began, by ``time.monotonic()``.
    :param patience: seconds that a connection without a request is kept; and in which one with many may have a pause.
    :param keepalive: seconds that an idle one is kept. Before 26.1 Gunicorn itself gives it no limit.
    """

    def __init__(self, begun: float, patience: float, keepalive: float) -> None:
        self._pressing = begun + patience
        self._begun = begun
        self._keepalive = keepalive

    def tend(self, client: Any, now: float, deadline: float) -> None:
        """Do for a connection what there is to do at ``now``."""
        standing: Standing = client.standing
        if standing.http2 is True:
            if now >= max(standing.heard + self._pressing - self._begun, self._pressing):
                silence(client)  # no request so far: nothing that a GOAWAY could save
            return
        if standing.busy:
            if now >= (self._begun + deadline) / 2 and not standing.noticed:
                standing.noticed = True
                _ask_for_no_more(standing.http2)
            return
        due = standing.since + PAUSE if standing.since > self._begun else self._until(standing)
        if now >= due and not unread(client):
            gevent.spawn(self._say_goodbye, client)

    def end_between_streams(self, standing: Standing) -> None:
        """End a connection that never has a pause, behind an answer; another stream that has come is answered first."""
        if time.monotonic() < self._pressing or standing.leaving or len(standing.http2.streams) > 1:
            return
        gevent.sleep(BREATH)
        standing.leaving = True
        standing.http2.close()

    def see_off(self, client: Any) -> None:
        """Wait until the client has closed a connection that ended so."""
        with gevent.Timeout(FAREWELL, False), contextlib.suppress(OSError, gevent.GreenletExit):
            client.recv(1)

    def _say_goodbye(self, client: Any) -> None:
        standing: Standing = client.standing
        if standing.busy or standing.leaving or standing.http2.streams:
            return  # a request came in the meantime
        standing.leaving = True
        standing.http2.close()
        gevent.sleep(max(FAREWELL, self._until(standing) - time.monotonic()))
        silence(client)

    def _until(self, standing: Standing) -> float:
        return max(standing.since, self._begun) + self._keepalive


def name_last_stream(connection: Any) -> None:
    """Have Gunicorn's ``HTTP2ServerConnection`` say in its GOAWAY up to which stream it has answered.

    Since 26.1 it would say 0 where no stream is open, and its client believe that nothing it asked for was done; before
    it lets h2 say the right thing, whatever it is told.
    """
    close, h2_conn = connection.close, connection.h2_conn

    def close_in_order(error_code: int = 0, last_stream_id: int | None = None) -> None:
        close(error_code, h2_conn.highest_inbound_stream_id if last_stream_id is None else last_stream_id)

    connection.close = close_in_order


def _ask_for_no_more(connection: Any) -> None:
    from zdworker.workers.http2 import GOAWAY_NOTICE

    # Through h2's own buffer: another greenlet may be in the middle of sending a frame.
    connection.h2_conn._data_to_send += GOAWAY_NOTICE  # noqa: SLF001  # it has no call for this
