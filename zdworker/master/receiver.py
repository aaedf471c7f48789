"""What the master's children report, as events for the core.

Rules:

* A worker's death is what ``waitpid`` reports. An end of file only means that a channel was closed; but a worker that
  has not sent ``Hello`` by then never will.
* Nothing that a process sends or does ends the master, or holds it up: a worker is read a small piece at a time.
* A worker's channel is closed at the first message that is malformed, illegal (``report_rules.py``) or brings
  descriptors. A worker that serves goes on serving and is replaced, as if it had asked for that: whatever has written
  into its channel, its clients are not to blame. One that boots has failed.
* A report whose handling raises is treated in the same way, although the master itself is to blame: the core must not
  wait for what it would have brought. Whatever is raised while a child's end is handled, the core learns of the end.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from zdworker import texts
from zdworker.core import events
from zdworker.core.fleet import GenerationState, Purpose, WorkerState
from zdworker.errors import GenerationError, MessageError, SettingError
from zdworker.exhaustive import assert_never
from zdworker.ipc.messages import (
    CUT_PATH_MAX,
    PROTOCOL,
    READABLE_PROTOCOLS,
    Answers,
    Counts,
    Drained,
    Draining,
    Failed,
    Forked,
    Hello,
    Loaded,
    LoadFailed,
    NotForked,
    Place,
    Ready,
    ReplacementRequested,
    ServerReport,
    Start,
    WorkerReport,
)
from zdworker.master.children import ForkServer, WorkerRecord
from zdworker.master.leftovers import LeftoverProcesses
from zdworker.master.observers import Crash, Observer
from zdworker.master.parts import Parts
from zdworker.settings import Settings

REPORT_TURN_BYTES = 8192
"""Bytes that are read at a time from a worker: a hundred times what one has to say in a second."""

NOT_INSTALLED = "specification for 'zdworker.forkserver' (ModuleNotFoundError: No module named 'zdworker')"
"""What ``runpy`` prints where an interpreter does not find this package."""

REST_READS = 64
"""Such reads of what a worker has left behind: its last words are behind a full socket's buffer at most."""

BROKEN_CHANNEL_REPLACEMENT_S = 10.0
"""Seconds from a worker's order before it is replaced for its broken channel: what breaks each new one must not make
the master replace one after the other as fast as they boot."""


