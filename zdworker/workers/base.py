"""The worker's side of zdworker: what every worker class of ours, and of our users, has in common.

Rules:

* The master is told, it never guesses: ready, draining, tired, failed and counts go up the report channel.
* A report never raises and never holds a worker up for long: a worker serves, whatever has become of its master.
* Everything works without our arbiter too (``zd_master_pid`` 0): reports go nowhere and the parent is not looked at.
* The master imports this module; nothing but the standard library, Gunicorn and the core's messages is imported here.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, ClassVar, NoReturn

from zdworker import roles, takeover
from zdworker.errors import WarmupFailed
from zdworker.ipc.messages import Counts, Draining, Failed, Leave, Message, Ready, ReplacementRequested, Stopping
from zdworker.ipc.report import Reporter
from zdworker.settings import Settings
from zdworker.syscalls import HELD, resident_memory, set_death_signal

ORPHAN_DRAIN = 1.0
"""Seconds that a worker goes on with its requests when its master is dead; it has to be gone within two."""

ORPHAN_END = 1.4
"""Seconds after which the kernel ends a worker whose master is dead, whatever its code does."""

WORD = 1.0
"""Seconds in which a master that got ``TERM`` as well will have said so."""

UNUSED = 5.0
"""Seconds from the drain's beginning, at least, that a connection on which nothing came yet is kept."""

LOOK = 1.0
"""Seconds between two looks at parent, counts and limits; the heart may beat more often."""

BOOT_FAILURE = 3
"""Exit code of a worker that cannot boot: ``gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR``."""

TEXT_LIMIT = 64 * 1024
"""Characters of a traceback that are reported; the end of it is what tells the reason."""


