"""Booting, serving and draining on an event loop: what all servers on asyncio or uvloop have in common here.

Rules:

* The course of the drain is :class:`zdworker.workers.drain.Drain`; this is its front for event loops.
* The drain has one deadline, the worker's ``zd_deadline``. Everything that waits reads it again and again, because it
  may come nearer meanwhile.
* Responses end their connections from the signal handler on, not only from the loop's next turns: the handler of the
  application whose response comes next may have blocked the loop.
* Idle connections are not closed unannounced before it; each server's connections know when their own time is over.
* The worker sends heartbeats and watches its parent to the end: :meth:`Serving.tick` goes on, whatever is awaited here.
* Nothing is awaited without a bound and threads are never joined: ``run()`` returns in time, whatever the application
  does.
"""

from __future__ import annotations

import abc
import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from zdworker.ipc.hand_over import BATCH, HandOverQueue
from zdworker.ipc.hand_over import Connection as HandedOver
from zdworker.settings import Settings
from zdworker.workers.answers import REPORT_INTERVAL_S, AnswerCounter
from zdworker.workers.bounded import done_within
from zdworker.workers.drain import CUT_LINE_WITH_WEBSOCKETS, Drain, DrainableWorker, InFlight

HEARTBEAT_INTERVAL_S = 1.0
"""Seconds between two ticks while the worker serves, Gunicorn's own measure for its event loops."""

TICK_INTERVAL_S = 0.1
"""Seconds between two ticks in a drain, and while something is awaited."""

SHUTDOWN_MIN_S = 0.5
"""Seconds that lifespan shutdown has at least, even behind the deadline."""

LEFTOVER_TASKS_S = 0.1
"""Seconds that tasks of the application which outlive the server have to end when they are cancelled, and as many for
its asynchronous generators; all that comes behind the deadline is less than the second after which the master kills."""

CUT_S = 0.05
"""Seconds that what is cut at the deadline has to notice before its tasks are cancelled."""

UVLOOP_ACCEPTS = 8
"""Connections that a worker on uvloop may accept in one turn of its loop, instead of one: see :func:`shares`."""

WARM_UP_MARGIN_S = 1.0
"""Seconds before ``zd_boot_timeout`` at which the warm-up gives up, to report what was not answered."""


class LeaveRequested(Exception):
    """The worker has to leave while it boots."""


class ServedWorker(DrainableWorker, Protocol):
    """What a server on an event loop needs of its worker, a :class:`zdworker.workers.event_loop.worker.LoopWorker`."""

    @property
    def cfg(self) -> Any:
        """Gunicorn's configuration."""

    @property
    def alive(self) -> bool:
        """False once Gunicorn's code wants the worker to end."""

    @property
    def max_requests(self) -> int:
        """Requests after which the worker leaves by itself; without limit under zdworker's arbiter."""

    @property
    def zd_settings(self) -> Settings:
        """The settings of zdworker."""

    @property
    def zd_boot_started_at(self) -> float:
        """When the worker was made, by ``time.monotonic()``."""

    @property
    def zd_leaving(self) -> bool:
        """Whether the worker has to leave."""

    def zd_leave(self, grace: float) -> None:
        """Begin the drain, or shorten it, to ``grace`` seconds from now."""

    @property
    def zd_counter(self) -> AnswerCounter | None:
        """What the worker has answered; None as long as it does not count."""

    def zd_count_if_wanted(self) -> None:
        """Begin to count, if the configuration asks for that."""

    def notify(self) -> None:
        """Send a heartbeat, and check parent and limits from time to time."""

    def zd_take_signals_back(self) -> None:
        """Put the worker's signal handlers in place again."""

    def zd_ready(self) -> None:
        """Report that the worker accepts connections."""

    def zd_take_or_stop(self) -> bool:
        """Take over connections that wait in the queue; return whether it has to be watched further."""

    def zd_warmup_failed(self, error: Exception) -> Any:
        """Report that the warm-up failed.

        :raises SystemExit: (3) always.
        """


