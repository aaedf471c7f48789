"""The worker class for WSGI applications, one request at a time: Gunicorn's ``sync``, with a drain that loses none.

Rules:

* Gunicorn's loop and its handling of a request stay. Nobody waits for a client but while a request's body or its answer
  are on their way: silent connections, half-read ones, and those whose last bytes are read away before they are closed
  (a close on unread data is a reset, RFC 9112 9.6) are in the poll, beside the listeners.
* Told to leave, it accepts no more; what it has accepted is answered, as in a class with many hands.
* At the deadline an alarm interrupts whatever the application does; should the application catch that, the next one
  comes soon. Code that is in no Python at all is left to the master, which kills a second later.
"""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import socket
import ssl
import time
from types import FrameType
from typing import Any

from gunicorn.workers import sync

from zdworker.errors import GenerationError
from zdworker.syscalls import unread
from zdworker.workers.base import UNUSED
from zdworker.workers.wsgi.drain import WsgiDrain
from zdworker.workers.wsgi.request_heads import (
    LINGER,
    LINGER_IN_ALL,
    body_has_come,
    has_come,
    patience,
    read_head,
    shows_heads,
)

PROMPT = 0.01
"""Seconds that the request of a new connection has to come before others are served first. Most come at once; and a
connection that is put aside stays with this worker, however long the next request takes."""

AGAIN = 0.2
"""Seconds after which the alarm of the deadline comes again, to an application that has caught it."""

GLANCE = 0.1
"""Seconds between two looks at whose time is over, in a drain."""


class Cut(BaseException):
    """The deadline has come. Not an ``Exception``, nor an exit: applications and Gunicorn answer those."""


class Careful(socket.socket):
    """A client's socket: what Gunicorn calls closing it is for the worker to do, who does not wait for that."""

    zd_worker: WSGIWorker
    zd_listener: Listener
    zd_address: Any
    zd_request: Any = None
    zd_timeout = math.inf
    zd_end = math.inf

    def shutdown(self, how: int) -> None:
        """Refuse, so that Gunicorn's ``util.close_graceful`` goes on to :meth:`close` and waits for nobody.

        :raises OSError: always.
        """
        raise OSError(errno.EOPNOTSUPP, "a worker's connection is closed as a whole")

    def close(self) -> None:
        """Close it when that loses nothing; until then the worker reads what the client still sends."""
        self.zd_worker.zd_close(self)


