"""The drain of a worker, for all worker classes: from the order to leave until its last connection is gone.

Rules:

* The course is one generator, :meth:`Drain.steps`. It stops accepting, reports that, tends the connections until none
  is left or the worker's deadline has come, and cuts the rest. It yields the seconds until it wants to go on.
* It never sleeps. A caller that owns its loop sleeps between two steps, with gevent or with asyncio; a caller inside
  another's loop takes a step in each turn (:meth:`Drain.advance`), which may be early.
* It does not send heartbeats: the caller does, since its loop knows when.
* The deadline is read again at each step, because it may come nearer during the drain.
* The server is asked only for what :class:`DrainableServer` says, and :class:`NamingServer` if it is one. Nothing of
  asyncio, gevent or Gunicorn is known here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from zdworker import texts
from zdworker.ipc.hand_over import Connection, HandOverQueue, QueueClosed
from zdworker.ipc.messages import CUT_PATHS_MAX, Drained, request_name

TEND_INTERVAL_S = 0.1
"""Seconds between two rounds through the connections, in which those end whose time is over."""

CHECK_INTERVAL_S = 0.02
"""Seconds between two checks whether the last connection is gone: a reload waits for it."""

UNUSED_CONNECTION_S = 5.0
"""Seconds from the drain's beginning, at least, that a connection is kept on which nothing has come yet."""

QUEUE_PATIENCE_S = 1.0
"""Seconds that a full queue is waited for before the connections are drained without a hand-over."""

QUEUE_RETRY_S = 0.01
"""Seconds between two attempts at a full queue."""

WEBSOCKET_CLOSE_S = 1.0
"""Seconds before the deadline that are left for the close handshake of the last WebSocket."""

BEGIN_LINE = "Draining: %(connections)s, %(requests)s under way"
END_LINE = "Drained in %.1f s: %s handed over, %d told to close"
CUT_LINE = "graceful_timeout is over: %(requests)s%(named)s and %(connections)s in all are cut"
CUT_LINE_WITH_WEBSOCKETS = (
    "graceful_timeout is over: %(requests)s%(named)s, %(websockets)s and %(connections)s in all are cut"
)


class InFlight(NamedTuple):
    """What a worker has under way at one moment."""

    connections: int
    """All open connections, those of requests and WebSockets included."""
    requests: int
    """Requests that are being answered, without WebSockets."""
    websockets: int = 0

    def counted(self) -> dict[str, str]:
        """Return each number with its noun, for the lines of the log."""
        nouns = {"connections": "connection", "requests": "request", "websockets": "WebSocket"}
        return {name: texts.counted(number, nouns[name]) for name, number in self._asdict().items()}


class DrainableServer(Protocol):
    """What a drain needs of the server. The names have the prefix because worker classes implement this themselves."""

    def zd_stop_accepting(self) -> Iterable[float]:
        """Close the listeners; a generator that yields the seconds until it wants to go on, or an empty tuple."""

    def zd_in_flight(self) -> InFlight:
        """Return what is under way now."""

    def zd_begin_drain(self) -> None:
        """Announce the end on each connection, except on those that :attr:`Drain.gives` is for. Called once, after
        accepting has stopped and that was logged.
        """

    def zd_tend(self, now: float) -> None:
        """End the connections whose own time is over at ``now``. Called every :data:`TEND_INTERVAL_S` seconds."""

    def zd_is_empty(self) -> bool:
        """Return whether no connection is left and nothing runs any more."""

    def zd_give(self) -> list[Connection]:
        """Return connections that can move now, see :meth:`zdworker.workers.base.ZeroDowntime.zd_give`."""

    def zd_take(self, connection: Connection) -> None:
        """Serve a connection from now on, see :meth:`zdworker.workers.base.ZeroDowntime.zd_take`."""

    def zd_keep(self) -> None:
        """Announce the end on the connections that were to be given: there is no successor any more."""

    def zd_cut(self) -> Iterable[float]:
        """End what the deadline has found; yields as :meth:`zd_stop_accepting`. Called once, after it was logged."""


