"""The worker's side of zdworker: what every worker class of ours, and of our users, has in common.

Rules:

* The master is told, it never guesses: ready, draining, tired, failed and counts go up the report channel.
* A report never raises and never holds a worker up for long: a worker serves, whatever has become of its master.
* Everything works without our arbiter too (``zd_master_pid`` 0): reports go nowhere and the parent is not looked at.
* The master imports this module; nothing but the standard library, Gunicorn and the core's messages is imported here.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from types import FrameType
from typing import Any

from zdworker import takeover
from zdworker.core.messages import Counts, Draining, Failed, Message, Ready, Tired, encode
from zdworker.settings import Settings
from zdworker.system import HELD, set_death_signal

PATIENCE = 1.0
"""Seconds that a report of state may wait for room in the channel: only a stopped master leaves none."""

ORPHAN_DRAIN = 1.0
"""Seconds that a worker goes on with its requests when its master is dead; it has to be gone within two."""

ORPHAN_END = 1.6
"""Seconds after which the kernel ends a worker whose master is dead, whatever its code does."""

TEXT_LIMIT = 64 * 1024
"""Characters of a traceback that are reported; the end of it is what tells the reason."""


# Not O_NONBLOCK: that is a property of the open file, which others may share. macOS has no MSG_NOSIGNAL, and Python
# ignores SIGPIPE anyway.
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class Reporter:
    """The worker's end of its report channel.

    :param channel: a connected stream socket, or None: reports go nowhere.
    """

    def __init__(self, channel: socket.socket | None) -> None:
        self._channel = channel
        self._pending = b""

    def send(self, message: Message) -> None:
        """Send ``message``. Counts are dropped when the channel is full; a report of state waits for room, at most
        :data:`PATIENCE` seconds, and then goes out before the next one. Never raises.
        """
        if self._channel is None:
            return
        expendable = isinstance(message, Counts)
        if expendable and self._pending:
            self._flush(0.0)
            if self._pending:
                return
        self._pending += encode(message)
        self._flush(0.0 if expendable else PATIENCE)

    def _flush(self, patience: float) -> None:
        try:
            self._write()
            if self._pending and patience and self._channel is not None:
                _await_room(self._channel, patience)
                self._write()
        except OSError:
            # The master is gone; whether this worker should be too is for the parent check to say.
            self._channel = None
            self._pending = b""

    def _write(self) -> None:
        while self._pending and self._channel is not None:
            try:
                sent = self._channel.send(self._pending, _FLAGS)
            except BlockingIOError:
                return
            self._pending = self._pending[sent:]


class ZeroDowntime:
    """Mixin that makes a Gunicorn worker class one of ours; it stands before the Gunicorn class among the bases.

    Whoever makes a worker class of their own calls :meth:`zd_ready` once it accepts, :meth:`zd_draining` once it no
    longer does, and lets ``run()`` return when its last request is answered.
    """

    zd_reporter: Reporter = Reporter(None)
    """Set on the instance by the code that gives birth to the worker, before ``init_process()``."""

    zd_settings: Settings = Settings()
    """Likewise."""

    zd_master_pid: int = 0
    """Likewise; 0 when the worker does not run under our arbiter."""

    zd_failure: Failed | None = None
    """What :meth:`zd_failed` has reported: the birth code need not report that end again."""

    _zd_counted: Counts | None = None
    _zd_said: frozenset[str] = frozenset()

    booted: bool
    alive: bool
    cfg: Any

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import what a worker would otherwise load late. Called in the fork server, with Gunicorn's configuration,
        after the application if that is preloaded; starts no thread and opens nothing.
        """

    # -- reports -----------------------------------------------------------------------------------------------------

    def zd_ready(self) -> None:
        """Report, once, that this worker accepts connections."""
        self._say_once(Ready())

    def zd_draining(self) -> None:
        """Report, once, that this worker has stopped accepting."""
        self._say_once(Draining())

    def zd_tired(self, reason: str) -> None:
        """Ask once to be replaced for ``reason`` (``"max_requests"``); the worker serves until it is told to drain."""
        self._say_once(Tired(reason))

    def zd_failed(self, reason: str, traceback: str = "", exit_code: int = 3) -> None:
        """Report, once, that this worker cannot boot; the caller then ends it with ``SystemExit(exit_code)``."""
        if self.zd_failure is None:
            self.zd_failure = Failed(reason[-TEXT_LIMIT:], traceback[-TEXT_LIMIT:], exit_code)
            self.zd_reporter.send(self.zd_failure)

    def zd_counts(self, connections: int, requests: int) -> None:
        """Report open connections and requests answered since birth, if that has changed."""
        counts = Counts(connections, requests)
        if counts != self._zd_counted:
            self._zd_counted = counts
            self.zd_reporter.send(counts)

    def _say_once(self, message: Message) -> None:
        kind = type(message).__name__
        if kind not in self._zd_said:
            self._zd_said |= {kind}
            self.zd_reporter.send(message)

    # -- the master's life -------------------------------------------------------------------------------------------

    def zd_parent_lost(self) -> bool:
        """Tell whether the master that this worker belongs to has died."""
        return bool(self.zd_master_pid) and os.getppid() != self.zd_master_pid

    def zd_end_orphaned(self) -> None:
        """Have the kernel end this process in :data:`ORPHAN_END` seconds, unless it ends by itself before."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, ORPHAN_END)

    def zd_on_privileges(self) -> None:
        """Have the master's death sent to this process as SIGTERM. Called after adoption and again after privileges
        were dropped, which clears the death signal (prctl(2), PR_SET_PDEATHSIG).

        :raises SystemExit: the master died before the signal was set, and would not be told any more.
        """
        if not self.zd_master_pid:
            return
        set_death_signal(signal.SIGTERM)
        if self.zd_parent_lost():
            raise SystemExit(0)

    # -- signals -----------------------------------------------------------------------------------------------------

    def init_signals(self) -> None:
        """Gunicorn's, then ours: HUP, USR2, TTIN and TTOU change nothing (a process group may be signalled as a whole;
        handlers, as SIG_IGN would reach the application's children), TERM, INT and QUIT end a worker that still boots.
        """
        # Gunicorn puts the default actions back first: a HUP to the whole group must not come in between.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        super().init_signals()  # type: ignore[misc]
        for quiet in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(quiet, _change_nothing)
            signal.siginterrupt(quiet, False)
        signal.signal(signal.SIGTERM, self.handle_exit)
        signal.signal(signal.SIGINT, self.handle_quit)
        signal.signal(signal.SIGQUIT, self.handle_quit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        # Privileges were dropped by now: Gunicorn does that at the start of init_process().
        self.zd_on_privileges()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: drain; while booting, end at once; with the master dead, end soon."""
        if self.zd_parent_lost():
            self.zd_end_orphaned()
        if not self.booted:
            self.alive = False  # for the case that the application catches the exit
            raise SystemExit(0)
        super().handle_exit(sig, frame)  # type: ignore[misc]

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT and SIGQUIT: end now; the hook ``worker_int`` is for workers that have booted."""
        if not self.booted:
            self.alive = False
            raise SystemExit(0)
        super().handle_quit(sig, frame)  # type: ignore[misc]


def _await_room(channel: socket.socket, patience: float) -> None:
    # poll, not select: a worker may have more descriptors than select can take.
    poll = select.poll()
    poll.register(channel, select.POLLOUT)
    poll.poll(int(patience * 1000))


def _change_nothing(sig: int, frame: FrameType | None) -> None:
    """Handle a signal that means nothing to a worker."""


# Gunicorn imports a worker class inside Arbiter.__init__: that is the moment to make its master ours.
if not takeover.in_generation:
    takeover.install()