class ZeroDowntime(roles.ZeroDowntimeClass):
    """Mixin that makes a Gunicorn worker class one of ours; it stands before the Gunicorn class among the bases.

    ``class MyWorker(ZeroDowntime, SomeWorker): pass`` is enough for a class that calls ``notify()`` from its loop and
    returns from ``run()`` some time after ``handle_exit()``, as Gunicorn asks of every worker: it is ready when its
    heart first beats after boot, and told to leave as its base class knows it. Whoever knows better overrides:

    * :meth:`zd_ready`, called at the very moment from which on the worker accepts (and ``zd_ready_at_first_beat``),
    * :meth:`zd_on_leave`, to drain instead; what is awaited ends at :attr:`zd_deadline`, then ``run()`` returns,
    * :meth:`zd_draining`, called when the worker has stopped accepting,
    * :meth:`zd_load`, for the counts, and :meth:`zd_warm_up`, for ``zd_warmup``.
    """

    zd_reporter: Reporter = Reporter(None)
    """Set on the instance by the code that gives birth to the worker, before ``init_process()``."""

    zd_settings: Settings = Settings()
    """Likewise."""

    zd_master_pid: int = 0
    """Likewise; 0 when the worker does not run under our arbiter."""

    zd_failure: Failed | None = None
    """What :meth:`zd_failed` has reported: the birth code need not report that end again."""

    zd_ready_at_first_beat: ClassVar[bool] = True
    """Whether the first heartbeat after boot says that the worker accepts; False for a class that says so itself."""

    zd_answers_health: ClassVar[bool] = False
    """Whether the class answers ``zd_health_path``, by :meth:`zd_stopping` (see :mod:`zdworker.workers.health`)."""

    zd_deadline: float = math.inf
    """When the drain has to be over, by ``time.monotonic()``; infinite until the worker is told to leave."""

    zd_max_requests: int = sys.maxsize
    """Requests after which the worker asks to be replaced, ``max_requests`` with its jitter."""

    _zd_counted: Counts | None = None
    _zd_said: frozenset[str] = frozenset()
    _zd_orphaned = False
    _zd_termed_at = math.inf
    _zd_next_look = 0.0
    _zd_memory_limit: int | None = None

    booted: bool
    alive: bool
    cfg: Any
    log: Any
    nr: int
    max_requests: int

    @classmethod
    def zd_prepare(cls, cfg: Any) -> None:
        """Prepare the process for the application, with Gunicorn's configuration: called before that is imported, in
        the fork server with ``--preload`` and in each worker.
        """

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import what a worker would otherwise load late. Called in the fork server, with Gunicorn's configuration,
        after the application if that is preloaded; starts no thread and opens nothing.
        """

    def init_process(self) -> None:
        """Boot and serve; returns when the drain is over."""
        if self.zd_master_pid:
            # No worker leaves by itself: it asks for a replacement, and is told to leave when that is ready.
            self.zd_max_requests, self.max_requests = self.max_requests, sys.maxsize
        if self.zd_settings.health_path and not self.zd_answers_health:
            self.log.warning("%s does not answer zd_health_path: the application has to", type(self).__name__)
        super().init_process()  # type: ignore[misc]

    # -- reports -----------------------------------------------------------------------------------------------------

    def zd_ready(self) -> None:
        """Report, once, that this worker accepts connections."""
        self._say_once(Ready())

    def zd_draining(self) -> None:
        """Report, once, that this worker has stopped accepting."""
        self._say_once(Draining())

    def zd_request_replacement(self, reason: str) -> None:
        """Ask once to be replaced for ``reason`` (``"max_requests"``); the worker serves until it is told to drain."""
        self._say_once(ReplacementRequested(reason))

    def zd_tired(self, reason: str) -> None:
        """Call :meth:`zd_request_replacement`; its name before version 0.2."""
        self.zd_request_replacement(reason)

    def zd_failed(self, reason: str, traceback: str = "", exit_code: int = 3) -> None:
        """Report, once, that this worker cannot boot; the caller then ends it with ``SystemExit(exit_code)``.

        Nothing of one that has been ready: how that ends is for the master to see.
        """
        if self.zd_failure is None and "Ready" not in self._zd_said:
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

    # -- the heart ---------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Beat Gunicorn's heart; and about once a second look at parent and limits, and report the counts."""
        super().notify()  # type: ignore[misc]
        now = time.monotonic()
        if now < self._zd_next_look or not self.booted:
            return
        self._zd_next_look = now + LOOK
        if self.zd_ready_at_first_beat:
            self.zd_ready()
        self.zd_look_for_parent()
        self._zd_weigh_term(now)
        connections, requests = self.zd_load()
        self.zd_counts(connections, requests)
        if self.zd_master_pid:
            self._look_at_limits(requests)

    def zd_load(self) -> tuple[int, int]:
        """Return the open connections and the requests answered since birth."""
        return 0, self.nr

    def _look_at_limits(self, requests: int) -> None:
        if requests >= self.zd_max_requests:
            self.zd_request_replacement("max_requests")
        limit = self.zd_settings.max_rss
        if limit is None:
            return
        memory = resident_memory() or 0
        if self._zd_memory_limit is None:
            self._zd_memory_limit = limit
            if memory > limit:
                # A replacement would be no smaller: without end, one after the other would be replaced at once.
                self._zd_memory_limit = sys.maxsize
                self.log.error(
                    "zd_max_rss is %d bytes, but a worker that has just booted takes %d: it is not replaced",
                    limit,
                    memory,
                )
        if memory > self._zd_memory_limit:
            self.zd_request_replacement(f"zd_max_rss: it takes {memory} bytes")

    # -- leaving -----------------------------------------------------------------------------------------------------

    @property
    def zd_leaving(self) -> bool:
        """Whether the worker has been told to leave."""
        return self.zd_deadline != math.inf

    def zd_leave(self, grace: float) -> None:
        """Begin the drain, or shorten it, to ``grace`` seconds from now. For signal handlers too."""
        first = not self.zd_leaving
        self.zd_deadline = min(self.zd_deadline, time.monotonic() + grace)
        if first:
            self.zd_on_leave()

    def zd_on_leave(self) -> None:
        """Stop accepting and drain. Called once, on the main thread, perhaps in a signal handler.

        By default as Gunicorn's classes know it: ``alive`` gets false.
        """
        super().handle_exit(signal.SIGTERM, None)  # type: ignore[misc]

    def zd_stopping(self) -> bool:
        """Whether the site is about to end, as balancers should know; not so of a worker that is replaced."""
        if not self.zd_master_pid:
            return self.zd_leaving
        return self.zd_reporter.was_told(Stopping) or self.zd_parent_lost()

    # -- warm-up -----------------------------------------------------------------------------------------------------

    def zd_warm_up(self, paths: Sequence[str]) -> None:
        """Answer ``paths`` (``"/health"``, or a URL, which gives scheme and host) in this process.

        :raises WarmupFailed: one was answered with status 400 or above, or this class does not know how to.
        """
        raise WarmupFailed(f"{type(self).__name__} cannot answer zd_warmup: it does not override zd_warm_up()")

    def zd_warmed_up(self) -> None:
        """Do what ``zd_warmup`` asks for; our classes call it before they accept.

        :raises SystemExit: (3) that failed; it is reported.
        """
        if not self.zd_settings.warmup:
            return
        try:
            self.zd_warm_up(self.zd_settings.warmup)
        except Exception as error:  # noqa: BLE001  # whatever the application raises
            self.zd_warmup_failed(error)

    def zd_warmup_failed(self, error: Exception) -> NoReturn:
        """Report that the warm-up failed.

        :raises SystemExit: (3) always.
        """
        text = "".join(traceback.format_exception(error))
        self.log.error("Warm-up failed:\n%s", text.rstrip())
        self.zd_failed(f"warm-up failed: {type(error).__name__}: {error}", text, BOOT_FAILURE)
        raise SystemExit(BOOT_FAILURE)

    # -- the master's life -------------------------------------------------------------------------------------------

    def zd_parent_lost(self) -> bool:
        """Tell whether the master that this worker belongs to has died."""
        return bool(self.zd_master_pid) and os.getppid() != self.zd_master_pid

    def zd_look_for_parent(self) -> None:
        """If the master has died, begin to end: within two seconds nothing of it is to be left."""
        if not self._zd_orphaned and self.zd_parent_lost():
            self._zd_orphaned = True
            self.zd_end_orphaned()
            self.zd_leave(ORPHAN_DRAIN)

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
        if not self.booted:
            if self.zd_parent_lost():
                self.zd_end_orphaned()
            self.alive = False  # for the case that the application catches the exit
            raise SystemExit(0)
        self.zd_look_for_parent()
        delayed = bool(self.zd_master_pid and self.zd_settings.shutdown_delay)
        if delayed and not self.zd_leaving and not self.zd_reporter.was_told(Leave):
            self._zd_termed_at = min(self._zd_termed_at, time.monotonic())
        else:
            self.zd_leave(self.cfg.graceful_timeout)

    def _zd_weigh_term(self, now: float) -> None:
        """With ``zd_shutdown_delay``, follow a ``TERM`` that the master has not announced, but not one that went to the
        whole process group: the master has got that too, and says when its workers leave.

        By the heart, not by a message: that nobody has said anything only time can tell.
        """
        if now >= self._zd_termed_at + WORD and not self.zd_reporter.was_told(Stopping):
            self.zd_leave(self.cfg.graceful_timeout)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT and SIGQUIT: end now; the hook ``worker_int`` is for workers that have booted."""
        if not self.booted:
            self.alive = False
            raise SystemExit(0)
        self.zd_deadline = min(self.zd_deadline, time.monotonic())  # no drain either, should the exit be caught
        super().handle_quit(sig, frame)  # type: ignore[misc]


def _change_nothing(sig: int, frame: FrameType | None) -> None:
    """Handle a signal that means nothing to a worker."""


# Gunicorn imports a worker class inside Arbiter.__init__: that is the moment to make its master ours.
if not roles.in_generation:
    takeover.install()
