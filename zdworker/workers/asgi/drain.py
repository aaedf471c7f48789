"""The drain as the application sees it: an ASGI wrapper around the whole application.

Rules:

* While nobody drains, an HTTP request costs one plain call and two comparisons; nothing is kept about it.
* A WebSocket is told 1012 ("service restart", RFC 6455 7.4.1 and the IANA registry) the way the application would do
  it, by ``websocket.close``: the close handshake completes and the application's ``receive()`` sees it.
* Nothing of a server is known here but the ASGI messages; what it needs is handed in (``prepare``, ``on_closed``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from zdworker.workers.applications import AsgiApplication, Event, Receive, Scope, Send
from zdworker.workers.asgi.websocket_schedule import SERVICE_RESTART, SOON, late, moments

logger = logging.getLogger("gunicorn.error")


class WebSocketEnded(OSError, RuntimeError):
    """What the application's ``send`` raises once we have closed its WebSocket.

    An OSError, as the ASGI specification (2.4) has it, and a RuntimeError, which Gunicorn before 27 raises.
    """


class LiveWebSocket:
    """A WebSocket from the application's call to its return.

    :param receive, send: the server's.
    :param on_closed: is called with ``send`` when we have closed, for a server that does not tell the application.
    """

    def __init__(self, receive: Receive, send: Send, on_closed: Callable[[Send], None] | None = None) -> None:
        self._receive = receive
        self._send = send
        self._on_closed = on_closed
        self.accepted = False
        self._asking = False
        self._answered = False
        self._moment = asyncio.Event()
        self.closed = False
        """The application has closed it."""
        self.cut: WebSocketEnded | None = None
        """We have closed it; what the application's ``send`` raises since."""
        self.on_accept: Callable[[LiveWebSocket], None] | None = None

    async def receive(self) -> Event:
        """Pass on what the client sends."""
        self._asking = True
        self._look()
        try:
            return await self._receive()
        finally:
            self._asking = False

    async def send(self, message: Event) -> None:
        """Pass on what the application sends, until we have closed.

        :raises WebSocketEnded: we have closed: there is nobody to send to.
        """
        kind = message["type"]
        if self.cut is not None:
            if kind == "websocket.close":
                return
            raise self.cut
        if kind == "websocket.close":
            self.closed = True
        await self._send(message)
        if kind == "websocket.send":
            self._answered = True
            self._look()
        elif kind == "websocket.accept":
            self.accepted = True
            if self.on_accept is not None:
                self.on_accept(self)

    def _look(self) -> None:
        if self._answered and self._asking:
            self._moment.set()

    async def answer(self, seconds: float) -> None:
        """Wait until the application has answered its client and asks for what comes next, at most ``seconds``."""
        self._answered = False
        self._moment.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._moment.wait(), seconds)

    async def close(self) -> None:
        """Close it with 1012, unless somebody has."""
        if self.cut is not None or self.closed or not self.accepted:
            return
        self.cut = WebSocketEnded("closed with 1012: the worker is replaced")
        try:
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": ""})
        except OSError:
            pass  # it went away by itself
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
        self._on_closed = on_closed
        self._prepare: Callable[[Send], None] | None = None
        self._spread = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the application; not a coroutine function, to be one frame less for each request."""
        kind = scope["type"]
        if kind == "websocket":
            return self._websocket(scope, receive, send)
        if self._prepare is not None and kind == "http":
            self._prepare(send)
        return self.app(scope, receive, send)

    def begin(self, prepare: Callable[[Send], None], spread: float) -> None:
        """Begin the drain.

        :param prepare: gets the server's ``send`` of each further HTTP request.
        :param spread: seconds over which the WebSockets are closed (``websocket_drain.py``).
        """
        self._prepare = prepare
        self._spread = max(0.0, spread)
        standing = list(self.websockets)
        for websocket, delay in zip(standing, moments(len(standing), self._spread), strict=True):
            websocket.on_accept = self._close_accepted
            self._close_later(websocket, delay)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = LiveWebSocket(receive, send, self._on_closed)
        if self._prepare is not None:
            websocket.on_accept = self._close_accepted
        self.websockets.add(websocket)
        try:
            await self.app(scope, websocket.receive, websocket.send)
        except Exception as error:
            # Frameworks make their own exception of it (Starlette: WebSocketDisconnect); uncaught, it would be a
            # traceback in the log for each WebSocket at each deploy. After a close an application returns.
            if websocket.cut is None or not _comes_of(error, websocket.cut):
                raise
        finally:
            self.websockets.discard(websocket)

    def _close_accepted(self, websocket: LiveWebSocket) -> None:
        self._close_later(websocket, late(self._spread))

    def _close_later(self, websocket: LiveWebSocket, delay: float) -> None:
        # A task for each: with some protocols closing takes until the peer has answered.
        task = asyncio.get_running_loop().create_task(_close_after(websocket, delay))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _close_after(websocket: LiveWebSocket, delay: float) -> None:
    await asyncio.sleep(delay)
    await websocket.answer(SOON)
    await websocket.close()


def _comes_of(error: BaseException, origin: BaseException) -> bool:
    """Tell whether ``error`` was raised in handling ``origin``; a group, whether that is so of all its members."""
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