class Receiver:
    """Reads what the children send, and learns how they end."""

    def __init__(self, parts: Parts, leftovers: LeftoverProcesses) -> None:
        self._gunicorn = parts.gunicorn
        self._log: Any = parts.gunicorn.log
        self._fleet = parts.fleet
        self._children = parts.children
        self._observers = parts.observers
        self._reactor = parts.reactor
        self._publish = parts.publish
        self._leftovers = leftovers

    def resume(self) -> None:
        """Go on in the place of an earlier program of this process: what it had put off is put off once more."""
        for record in list(self._children.workers.values()):
            known = self._fleet.workers.get(record.worker_id)
            closed = record.channel is None and record.has_pid and not record.called_off
            if closed and known is not None and known.state is WorkerState.READY:
                self._replace_later(record)

    def reaped(self, pid: int, code: int) -> bool:
        """Handle the end of a child; return False when it is not one of the registry (an orphan of the application).

        :param code: its exit code, negative for a signal.
        """
        server = self._children.server_of(pid)
        if server is not None:
            with self._going_on("what a fork server has left"):
                self._leftovers.server_gone(server)
            self._server_gone(server, code)
            self._children.killed_server(pid)  # what it has sent last may have had it ended: it is reaped already
            return True
        server = self._children.killed_server(pid)
        if server is not None:
            self._leftovers.server_gone(server)
            return True
        if pid not in self._children.workers_by_pid:
            # A worker that died right after its first message, which may not have been read yet.
            for record in self._children.without_pid():
                self.receive_from_worker(record)
        if pid not in self._children.workers_by_pid:
            return False
        record = self._children.workers_by_pid.pop(pid)
        with self._going_on("what a worker has left"):
            self._leftovers.worker_gone(record, code)
        self._worker_gone(record, code)
        return True

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Log what is raised in the ``with`` block; what follows is done in any case."""
        try:
            yield
        except BaseException:  # noqa: BLE001  # an exit, too: see the rules
            self._log.exception("zdworker: %s could not be handled", what)

    # -- workers -------------------------------------------------------------------------------------------------

    def receive_from_worker(self, record: WorkerRecord) -> None:
        """Read a piece of a worker's channel, without waiting, and handle what came."""
        self._receive_piece(record)

    def _receive_piece(self, record: WorkerRecord) -> bool:
        """Return whether something came, after which there may be more."""
        if record.channel is None:
            return False
        try:
            received = record.channel.receive(REPORT_TURN_BYTES)
            for message, sender in received.messages:
                self._log.debug("worker %s (pid:%s) -> master: %r", record.worker_id, sender, message)
                own = not record.has_pid or sender in (None, record.pid)
                if isinstance(message, WorkerReport) and record.report_rules.admit(message, time.monotonic(), own=own):
                    self._handle_report(record, message, sender)
            if received.error:
                raise MessageError(received.error)
        except MessageError as error:
            self._log.error("Worker (pid:%s) has broken the rules of its reports: %s", record.pid, error)
            self._break_channel(record, f"has broken the rules of its reports: {error}")
            return False
        except BaseException as error:  # noqa: BLE001  # an exit, too: see the rules
            self._log.exception("zdworker: a report of worker (pid:%s) could not be handled", record.pid)
            self._break_channel(record, f"has sent a report that could not be handled: {texts.reason(error)}")
            return False
        if received.closed:
            self._children.close_channel(record)
            if not record.has_pid:
                self.boot_failed(record, "ended before it was a worker")
        return received.size > 0

    def _break_channel(self, record: WorkerRecord, why: str) -> None:
        """Close the channel of a worker of which no more reports are read, and have the worker replaced.

        By the core's facts and not by what was reported: they say for what the core waits.
        """
        self._children.close_channel(record)
        known = self._fleet.workers.get(record.worker_id)
        if not record.has_pid:
            self.boot_failed(record, why)
        elif known is not None and known.state is WorkerState.READY:
            self._replace_later(record)
        elif known is not None and known.state is WorkerState.BOOTING and not record.booted:
            self._publish(events.WorkerFailed(record.worker_id, f"it {why}"))
        elif (known is None or not known.leaving) and record.pid in self._children.workers_by_pid:
            # Its end is an event as any other worker's. One that leaves has its deadline, and requests until then.
            self._gunicorn.kill_worker(record.pid, signal.SIGKILL)

    def _replace_later(self, record: WorkerRecord) -> None:
        wait = record.ordered_at + BROKEN_CHANNEL_REPLACEMENT_S - time.monotonic()
        request = events.WorkerReplacementRequested(record.worker_id)
        self._reactor.call_later(max(0.0, wait), lambda: self._publish(request))

    def _handle_report(  # noqa: C901  # one line for each report
        self, record: WorkerRecord, message: WorkerReport, sender: int | None
    ) -> None:
        match message:
            case Hello():
                if not record.has_pid and sender:
                    self._children.set_pid(record, sender)
                record.greeted = True
                self._start_if_forked(record)
            case Ready(takes, mismatch):
                self._worker_ready(record, takes, mismatch)
            case Draining():
                self._worker_leaving(record)
            case Drained(cut_paths=paths):
                record.drained = replace(message, cut_paths=[texts.line(path, CUT_PATH_MAX) for path in paths])
                self._observers.notify(Observer.worker_drained, record.drained)
            case Failed(reason, traceback, exit_code):
                self._publish(events.WorkerFailed(record.worker_id, reason, traceback, exit_code))
            case ReplacementRequested(reason):
                self._log.info("Worker (pid:%s) is to be replaced: %s", record.pid, reason)
                if record.booted:
                    self._publish(events.WorkerReplacementRequested(record.worker_id))
                else:
                    record.replacement_requested = True
            case Counts(connections, requests, in_flight, websockets):
                record.connections, record.requests = connections, requests
                record.in_flight, record.websockets = in_flight, websockets
            case Answers():
                self._observers.notify(Observer.worker_answered, record.worker_id, record.generation, message)
            case _:
                assert_never(message)

    def _worker_ready(self, record: WorkerRecord, takes: bool, mismatch: str) -> None:
        record.booted = True
        if mismatch:
            self._log.error("Worker (pid:%s): %s", record.pid, texts.line(mismatch, texts.REASON_MAX))
        boot_s = time.monotonic() - record.ordered_at
        self._log.info("%s is ready, after %.1f s", record.name, boot_s)
        self._observers.notify(Observer.worker_ready, boot_s)
        self._gunicorn.zd_hook("zd_worker_ready", record)
        self._publish(events.WorkerReady(record.worker_id, takes))
        if record.replacement_requested:
            self._publish(events.WorkerReplacementRequested(record.worker_id))

    def _worker_leaving(self, record: WorkerRecord) -> None:
        record.leaving_since = time.monotonic()
        if not record.aborted:  # else it is being ended because it hung, and that is a crash
            self._publish(events.WorkerLeaving(record.worker_id))

    def _start_if_forked(self, record: WorkerRecord) -> None:
        """Let a worker boot when it has greeted, and its fork server has reported it as the master's child."""
        waits = record.has_pid and record.greeted and record.forked and record.channel is not None
        if waits and not record.called_off:
            record.report_rules.started = True
            record.send(Start())
            self._observers.notify(Observer.worker_forked)
            self._publish(events.WorkerForked(record.worker_id))

    def _worker_gone(self, record: WorkerRecord, code: int) -> None:
        how = f"sent no heartbeat for {record.timeout_s:g} s (timeout)" if record.aborted else _how(code)
        with self._going_on("the end of a worker"):
            for _ in range(REST_READS):
                if not self._receive_piece(record):
                    break
            known = self._fleet.workers.get(record.worker_id)
            if known is not None and known.state is WorkerState.READY:
                crash = Crash(record.generation, record.slot, record.pid, how)
                self._observers.notify(Observer.worker_crashed, crash)
            if code:
                log = self._log.info if code == -signal.SIGTERM else self._log.error
                by_master = record.descendants is not None  # listed before the master kills a worker
                hint = " Perhaps out of memory?" if code == -signal.SIGKILL and not by_master else ""
                log("Worker (pid:%s) %s.%s", record.pid, _how(code), hint)
            elif record.leaving_since is not None:
                self._log_leaving(record, time.monotonic() - record.leaving_since)
        self._children.remove_worker(record)
        self._gunicorn.zd_hook("child_exit", record)
        self._publish(events.WorkerGone(record.worker_id, how, code, called_off=record.called_off))

    def _log_leaving(self, record: WorkerRecord, took_s: float) -> None:
        drained = record.drained or Drained()
        costs = (
            (drained.handed_over, "connection", "handed over"),
            (drained.told_to_close, "connection", "told to close"),
            (drained.closed_websockets, "WebSocket", "closed"),
            (drained.cut_requests, "request", "cut"),
        )
        what = "".join(f", {texts.counted(number, noun)} {done}" for number, noun, done in costs if number)
        which = texts.named(drained.cut_requests, drained.cut_paths) if drained.cut_requests else ""
        self._log.info("%s has left, after %.1f s%s%s", record.name, took_s, what, which)

    def boot_failed(self, record: WorkerRecord, how: str) -> None:
        """Remove a worker that never came to be, and let the core know how that went."""
        self._children.remove_worker(record)
        self._publish(events.WorkerGone(record.worker_id, how, called_off=record.called_off))

    def call_off(self, record: WorkerRecord, why: str) -> None:
        """Have a worker end that waits for its start order: the end of its channel means that there will be none."""
        record.called_off = True
        if not record.has_pid:
            self.receive_from_worker(record)  # its process may have just been forked
        if record.has_pid:
            self._children.close_channel(record)
        elif record.worker_id in self._children.workers:
            self.boot_failed(record, why)

    def call_off_boots(self, generation: int) -> None:
        """Call off the workers that a fork server has not forked, which is gone."""
        for record in self._children.awaiting_fork(generation):
            self.call_off(record, "lost its fork server")

    # -- fork servers --------------------------------------------------------------------------------------------

    def receive_from_server(self, server: ForkServer) -> None:
        """Read a fork server's channel, without waiting, and handle what came."""
        received = server.channel.receive()
        for message, _sender in received.messages:
            self._log.debug("fork server of generation %s -> master: %r", server.number, message)
            # One that was ended in the meantime has nothing to report.
            if server.number in self._children.servers and isinstance(message, ServerReport):
                try:
                    self._handle_server_report(server, message)
                except BaseException:  # noqa: BLE001  # its end is an event, and the core waits for one
                    self._log.exception("Generation %s sent what cannot be handled, it is ended", server.number)
                    server.kill()
        if received.closed or received.error:
            self._children.stop_polling(server)
            if received.error:
                self._log.error("Generation %s sent something strange: %s", server.number, received.error)
                server.kill()

    def _handle_server_report(self, server: ForkServer, message: ServerReport) -> None:
        match message:
            case Loaded():
                self._loaded(server, message)
            case LoadFailed():
                self._load_failed(server, message)
            case Forked(worker_id):
                record = self._children.workers.get(worker_id)
                if record is not None:
                    record.forked = True
                    self._start_if_forked(record)
            case NotForked(worker_id, reason):
                record = self._children.workers.get(worker_id)
                if record is not None:
                    self.boot_failed(record, f"could not be forked: {reason}")
            case _:
                assert_never(message)

    def _loaded(self, server: ForkServer, message: Loaded) -> None:
        for warning in message.warnings:
            self._log.warning("Generation %s: %s", server.number, warning)
        server.not_preloaded = message.not_preloaded
        if message.not_preloaded:
            self._log.info(
                "Generation %s is not preloaded: %s. So each worker imports the application itself, and a worker that "
                "crashes comes back with the code on disk.",
                server.number,
                message.not_preloaded,
            )
        try:
            if message.protocol not in READABLE_PROTOCOLS:
                raise GenerationError(
                    f"the new zdworker speaks protocol {message.protocol}, this master {PROTOCOL}: a restart is needed"
                )
            settings = Settings.from_plain(message.settings)
        except (GenerationError, SettingError) as error:
            self._publish(events.GenerationFailed(server.number, str(error)))
            return
        server.places = message.places
        server.label = texts.lines(message.label, texts.REASON_MAX)
        server.versions = message.versions
        self._observers.notify(
            Observer.generation_loaded, server.number, message.places, server.label, message.versions
        )
        configuration = self._gunicorn.zd_configuration
        import_path = list(message.places.get(Place.PATH, {}).values())
        configuration.offer(server.number, message.values, settings, import_path)
        if self._fleet.loading is not None and self._fleet.loading.purpose is Purpose.START:
            difference = configuration.compare_first(server.number)
            if difference:
                self._log.warning("Generation %s: %s", server.number, difference)
        self._publish(events.GenerationLoaded(server.number, message.preloaded))

    def _load_failed(self, server: ForkServer, message: LoadFailed) -> None:
        server.read_stderr()
        if self._fleet.generations[server.number].state is GenerationState.LOADED:
            text = message.whole or message.traceback or message.reason
            self._log.error("The fork server of generation %s has failed:\n%s", server.number, text.rstrip())
        elif message.whole or (message.traceback and not message.printed):  # what is printed has its own way there
            text = message.whole or message.traceback
            self._log.error("Generation %s cannot be loaded:\n%s", server.number, text.rstrip())
        text = message.traceback or message.printed or server.printed()
        # A reason that ends in a colon goes on with the last line that was printed, by whatever has ended the process.
        reason = message.reason
        if reason.endswith(":"):
            reason = f"{reason} {server.last_line()}" if server.last_line() else reason.removesuffix(":")
        self._publish(events.GenerationFailed(server.number, reason, text, message.exit_code))

    def _server_gone(self, server: ForkServer, code: int) -> None:
        with self._going_on("the last reports of a fork server"):
            self.receive_from_server(server)
            server.read_stderr()
        if server.number not in self._children.servers:
            return
        loading = self._fleet.generations[server.number].state is GenerationState.LOADING
        self._children.remove_server(server)
        # The core does not order the end of what has ended, and its configuration may still be under evaluation.
        self._gunicorn.zd_configuration.withdraw(server.number)
        if loading:
            reason = f"the new code's interpreter {_how(code)} while it was loading"
            if NOT_INSTALLED in server.last_line():
                reason = (
                    f"zdworker is not installed for {server.interpreter}, only on the import path of the program that "
                    "started Gunicorn: install it there (with pex: --venv)"
                )
            failed = events.GenerationFailed(server.number, reason, server.printed(), code if code in (3, 4) else 3)
            self._publish(failed)
            return
        with self._going_on("the end of a fork server"):
            self._log.error("The fork server of generation %s (pid:%s) %s.", server.number, server.pid, _how(code))
        # In this order: the core must not order from the dead one the workers that are called off.
        self._publish(events.GenerationGone(server.number))
        self.call_off_boots(server.number)


def _how(code: int) -> str:
    """Return how a process ended, for a reader."""
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