class Accepted(Careful):
    """A connection as it was accepted, with what has come of its request's head."""

    def __init__(self, worker: WSGIWorker, listener: Listener, client: socket.socket, address: Any) -> None:
        family, kind, protocol = listener.kind
        super().__init__(family, kind, protocol, client.detach())
        self.setblocking(True)  # whatever accept(2) inherits here, and socket.setdefaulttimeout() of the application's
        self.zd_worker, self.zd_listener, self.zd_address = worker, listener, address
        self.zd_head = bytearray()

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what was read ahead first."""
        if not self.zd_head:
            return super().recv(size, flags)
        data = bytes(self.zd_head[:size])
        del self.zd_head[:size]
        return data


class WSGIWorker(WsgiDrain, sync.SyncWorker):  # type: ignore[misc]  # Gunicorn has no types
    """Serves a WSGI application, one request at a time, and loses none when it is replaced.

    Its name must not end in ``SyncWorker``: with ``threads`` above 1 Gunicorn silently takes its own threaded class in
    the place of such a one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._poll = select.poll()
        self._listeners: dict[int, Any] = {}
        self._names: dict[Any, Listener] = {}
        self._waiting: dict[int, Accepted] = {}  # no request has come on them yet
        self._lingering: dict[int, Careful] = {}  # answered, but still sent to
        self._most = int(self.cfg.worker_connections)
        self._listening = False
        self._unused_until = math.inf
        self._cut = 0
        self._shows_heads = shows_heads(self.cfg)

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse threads; called by the master at its start.

        :raises RuntimeError: ``threads`` is above 1 (Gunicorn prints it in one line and ends).
        """
        if cfg.threads > 1:
            raise RuntimeError(_refusal(cfg))

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import what is imported late; and refuse threads, at a reload.

        :raises GenerationError: ``threads`` is above 1.
        """
        if cfg.threads > 1:
            raise GenerationError(_refusal(cfg))
        super().zd_preload(cfg)

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: (3) ``zd_warmup`` failed, which is reported.
        """
        self.zd_warmed_up()
        if self.zd_leaving:  # told so meanwhile: the listeners are closed
            return
        if self.cfg.is_ssl:
            self._close_tls_carefully()
        self._poll.register(self.PIPE[0], select.POLLIN)
        self._listeners = {listener.fileno(): listener for listener in self.sockets}
        self._names = {listener: Listener(listener) for listener in self.sockets}
        try:
            super().run()
            self.zd_leave(self.cfg.graceful_timeout)  # without our arbiter it may have ended by itself
            self._drain()
        except Cut:
            pass
        finally:
            if not self._zd_orphaned:
                signal.setitimer(signal.ITIMER_REAL, 0)
        self._log_cut()

    def _close_tls_carefully(self) -> None:
        make_context = self.cfg.ssl_context

        class CarefulTLS(Careful, ssl.SSLSocket):
            """What a connection becomes for the time of its request."""

            zd_worker = self

        def careful_context(cfg: Any, default: Any) -> Any:
            context = make_context(cfg, default)
            context.sslsocket_class = CarefulTLS
            return context

        self.cfg.settings["ssl_context"].value = careful_context

    # -- accepting ---------------------------------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        """Accept a connection, and answer its request if that has come.

        :raises BlockingIOError: there is none; or there are enough.
        """
        if not self.alive or self._aside() >= self._most:
            raise BlockingIOError(errno.EAGAIN, "not now")
        try:
            client, address = listener.accept()
        except (OSError, AttributeError) as error:
            if not self.alive:  # told to leave in this very moment: the listener is closed
                raise BlockingIOError(errno.EAGAIN, "not now") from error
            if getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE) or not self._aside():
                raise
            self._most = self._aside()
            self.log.warning("Out of file descriptors: from now on at most %d connections wait", self._most)
            return
        self._meet(Accepted(self, self._names[listener], client, address))
        if self._waiting or self._lingering:
            # Gunicorn's loop accepts as long as there is something to accept: those that wait get their turn between.
            self._look(0.0)

    def _is_full(self) -> bool:
        return self._aside() >= self._most

    def _aside(self) -> int:
        return len(self._waiting) + len(self._lingering)

    def wait(self, timeout: float) -> list[Any]:
        """Wait for a connection, and serve meanwhile those that have waited; return the listeners that are ready."""
        self.notify()
        return self._look(min(timeout, GLANCE if self.zd_leaving or self._lingering else 1.0))

    def _look(self, timeout: float) -> list[Any]:
        self._listen(self.alive and not self._is_full())
        ready = []
        for number, _event in self._poll.poll(timeout * 1000):
            if number == self.PIPE[0]:
                os.read(number, 4096)
            elif number in self._waiting:
                self.notify()
                self._meet_again(self._waiting[number])
            elif number in self._lingering:
                self._read_away(self._lingering[number])
            elif number in self._listeners:  # else the worker was told to leave while it polled
                ready.append(self._listeners[number])
        self._expire(time.monotonic())
        return ready

    def _listen(self, listening: bool) -> None:
        if listening == self._listening:
            return
        self._listening = listening
        for number in self._listeners:
            if listening:
                self._poll.register(number, select.POLLIN)
            else:
                self._poll.unregister(number)

    # -- one connection ----------------------------------------------------------------------------------------------

    def _meet(self, client: Accepted) -> None:
        """Answer the request of a new connection if it has come, or comes at once; else put the connection aside."""
        if not self._has_come(client):
            prompt = select.poll()
            prompt.register(client, select.POLLIN)
            if not prompt.poll(PROMPT * 1000) or not self._has_come(client):
                client.zd_timeout = patience(self.cfg, bool(client.zd_head), self._unused_until)
                self._waiting[client.fileno()] = client
                self._poll.register(client, select.POLLIN)
                return
        self._serve(client)

    def _meet_again(self, client: Accepted) -> None:
        if self._has_come(client):
            del self._waiting[client.fileno()]
            self._poll.unregister(client)
            self._serve(client)
        else:
            client.zd_timeout = patience(self.cfg, bool(client.zd_head), self._unused_until)

    def _has_come(self, client: Accepted) -> bool:
        return read_head(client, client.zd_head) if self._shows_heads else has_come(client)

    def _serve(self, client: Accepted) -> None:
        self.handle(client.zd_listener, client, client.zd_address)

    def handle_request(self, listener: Any, req: Any, client: Any, addr: Any) -> None:
        """Gunicorn's; what the request says of its body is needed once more, at the end."""
        client.zd_request = req
        super().handle_request(listener, req, client, addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Gunicorn's; but a request that is cut may have its answer's head behind it: nothing is written."""
        if isinstance(exc, Cut):
            self._cut += 1
        else:
            super().handle_error(req, client, addr, exc)

    def zd_close(self, client: Careful) -> None:
        """Close ``client`` behind its answer; what it is still sending is read first, in the poll."""
        number = client.fileno()
        if number in self._lingering:
            return
        if number < 0 or (body_has_come(client.zd_request) and not unread(client)):
            socket.socket.close(client)
            return
        try:
            socket.socket.shutdown(client, socket.SHUT_WR)
        except OSError:  # it is gone
            socket.socket.close(client)
            return
        now = time.monotonic()
        client.zd_timeout, client.zd_end = now + LINGER, now + LINGER_IN_ALL
        self._lingering[number] = client
        self._poll.register(number, select.POLLIN)

    def _read_away(self, client: Careful) -> None:
        try:
            # The base class's method: what a TLS client sends now need not be deciphered.
            over = not socket.socket.recv(client, 65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            over = True
        if over:
            self._drop(client)
        else:
            client.zd_timeout = min(time.monotonic() + LINGER, client.zd_end)

    def _drop(self, client: Careful) -> None:
        number = client.fileno()
        self._poll.unregister(number)
        self._waiting.pop(number, None)
        self._lingering.pop(number, None)
        socket.socket.close(client)

    def _expire(self, now: float) -> None:
        for client in [client for client in self._waiting.values() if client.zd_timeout <= now]:
            if has_come(client):
                self._meet_again(client)
            else:
                self._drop(client)
        for late in [late for late in self._lingering.values() if late.zd_timeout <= now]:
            self._drop(late)

    # -- draining ----------------------------------------------------------------------------------------------------

    def zd_load(self) -> tuple[int, int]:
        """Return the connections that wait and the requests answered since birth."""
        return self._aside(), self.nr

    def zd_on_leave(self) -> None:
        """Close the listeners, leave Gunicorn's loop behind the present request, set the alarm for the deadline."""
        self.alive = False
        self._listen(False)
        self._listeners.clear()
        for listener in self.sockets:
            listener.close()
        if self._zd_orphaned:
            return  # the kernel's own alarm is set; there is one only
        signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.zd_deadline - time.monotonic()), AGAIN)

    def _interrupt(self, sig: int, frame: FrameType | None) -> None:
        raise Cut

    def is_parent_alive(self) -> bool:
        """Gunicorn's; a worker of ours looks in ``notify()``."""
        return bool(self.zd_master_pid) or super().is_parent_alive()

    def _drain(self) -> None:
        self.zd_draining()
        self.log.info("Draining: %d connections", self._aside())
        self._unused_until = time.monotonic() + max(UNUSED, self.cfg.keepalive)
        for client in self._waiting.values():
            if not client.zd_head:
                client.zd_timeout = self._unused_until
        while self._aside() and time.monotonic() < self.zd_deadline:
            self.notify()
            self._look(GLANCE)

    def _log_cut(self) -> None:
        if self._cut or self._aside():
            self.log.warning(
                "graceful_timeout is over (or the end is a quick one): %d requests and %d waiting connections are cut",
                self._cut,
                self._aside(),
            )


class Listener:
    """Stands for a listener in Gunicorn's code, which asks for its address when it may be closed already."""

    def __init__(self, listener: Any) -> None:
        self._name = listener.getsockname()
        self.kind = int(listener.family), int(listener.type), int(listener.proto)  # as names they are slow to read

    def getsockname(self) -> Any:
        """Return the address that the listener was bound to."""
        return self._name


def _refusal(cfg: Any) -> str:
    return (
        f"threads is {cfg.threads}, but zdworker.WSGIWorker answers one request at a time: "
        "use worker_class zdworker.ThreadWorker, or threads = 1"
    )
