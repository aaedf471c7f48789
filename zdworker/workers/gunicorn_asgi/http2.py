"""The end of an HTTP/2 connection of Gunicorn's ASGI stack.

Rules:

* GOAWAY goes out when no stream is in flight, and names the last stream that was answered (RFC 9113 6.8): a client
  knows then that all it had is whole, and that what it sent since may be sent again elsewhere. An earlier one fails
  streams in flight of clients such as httpx.
* It goes out in one piece with the end of the last answer: a client that sends one request after the other never
  sends one into a connection that is over.
* Until then new streams are answered. A connection on which streams overlap all the time is told, when half of the
  drain's time is over, to open no more (the shutdown notice of RFC 9113 6.8, a GOAWAY that names no stream).
* Gunicorn's own GOAWAY is not used: 27 names stream 0, as if nothing had been answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zdworker.workers.closing import NOTICE, linger, unread

if TYPE_CHECKING:
    from zdworker.workers.gunicorn_asgi.connections import Connection


class Http2:
    """What the drain knows of one HTTP/2 connection.

    :param connection: its protocol, whose ``_h2_conn`` is there once the connection preface is out.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection: Any = connection
        self._gunicorns: Any = None  # gunicorn.http2.async_connection.AsyncHTTP2Connection
        self._hypers: Any = None  # h2.connection.H2Connection
        self._last_at_drain = 0
        self._idle_since: float | None = None
        self._noticed = False
        self._between = False  # data has been read, and what it means is not known yet
        self.said_goaway = False
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

    def begin(self) -> None:
        """Take note of where the connection is as the drain begins, and follow it from now on."""
        gunicorns = getattr(self._connection, "_h2_conn", None)
        if gunicorns is None or self._gunicorns is not None:
            return
        self._gunicorns, self._hypers = gunicorns, gunicorns.h2_conn
        self._last_at_drain = -1 if self.in_flight() else self._hypers.highest_inbound_stream_id
        data_to_send, clean_up, close = self._hypers.data_to_send, gunicorns.cleanup_stream, gunicorns.close

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

        async def closed(error_code: int = 0, last_stream_id: int | None = None) -> None:
            await close(error_code, last_stream_id or self._hypers.highest_inbound_stream_id)

        self._hypers.data_to_send, gunicorns.cleanup_stream, gunicorns.close = sent, cleaned_up, closed

    def _may_end(self) -> bool:
        """Tell whether a stream was answered since the drain began, and none is in flight or on its way."""
        answered = self._hypers.highest_inbound_stream_id != self._last_at_drain
        return answered and not self.said_goaway and not self._hypers.open_inbound_streams and not self._unread()

    def _unread(self) -> bool:
        connection = self._connection
        return bool(self._between or connection.reader._buffer or unread(connection.transport))

    def _queue_goaway(self) -> None:
        self.said_goaway = True
        if not self._gunicorns.is_closed:
            self._hypers.close_connection(last_stream_id=self._hypers.highest_inbound_stream_id)

    def tend(self, now: float, keepalive: float, unused_until: float, notice_at: float) -> None:
        """Do what there is to do at ``now``, by ``time.monotonic()``; the other times are by the same clock.

        :param keepalive: seconds that a connection without streams is kept.
        """
        self.begin()
        if self._gunicorns is None:
            return
        self._close_if_over()
        if self.in_flight():
            self._idle_since = None
            if now >= notice_at and not self._noticed and not self.said_goaway:
                self._noticed = True
                self._connection.transport.write(NOTICE)
            return
        if self._idle_since is None:
            self._idle_since = now
        unused = self._hypers.highest_inbound_stream_id == 0
        over = now >= unused_until if unused else now - self._idle_since >= keepalive
        if (over or self._may_end()) and not self._unread():
            self.end()

    def end(self) -> None:
        """Send GOAWAY, whatever is in flight, and close."""
        if self._gunicorns is not None and not self.said_goaway and not self._connection.transport.is_closing():
            self._queue_goaway()
            self._connection.transport.write(self._hypers.data_to_send())
            self._close()

    def _close_if_over(self) -> None:
        if self.said_goaway and not self.in_flight():
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

    def tell_disconnected(self) -> None:
        """Let the application know, on each stream, of the end that is to come."""
        gunicorns = getattr(self._connection, "_h2_conn", None)
        for stream in list(gunicorns.streams.values()) if gunicorns is not None else ():
            if hasattr(stream, "signal_disconnect"):  # 27
                stream.signal_disconnect()
