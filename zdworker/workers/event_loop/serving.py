"""Booting and draining on an event loop: what uvicorn's server and Gunicorn's ASGI stack have in common here.

Rules:

* The drain has one deadline, the worker's ``zd_deadline``. Everything that waits looks at it again and again: it may
  come nearer meanwhile.
* Idle connections are not closed unannounced before it; each server's connections know when their own time is over.
* The heart beats, and the parent is watched, to the end: whatever is awaited here, :meth:`Serving.tick` goes on.
* Nothing is awaited unbounded, threads are never joined: ``run()`` returns in time, whatever the application does.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import gc
import socket
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zdworker.workers.applications import Send
from zdworker.workers.asgi.drain import AsgiDrain
from zdworker.workers.asgi.warmup import warm_up
from zdworker.workers.base import UNUSED

if TYPE_CHECKING:
    from zdworker.workers.event_loop.worker import LoopWorker

TICK = 0.1
"""Seconds between two ticks while something is awaited, uvicorn's own measure."""

GLANCE = 0.02
"""Seconds between two looks at whether the last connection is gone: a reload waits for it."""

FAREWELL = 0.5
"""Seconds that lifespan shutdown has at least, even behind the deadline."""

LEFTOVERS = 0.1
"""Seconds that tasks of the application which outlive the server have to end when they are cancelled, and as many for
its asynchronous generators; all that comes behind the deadline is less than the second after which the master kills."""

ACCEPTS = 8
"""Connections that a worker on uvloop may accept in one turn of its loop, instead of one: see :func:`shares`."""

BOOT_MARGIN = 1.0
"""Seconds before ``zd_boot_timeout`` at which the warm-up gives up, to tell what was not answered."""


class ToldToLeave(Exception):
    """The worker was told to leave while it booted."""


