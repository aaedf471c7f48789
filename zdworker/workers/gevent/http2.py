"""The end of an HTTP/2 connection of a gevent worker; when it comes, :mod:`zdworker.workers.http2` decides.

Rules:

* A connection that never has a pause between its streams is ended behind an answer, once it has had the time of an
  unused one.
* Behind GOAWAY the connection stays open for its keep-alive time. A client such as httpx looks at an idle connection
  only when it uses it; if that were closed, the client would fail to write and not know that its request was not
  handled. So it reads the GOAWAY, and asks elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gevent

from zdworker.syscalls import unread
from zdworker.workers.drain import Drain
from zdworker.workers.gevent.connections import ConnectionRecord, end_input
from zdworker.workers.http2 import GOAWAY_NOTICE, Liveness, goaway_at, name_last_stream, notice_is_due

CLOSE_AFTER_GOAWAY_S = 1.0
"""Seconds that the client has at least to close the connection after GOAWAY."""


class Http2Drain:
    """Ends the HTTP/2 connections of a worker in its drain.

    Before 26.1 Gunicorn itself sets an idle connection no limit.
    """

    def __init__(self, drain: Drain) -> None:
        self._drain = drain

    def tend(self, client: Any, now: float) -> None:
        """Do what is due on a connection at ``now``, by ``time.monotonic()``."""
        record: ConnectionRecord = client.record
        if record.http2 is True:
            if now >= max(record.received_at + self._drain.unused_s, self._drain.unused_until):
                end_input(client)  # no request so far: a GOAWAY could save none
        elif record.busy:
            if not record.notice_sent and notice_is_due(self._drain, now, open_streams=1):  # or more
                record.notice_sent = True
                _send_notice(record.http2)
        elif (record.liveness.shown or now >= self._goaway_at(record)) and not unread(client):
            gevent.spawn(self._end, client)

    def _goaway_at(self, record: ConnectionRecord) -> float:
        answered_in_drain = record.since > self._drain.begun_at
        asked_at = record.liveness.asked_at
        return goaway_at(
            self._drain, idle_since=record.since, used=True, answered_in_drain=answered_in_drain, asked_at=asked_at
        )

    def _end(self, client: Any) -> None:
        record: ConnectionRecord = client.record
        if record.busy or record.goaway_sent or record.http2.streams:
            return  # a request has arrived in the meantime
        if record.since > self._drain.begun_at and record.liveness.asked_at is None:
            record.liveness.ask(client)
            return
        record.goaway_sent = True
        record.http2.close()
        kept_until = max(record.since, self._drain.begun_at) + self._drain.keepalive_s
        gevent.sleep(max(CLOSE_AFTER_GOAWAY_S, kept_until - time.monotonic()))
        end_input(client)

    def follow(self, record: ConnectionRecord, connection: Any) -> None:
        """Note Gunicorn's ``HTTP2ServerConnection`` at its first request."""
        record.http2 = connection
        record.liveness = Liveness(connection.h2_conn)
        name_last_stream(connection)

    def end_between_streams(self, client: Any) -> None:
        """End a connection that never has a pause, behind an answer; a stream that has begun is answered first."""
        record: ConnectionRecord = client.record
        if time.monotonic() < self._drain.unused_until or record.goaway_sent or len(record.http2.streams) > 1:
            return
        if record.liveness.drop_until_quiet(client):
            record.goaway_sent = True
            record.http2.close()

    def wait_for_close(self, client: Any) -> None:
        """Wait until the client has closed a connection that ended so, for :data:`CLOSE_AFTER_GOAWAY_S` at most."""
        with gevent.Timeout(CLOSE_AFTER_GOAWAY_S, False), contextlib.suppress(OSError, gevent.GreenletExit):
            client.recv(1)


def _send_notice(connection: Any) -> None:
    """Send GOAWAY_NOTICE through h2's own buffer, because another greenlet may be in the middle of sending a frame."""
    connection.h2_conn._data_to_send += GOAWAY_NOTICE  # noqa: SLF001  # h2 has no call for a GOAWAY that ends nothing
