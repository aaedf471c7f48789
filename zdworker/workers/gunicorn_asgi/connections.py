"""A connection of Gunicorn's ASGI stack that can be drained: the one file that reads that protocol's attributes.

Rules:

* The protocol is a subclass of :class:`gunicorn.asgi.protocol.ASGIProtocol`, and nothing of it is copied. Before the
  drain it adds one plain call for each piece of data, and one for each request. These name the base instead of calling
  ``super()``, which would cost as much again.
* A response says ``Connection: close`` only if its request has arrived whole and nothing more has come behind it. That
  is decided when the head is written, because until then more may arrive.
* A connection is over when it is lost **and** its calls of the application have returned: background tasks run there.

Known: Gunicorn 25.0 and 25.1 (a stream reader for each connection), 25.2 to 26.2 (parsers with callbacks), 27 (the
same, with responses that overlap with the rest of their call, and HTTP/2 streams that overlap with each other).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from gunicorn.asgi.protocol import ASGIProtocol

from zdworker.ipc.hand_over import Connection as HandedOver
from zdworker.workers.applications import AsgiApplication, Event, Receive, Scope, Send
from zdworker.workers.bounded import done_within
from zdworker.workers.closing import LINGER_S, ConnectionState, with_close
from zdworker.workers.drain import Drain
from zdworker.workers.event_loop.transports import hold, linger, read_on, take_out, unread
from zdworker.workers.gunicorn_asgi.http2 import Http2Drain

CARRIAGE_RETURN = ord("\r")
"""The largest byte that an empty line has, and its first."""

BETWEEN_REQUESTS = (ConnectionState.UNUSED, ConnectionState.IDLE)
"""What a connection is in while nothing of a request has come."""


SINCE_27 = hasattr(ASGIProtocol, "_serve_http_request")
"""Whether this is Gunicorn 27 or later, whose responses overlap with the rest of their call. Earlier ones drop what a
client has sent behind a request, although the parsers of 26.2 can hand it back, and keep a connection whose response
has no end."""

ATTRIBUTES = (
    "_zd_data_at",
    "_zd_dropped",
    "_zd_half_line",
    "_zd_http2",
    "_zd_idle",
    "_zd_last",
    "_zd_lost",
    "_zd_moved",
    "_zd_receiving",
    "_zd_request",
    "_zd_requests_before",
    "_zd_server",
    "_zd_upgraded",
    "_zd_whole",
    "zd_offer",
)
"""What a connection has beside the base's attributes. They are slots: the base has more than a dictionary that objects
of a class share can hold, and each of those costs its lookups and the garbage collector more."""


class ConnectionServer(Protocol):
    """What a connection needs of its server, a :class:`zdworker.workers.gunicorn_asgi.server.AsgiServer`."""

    open: set[Connection]
    """The connections that are not over; each puts itself there and takes itself out."""
    draining: bool
    """Whether the worker drains."""
    drain: Drain
    """Its drain."""

    @property
    def websocket_app(self) -> AsgiApplication:
        """The application as WebSockets call it."""

    def announce_or_offer(self, connection: Any) -> None:
        """Have the connection moved to the successor, or ended by its response."""


class _LastRequest:
    """Gunicorn's configuration for a connection that ends with the present response."""

    keepalive = 0

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