@runtime_checkable
class NamingServer(Protocol):
    """What a drain asks of a server that can name its requests; a worker class need not have this."""

    def zd_requests(self) -> Iterable[tuple[str, str]]:
        """Return the method and the path of the requests that are being answered, as far as they are known.

        Called once, before anything is cut. A query in a path is left out by the drain.
        """


class DrainableWorker(Protocol):
    """What a drain needs of the worker, a :class:`zdworker.workers.base.ZeroDowntime`."""

    @property
    def log(self) -> Any:
        """Gunicorn's logger."""

    @property
    def zd_deadline(self) -> float:
        """When the drain has to be over, by ``time.monotonic()``."""

    @property
    def zd_queue(self) -> HandOverQueue | None:
        """The queue of the worker's slot."""

    @property
    def zd_takes(self) -> bool:
        """Whether the worker takes over the connections of others in its slot."""

    @property
    def zd_gives(self) -> bool:
        """Whether the worker gives its connections to a successor."""

    def zd_draining(self) -> None:
        """Report to the master that the worker has stopped accepting."""

    def zd_drained(self, drained: Drained) -> None:
        """Report to the master that the drain is over, and what it has cost."""


class Drain:
    """The drain of one worker; made when the server is, and begun when the worker has to leave.

    :param server: whose connections are drained.
    :param worker: whose deadline counts; a worker class that is its own server gives itself twice.
    :param keepalive_s: seconds that a connection is kept between two requests.
    :param websocket_spread_s: seconds over which many WebSockets are closed (``zd_websocket_drain``).
    :param begin_line: what is logged at the beginning, a format with the names of :class:`InFlight`.
    :param cut_line: what is logged when something has to be cut, with the same names and with ``named``, which is
        the names of the requests in brackets, or empty.
    :param clock: returns the present time, as ``time.monotonic()`` does.
    """

    def __init__(
        self,
        server: DrainableServer,
        worker: DrainableWorker,
        *,
        keepalive_s: float,
        websocket_spread_s: float = 0.0,
        begin_line: str = BEGIN_LINE,
        cut_line: str = CUT_LINE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._worker = worker
        self._websocket_spread_s = websocket_spread_s
        self._begin_line = begin_line
        self._cut_line = cut_line
        self._clock = clock
        self._course: Iterator[float] | None = None
        self.keepalive_s = keepalive_s
        self.begun_at = math.inf
        """When it began, by the clock; infinite before."""
        self.unused_until = math.inf
        """Until when a connection is kept on which nothing has come yet; infinite before the drain."""
        self.idle_until = math.inf
        """Until when a connection is kept that was idle as the drain began; infinite before the drain."""
        self.at_begin: InFlight | None = None
        """What was under way when the drain began."""
        self.gives = False
        """Whether the connections that can move are given to the successor."""
        self.pause_s = 0.0
        """Seconds until the next step is due, for loops that turn by themselves."""
        self.handed_over = 0
        """How many connections have been given."""
        self.told_to_close = 0
        """How many connections a response has ended because of the drain; servers count it up."""
        self._pending: list[Connection] = []
        self._full_since = math.inf
        self.cut: InFlight | None = None
        """What had to be cut; None if every connection has ended by itself."""

    @property
    def has_begun(self) -> bool:
        """Whether the worker has stopped accepting because it has to leave."""
        return self.begun_at != math.inf

    @property
    def unused_s(self) -> float:
        """Seconds that a connection is kept on which nothing has come yet, from the drain's beginning."""
        return max(UNUSED_CONNECTION_S, self.keepalive_s)

    @property
    def notice_at(self) -> float:
        """When half of the time is over: an HTTP/2 connection with overlapping streams gets the notice."""
        return (self.begun_at + self._worker.zd_deadline) / 2

    @property
    def websocket_spread_s(self) -> float:
        """Seconds, from the drain's beginning, over which WebSockets are closed; less when the deadline is near."""
        left = self._worker.zd_deadline - self.begun_at - WEBSOCKET_CLOSE_S
        return max(0.0, min(self._websocket_spread_s, left))

    def in_flight(self) -> InFlight:
        """Return what is under way now."""
        return self._server.zd_in_flight()

    def steps(self) -> Iterator[float]:
        """Drain, from the beginning to the end, and yield before each pause how many seconds it is to last."""
        yield from self.until_over()
        yield from self.cut_rest()

    def advance(self) -> bool:
        """Do what is due now, and return whether the drain goes on; for loops that turn by themselves."""
        if self._course is None:
            self._course = self.steps()
        pause_s = next(self._course, None)
        self.pause_s = pause_s or 0.0
        return pause_s is not None

    def until_over(self) -> Iterator[float]:
        """Stop accepting, and tend the connections until none is left or the deadline has come; yields pauses."""
        yield from self._server.zd_stop_accepting()
        self._worker.zd_draining()
        self.gives = self._worker.zd_gives  # first: threads look at it as soon as the drain has begun
        self.begun_at = self._clock()
        self.unused_until = self.begun_at + self.unused_s
        self.idle_until = self.begun_at + self.keepalive_s
        self.at_begin = self.in_flight()
        self._worker.log.info(self._begin_line, self.at_begin.counted())
        self._server.zd_begin_drain()
        next_round = self.begun_at
        while (now := self._clock()) < self._worker.zd_deadline:
            pause_s = self._give(now) if self.gives else self._take_rest()
            if not self._pending and self._server.zd_is_empty():
                break
            if now >= next_round:
                next_round = now + TEND_INTERVAL_S
                self._server.zd_tend(now)
            yield pause_s

    def _give(self, now: float) -> float:
        """Give the connections that can move now, as many as one message holds; return the seconds until the next."""
        if not self._pending:
            self._pending = self._server.zd_give()
        if not self._pending:
            return CHECK_INTERVAL_S
        try:
            if self._queue.give(self._pending):
                self.handed_over += len(self._pending)
                self._pending, self._full_since = [], math.inf
                return 0.0
            self._full_since = min(self._full_since, now)
            if now - self._full_since < QUEUE_PATIENCE_S:
                return QUEUE_RETRY_S
        except QueueClosed:
            pass
        self.gives = False
        self._take_back()
        self._server.zd_keep()
        return 0.0

    def _take_back(self) -> None:
        connections, self._pending = self._pending, []
        for connection in connections:
            self._server.zd_take(connection)

    def _take_rest(self) -> float:
        """Take what is left in a queue that has been closed, because no other worker comes to take it."""
        if self._worker.zd_takes and self._queue.is_closed:
            self._pending = self._queue.take()
            self._take_back()
        return CHECK_INTERVAL_S

    @property
    def _queue(self) -> HandOverQueue:
        queue = self._worker.zd_queue
        assert queue is not None  # noqa: S101 (for the type checker: a worker without one neither gives nor takes)
        return queue

    def cut_rest(self) -> Iterator[float]:
        """Log and cut what is left, if there is anything; yields pauses."""
        self._take_back()
        paths: list[str] = []
        if not self._server.zd_is_empty():
            self.cut = self.in_flight()
            paths = self._cut_paths(self.cut.requests)
            named = {"named": texts.named(self.cut.requests, paths)}
            self._worker.log.warning(self._cut_line, self.cut.counted() | named)
            yield from self._server.zd_cut()
        drained = Drained(
            handed_over=self.handed_over,
            told_to_close=self.told_to_close,
            cut_requests=self.cut.requests if self.cut is not None else 0,
            closed_websockets=self.at_begin.websockets if self.at_begin is not None else 0,
            cut_paths=paths,
        )
        handed_over = texts.counted(drained.handed_over, "connection")
        took_s = max(0.0, self._clock() - self.begun_at)
        self._worker.log.debug(  # the master says so, of each worker that leaves
            END_LINE, took_s, handed_over, drained.told_to_close
        )
        self._worker.zd_drained(drained)

    def _cut_paths(self, requests: int) -> list[str]:
        """Return names of requests that are about to be cut, each once, and no more than there are requests."""
        names: dict[str, None] = {}
        try:
            for method, path in self._server.zd_requests() if isinstance(self._server, NamingServer) else ():
                if len(names) >= min(requests, CUT_PATHS_MAX):
                    break
                names[request_name(method, path)] = None
        except Exception:  # names are no reason for a drain not to end
            self._worker.log.debug("The requests that are cut cannot be named", exc_info=True)
        return list(names)
