"""The worker class for WSGI applications, one request at a time: Gunicorn's ``sync``, with a drain without losses.

Rules:

* Gunicorn's loop and its handling of a request stay. The worker waits for a client only while a request's body or its
  response are on their way. Silent connections, half-read ones and lingering ones are parked: they are in the poll,
  beside the listeners.
* When the worker gets the order to leave, it accepts no more and answers what it has accepted.
* At the deadline an alarm interrupts the application; if the application catches that, the next alarm comes soon. Code
  that does not return to Python is left to the master, which kills the worker a second later.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import selectors
import signal
import socket
import ssl
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

from gunicorn.workers import sync

from zdworker import texts
from zdworker.errors import GenerationError
from zdworker.ipc.hand_over import BATCH, Connection, HandOverQueue
from zdworker.workers.drain import TEND_INTERVAL_S, Drain, InFlight
from zdworker.workers.wsgi import poller
from zdworker.workers.wsgi.drain import OUT_OF_DESCRIPTORS, WsgiDrain
from zdworker.workers.wsgi.parked import Parked
from zdworker.workers.wsgi.request_heads import body_is_read, is_readable, wait_until
from zdworker.workers.wsgi.taken import listening_name

FIRST_REQUEST_S = 0.01
"""Seconds for which the worker waits for the request of a new connection before it serves others. Most requests arrive
at once, and a connection that is parked stays with this worker, however long the next request takes."""

ALARM_INTERVAL_S = 0.2
"""Seconds after which the alarm of the deadline comes again, for an application that has caught it."""

CROWDED_S = 1.0
"""Seconds after which a worker that was out of descriptors accepts again."""

BEGIN_LINE = "Draining: %(connections)s"
CUT_LINE = (
    "graceful_timeout is over (or the end is a quick one): "
    "%(requests)s cut%(named)s, %(connections)s that waited closed"
)


class DeadlineReached(BaseException):
    """Interrupts the application at the drain's deadline.

    Not an ``Exception``, nor a ``SystemExit``: applications and Gunicorn handle those.
    """


class LingeringSocket(socket.socket):
    """A client's socket that lingers: Gunicorn's calls to close it leave that to the worker, which does not wait."""

    zd_worker: WSGIWorker
    zd_listener: Listener
    zd_address: Any
    zd_head: bytearray
    zd_request: Any = None

    @property
    def sock(self) -> LingeringSocket:
        """The socket itself, which is the connection that is parked."""
        return self

    def shutdown(self, how: int) -> None:
        """Refuse, so that Gunicorn's ``util.close_graceful`` calls :meth:`close` at once and does not read.

        :raises OSError: always.
        """
        raise OSError(errno.EOPNOTSUPP, "a worker's connection is closed as a whole")

    def close(self) -> None:
        """Close the socket if no data is unread; otherwise the worker first reads what the client still sends."""
        self.zd_worker.zd_end(self)


class Accepted(LingeringSocket):
    """A connection as it was accepted, with what was read of its request's head."""

    def __init__(self, worker: WSGIWorker, listener: Listener, number: int, address: Any) -> None:
        family, kind, protocol = listener.kind
        super().__init__(family, kind, protocol, number)
        # Not what accept(2) inherits on some systems, nor the application's socket.setdefaulttimeout().
        self.setblocking(True)
        self.zd_worker, self.zd_listener, self.zd_address = worker, listener, address
        self.zd_head = bytearray()

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what was read of the head, then what arrives."""
        if not self.zd_head:
            return super().recv(size, flags)
        data = bytes(self.zd_head[:size])
        del self.zd_head[:size]
        return data


class WSGIWorker(WsgiDrain, sync.SyncWorker):  # type: ignore[misc]  # Gunicorn has no types
    """Serves a WSGI application, one request at a time, and loses no request when it is replaced.

    Its name must not end in ``SyncWorker``: with ``threads`` above 1 Gunicorn replaces a class of such a name by its
    own threaded one, without a message.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._poller = poller.make()
        self._parked = Parked(self, self._poller, self.cfg)
        self._listeners: dict[Any, Listener] = {}
        self._ready: list[Any] = []  # listeners with a connection to accept
        self._max_parked = self._most_parked = int(self.cfg.worker_connections)  # the first is less for a while
        self._crowded_until = -math.inf
        self._listening = False
        self._cut_requests: list[Any] = []  # None is one whose head was being read
        self._drain = Drain(self, self, keepalive_s=float(self.cfg.keepalive), begin_line=BEGIN_LINE, cut_line=CUT_LINE)

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse threads; called by the master at its start.

        :raises RuntimeError: ``threads`` is above 1 (Gunicorn prints it in one line and ends).
        """
        if cfg.threads > 1:
            raise RuntimeError(_refusal(cfg))

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import what would be imported late; and refuse threads, at a reload.

        :raises GenerationError: ``threads`` is above 1.
        """
        if cfg.threads > 1:
            raise GenerationError(_refusal(cfg))
        super().zd_preload(cfg)

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: (3) ``zd_warmup`` failed, or TLS cannot be loaded; that is reported.
        """
        self.zd_warmed_up()
        if self.zd_leaving:  # told to leave during the warm-up: the listeners are closed
            return
        self._poller.register(self.PIPE[0], selectors.EVENT_READ, _read_wake_ups)
        self._listeners = {listener: Listener(listener) for listener in self.sockets}
        if self.zd_queue is not None and self.zd_takes:
            self._poller.register(self.zd_queue, selectors.EVENT_READ, self._on_queue_readable)
        try:
            self._accept_and_answer()
            self.zd_leave(self.cfg.graceful_timeout)  # without zdworker's arbiter the loop may have ended by itself
            for pause_s in self._drain.until_over():
                self.notify()
                self._poll(pause_s if self._drain.gives else TEND_INTERVAL_S)  # the end of a connection wakes it
        except DeadlineReached:
            pass
        finally:
            if not self._zd_orphaned:
                signal.setitimer(signal.ITIMER_REAL, 0)
        for _pause_s in self._drain.cut_rest():
            pass

    def _accept_and_answer(self) -> None:
        try:
            super().run()
        except AttributeError:
            # It begins with a call of each listener, and an order to leave may have closed them before.
            if not self.zd_leaving or all(listener.sock is not None for listener in self.sockets):
                raise

    def zd_refuse_bad_tls(self) -> None:
        """Check TLS, then have its sockets linger, too."""
        super().zd_refuse_bad_tls()
        if self.cfg.is_ssl:
            self._linger_with_tls()

    def _linger_with_tls(self) -> None:
        make_context = self.cfg.ssl_context

        class LingeringTLSSocket(LingeringSocket, ssl.SSLSocket):
            """What a connection becomes for the time of its request."""

            zd_worker = self

        def make_lingering_context(cfg: Any, default: Any) -> Any:
            context = make_context(cfg, default)
            context.sslsocket_class = LingeringTLSSocket
            return context

        self.cfg.settings["ssl_context"].value = make_lingering_context

    # -- accepting ---------------------------------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        """Accept a connection, and answer its request if that has arrived.

        :raises BlockingIOError: no connection is there, or as many as allowed are parked.
        """
        if not self.alive or len(self._parked) >= self._max_parked:
            raise BlockingIOError(errno.EAGAIN, "not now")
        try:
            # accept() would make a socket of the wrong class first, which costs as much as parsing a head.
            number, address = listener.sock._accept()  # noqa: SLF001  # as gevent does it
        except (OSError, AttributeError) as error:
            if not self.alive:  # told to leave in this very moment: the listener is closed
                raise BlockingIOError(errno.EAGAIN, "not now") from error
            if getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE) or not self._parked:
                raise
            if self._crowded_until == -math.inf:
                self.log.warning(OUT_OF_DESCRIPTORS, texts.counted(len(self._parked), "connection"))
            self._max_parked, self._crowded_until = len(self._parked), time.monotonic() + CROWDED_S
            return
        self._serve_or_park(Accepted(self, self._listeners[listener], number, address))
        if self._parked:
            # Gunicorn's loop accepts as long as there is something to accept: the parked ones get their turn between.
            self._poll(0.0)
            self._parked.expire(time.monotonic())

    def wait(self, timeout: float) -> list[Any]:
        """Wait for a connection, and serve the parked ones meanwhile; return the listeners that are ready."""
        self.notify()
        limit = TEND_INTERVAL_S if self.zd_leaving or self._parked.lingering else 1.0
        ready = self._poll(min(timeout, limit))
        now = time.monotonic()
        if now >= self._crowded_until:
            self._max_parked = self._most_parked
        self._parked.expire(now)
        return ready

    def _poll(self, timeout: float) -> list[Any]:
        self._listen(self.alive and len(self._parked) < self._max_parked)
        self._ready = []
        for key, _events in self._poller.select(timeout):
            key.data(key.fileobj)
        return self._ready

    def _listen(self, listening: bool) -> None:
        if listening == self._listening:
            return
        self._listening = listening
        for listener in self.sockets:
            # A signal handler may have the worker leave between any two steps of this: it closes the listeners.
            with contextlib.suppress(OSError, KeyError, ValueError, AttributeError):
                if listening:
                    self._poller.register(listener, selectors.EVENT_READ, self._note_ready)
                else:
                    self._poller.unregister(listener)

    def _note_ready(self, listener: Any) -> None:
        self._ready.append(listener)

    # -- the hand-over -----------------------------------------------------------------------------------------------

    def _on_queue_readable(self, queue: HandOverQueue) -> None:
        # In a drain it is the drain that takes, and only what is left in a closed queue.
        if self.zd_leaving or not self.zd_take_or_stop():
            self._poller.unregister(queue)

    def zd_take(self, connection: Connection) -> None:
        """Serve a connection that another worker has handed over."""
        name = listening_name(connection.sock, [known.getsockname() for known in self._listeners.values()])
        client = connection.client()
        listener = Listener(connection.sock, name)
        taken = Accepted(self, listener, connection.sock.detach(), client)
        self._parked.wait(taken, connection.idle_until)

    def zd_give(self) -> list[Connection]:
        """Return the silent connections: every other one ends with its response."""
        if self.cfg.is_ssl:
            return []
        silent = self._parked.detach_silent(BATCH)
        return [Connection(socket.socket(fileno=conn.detach())) for conn, _until in silent]

    def zd_keep(self) -> None:
        """Limit the time of silent connections."""
        self._parked.limit_silent()

    # -- one connection ----------------------------------------------------------------------------------------------

    def _serve_or_park(self, client: Accepted) -> None:
        """Answer the request of a new connection if it has arrived, or arrives at once; else park the connection."""
        has_request = self._parked.has_request
        if has_request(client) or (is_readable(client, FIRST_REQUEST_S) and has_request(client)):
            self.handle(client.zd_listener, client, client.zd_address)
        else:
            self._parked.wait(client)

    def zd_serve(self, conn: Accepted) -> None:
        """Answer the request that has arrived on a parked connection."""
        self.notify()
        self.handle(conn.zd_listener, conn, conn.zd_address)

    def zd_wait_until(self, conn: Accepted) -> float:
        """Return until when a connection without a whole request is kept, by ``time.monotonic()``."""
        return wait_until(self.cfg, self._parked.has_begun(conn), self._drain.unused_until)

    def handle_request(self, listener: Any, req: Any, client: Any, addr: Any) -> None:
        """Answer a request, and keep it with its connection: whether that lingers depends on the request's body."""
        client.zd_request = req
        super().handle_request(listener, req, client, addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer with an error page, except at the deadline: the response's head may have been sent already."""
        if isinstance(exc, DeadlineReached):
            self._cut_requests.append(req)
        else:
            super().handle_error(req, client, addr, exc)

    def zd_end(self, client: LingeringSocket) -> None:
        """Close a connection behind its response; what its client still sends is read first, in the poll."""
        if client not in self._parked.lingering:
            self._parked.end(client, body_is_read(client.zd_request))

    def zd_close(self, conn: LingeringSocket) -> None:
        """Close a connection at once."""
        socket.socket.close(conn)

    def zd_expired(self, conn: LingeringSocket) -> None:
        """Close a connection that has waited until its time was over."""
        self.zd_close(conn)

    # -- draining ----------------------------------------------------------------------------------------------------

    def zd_load(self) -> tuple[int, int]:
        """Return the parked connections and the requests answered since the worker booted."""
        return len(self._parked), self.nr

    def zd_on_leave(self) -> None:
        """Close the listeners, leave Gunicorn's loop behind the present request, set the alarm for the deadline."""
        self.alive = False
        with contextlib.suppress(OSError):
            os.write(self.PIPE[1], b".")  # the signal does not wake the poll if the application took its descriptor
        self._listen(False)
        for listener in self.sockets:
            listener.close()
        if self._zd_orphaned:
            return  # the kernel's own alarm is set, and a process has one alarm only
        signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.zd_deadline - time.monotonic()), ALARM_INTERVAL_S)

    def _interrupt(self, sig: int, frame: FrameType | None) -> None:
        raise DeadlineReached

    def zd_stop_accepting(self) -> tuple[()]:
        """Do nothing: :meth:`zd_on_leave` has closed the listeners already, during a request too."""
        return ()

    def zd_in_flight(self) -> InFlight:
        """Return the parked connections, and the requests that the alarm has cut."""
        return InFlight(len(self._parked), len(self._cut_requests))

    def zd_requests(self) -> Iterable[tuple[str, str]]:
        """Return method and path of the requests that the alarm has cut."""
        return ((request.method, request.path) for request in self._cut_requests if request is not None)

    def zd_begin_drain(self) -> None:
        """Limit the time of connections on which no request has begun, if they stay."""
        self._parked.limit_silent(but_movable=self._drain.gives and not self.cfg.is_ssl)

    def zd_tend(self, now: float) -> None:
        """End the connections whose time is over."""
        self._parked.expire(now)

    def zd_is_empty(self) -> bool:
        """Tell whether no connection is parked and no request was cut."""
        return not self._parked and not self._cut_requests

    def zd_cut(self) -> tuple[()]:
        """Do nothing: the end of the process closes what is left."""
        return ()


def _read_wake_ups(descriptor: int) -> None:
    """Empty the pipe by which signals wake the poll."""
    os.read(descriptor, 4096)


class Listener:
    """Stands for a listener in Gunicorn's code, which asks for its address when the listener may be closed already."""

    def __init__(self, listener: Any, name: Any = None) -> None:
        self._name = listener.getsockname() if name is None else name
        self.kind = int(listener.family), int(listener.type), int(listener.proto)  # as names they are slow to read

    def getsockname(self) -> Any:
        """Return the address that the listener was bound to."""
        return self._name


def _refusal(cfg: Any) -> str:
    return (
        f"threads is {cfg.threads}, but zdworker.WSGIWorker answers one request at a time: "
        "use worker_class zdworker.ThreadWorker, or threads = 1"
    )