class Connection(ASGIProtocol):  # type: ignore[misc]  # Gunicorn has no types
    """One connection of an ASGIWorker."""

    # -- what the base calls ------------------------------------------------------------------------------------------

    __slots__ = ATTRIBUTES

    cfg: Any
    transport: Any
    reader: Any
    _body_receiver: Any
    _callback_parser: Any = None  # 25.0 and 25.1 have none
    _closed: bool
    _task: asyncio.Task[Any] | None

    def __init__(self, worker: Any, server: ConnectionServer) -> None:
        super().__init__(worker)
        self._zd_server = server
        self._zd_data_at = 0  # the number of the request during which, or before which, data came last
        self._zd_last = False  # the present response is announced as the last one
        self._zd_request: Any = None  # the one whose response has begun
        self._zd_upgraded = False
        self._zd_dropped = False  # the rest of a body was waited for already
        self._zd_lost = False
        self._zd_http2: Http2Drain | None = None
        self._zd_idle: tuple[int, float] | None = None  # since when it is seen idle, and before which request
        self._zd_moved = self._zd_receiving = False
        self._zd_half_line = False  # the parser holds the first byte of an empty line, which begins no request
        self._zd_whole = False  # the application has sent the end of the present response (before 27)
        self._zd_requests_before = 0  # answered by the workers that have handed it over
        self.zd_offer: Callable[[], None] | None = None
        """Called when a response is complete, in a drain that hands connections over."""
        if not SINCE_27:
            self.use(self.app)

    def connection_made(self, transport: Any) -> None:
        """Register, then do as the base does."""
        self._zd_server.open.add(self)
        super().connection_made(transport)
        if self._zd_server.draining:  # a loop tells of what it has accepted only after the listeners are closed
            self._zd_server.announce_or_offer(self)

    def data_received(self, data: bytes) -> None:
        """Note that something came, then do as the base does."""
        # Empty lines, which clients may send between requests (RFC 9112 2.2), begin none. Other data costs little.
        if data[0] > CARRIAGE_RETURN or data.strip(b"\r\n") or self.zd_state() not in BETWEEN_REQUESTS:
            self._zd_data_at = self.req_count or 1
        self._zd_receiving = True
        ASGIProtocol.data_received(self, data)
        self._zd_receiving = False
        parser = self._callback_parser
        if parser is None:
            return
        if getattr(parser, "_buffer", True):
            self._zd_look_behind(parser, data)
        elif self._zd_half_line:
            self._zd_half_line = False

    def _zd_look_behind(self, parser: Any, data: bytes) -> None:
        """Note what a parser holds, or may hold, behind what it has told the base of."""
        behind = hasattr(parser, "remaining") and parser.remaining()
        if behind:
            # The base has its parser go on with that behind the answer, and nothing else says so.
            self._feed_callback_parser = self._zd_feed_rest
        self._zd_half_line = data[-1] == CARRIAGE_RETURN and bool(behind or not parser.is_complete)

    def _zd_feed_rest(self, data: bytes) -> Any:
        """Feed what came behind a request; its connection is not idle then."""
        if not self._zd_receiving and data.strip(b"\r\n"):
            self._zd_data_at = self.req_count + 1
            self.zd_read_on()
        return ASGIProtocol._feed_callback_parser(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Do as the base does, and let its task see the end if it waits for a request.

        The base leaves it waiting: until 26.1 forever if the server has closed, in 27 for a grace period.
        """
        super().connection_lost(exc)
        ready = getattr(self, "_request_ready", None)
        if ready is not None:
            ready.set()
        if self.reader is not None:
            self.reader.feed_eof()
        self._zd_lost = True
        task = self._task
        if task is None or task.done():
            self._zd_server.open.discard(self)
        else:
            task.add_done_callback(lambda _task: self._zd_server.open.discard(self))

    def use(self, application: AsgiApplication) -> None:
        """Have further requests answered by ``application``; a WebSocket has its own for good."""
        if not self._zd_upgraded:
            self.app = application if self.zd_offer is None else self._zd_holding(application)
            if not SINCE_27:
                self.app = self._zd_noting(self.app)

    async def _handle_websocket(self, *args: Any) -> None:
        self._zd_upgraded = True
        self.app = self._zd_server.websocket_app
        await super()._handle_websocket(*args)

    async def _handle_http2_connection(self, *args: Any, **kwargs: Any) -> None:
        self._zd_http2 = Http2Drain(self)
        await super()._handle_http2_connection(*args, **kwargs)

    @classmethod
    def _check_h1c_protocol_available(cls) -> bool:
        # The base notes what it has found on the class that it is called on, and looks for it on its own.
        return bool(ASGIProtocol._check_h1c_protocol_available())

    # -- what it is in the middle of ----------------------------------------------------------------------------------

    def zd_state(self) -> ConnectionState:
        """Return what the connection is in the middle of."""
        if self.transport is None or self._closed or self.transport.is_closing() or self._zd_upgraded:
            return ConnectionState.CLOSING
        if self._zd_http2 is not None:
            return ConnectionState.HTTP2
        if self.zd_running():
            return ConnectionState.BUSY
        if self._zd_data_at == 0:
            return ConnectionState.UNUSED
        begun = self._zd_data_at >= max(1, self.req_count)
        return ConnectionState.READING if begun else ConnectionState.IDLE

    def zd_running(self) -> int:
        """Return how many calls of the application run for this connection."""
        if self._zd_http2 is not None:
            return self._zd_http2.in_flight()
        finishing = len(getattr(self, "_finishing_calls", ()))  # 27: behind their response
        begun = (
            self._zd_upgraded
            or getattr(self, "_current_request", None) is not None
            or getattr(self, "_receive_queue", None) is not None  # 25.0, 25.1
            or (self.reader is not None and getattr(self, "_body_receiver", None) is not None)  # uwsgi
        )
        over = self._task is None or self._task.done()
        last = self._zd_last and finishing  # the request is still there, but its response is not under way any more
        return 0 if over else finishing + (0 if last else begun)

    def zd_requests(self) -> Iterable[tuple[str, str]]:
        """Return method and path of each request for which a call of the application runs."""
        if self._zd_http2 is not None:
            return self._zd_http2.requests()
        finishing = getattr(self, "_finishing_calls", {})
        found = [receiver.request for receiver in finishing.values() if receiver is not None]
        if self.zd_running() > len(finishing) and not self._zd_upgraded:
            found.append(getattr(self, "_current_request", None) or self._zd_request_in_task())
        return [(request.method, request.path) for request in found if request is not None]

    def _zd_request_in_task(self) -> Any:
        """Return what is answered where the base keeps that in its coroutine alone (25.0, 25.1, uwsgi)."""
        frame = getattr(self._task.get_coro(), "cr_frame", None) if self._task is not None else None
        return frame.f_locals.get("request") if frame is not None else None

    def _zd_body_has_arrived(self) -> bool:
        receiver = getattr(self, "_body_receiver", None)
        if receiver is not None:
            return bool(receiver._complete)
        return not getattr(self._zd_request, "_body_remaining", 0)  # 25.0, 25.1

    def _zd_may_close(self, request: Any) -> bool:
        """Return whether the connection may end with the response to ``request``: nothing else is under way."""
        parser = getattr(self, "_callback_parser", None)
        if parser is not None:
            # Where the base drops what a client has sent behind a request, it is better to say that nothing follows.
            behind = SINCE_27 and hasattr(parser, "remaining") and bool(parser.remaining())
        elif hasattr(request, "unreader"):
            behind = bool(request._body_remaining or request.unreader.has_buffered_data() or self.reader._buffer)
        else:
            behind = False
        return not behind and self._zd_body_has_arrived() and unread(self.transport) == 0

    # -- what the drain does ------------------------------------------------------------------------------------------

    def zd_end_responses(self) -> None:
        """Have responses end the connection from now on."""
        self._send_response_start = self._zd_start_last_response  # type: ignore[method-assign]  # of this object alone

    def _zd_start_last_response(self, status: int, headers: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Send the head of a response in a drain, with the end of the connection announced if it may end.

        Returns a coroutine in Gunicorn 25.0 and 25.1, None since.
        """
        if self._zd_may_close(request):
            headers = with_close([(_bytes(name), _bytes(value)) for name, value in headers])
            self._zd_server.drain.told_to_close += 1
            self._zd_last = True
            self._keepalive = 0  # 27
            self.cfg = _LastRequest(self.cfg)  # before
        return type(self)._send_response_start(self, status, headers, request, *args, **kwargs)

    if not hasattr(ASGIProtocol, "_feed_callback_parser"):  # 25.0, 25.1: nothing else says what is answered

        def _send_response_start(self, status: int, headers: Any, request: Any, *args: Any) -> Any:
            self._zd_request = request
            return super()._send_response_start(status, headers, request, *args)

    def _serve_http_request(self, request: Any, sockname: Any, peername: Any) -> Awaitable[Any]:
        """Answer a request (27). No coroutine function, which would be one frame more for each request."""
        serving: Awaitable[Any] = ASGIProtocol._serve_http_request(self, request, sockname, peername)
        simple = self._body_receiver._complete and self.zd_offer is None
        return serving if simple else self._zd_serve_whole(serving)

    async def _zd_serve_whole(self, serving: Awaitable[Any]) -> Any:
        """Answer a request, and read the rest of its body if the application has answered before that has arrived.

        The base would close the connection, although the response does not say so. With TLS, of which no half can be
        closed alone, the client would send its next request, and wait in vain.
        """
        keepalive = await serving
        if keepalive and not self._zd_ends() and not self._zd_body_has_arrived():
            await self._zd_drop_body()
        if self.zd_offer is not None:
            self.worker.loop.call_soon(self.zd_offer)  # when the base is done with the request
        return keepalive

    async def _zd_drop_body(self) -> None:
        receiver = self._body_receiver
        if receiver.expect_continue:  # it does not come: the client waits to be asked for it
            return

        async def drop() -> None:
            while not receiver._complete and (await receiver.receive())["type"] == "http.request":
                pass

        task = asyncio.get_running_loop().create_task(drop())
        if not await done_within(task, LINGER_S):
            task.cancel()
        self._zd_dropped = True

    if not SINCE_27:

        async def _handle_http_request(self, *args: Any) -> Any:
            """Answer a request, and end the connection if the application has not sent the end of its response.

            The base would keep it, and the client would wait for the rest.
            """
            self._zd_whole = False
            keepalive = await super()._handle_http_request(*args)
            return keepalive and self._zd_whole

    def _zd_noting(self, application: AsgiApplication) -> AsgiApplication:
        """Return ``application`` with the end of each response noted."""

        def answer(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            def sent(message: Event) -> Awaitable[None]:
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    self._zd_whole = True
                return send(message)

            return application(scope, receive, sent)

        return answer

    def _close_transport(self) -> None:
        """Close, but first read what the client is still sending: the rest of a body, its half of a WebSocket's end.

        This is so before the drain, too: the base resets the connection of a client whose upload was refused, and a
        drain that begins while the answer is on its way would lose it.
        """
        transport = self.transport
        if transport is not None and not self._closed and not transport.is_closing() and self._zd_expects_more():
            self._closed = True
            linger(self, transport)
        else:
            super()._close_transport()

    def _zd_expects_more(self) -> bool:
        if not self._zd_body_has_arrived():
            return not self._zd_dropped
        return self._zd_server.draining and (self._zd_upgraded or unread(self.transport) > 0)

    def _keepalive_timeout(self) -> None:
        """End an idle connection, unless the next request has come; in a drain, unless it has begun to come.

        After a loop was held up, the timer and the request are due in the same turn.
        """
        ready = getattr(self, "_request_ready", None)
        come = ready is not None and ready.is_set()
        begun = self._zd_server.draining and self.zd_state() is not ConnectionState.IDLE
        if not come and not begun and not unread(self.transport):
            super()._keepalive_timeout()

    def _cancel_task_if_pending(self) -> None:
        """Cancel the call of the application, but not if its client left because the response asked for that, nor if
        another worker serves the client now.
        """
        if not self._zd_moved and not (self._zd_last and getattr(self, "_finishing_calls", True)):
            super()._cancel_task_if_pending()

    # -- the hand-over ------------------------------------------------------------------------------------------------

    def zd_can_move(self) -> bool:
        """Return whether the connection can be handed over, now or later: it speaks HTTP/1 without TLS."""
        known = getattr(self, "_callback_parser", None) is not None or getattr(self, "_h2c_buffer", None) == b""
        plain = self.transport is not None and self.transport.get_extra_info("sslcontext") is None
        return known and plain and self.reader is None and self._zd_http2 is None and not self._zd_upgraded

    def zd_offer_when_answered(self, offer: Callable[[], None]) -> None:
        """Have ``offer`` called with each response that is complete from now on, also with one that is under way."""
        arm: Callable[[], None] = super()._arm_keepalive_timer

        def arm_and_offer() -> None:
            arm()
            offer()

        self.zd_offer = offer
        self._arm_keepalive_timer = arm_and_offer  # of this object alone
        self.use(self.app)

    def _zd_holding(self, application: AsgiApplication) -> AsgiApplication:
        """Return ``application``, behind whose responses the next request is left in the socket.

        The base comes to the next request some turns of the loop behind the response. A client that never rests has
        sent it by then, and the connection would never be found between two requests.
        """

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_and_hold(message: Event) -> None:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    self.zd_hold()

            await application(scope, receive, send_and_hold)

        return answer

    def zd_hold(self) -> None:
        """Leave the next request in the socket, unless none moves or more of this one's body is to come."""
        if self._zd_server.drain.gives and self.zd_can_move() and self._zd_body_has_arrived():
            hold(self.transport)

    def zd_read_on(self) -> None:
        """Read the next request after all, unless the base has paused reading itself."""
        if self.zd_offer is not None and self.zd_can_move() and not getattr(self, "_reading_paused", False):
            read_on(self.transport)

    def _zd_ends(self) -> bool:
        """Return whether a response is to end the connection."""
        return self._zd_server.draining and not (self._zd_server.drain.gives and self.zd_can_move())

    def zd_detach(self) -> HandedOver | None:
        """Let go of the connection, if it is between two requests and its last response is written out.

        Calls of the application that go on behind their response stay here.
        """
        if not self.zd_can_move() or self._closed or getattr(self, "_current_request", None) is not None:
            return None
        if self._zd_data_at >= max(1, self.req_count) or self._zd_half_line:
            return None  # a request has begun, or what may come before one
        timer = getattr(self, "_keepalive_handle", None)
        left_s = None if timer is None else timer.when() - self.worker.loop.time()
        sock = take_out(self.transport)
        if sock is None:
            return None
        self._zd_moved = True
        return HandedOver(
            sock,
            idle_until=None if left_s is None else time.monotonic() + left_s,
            requests=self._zd_requests_before + max(0, self.req_count - 1),
            proxy=getattr(self._callback_parser, "proxy_protocol_info", None),
        )

    def zd_resume(self, connection: HandedOver) -> None:
        """Go on with a connection that another worker has handed over, where that has left it."""
        self._zd_requests_before = connection.requests
        parser: Any = getattr(self, "_callback_parser", None)
        if connection.requests and getattr(parser, "_proxy_protocol_done", True) is False:
            # Only the first request may have a PROXY header, and what it said counts for all.
            parser._proxy_protocol_info, parser._proxy_protocol_done = connection.proxy, True
            parser._state = "request_line"
        if connection.idle_until is not None and getattr(self, "_keepalive_handle", False) is None:
            left_s = max(0.0, connection.idle_until - time.monotonic())
            self._keepalive_handle = self.worker.loop.call_later(left_s, self._keepalive_timeout)

    def zd_tend(self, now: float, drain: Drain) -> None:
        """End the connection if its time is over at ``now``, by ``time.monotonic()``.

        The base has no timer for one that was never used, before 27 none that works for any other.
        """
        if self._zd_http2 is not None and self._zd_lost and not self._zd_http2.in_flight():
            self._zd_server.open.discard(self)  # until 26.1 the task of one that broke the protocol never ends
        state = self.zd_state()
        if state is ConnectionState.IDLE:
            if self._zd_idle is None or self._zd_idle[0] != self.req_count:
                self._zd_idle = (self.req_count, now)
            over = now - self._zd_idle[1] >= drain.keepalive_s
        else:
            over = state is ConnectionState.UNUSED and now >= drain.unused_until
        if over and not unread(self.transport):
            super()._close_transport()

    def zd_signal_disconnect(self) -> None:
        """Let the application's ``receive`` return a disconnect, as if the client had left."""
        receivers = [getattr(self, "_body_receiver", None), *getattr(self, "_finishing_calls", {}).values()]
        for receiver in receivers:
            if receiver is not None:
                receiver.signal_disconnect()
        queue = getattr(self, "_receive_queue", None)
        if queue is not None:
            queue.put_nowait({"type": "http.disconnect"})
        if self._zd_http2 is not None:
            self._zd_http2.signal_disconnect()

    def zd_tasks(self) -> set[asyncio.Task[Any]]:
        """Return the tasks that serve this connection and are not done."""
        tasks = {self._task, *getattr(self, "_h2_tasks", ()), *getattr(self, "_finishing_calls", ())}
        return {task for task in tasks if task is not None and not task.done()}


def _bytes(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text