class Serving(abc.ABC):
    """A server that boots, serves and drains for one worker; abstract in what a kind of server knows for itself.

    :param keepalive_s: seconds that a connection is kept between two requests.
    """

    def __init__(self, worker: ServedWorker, keepalive_s: float) -> None:
        self.worker = worker
        self.is_open = False
        """Whether connections are accepted, or have been."""
        self.draining = False
        """Whether responses end their connections."""
        self.listeners: Sequence[Any] = ()
        """The event loop's servers, once there are any."""
        self.drain = Drain(
            self,
            worker,
            keepalive_s=keepalive_s,
            websocket_spread_s=worker.zd_settings.websocket_drain,
            cut_line=CUT_LINE_WITH_WEBSOCKETS,
        )
        self._leave_requested: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boot: asyncio.Task[Any] | None = None
        self._offered: dict[Any, None] = {}
        self._detached: list[HandedOver] = []
        self._offer: asyncio.Future[None] | None = None
        self._watched_queue: HandOverQueue | None = None
        self._attaching: set[asyncio.Task[None]] = set()

    # -- what each server knows for itself ---------------------------------------------------------------------------

    @abc.abstractmethod
    def connections(self) -> Collection[Any]:
        """Return the open connections, as the server's own objects for them."""

    @abc.abstractmethod
    def load(self) -> tuple[int, int]:
        """Return the number of open connections, and of requests answered since boot."""

    @abc.abstractmethod
    def count(self, counter: AnswerCounter) -> None:
        """Have the answers of the application counted from now on."""

    @abc.abstractmethod
    def running(self) -> int:
        """Return how many calls of the application run, WebSockets included."""

    @abc.abstractmethod
    def tend(self, connection: Any, now: float) -> None:
        """End one of :meth:`connections` if its own time is over at ``now``, by ``time.monotonic()``."""

    def announce(self, connection: Any) -> None:  # noqa: B027  # servers with nothing to do for it need not say so
        """Have the response under way on one of :meth:`connections`, if there is one, end that connection.

        It does nothing here: some servers decide that by themselves when they write a head.
        """

    @abc.abstractmethod
    def can_move(self, connection: Any) -> bool:
        """Return whether one of :meth:`connections` is of a kind that can be handed over, now or later."""

    def when_answered(self, connection: Any, offer: Callable[[], None]) -> None:  # noqa: B027  # as above
        """Have ``offer`` called when the response under way on a connection is complete, if there is one."""

    def hold(self, connection: Any) -> None:  # noqa: B027  # as above
        """Leave the next request of a connection that can move in its socket."""

    def read_on(self, connection: Any) -> None:  # noqa: B027  # as above
        """Undo :meth:`hold`."""

    @abc.abstractmethod
    def detach(self, connection: Any) -> HandedOver | None:
        """Let go of a connection, and return what is handed over; None if it cannot move at this moment."""

    @abc.abstractmethod
    async def attach(self, connection: HandedOver) -> None:
        """Serve a connection that another worker has handed over."""

    @abc.abstractmethod
    async def warm_up(self, paths: Sequence[str], timeout_s: float) -> None:
        """Have the application answer ``paths``, all of them within ``timeout_s`` seconds.

        :raises WarmupFailed: one was not answered, or with status 400 or above.
        """

    @abc.abstractmethod
    def zd_in_flight(self) -> InFlight:
        """Return what is under way now."""

    @abc.abstractmethod
    def zd_begin_drain(self) -> None:
        """Announce the end on each connection, and begin to close the WebSockets."""

    # -- booting -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the loop notice that the worker has to leave; for signal handlers."""
        if self.is_open and not self.worker.zd_gives:
            self.end_responses()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._notice)

    def _notice(self) -> None:
        if self._leave_requested is not None and not self._leave_requested.done():
            self._leave_requested.set_result(None)
        if self._boot is not None:
            self._boot.cancel()

    def begin_boot(self) -> None:
        """Take up the running loop; to be called first on it.

        :raises LeaveRequested: the worker has to leave already.
        """
        self._loop = asyncio.get_running_loop()
        self._leave_requested = self._loop.create_future()
        if self.worker.zd_leaving or not self.worker.alive:
            raise LeaveRequested

    async def boot(self, start_lifespan: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Run lifespan startup, then the warm-up. A worker that has to leave after this drains.

        :param start_lifespan: returns whether the application can serve.
        :raises LeaveRequested: the worker has to leave meanwhile.
        :raises SystemExit: (3) the warm-up failed; it is reported.
        """
        self._boot = asyncio.current_task()
        try:
            if start_lifespan is None or await start_lifespan():
                # Before anything is accepted: a TERM would reach only the handler that lifespan startup has set.
                self.worker.zd_take_signals_back()
                await self._warm_up(self.worker.zd_settings.warmup)
        except asyncio.CancelledError:
            if not self.worker.zd_leaving:
                raise
        finally:
            self._boot = None
        if self.worker.zd_leaving:
            raise LeaveRequested

    async def _warm_up(self, paths: Sequence[str]) -> None:
        if not paths:
            return
        booting_since = self.worker.zd_boot_started_at
        left_s = self.worker.zd_settings.boot_timeout - (time.monotonic() - booting_since) - WARM_UP_MARGIN_S
        try:
            await self.warm_up(paths, max(0.0, left_s))
        except Exception as error:  # noqa: BLE001  # whatever the application raises
            self.worker.zd_warmup_failed(error)

    async def opened(self) -> None:
        """Report that connections are accepted."""
        self.is_open = True
        self.worker.zd_count_if_wanted()
        # A loop takes a listener up with its next poll (libuv) or callback (asyncio): until then this is not ready.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.worker.zd_ready()
        queue = self.worker.zd_queue
        if queue is not None and self.worker.zd_takes and self._loop is not None:
            self._watched_queue = queue
            self._loop.add_reader(queue.fileno(), self._take)

    # -- taking over -------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        if not self.worker.zd_take_or_stop():
            self._stop_taking()

    def _stop_taking(self) -> None:
        queue, self._watched_queue = self._watched_queue, None
        if queue is not None and self._loop is not None:
            self._loop.remove_reader(queue.fileno())

    def zd_take(self, connection: HandedOver) -> None:
        """Serve a connection from the next turn of the loop on."""
        task = asyncio.get_running_loop().create_task(self.attach(connection))
        self._attaching.add(task)
        task.add_done_callback(self._attached)

    def _attached(self, task: asyncio.Task[None]) -> None:
        self._attaching.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.worker.log.error("A connection that was handed over cannot be served: %r", error)

    # -- serving -----------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Send a heartbeat, and see whether the worker is to leave by itself."""
        self.worker.notify()
        if self.load()[1] >= self.worker.max_requests:  # unlimited where zdworker's arbiter sends a replacement first
            self.worker.zd_leave(self.worker.cfg.graceful_timeout)
        elif not self.worker.alive:
            self.worker.zd_leave(0.0)  # Gunicorn's reloader says so, of a file that changed

    async def until_leaving(self, tick_s: float) -> None:
        """Serve, with a tick each ``tick_s`` seconds, until the worker has to leave."""
        assert self._leave_requested is not None  # noqa: S101 (for the type checker: begin_boot() has made it)
        while not self.worker.zd_leaving:
            await self.tick()
            counts = self.worker.zd_counter is not None
            await done_within(self._leave_requested, min(tick_s, REPORT_INTERVAL_S) if counts else tick_s)

    # -- draining ----------------------------------------------------------------------------------------------------

    def end_responses(self) -> None:
        """Have each response whose head is not written yet end its connection; may be called in a signal handler."""
        self.draining = True
        for connection in list(self.connections()):
            self.announce(connection)

    async def drain_connections(self) -> bool:
        """Stop accepting, see every connection to its end, and cut what is left at the deadline.

        :return: whether all connections ended by themselves.
        """
        self._stop_taking()
        next_tick = time.monotonic()
        for pause_s in self.drain.steps():
            if (now := time.monotonic()) >= next_tick:
                next_tick = now + TICK_INTERVAL_S
                await self.tick()
            await self._pause(pause_s)
        return self.drain.cut is None

    async def _pause(self, pause_s: float) -> None:
        """Wait, but not longer than until a connection can be given."""
        if not pause_s:
            await asyncio.sleep(0)
            return
        if self._offer is None:
            self._offer = asyncio.get_running_loop().create_future()
        if await done_within(self._offer, pause_s):
            self._offer = None

    def zd_stop_accepting(self) -> Iterable[float]:
        """Close the listeners, and lose no connection that was accepted.

        A loop takes up an accepted connection in its next turns, and the drain must not find the worker empty before.
        """
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # A close between accept and the task that takes the connection up loses it (CPython 3.10 to 3.13): first
            # nothing more is accepted, then what was accepted gets its two turns.
            for listener in self.listeners:
                for sock in listener.sockets:
                    self._loop.remove_reader(sock.fileno())
            yield 0.0
            yield 0.0
        for listener in self.listeners:
            listener.close()
        yield 0.0
        yield 0.0

    def zd_is_empty(self) -> bool:
        """Return whether no connection is open and no call of the application runs."""
        return not (self.connections() or self.running() or self._attaching or self._detached)

    def zd_tend(self, now: float) -> None:
        """End the connections whose own time is over, and offer the others to the successor."""
        for connection in list(self.connections()):
            self.tend(connection, now)
            if self.drain.gives and self.can_move(connection):
                self._offered[connection] = None

    def announce_or_offer(self, connection: Any) -> None:
        """Offer a connection to the successor, once it can move; or announce its end, if it cannot."""
        if self.drain.gives and self.can_move(connection):
            self.when_answered(connection, partial(self._answered, connection))
            self.offer(connection)
        else:
            self.announce(connection)

    def _answered(self, connection: Any) -> None:
        # It may have become a WebSocket; and once there is no successor, nothing would read on again.
        if self.drain.gives and self.can_move(connection):
            self.hold(connection)  # or a client that never rests has sent its next request before the drain looks
            self.offer(connection)

    def offer(self, connection: Any) -> None:
        """Have the drain look at once whether a connection can move."""
        self._offered[connection] = None
        self._look_for_offers()

    def hand_over(self, detached: HandedOver) -> None:
        """Have the drain give a connection that the server has let go of."""
        self._detached.append(detached)
        self._look_for_offers()

    def _look_for_offers(self) -> None:
        if self._offer is not None and not self._offer.done():
            self._offer.set_result(None)

    def zd_give(self) -> list[HandedOver]:
        """Return the connections that can move now."""
        given, self._detached = self._detached[:BATCH], self._detached[BATCH:]
        while self._offered and len(given) < BATCH:
            connection, _ = self._offered.popitem()
            detached = self.detach(connection)
            if detached is not None:
                given.append(detached)
            elif self.can_move(connection):
                self.read_on(connection)
        return given

    def zd_keep(self) -> None:
        """Announce the end on each connection."""
        self._offered.clear()
        detached, self._detached = self._detached, []
        for connection in detached:
            self.zd_take(connection)
        for connection in filter(self.can_move, list(self.connections())):
            self.read_on(connection)
        self.end_responses()

    def zd_cut(self) -> Iterable[float]:
        """Leave what the deadline has found to the server's own end."""
        return ()

    async def until_done(self, shutdown: Coroutine[Any, Any, None]) -> None:
        """Run lifespan shutdown for what is left of the drain's time, at least :data:`SHUTDOWN_MIN_S` seconds.

        Heartbeats go on meanwhile. A shutdown that takes longer is cancelled, and that is logged.
        """
        end = max(self.worker.zd_deadline, time.monotonic() + SHUTDOWN_MIN_S)
        task = asyncio.get_running_loop().create_task(shutdown)
        while not task.done() and (left := end - time.monotonic()) > 0:
            await self.tick()
            await done_within(task, min(TICK_INTERVAL_S, left))
            end = min(end, max(self.worker.zd_deadline, time.monotonic() + SHUTDOWN_MIN_S))
        if task.done():
            task.result()
        else:
            task.cancel()
            self.worker.log.error("Lifespan shutdown has not ended in time and is cut")


def shares(sockets: Sequence[Any]) -> list[socket.socket]:
    """Return what the running loop listens on: ``sockets``, bare, and on uvloop :data:`UVLOOP_ACCEPTS` copies of each.

    libuv accepts one connection for each descriptor and turn (since 1.49), and with a thousand busy connections a turn
    takes a tenth of a second. The hundreds that a draining worker sends away would wait for seconds in the others'
    queue. asyncio takes up to the whole queue in a turn.
    """
    bare = [getattr(sock, "sock", sock) for sock in sockets]  # Gunicorn wraps its sockets
    if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        return bare
    return [copy for sock in bare for copy in (sock, *(sock.dup() for _ in range(UVLOOP_ACCEPTS - 1)))]


def run_to_end(loop: asyncio.AbstractEventLoop, serving: Coroutine[Any, Any, None]) -> None:
    """Run a server on ``loop`` until its drain is over, then cancel what the application has left running.

    :raises SystemExit: (0) the worker had to leave before it was ready; or as ``serving`` raises it.
    """
    task = loop.create_task(serving)
    try:
        while not _runs_to_its_end(loop, task):
            pass  # the application has stopped the loop, in a signal handler for one; the drain needs it
    except LeaveRequested:
        raise SystemExit(0) from None
    finally:
        wind_up(loop)


def _runs_to_its_end(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> bool:
    """Run ``loop`` until ``task`` is done and return True, or until something has stopped the loop and return False.

    :raises BaseException: what ``task`` has raised.
    """
    try:
        loop.run_until_complete(task)
    except RuntimeError:
        if task.done() or loop.is_closed():
            raise
        return False
    finally:
        if task.done() and not task.cancelled():
            task.exception()  # it is raised here already; asyncio need not log it once more
    return True


def wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what the application left running.

    The loop is not closed: threads that still run (``run_in_executor``, sync endpoints) would raise when they are done,
    and the process ends right after.
    """
    leftovers = asyncio.all_tasks(loop)
    for task in leftovers:
        task.cancel()
    loop.run_until_complete(_all_done_within(leftovers, LEFTOVER_TASKS_S))
    loop.run_until_complete(_all_done_within({loop.create_task(loop.shutdown_asyncgens())}, LEFTOVER_TASKS_S))


async def _all_done_within(tasks: Iterable[asyncio.Task[Any]], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    for task in tasks:
        await done_within(task, end - time.monotonic())
