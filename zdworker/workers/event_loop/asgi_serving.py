"""Serving an ASGI application on an event loop: what uvicorn's server and Gunicorn's ASGI stack have in common here.

Rules:

* The application is wrapped by :class:`zdworker.workers.asgi.drain.AsgiDrain`, which closes its WebSockets in a drain.
* With TLS a connection counts from the beginning of its handshake, though its server knows it only behind that.
"""

from __future__ import annotations

import abc
import gc
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from zdworker.workers.answers import AnswerCounter, asgi_counted
from zdworker.workers.applications import AsgiApplication, Send
from zdworker.workers.asgi.drain import AsgiDrain
from zdworker.workers.asgi.warmup import ask, warm_up
from zdworker.workers.drain import InFlight
from zdworker.workers.event_loop.serving import ServedWorker, Serving
from zdworker.workers.health import HealthWorker, asgi_with_health

COLLECT_EVERY_ROUNDS = 10
"""Rounds through the connections between two garbage collections that look for failed handshakes: once a second."""


class Worker(ServedWorker, HealthWorker, Protocol):
    """What a server of an ASGI application needs of its worker."""


class AsgiServing(Serving):
    """A server of an ASGI application; its connections are protocols of asyncio."""

    worker: Worker
    asgi: AsgiDrain
    application: AsgiApplication
    """The application as it was loaded, without what zdworker puts before it."""

    def __init__(self, worker: ServedWorker, keepalive_s: float) -> None:
        super().__init__(worker, keepalive_s)
        self.handshakes: weakref.WeakSet[Any] = weakref.WeakSet()
        """Protocols that exist since before their TLS handshake, after which they get their ``transport``."""
        self._rounds = 0

    @abc.abstractmethod
    def prepare(self, send: Send) -> None:
        """Have the response to a request that begins during the drain, whose ASGI ``send`` this is, end its connection,
        or offer it to the successor.
        """

    @abc.abstractmethod
    def warm_up_basis(self) -> Mapping[str, Any]:
        """Return what the server adds to the scope of a warm-up request."""

    async def warm_up(self, paths: Sequence[str], timeout_s: float) -> None:
        """Call the application for each of ``paths``.

        :raises WarmupFailed: one was not answered, or with status 400 or above.
        """
        await warm_up(lambda path: ask(self.application, path, self.warm_up_basis()), paths, timeout_s)

    def count(self, counter: AnswerCounter) -> None:
        """Have the answers of the application counted from now on."""
        self.asgi.app = asgi_with_health(asgi_counted(self.application, counter), self.worker)

    # -- draining ----------------------------------------------------------------------------------------------------

    def zd_in_flight(self) -> InFlight:
        """Return what is under way; connections in their TLS handshake are among the connections."""
        websockets = len(self.asgi.websockets)
        connections = len(self.connections()) + self._shaking_hands()
        return InFlight(connections, max(0, self.running() - websockets), websockets)

    def zd_begin_drain(self) -> None:
        """Announce the end on each connection, and begin to close the WebSockets."""
        self.asgi.begin(self.drain.websocket_spread_s)
        if not self.drain.gives:
            self.end_responses()
            return
        self.draining, self.asgi.prepare = True, self.prepare
        for protocol in list(self.connections()):
            self.announce_or_offer(protocol)

    def end_responses(self) -> None:
        """Have the responses to requests that begin from now on end their connections, too."""
        self.asgi.prepare = self.prepare
        super().end_responses()

    def zd_is_empty(self) -> bool:
        """Return whether no connection is open or in its handshake, and no call of the application runs."""
        return super().zd_is_empty() and not self._shaking_hands()

    def zd_tend(self, now: float) -> None:
        """End the connections whose own time is over, and forget handshakes that have failed or take too long."""
        super().zd_tend(now)
        if now >= self.drain.unused_until:
            self.handshakes.clear()
        elif self._rounds % COLLECT_EVERY_ROUNDS == 0:
            self._forget_failed_handshakes()
        self._rounds += 1

    def _shaking_hands(self) -> int:
        return sum(1 for protocol in self.handshakes if protocol.transport is None)

    def _forget_failed_handshakes(self) -> None:
        # The protocol of a handshake that failed is garbage, but in a reference cycle.
        if self._shaking_hands() and super().zd_is_empty():
            gc.collect()
