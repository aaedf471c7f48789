"""The worker's side of zdworker: what every worker class has in common, zdworker's own and those of its users.

Rules:

* The worker reports its state, so the master need not guess: ready, draining, replacement requested, failed, and counts
  go up the report channel.
* A report never raises and never holds a worker up for long: a worker goes on serving, even if its master has died.
* Everything works without zdworker's arbiter too (``zd_master_pid`` 0): reports go nowhere and the parent is not
  checked.
* The master imports this module, so it imports only the standard library and the light modules of zdworker.
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

from zdworker import roles, takeover, texts, tracebacks
from zdworker.errors import TlsError, WarmupFailed
from zdworker.ipc.hand_over import Connection, HandOverQueue, QueueClosed
from zdworker.ipc.messages import (
    CountAnswers,
    Counts,
    Drained,
    Draining,
    Failed,
    Leave,
    Message,
    Ready,
    ReplacementRequested,
    Stopping,
    reported_text,
)
from zdworker.ipc.report import Reporter
from zdworker.printed import Printed
from zdworker.settings import Settings
from zdworker.syscalls import HELD_SIGNALS, resident_memory, set_death_signal
from zdworker.workers import applications, tls
from zdworker.workers.answers import REPORT_INTERVAL_S, AnswerCounter
from zdworker.workers.drain import QUEUE_PATIENCE_S, QUEUE_RETRY_S
from zdworker.workers.signals import Handlers

ORPHAN_DRAIN_S = 1.0
"""Seconds that a worker goes on with its requests when its master is dead; it has to be gone within two."""

ORPHAN_LIMIT_S = 1.4
"""Seconds after which the kernel ends a worker whose master is dead, whatever its code does."""

STOPPING_MESSAGE_S = 1.0
"""Seconds within which a master that got ``TERM`` as well has sent :class:`~zdworker.ipc.messages.Stopping`."""

SELF_CHECK_INTERVAL_S = 1.0
"""Seconds between two checks of parent, counts and limits; heartbeats may be more frequent."""

BOOT_FAILURE = 3
"""Exit code of a worker that cannot boot: ``gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR``."""


class ZeroDowntime(roles.ZeroDowntimeClass):
    """Mixin that makes a Gunicorn worker class one for zdworker; it stands before the Gunicorn class among the bases.

    ``class MyWorker(ZeroDowntime, SomeWorker): pass`` is enough for a class that calls ``notify()`` from its loop and
    returns from ``run()`` some time after ``handle_exit()``, as Gunicorn asks of every worker. Such a worker is ready
    with its first heartbeat after boot, and leaves as its base class does. A class that can do better does this:

    * it calls :meth:`zd_ready` at the moment from which on it accepts, and sets ``zd_ready_at_first_beat`` to False,
    * it overrides :meth:`zd_on_leave` to drain; the drain ends at :attr:`zd_deadline`, and then ``run()`` returns,
    * it calls :meth:`zd_draining` when it has stopped accepting,
    * it overrides :meth:`zd_load`, for the counts, and :meth:`zd_warm_up`, for ``zd_warmup``,
    * it overrides :meth:`zd_take` and :meth:`zd_give`, so that its keep-alive connections go on to its successor.
    """

    zd_reporter: Reporter = Reporter(None)
    """The report channel; the code that boots the worker sets it on the instance, before ``init_process()``."""

    zd_settings: Settings = Settings()
    """The settings of zdworker; set by the code that boots the worker, as ``zd_reporter`` is."""

    zd_master_pid: int = 0
    """The master's process id, set as ``zd_reporter`` is; 0 when the worker does not run under zdworker's arbiter."""

    zd_queue: HandOverQueue | None = None
    """The queue of this worker's slot, set as ``zd_reporter`` is; None where no connections are handed over."""

    zd_printed: Printed = Printed()
    """What is printed in the boot; set as ``zd_reporter`` is."""

    zd_probes: HandOverQueue | None = None
    """A queue through which a canary that is held gets a connection to be tried by, set as ``zd_reporter`` is."""

    zd_failure: Failed | None = None
    """What :meth:`zd_failed` has reported, so that the code that boots the worker need not report that end again."""

    zd_ready_at_first_beat: ClassVar[bool] = True
    """Whether the first heartbeat after boot reports that the worker accepts; False for a class that reports itself."""

    zd_without_effect: ClassVar[dict[str, str]] = {}
    """Names that a subclass may define, because the class of Gunicorn or uvicorn that this one replaces has them, and
    that have no effect here; with what has one instead. A generation warns of them."""

    zd_answers_health: ClassVar[bool] = False
    """Whether the class answers ``zd_health_path``, by :meth:`zd_stopping` (see :mod:`zdworker.workers.health`)."""

    zd_serves: ClassVar[frozenset[str]] = frozenset()
    """The kinds of application that the class serves (:func:`zdworker.workers.applications.kind_of`); empty if that is
    not known."""

    zd_counts_answers: ClassVar[bool] = False
    """Whether the class counts its answers when that is asked for, by :meth:`zd_install_counter`."""

    zd_counter: AnswerCounter | None = None
    """What the worker has answered; None as long as nobody wants to know."""

    zd_deadline: float = math.inf
    """When the drain has to be over, by ``time.monotonic()``; infinite until the worker has to leave."""

    zd_max_requests: int = sys.maxsize
    """Requests after which the worker asks to be replaced, ``max_requests`` with its jitter."""

    _zd_counts: Counts | None = None
    _zd_reported: frozenset[str] = frozenset()
    _zd_orphaned = False
    _zd_term_at = math.inf
    _zd_lacked_descriptors = False
    _zd_next_check = 0.0
    _zd_next_answers = math.inf
    _zd_answers_reported = 0
    _zd_memory_limit: int | None = None
    _zd_handlers: Handlers | None = None

    booted: bool
    alive: bool
    app: Any
    cfg: Any
    log: Any
    nr: int
    max_requests: int

    @classmethod
    def zd_prepare(cls, cfg: Any) -> None:
        """Prepare the process for the application; called before the application is imported, in the fork server with
        ``--preload`` and in each worker.

        :param cfg: Gunicorn's configuration.
        """

    @classmethod
    def zd_warnings(cls, cfg: Any) -> list[str]:
        """Return lines for the log about what this class defines, or is configured with, and that has no effect.

        :param cfg: Gunicorn's configuration.
        """
        defined = {
            name
            for one in cls.__mro__
            if not one.__module__.startswith(("zdworker.", "gunicorn."))
            for name in vars(one)
        }
        return [
            f"{cls.__module__}.{cls.__qualname__}.{name} has no effect: {instead}"
            for name, instead in cls.zd_without_effect.items()
            if name in defined
        ]

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import what a worker would otherwise load late, without starting a thread or opening anything. Called in the
        fork server, after the application was imported if that is preloaded.

        :param cfg: Gunicorn's configuration.
        """

    @classmethod
    def zd_check_tls(cls, cfg: Any) -> None:
        """Load certificate, key and what else TLS needs, as this class does. Called in a process with a worker's rights
        before a generation is used, and in each worker before it accepts.

        :param cfg: Gunicorn's configuration.
        :raises TlsError: that fails.
        """
        tls.check_gunicorns(cfg)

    def load_wsgi(self) -> None:
        """Load the application, which may set signal handlers."""
        super().load_wsgi()  # type: ignore[misc]
        self.zd_take_signals_back()

    def init_process(self) -> None:
        """Boot and serve; returns when the drain is over."""
        if self.zd_master_pid:
            # No worker leaves by itself: it asks for a replacement, and the master ends it when that is ready.
            self.zd_max_requests, self.max_requests = self.max_requests, sys.maxsize
        if not self.zd_counts_answers:
            name = type(self).__name__
            if self.zd_settings.max_error_rate is not None:
                self.log.warning("%s does not count its answers: zd_max_error_rate judges nothing", name)
            elif self.zd_settings.count_answers:
                self.log.warning("%s does not count its answers: zd_count_answers has no effect", name)
        if self.zd_settings.health_path and not self.zd_answers_health:
            self.log.warning("%s does not answer zd_health_path: the application has to", type(self).__name__)
        super().init_process()  # type: ignore[misc]

    def run(self) -> None:
        """Serve, if TLS can be loaded.

        :raises SystemExit: (3) it cannot; that is reported.
        """
        self.zd_refuse_bad_tls()
        super().run()  # type: ignore[misc]

    def zd_refuse_bad_tls(self) -> None:
        """Check TLS before this worker accepts; zdworker's own classes call it in their ``run()``.

        :raises SystemExit: (3) it cannot be loaded; that is reported.
        """
        try:
            self.zd_check_tls(self.cfg)
        except TlsError as error:
            text = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
            self.log.error("TLS cannot load: %s%s", error, text and f"\n{text}")  # noqa: TRY400  # the place counts only in a hook
            self.zd_failed(f"TLS cannot load: {error}", text, BOOT_FAILURE)
            raise SystemExit(BOOT_FAILURE) from error

    # -- reports -----------------------------------------------------------------------------------------------------

    def zd_ready(self) -> None:
        """Report, once, that this worker accepts connections."""
        self.zd_printed.end()
        self.zd_take_signals_back()
        self._report_once(Ready(takes=self.zd_takes, mismatch=self.zd_mismatch()))

    def zd_mismatch(self) -> str:
        """Return why this class can hardly serve the application, "" if it can, or if that is not known."""
        try:
            application = self.app.wsgi()  # the object that was loaded, not what is wrapped around it
        except Exception:  # noqa: BLE001  # with ``reload`` a page takes its place
            return ""
        return applications.mismatch(application, self.zd_serves, self.cfg.worker_class_str)

    def zd_draining(self) -> None:
        """Report, once, that this worker has stopped accepting."""
        self._report_once(Draining())

    def zd_drained(self, drained: Drained) -> None:
        """Report, once, that the drain is over, and what it has cost."""
        self.zd_report_answers()
        self._report_once(drained)

    def zd_request_replacement(self, reason: str) -> None:
        """Ask once to be replaced for ``reason`` (``"max_requests"``); the worker serves until it has to drain."""
        self._report_once(ReplacementRequested(reported_text(reason, texts.REASON_MAX)))

    def zd_tired(self, reason: str) -> None:
        """Call :meth:`zd_request_replacement`; its name before version 0.2."""
        self.zd_request_replacement(reason)

    def zd_failed(self, reason: str, traceback: str = "", exit_code: int = 3) -> None:
        """Report, once, that this worker cannot boot; the caller then ends it with ``SystemExit(exit_code)``.

        Nothing is reported of a worker that has been ready: the master sees how its process ends.
        """
        if self.zd_failure is None and "Ready" not in self._zd_reported:
            self.zd_failure = Failed(reported_text(reason, texts.REASON_MAX), reported_text(traceback), exit_code)
            self.zd_reporter.send(self.zd_failure)

    def zd_counts(self, connections: int, requests: int, in_flight: int = 0, websockets: int = 0) -> None:
        """Report open connections and requests answered since boot, and what is under way where that is asked for, if
        that has changed.
        """
        counts = Counts(connections, requests, in_flight, websockets)
        if counts != self._zd_counts:
            self._zd_counts = counts
            self.zd_reporter.send(counts)

    def _report_once(self, message: Message) -> None:
        kind = type(message).__name__
        if kind not in self._zd_reported:
            self._zd_reported |= {kind}
            self.zd_reporter.send(message)

    # -- heartbeats --------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Send Gunicorn's heartbeat; and about once a second check parent and limits, and report the counts."""
        super().notify()  # type: ignore[misc]
        now = time.monotonic()
        if now >= self._zd_next_answers:
            self.zd_report_answers()
        if self.zd_probes is not None and "Ready" in self._zd_reported:
            self._take_probes(self.zd_probes)
        if now < self._zd_next_check or not self.booted:
            return
        self._zd_next_check = now + SELF_CHECK_INTERVAL_S
        self.zd_take_signals_back()
        if self.zd_ready_at_first_beat:
            self.zd_ready()
        self.zd_take_waiting()
        self.zd_check_parent()
        if self.zd_counter is None and self.zd_counts_answers and self.zd_reporter.was_announced(CountAnswers):
            self.zd_count_answers()
        self._zd_follow_unannounced_term(now)
        connections, requests = self.zd_load()
        # The judge of a reload asks whether code hangs; as soon as it has answered anything this costs nothing.
        silent = self.zd_counter is not None and not self.zd_counter.answers
        under_way = self.zd_under_way() if self.zd_leaving or silent else (0, 0)
        self.zd_counts(connections, requests, *under_way)
        if self.zd_master_pid:
            self._check_limits(requests)

    def zd_load(self) -> tuple[int, int]:
        """Return the open connections and the requests answered since boot."""
        return 0, self.nr

    def zd_under_way(self) -> tuple[int, int]:
        """Return the requests that are being answered, and the WebSockets.

        It is asked in a drain, and as long as the worker has answered nothing, where answers are counted.
        """
        return 0, 0

    # -- counting ----------------------------------------------------------------------------------------------------

    def zd_count_if_wanted(self) -> None:
        """Begin to count, if the configuration asks for that. A class calls it once it has the application.

        The master asks for it later where somebody wants to compare two generations (``zdworker reload --hold``).
        """
        settings = self.zd_settings
        if settings.max_error_rate is not None or settings.count_answers or self.cfg.statsd_host:
            self.zd_count_answers()

    def zd_count_answers(self) -> None:
        """Begin to count answers."""
        self.zd_counter = AnswerCounter()
        self._zd_next_answers = 0.0
        self.zd_install_counter(self.zd_counter)

    def zd_install_counter(self, counter: AnswerCounter) -> None:
        """Have each answer of the application counted from now on. A class that sets ``zd_counts_answers`` overrides
        this.
        """

    def zd_report_answers(self) -> None:
        """Report what was answered, if something was since the last report."""
        if self.zd_counter is None:
            return
        self._zd_next_answers = time.monotonic() + REPORT_INTERVAL_S
        answers = self.zd_counter.report()
        if answers.answers != self._zd_answers_reported:
            self._zd_answers_reported = answers.answers
            self.zd_reporter.send(answers)

    def _check_limits(self, requests: int) -> None:
        if requests >= self.zd_max_requests:
            self.zd_request_replacement("max_requests")
        limit = self.zd_settings.max_rss
        if limit is None:
            return
        memory = resident_memory() or 0
        if self._zd_memory_limit is None:
            self._zd_memory_limit = limit
            if memory > limit:
                # A replacement would be no smaller, so workers would be replaced one after the other without end.
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
        """Whether the worker has to leave."""
        return self.zd_deadline != math.inf

    def zd_leave(self, grace: float) -> None:
        """Begin the drain, or shorten it, to ``grace`` seconds from now. Signal handlers may call it."""
        first = not self.zd_leaving
        self.zd_deadline = min(self.zd_deadline, time.monotonic() + grace)
        if first:
            self.zd_on_leave()

    def zd_on_leave(self) -> None:
        """Stop accepting and drain. Called once, on the main thread, perhaps in a signal handler.

        By default the connections are handed over that :meth:`zd_give` returns, and ``alive`` becomes False, which ends
        the loop of Gunicorn's own classes.
        """
        if self.zd_gives:
            give_all(self)
        super().handle_exit(signal.SIGTERM, None)  # type: ignore[misc]

    def zd_stopping(self) -> bool:
        """Return whether the site is about to end, which balancers ask; False for a worker that is merely replaced."""
        if not self.zd_master_pid:
            return self.zd_leaving
        return self.zd_reporter.was_announced(Stopping) or self.zd_parent_lost()

    # -- the hand-over of connections --------------------------------------------------------------------------------

    @property
    def zd_takes(self) -> bool:
        """Whether this worker takes over the connections of others in its slot.

        One with TLS does not: only plain connections move, and those stay with a worker that speaks plain HTTP.
        """
        overridden = type(self).zd_take is not ZeroDowntime.zd_take
        return overridden and self.zd_queue is not None and self.zd_settings.hand_over and not self.cfg.is_ssl

    @property
    def zd_gives(self) -> bool:
        """Whether this worker, which has to leave, gives its connections to a successor.

        It does so by the master's order only, which comes when another worker of its slot takes them, and not without
        a master, with which that one would end, too.
        """
        queue = self.zd_queue if self.zd_takes else None
        ordered = queue is not None and self.zd_reporter.was_announced(Leave) and not self.zd_parent_lost()
        return ordered and queue is not None and not queue.is_closed

    def zd_give(self) -> list[Connection]:
        """Return connections that can move now, at most :data:`zdworker.ipc.hand_over.BATCH`, and let go of them.

        One can move between two requests: nothing of the next one has been read from the socket, the last response is
        written out, and there is neither TLS nor an upgrade. Its socket may be a copy (``socket.dup``) of one that the
        worker has closed, which the client does not notice. Called again and again in a drain, on the main thread.
        """
        return []

    def zd_take(self, connection: Connection) -> None:
        """Serve a connection from now on, as if it had just been accepted.

        Its socket does not block. What its client has sent, and has not been answered, can be read from it. Its
        keep-alive time is over at ``connection.idle_until``. A class that overrides this takes connections over; it has
        to override :meth:`zd_give` as well.

        :raises NotImplementedError: this class takes none over.
        """
        raise NotImplementedError

    def zd_take_waiting(self) -> bool:
        """Take over the connections of one message in the queue; return whether there were any.

        The heartbeat calls it about once a second. A class whose loop can watch a descriptor calls it when ``zd_queue``
        is readable.
        """
        if self.zd_leaving or not self.zd_takes or self.zd_queue is None or "Ready" not in self._zd_reported:
            return False
        connections = self.zd_queue.take()
        for connection in connections:
            self.zd_take(connection)
        if self.zd_queue.lacks_descriptors and not self._zd_lacked_descriptors:
            self._zd_lacked_descriptors = True
            self.log.warning(
                "Out of file descriptors: connections that were handed over wait until some are free (ulimit -n)"
            )
        return bool(connections)

    def zd_take_or_stop(self) -> bool:
        """Take over what :meth:`zd_take_waiting` does; return whether the loop has to watch the queue further.

        It has not when nothing can come any more, nor when there are too few descriptors: the queue stays readable
        then, and the heartbeat alone takes from it from now on.
        """
        if self.zd_take_waiting():
            return True
        queue = self.zd_queue
        return queue is not None and not queue.is_closed and not queue.lacks_descriptors

    def _take_probes(self, probes: HandOverQueue) -> None:
        """Serve the connections by which this worker is tried; a class that takes no connections closes them."""
        for connection in probes.take():
            if type(self).zd_take is ZeroDowntime.zd_take or self.zd_leaving:
                connection.sock.close()
            else:
                self.zd_take(connection)

    # -- warm-up -----------------------------------------------------------------------------------------------------

    def zd_warm_up(self, paths: Sequence[str]) -> None:
        """Answer ``paths`` (``"/health"``, or a URL, which gives scheme and host) in this process.

        :raises WarmupFailed: one was answered with status 400 or above, or this class cannot answer requests itself.
        """
        raise WarmupFailed(f"{type(self).__name__} cannot answer zd_warmup: it does not override zd_warm_up()")

    def zd_warmed_up(self) -> None:
        """Answer the requests that ``zd_warmup`` asks for; zdworker's classes call it before they accept.

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
        # What zdworker itself says of a path is no exception of the application's, which is the cause, if there is one.
        own = isinstance(error, WarmupFailed)
        cause = error.__cause__ if own else error
        reason = str(error) if own else texts.reason(error)
        whole = "".join(traceback.format_exception(cause)).rstrip() if cause is not None else ""
        self.log.error("Warm-up failed: %s%s", reason, whole and f"\n{whole}")
        shown = tracebacks.of_application(cause) if cause is not None else ""
        self.zd_failed(f"warm-up failed: {reason}", shown, BOOT_FAILURE)
        raise SystemExit(BOOT_FAILURE)

    # -- the end of the master ---------------------------------------------------------------------------------------

    def zd_parent_lost(self) -> bool:
        """Return whether the master that this worker belongs to has died."""
        return bool(self.zd_master_pid) and os.getppid() != self.zd_master_pid

    def zd_check_parent(self) -> None:
        """Begin to end if the master has died: within two seconds no process of it is to be left."""
        if not self._zd_orphaned and self.zd_parent_lost():
            self._zd_orphaned = True
            self.zd_end_orphaned()
            self.zd_leave(ORPHAN_DRAIN_S)

    def zd_end_orphaned(self) -> None:
        """Have the kernel end this process in :data:`ORPHAN_LIMIT_S` seconds, unless it ends by itself before."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, ORPHAN_LIMIT_S)

    def zd_on_privileges(self) -> None:
        """Have the kernel send SIGTERM to this process when the master dies. Called after the master has adopted the
        process, and again after privileges were dropped, which clears the death signal (prctl(2), PR_SET_PDEATHSIG).

        :raises SystemExit: (0) the master died before that was set, so that no signal would come.
        """
        if not self.zd_master_pid:
            return
        set_death_signal(signal.SIGTERM)
        if self.zd_parent_lost():
            raise SystemExit(0)

    # -- signals -----------------------------------------------------------------------------------------------------

    def init_signals(self) -> None:
        """Set the signal handlers, in addition to Gunicorn's.

        HUP, USR2, TTIN and TTOU change nothing, since a process group may be signalled as a whole. They have handlers,
        because the application's children would inherit SIG_IGN. TERM, INT and QUIT end a worker that still boots.
        """
        # Gunicorn puts the default actions back first: a HUP to the whole group must not come in between.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        super().init_signals()  # type: ignore[misc]
        for quiet in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(quiet, _change_nothing)
            signal.siginterrupt(quiet, False)
        self._zd_handlers = Handlers(self.log, self)
        self._zd_handlers.set(signal.SIGTERM, self.handle_exit)
        self._zd_handlers.set(signal.SIGINT, self.handle_quit)
        self._zd_handlers.set(signal.SIGQUIT, self.handle_quit)
        rotation = signal.getsignal(signal.SIGUSR1)
        if callable(rotation):
            self._zd_handlers.set(signal.SIGUSR1, rotation, interrupts=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        # Privileges were dropped by now: Gunicorn does that at the start of init_process().
        self.zd_on_privileges()

    def zd_take_signals_back(self) -> None:
        """Put the worker's handlers in place again where the application has set its own, and have them call those.

        The worker calls this when it has loaded the application, behind lifespan startup, when it is ready, and about
        once a second.
        """
        if self._zd_handlers is not None:
            self._zd_handlers.take_back()

    def zd_exiting(self) -> None:
        """Note that the worker has done its work; the code that boots the worker calls this, before it ends the process
        and what the application has started.
        """
        if self._zd_handlers is not None:
            self._zd_handlers.exiting()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: drain; while booting, end at once; if the master is dead, end soon."""
        # One that the master has not announced is for this worker alone, or for the whole process group. Then a worker
        # that can hand its connections over asks for a successor, and goes on until the master tells it to leave. A
        # second one is an order. So is the first one if the master can announce nothing, having closed the channel. So
        # is it where the application has a handler of its own, which has been called by now: what that has begun to end
        # is not to get further requests.
        if not self.booted:
            if self.zd_parent_lost():
                self.zd_end_orphaned()
            self.alive = False  # for the case that the application catches the exit
            raise SystemExit(0)
        self.zd_check_parent()
        waits = self.zd_settings.shutdown_delay or self._zd_waits_for_successor(sig)
        if self.zd_master_pid and waits and not self.zd_leaving and not self.zd_reporter.was_announced(Leave):
            self._zd_term_at = min(self._zd_term_at, time.monotonic())
            self._zd_next_check = 0.0
        else:
            self.zd_leave(self.cfg.graceful_timeout)

    def _zd_waits_for_successor(self, sig: int) -> bool:
        """Return whether a signal to leave, which the master has not announced, is a wish for a successor."""
        is_first = self._zd_term_at == math.inf
        application_ends = self._zd_handlers is not None and self._zd_handlers.application_handles(sig)
        return self.zd_takes and is_first and self.zd_reporter.is_connected and not application_ends

    def _zd_follow_unannounced_term(self, now: float) -> None:
        """Leave after a ``TERM`` that the master has not announced: when there is a successor, or has been time for it.

        One that went to the whole process group does not count: the master has got it too, and says when its workers
        are to leave. Checked with each heartbeat, because only a timeout can show that no message came.
        """
        if now < self._zd_term_at or self.zd_leaving or self.zd_reporter.was_announced(Stopping):
            return
        limit_s = STOPPING_MESSAGE_S
        if self.zd_takes and not self.zd_settings.shutdown_delay:
            self.zd_request_replacement("SIGTERM")
            limit_s = self.zd_settings.boot_timeout
        if now >= self._zd_term_at + limit_s:
            self.zd_leave(self.cfg.graceful_timeout)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGQUIT: end now, after the hook ``worker_int`` if the worker has booted."""
        if not self.booted:
            self.alive = False
            raise SystemExit(0)
        self.zd_deadline = min(self.zd_deadline, time.monotonic())  # no drain either, should the exit be caught
        super().handle_quit(sig, frame)  # type: ignore[misc]


def give_all(worker: ZeroDowntime) -> None:
    """Hand over what ``worker`` gives; what there is no room for is taken up by the worker itself once more."""
    end = time.monotonic() + QUEUE_PATIENCE_S
    while worker.zd_queue is not None and (connections := worker.zd_give()):
        try:
            while not worker.zd_queue.give(connections):
                if time.monotonic() > end:
                    raise QueueClosed
                time.sleep(QUEUE_RETRY_S)
        except QueueClosed:
            for connection in connections:
                worker.zd_take(connection)
            return


def _change_nothing(sig: int, frame: FrameType | None) -> None:
    """Handle a signal that means nothing to a worker."""


# Gunicorn imports a worker class inside Arbiter.__init__: that is the moment to take its master over.
if not roles.in_generation:
    takeover.install()
