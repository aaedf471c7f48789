"""The drain as the application sees it: an ASGI wrapper around the whole application.

Rules:

* Before the drain, an HTTP request costs one plain call and two comparisons; nothing is kept about it.
* A WebSocket is closed with 1012 ("service restart", RFC 6455 7.4.1 and the IANA registry) as the application would do
  it, by ``websocket.close``: the close handshake completes and the application's ``receive()`` sees it.
* This file knows nothing of a server but the ASGI messages; what the server has to do is handed in (``prepare``,
  ``on_closed``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from zdworker.workers.applications import AsgiApplication, Event, Receive, Scope, Send
from zdworker.workers.asgi.websocket_schedule import (
    ANSWER_WAIT_S,
    SERVICE_RESTART,
    close_delays,
    delay_after_accept,
)
from zdworker.workers.bounded import done_within

logger = logging.getLogger("gunicorn.error")


class WebSocketEnded(OSError, RuntimeError):
    """The application sends on a WebSocket that the drain has closed.

    It is an OSError, as the ASGI specification (2.4) has it, and a RuntimeError, which Gunicorn before 27 raises.
    """


class LiveWebSocket:
    """A WebSocket from the application's call to its return.

    :param receive, send: the server's.
    :param on_closed: is called with ``send`` when the drain has closed it, for a server that does not report that to
        the application.
    """

    def __init__(self, receive: Receive, send: Send, on_closed: Callable[[Send], None] | None = None) -> None:
        self._receive = receive
        self._send = send
        self._on_closed = on_closed
        self.accepted = False
        self._receiving = False
        self._answered = False
        self._between_messages: asyncio.Future[None] | None = None
        self.closed = False
        """Whether the application has closed it."""
        self.ended: WebSocketEnded | None = None
        """What the application's ``send`` raises since the drain has closed it; None before."""
        self.on_accept: Callable[[LiveWebSocket], None] | None = None

    async def receive(self) -> Event:
        """Pass on what the client sends."""
        self._receiving = True
        self._check_between_messages()
        try:
            return await self._receive()
        finally:
            self._receiving = False

    async def send(self, message: Event) -> None:
        """Pass on what the application sends, until the drain has closed the WebSocket.

        :raises WebSocketEnded: the drain has closed it.
        """
        kind = message["type"]
        if self.ended is not None:
            if kind == "websocket.close":
                return
            raise self.ended
        if kind == "websocket.close":
            self.closed = True
        await self._send(message)
        if kind == "websocket.send":
            self._answered = True
            self._check_between_messages()
        elif kind == "websocket.accept":
            self.accepted = True
            if self.on_accept is not None:
                self.on_accept(self)

    def _check_between_messages(self) -> None:
        waiting = self._between_messages
        if waiting is not None and self._answered and self._receiving and not waiting.done():
            waiting.set_result(None)

    async def wait_for_answer(self, timeout_s: float) -> None:
        """Wait until the application has answered its client and receives the next message, at most ``timeout_s``."""
        self._answered = False
        self._between_messages = asyncio.get_running_loop().create_future()
        await done_within(self._between_messages, timeout_s)

    async def close(self) -> None:
        """Close it with 1012, unless it is closed already or not accepted yet."""
        if self.ended is not None or self.closed or not self.accepted:
            return
        self.ended = WebSocketEnded("closed with 1012: the worker is replaced")
        try:
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": ""})
        except OSError:
            pass  # the client has gone
        except Exception as error:  # noqa: BLE001  # whatever the protocol says: the application's task goes on
            logger.debug("A WebSocket could not be closed with 1012: %r", error)
        if self._on_closed is not None:
            self._on_closed(self._send)


class AsgiDrain:
    """The wrapper; one for a worker.

    :param app: the application, as the server would call it.
    :param on_closed: see :class:`LiveWebSocket`.
    """

    def __init__(self, app: AsgiApplication, on_closed: Callable[[Send], None] | None = None) -> None:
        self.app = app
        self.websockets: set[LiveWebSocket] = set()
        self.prepare: Callable[[Send], None] | None = None
        """Gets the server's ``send`` of each further HTTP request, for a server that announces its end there."""
        self._on_closed = on_closed
        self._draining = False
        self._spread_s = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the application. This is no coroutine function, which would be one frame more for each request."""
        kind = scope["type"]
        if kind == "websocket":
            return self.websocket(scope, receive, send)
        if self.prepare is not None and kind == "http":
            self.prepare(send)
        return self.app(scope, receive, send)

    def begin(self, spread_s: float) -> None:
        """Begin to close the WebSockets.

        :param spread_s: seconds over which the WebSockets are closed
            (:mod:`zdworker.workers.asgi.websocket_schedule`).
        """
        self._draining = True
        self._spread_s = max(0.0, spread_s)
        open_now = list(self.websockets)
        for websocket, delay in zip(open_now, close_delays(len(open_now), self._spread_s), strict=True):
            websocket.on_accept = self._close_accepted
            self._close_later(websocket, delay)

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application for a WebSocket."""
        websocket = LiveWebSocket(receive, send, self._on_closed)
        if self._draining:
            websocket.on_accept = self._close_accepted
        self.websockets.add(websocket)
        try:
            await self.app(scope, websocket.receive, websocket.send)
        except Exception as error:
            # Frameworks raise an exception of their own for it (Starlette: WebSocketDisconnect). Uncaught, it would be
            # a traceback in the log for each WebSocket at each deploy. After a close an application returns.
            if websocket.ended is None or not _comes_of(error, websocket.ended):
                raise
        finally:
            self.websockets.discard(websocket)

    def _close_accepted(self, websocket: LiveWebSocket) -> None:
        self._close_later(websocket, delay_after_accept(self._spread_s))

    def _close_later(self, websocket: LiveWebSocket, delay: float) -> None:
        # Each has its own task, because with some protocols closing takes until the peer has answered.
        task = asyncio.get_running_loop().create_task(_close_after(websocket, delay))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _close_after(websocket: LiveWebSocket, delay: float) -> None:
    await asyncio.sleep(delay)
    await websocket.wait_for_answer(ANSWER_WAIT_S)
    await websocket.close()


def _comes_of(error: BaseException, origin: BaseException) -> bool:
    """Return whether ``error`` was raised in handling ``origin``; for a group, whether all its members were."""
    seen: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        this = ahead.pop()
        if this is origin:
            return True
        if this is None or any(this is known for known in seen):
            continue
        members = getattr(this, "exceptions", ())
        if members:  # a task group's
            return all(_comes_of(member, origin) for member in members)
        seen.append(this)
        ahead += [this.__cause__, this.__context__]
    return False
