"""The end of an HTTP/2 connection of Gunicorn's ASGI stack.

Rules:

* When it ends is decided by :mod:`zdworker.workers.http2`; this file asks Gunicorn's connection and writes.
* GOAWAY goes out in one piece with the end of the last answer: a client that sends one request after the other never
  sends one into a connection that is over.
* Gunicorn's own GOAWAY is not used: 27 names stream 0, as if nothing had been answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from zdworker.workers.drain import Drain
from zdworker.workers.event_loop.transports import linger, unread
from zdworker.workers.http2 import GOAWAY_NOTICE, goaway_at, name_last_stream, notice_is_due


class Http2Connection(Protocol):
    """What the drain needs of a connection, a :class:`zdworker.workers.gunicorn_asgi.connections.Connection`."""

    transport: Any
    reader: Any
    worker: Any


class Http2Drain:
    """The drain of one HTTP/2 connection.

    :param connection: its protocol, whose ``_h2_conn`` is there once the connection preface is out.
    """

    def __init__(self, connection: Http2Connection) -> None:
        self._connection: Any = connection
        self._gunicorns: Any = None  # gunicorn.http2.async_connection.AsyncHTTP2Connection
        self._hypers: Any = None  # h2.connection.H2Connection
        self._last_at_drain = 0
        self._idle_since: float | None = None
        self._noticed = False
        self._between = False  # data has been read, and what it means is not known yet
        self.goaway_sent = False
        """No further stream is answered."""
        self._follow_reader(connection.reader)

    def _follow_reader(self, reader: Any) -> None:
        read = reader.read

        async def followed(size: int = -1) -> bytes:
            self._between = False
            data: bytes = await read(size)
            self._between = True
            return data

        reader.read = followed

    def in_flight(self) -> int:
        """Return the number of streams that are not whole yet in both directions, or whose call is not over."""
        gunicorns = getattr(self._connection, "_h2_conn", None)
        if gunicorns is None:
            return 0
        live = sum(1 for stream in gunicorns.streams.values() if stream.state.name != "CLOSED")
        return max(live, len(getattr(self._connection, "_h2_tasks", ())))

    def requests(self) -> Iterator[tuple[str, str]]:
        """Yield method and path of each stream that is not over."""
        gunicorns = getattr(self._connection, "_h2_conn", None)
        for stream in list(gunicorns.streams.values()) if gunicorns is not None else ():
            headers = stream.get_pseudo_headers()
            if stream.state.name != "CLOSED" and ":method" in headers:
                yield headers[":method"], headers.get(":path", "")

    def begin(self) -> None:
        """Note what is in flight as the drain begins, and follow the connection from now on; works once."""
        gunicorns = getattr(self._connection, "_h2_conn", None)
        if gunicorns is None or self._gunicorns is not None:
            return
        self._gunicorns, self._hypers = gunicorns, gunicorns.h2_conn
        self._last_at_drain = -1 if self.in_flight() else self._hypers.highest_inbound_stream_id
        name_last_stream(gunicorns)
        data_to_send, clean_up = self._hypers.data_to_send, gunicorns.cleanup_stream

        def sent() -> bytes:
            data: bytes = data_to_send()
            if self._may_end():
                self._queue_goaway()
                data += data_to_send()
                self._connection.worker.loop.call_soon(self._close_if_over)
            return data

        def cleaned_up(stream_id: int) -> None:
            clean_up(stream_id)
            self._connection.worker.loop.call_soon(self._close_if_over)

        self._hypers.data_to_send, gunicorns.cleanup_stream = sent, cleaned_up

    def _answered_in_drain(self) -> bool:
        return bool(self._hypers.highest_inbound_stream_id != self._last_at_drain)

    def _may_end(self) -> bool:
        """Return whether a stream was answered since the drain began, and none is in flight or on its way."""
        open_streams = self._hypers.open_inbound_streams
        return self._answered_in_drain() and not self.goaway_sent and not open_streams and not self._unread()

    def _unread(self) -> bool:
        connection = self._connection
        return bool(self._between or connection.reader._buffer or unread(connection.transport))

    def _queue_goaway(self) -> None:
        self.goaway_sent = True
        self._connection.reader.feed_data = _drop
        if not self._gunicorns.is_closed:
            self._hypers.close_connection(last_stream_id=self._hypers.highest_inbound_stream_id)

    def tend(self, now: float, drain: Drain) -> None:
        """End the connection, or send it the notice, if it is time to at ``now``, by ``time.monotonic()``."""
        self.begin()
        if self._gunicorns is None:
            return
        self._close_if_over()
        open_streams = self.in_flight()
        if open_streams:
            self._idle_since = None
            if not self._noticed and not self.goaway_sent and notice_is_due(drain, now, open_streams):
                self._noticed = True
                self._connection.transport.write(GOAWAY_NOTICE)
            return
        if self._idle_since is None:
            self._idle_since = now
        due = goaway_at(
            drain,
            idle_since=self._idle_since,
            used=self._hypers.highest_inbound_stream_id > 0,
            answered_in_drain=self._answered_in_drain(),
            delay_s=0.0,
        )
        if now >= due and not self._unread():
            self.end()

    def end(self) -> None:
        """Send GOAWAY, whatever is in flight, and close."""
        if self._gunicorns is not None and not self.goaway_sent and not self._connection.transport.is_closing():
            self._queue_goaway()
            self._connection.transport.write(self._hypers.data_to_send())
            self._close()

    def _close_if_over(self) -> None:
        if self.goaway_sent and not self.in_flight():
            self._close()

    def _close(self) -> None:
        connection, transport = self._connection, self._connection.transport
        self._gunicorns._closed = True  # and so Gunicorn's loop ends, and sends no GOAWAY of its own
        connection._closed = True
        connection.reader.feed_eof()
        if transport.is_closing():
            return
        if transport.can_write_eof():
            linger(connection, transport)  # in clear text the client may have sent another stream
        else:
            transport.close()

    def signal_disconnect(self) -> None:
        """Let the application's ``receive`` return a disconnect, on each stream."""
        gunicorns = getattr(self._connection, "_h2_conn", None)
        for stream in list(gunicorns.streams.values()) if gunicorns is not None else ():
            if hasattr(stream, "signal_disconnect"):  # 27
                stream.signal_disconnect()


def _drop(data: bytes) -> None:
    """Take what the client has sent since GOAWAY: it may send that again elsewhere."""