class Serving(abc.ABC):
    """A server in the making, serving, and draining, for one worker."""

    asgi: AsgiDrain

    def __init__(self, worker: LoopWorker) -> None:
        self.worker = worker
        self.is_open = False
        """Connections are accepted, or have been."""
        self.draining = False
        self.handshakes: weakref.WeakSet[Any] = weakref.WeakSet()
        """Protocols that exist since before their TLS handshake, after which they get their ``transport``."""
        self.unused_until = self.notice_at = 0.0
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boot: asyncio.Task[Any] | None = None

    # -- what each server knows for itself ---------------------------------------------------------------------------

    @abc.abstractmethod
    def connections(self) -> Collection[Any]:
        """Return the protocols of the open connections."""

    @abc.abstractmethod
    def load(self) -> tuple[int, int]:
        """Return the number of open connections, and of requests answered since birth."""

    @abc.abstractmethod
    def running(self) -> int:
        """Return how many calls of the application run, WebSockets included."""

    @abc.abstractmethod
    def announce(self, protocol: Any) -> None:
        """Have the response under way on a connection, if there is one, end that."""

    @abc.abstractmethod
    def prepare(self, send: Send) -> None:
        """Do the same for a request that begins during the drain."""

    @abc.abstractmethod
    def tend(self, protocol: Any, now: float) -> None:
        """Let a connection end whose own time is over at ``now``, by ``time.monotonic()``."""

    @abc.abstractmethod
    def warm_up_basis(self) -> Mapping[str, Any]:
        """Return what the server adds to the scope of a warm-up request."""

    async def tick(self) -> None:
        """Beat the heart; and whatever else the server does ten times a second."""
        self.worker.notify()
        if self.load()[1] >= self.worker.max_requests:  # which is set aside where our arbiter sends a replacement first
            self.worker.zd_leave(self.worker.cfg.graceful_timeout)
        elif not self.worker.alive:
            self.worker.zd_leave(0.0)  # Gunicorn's reloader says so, of a file that changed

    # -- booting -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Take notice that the worker was told to leave; for signal handlers."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._notice)

    def _notice(self) -> None:
        self._told.set()
        if self._boot is not None:
            self._boot.cancel()

    def begin_boot(self) -> None:
        """To be called first on the running loop.

        :raises ToldToLeave: the worker has been told so already.
        """
        self._loop = asyncio.get_running_loop()
        if self.worker.zd_leaving or not self.worker.alive:
            raise ToldToLeave

    async def boot(self, start_lifespan: Callable[[], Awaitable[bool]]) -> None:
        """Run lifespan startup, then the warm-up; who is told to leave after this is heard by the drain.

        :param start_lifespan: returns whether the application can serve.
        :raises ToldToLeave: the worker was told so meanwhile.
        :raises SystemExit: (3) the warm-up failed; it is reported.
        """
        self._boot = asyncio.current_task()
        try:
            if await start_lifespan():
                await self._warm_up(self.worker.zd_settings.warmup)
        except asyncio.CancelledError:
            if not self.worker.zd_leaving:
                raise
        finally:
            self._boot = None
        if self.worker.zd_leaving:
            raise ToldToLeave

    async def _warm_up(self, paths: Sequence[str]) -> None:
        if not paths:
            return
        patience = self.worker.zd_settings.boot_timeout - (time.monotonic() - self.worker.zd_born) - BOOT_MARGIN
        try:
            await warm_up(self.asgi.app, paths, self.warm_up_basis(), max(0.0, patience))
        except Exception as error:  # noqa: BLE001  # whatever the application raises
            self.worker.zd_warmup_failed(error)

    async def opened(self) -> None:
        """Report that connections are accepted."""
        self.is_open = True
        # A loop takes a listener up with its next poll (libuv) or callback (asyncio): until then this is not ready.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.worker.zd_ready()

    async def until_told(self, tick: float) -> None:
        """Serve, with a tick each ``tick`` seconds, until the worker is told to leave."""
        while not self.worker.zd_leaving:
            await self.tick()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told.wait(), tick)

    # -- draining ----------------------------------------------------------------------------------------------------

    async def drain(self, listeners: Sequence[Any], keepalive: float) -> bool:
        """Stop accepting, and see every connection to its end.

        :param listeners: the loop's servers.
        :param keepalive: seconds that a connection is kept between two requests.
        :return: whether they all ended by themselves; if not, it is logged how many did not before the deadline.
        """
        await self._stop_accepting(listeners)
        self.worker.zd_draining()
        self.draining = True
        self.worker.log.info("Draining: %d connections, %d requests under way", *self._under_way())
        now = time.monotonic()
        left = self.worker.zd_deadline - now
        self.unused_until, self.notice_at = now + max(UNUSED, keepalive), now + left / 2
        # A second of what is left is for the last one's close handshake.
        self.asgi.begin(self.prepare, max(0.0, min(self.worker.zd_settings.websocket_drain, left - 1.0)))
        for protocol in list(self.connections()):
            self.announce(protocol)
        await self._until_empty()
        if self._is_empty():
            return True
        connections, requests = self._under_way()
        self.worker.log.warning(
            "graceful_timeout is over: %d requests, %d WebSockets and %d connections in all are cut",
            requests,
            len(self.asgi.websockets),
            connections,
        )
        return False

    async def _stop_accepting(self, listeners: Sequence[Any]) -> None:
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # A close between accept and the task that takes the connection up loses it (CPython 3.10 to 3.13): first
            # nothing more is accepted, then what was accepted gets its two turns.
            for listener in listeners:
                for sock in listener.sockets:
                    self._loop.remove_reader(sock.fileno())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for listener in listeners:
            listener.close()

    async def _until_empty(self) -> None:
        count, next_tick = 0, time.monotonic()
        while not self._is_empty() and (now := time.monotonic()) < self.worker.zd_deadline:
            if now >= next_tick:
                next_tick = now + TICK
                await self.tick()
                for protocol in list(self.connections()):
                    self.tend(protocol, now)
                if now >= self.unused_until:
                    self.handshakes.clear()
                elif count % 10 == 0:
                    self._forget_failed_handshakes()
                count += 1
            await asyncio.sleep(GLANCE)

    def _is_empty(self) -> bool:
        return not self.connections() and not self.running() and not self._shaking_hands()

    def _under_way(self) -> tuple[int, int]:
        requests = max(0, self.running() - len(self.asgi.websockets))
        return len(self.connections()) + self._shaking_hands(), requests

    def _shaking_hands(self) -> int:
        return sum(1 for protocol in self.handshakes if protocol.transport is None)

    def _forget_failed_handshakes(self) -> None:
        # The protocol of a handshake that failed is garbage, but in a reference cycle.
        if self._shaking_hands() and not self.connections() and not self.running():
            gc.collect()

    async def until_done(self, farewell: Coroutine[Any, Any, None]) -> None:
        """Run ``farewell`` for what is left of the drain's time, at least :data:`FAREWELL` seconds, heart beating."""
        end = max(self.worker.zd_deadline, time.monotonic() + FAREWELL)
        task = asyncio.get_running_loop().create_task(farewell)
        while not task.done() and (left := end - time.monotonic()) > 0:
            await self.tick()
            await asyncio.wait({task}, timeout=min(TICK, left))
            end = min(end, max(self.worker.zd_deadline, time.monotonic() + FAREWELL))
        if task.done():
            task.result()
        else:
            task.cancel()
            self.worker.log.error("Lifespan shutdown has not ended in time and is cut")


def shares(sockets: Sequence[Any]) -> list[socket.socket]:
    """Return what the running loop is to listen on: ``sockets``, bare, and on uvloop :data:`ACCEPTS` copies of each.

    libuv accepts one connection for each descriptor and turn (since 1.49), and with a thousand busy connections a turn
    takes a tenth of a second: the hundreds that a draining worker sends away would wait for seconds in the others'
    queue. asyncio takes up to the whole queue in a turn.
    """
    bare = [getattr(sock, "sock", sock) for sock in sockets]  # Gunicorn wraps its sockets
    if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        return bare
    return [copy for sock in bare for copy in (sock, *(sock.dup() for _ in range(ACCEPTS - 1)))]


def wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what the application left running.

    The loop is not closed: threads that still run (``run_in_executor``, sync endpoints) would raise when they are done,
    and the process ends right after.
    """
    leftovers = asyncio.all_tasks(loop)
    for task in leftovers:
        task.cancel()
    # asyncio.wait, since asyncio.wait_for would wait for what it has cancelled, and code can swallow that.
    if leftovers:
        loop.run_until_complete(asyncio.wait(leftovers, timeout=LEFTOVERS))
    closing = loop.create_task(loop.shutdown_asyncgens())
    loop.run_until_complete(asyncio.wait({closing}, timeout=LEFTOVERS))
