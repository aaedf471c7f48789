"""The trial of a generation: Gunicorn's arbiter becomes the master as in a start, but opens nothing, and ends.

Rules: the master's own code decides and acts. Only what reaches outside is left out: addresses, control socket, hooks
in the master, notifications. One worker boots, with a listening socket that nobody can reach, and gets the order to
leave when it is ready.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from gunicorn.config import Chdir
from gunicorn.errors import HaltServer

from zdworker import syscalls
from zdworker.check import configuration
from zdworker.check.findings import Findings
from zdworker.core import events
from zdworker.core.steps import EXIT_TIMEOUT_S, FORK_TIMEOUT_S, KILL_MARGIN_S
from zdworker.errors import GenerationError
from zdworker.master import addresses, launch
from zdworker.master.arbiter import LEFTOVERS_S, ZeroDowntimeArbiter
from zdworker.master.observers import Observer
from zdworker.master.parts import Gunicorn
from zdworker.master.supervisor import Supervisor
from zdworker.settings import Settings

STACK_SHARE = 0.9
"""The share of ``zd_boot_timeout`` after which a generation that still loads has to write its stack."""

SPARE_S = 30.0
"""Seconds that a trial may take beside those that the core counts: for a machine that has much else to do."""


class TrialSupervisor(Supervisor):
    """The master's other half, which notes how the trial goes."""

    def __init__(self, gunicorn: Gunicorn, command: launch.Command | None) -> None:
        super().__init__(gunicorn, command, Observer())
        self.loaded = self.ready = False
        self.failure: events.GenerationFailed | events.WorkerFailed | None = None
        """The first failure."""
        self.label = ""
        """The version of the application."""
        self.not_preloaded = ""
        """Why each worker imports the application itself."""

    def handle(self, event: events.Event) -> None:
        """Hand an event to the core, and note what it means for the trial."""
        match event:
            case events.GenerationLoaded(number):
                self.loaded = True
                server = self.children.servers.get(number)
                if server is not None:
                    self.label, self.not_preloaded = server.label, server.not_preloaded
            case events.WorkerReady():
                self.ready = True
            case events.GenerationFailed() | events.WorkerFailed():
                self.failure = self.failure or event
            case _:
                pass
        super().handle(event)

    def write_stack_if_loading(self) -> None:
        """Have a fork server write its stack that still loads: when its time is over it is killed."""
        if not self.loaded:
            self.children.signal_servers(syscalls.STACK_SIGNAL)


class TrialArbiter(ZeroDowntimeArbiter):
    """Gunicorn's arbiter as the master of a trial. Never constructed, as its base."""

    zd_arguments: ClassVar[Sequence[str]] = ()
    """The arguments of the interpreter with which a generation is to be started."""

    zd_safe_path: ClassVar[bool] = False
    """Whether nothing of the working directory is to be in its path."""

    _zd: TrialSupervisor

    def zd_supervisor(self, command: launch.Command | None) -> Supervisor:
        """Return a supervisor that notes how the trial goes."""
        return TrialSupervisor(self, command)

    def zd_capture(self) -> launch.Command:
        """Return what a generation runs: the command that is checked, not this check.

        :raises GenerationError: see :func:`zdworker.master.launch.capture`.
        """
        found = launch.capture(
            self._zd_start_environment, str(Chdir.default), daemon=False, arguments=self.zd_arguments
        )
        return dataclasses.replace(found, safe_path=self.zd_safe_path, trial=True)

    def zd_refuse_bind(self, places: list[addresses.Place]) -> None:
        """Refuse the addresses that certainly cannot be listened on, without a try.

        :raises GenerationError: there are such.
        """
        named = [place for place in places if not isinstance(place.key, int)]  # a descriptor is there at a start only
        if named or not places:
            addresses.refuse_unusable(named)
        for place in named:
            if place.error:
                raise GenerationError(f"bind names {place}, which cannot be resolved: {place.error}")

    def zd_warn_of_environment(self) -> None:
        """Warn of nothing: the check has done that, and proposes names."""

    def zd_hook(self, name: str, *arguments: Any) -> None:
        """Call nothing: a hook of the master's may change what a running site uses."""

    def zd_note_warnings(self) -> None:
        """Note, from now on, what the master logs as a warning or an error."""
        self._zd_noted = _Noted()
        self.log.error_log.addFilter(self._zd_noted)

    def zd_try(self, findings: Findings) -> None:
        """Load a generation, have a worker boot and leave, and send what that has shown."""
        self.pid = os.getpid()
        settings = self.zd_configuration.current.settings
        findings.begin("application", self._zd_limit(settings))
        reason = self._zd_run(settings.boot_timeout)
        self._zd_log_writer.end()
        supervisor = self._zd
        if reason or not supervisor.ready:
            failure = supervisor.failure
            details = failure.traceback if failure is not None else ""
            findings.error(reason or "no worker became ready", details=details, printed=True)
        else:
            findings.ok(_how(supervisor, settings))
        for level, text in self._zd_noted.found(but_errors=bool(reason)):
            (findings.error if level >= logging.ERROR else findings.warning)(text)
        findings.begin("hooks", SPARE_S)
        configuration.check_hooks(self.zd_hooks_in_the_master(), findings)

    def _zd_limit(self, settings: Settings) -> float:
        """Return the seconds after which the core has certainly ended all that a trial begins."""
        boots = 2 * settings.boot_timeout + FORK_TIMEOUT_S
        return boots + float(self.cfg.graceful_timeout) + KILL_MARGIN_S + EXIT_TIMEOUT_S + LEFTOVERS_S + SPARE_S

    def _zd_run(self, boot_timeout: float) -> str:
        """Run the master's loop until all is over; return why a start would have failed, "" if it would not."""
        self.init_signals()
        check_config: Callable[..., None] | None = getattr(self.worker_class, "check_config", None)
        if check_config is not None:
            check_config(self.cfg, self.log)
        supervisor, told = self._zd, False
        self.LISTENERS = [_unreachable_listener()]
        self.zd_listeners.take(self.LISTENERS, [None], False)
        supervisor.reactor.call_later(boot_timeout * STACK_SHARE, supervisor.write_stack_if_loading)
        try:
            supervisor.handle(events.Start())
            while True:
                for signum in self.wait_for_signals():
                    if signum in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
                        raise KeyboardInterrupt
                self.reap_workers()
                self.murder_workers()
                if supervisor.ready and not told:
                    told = True
                    supervisor.handle(events.Stop())
        except StopIteration:
            return ""
        except HaltServer as halt:
            return str(halt.reason)
        finally:
            self.stop()


def _unreachable_listener() -> socket.socket:
    """Return a listening socket without a port and, by now, without a name: many worker classes cannot do without one.

    :raises OSError: there is no directory for temporary files.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with tempfile.TemporaryDirectory(prefix="zdworker-check-") as directory:  # nobody else can enter it
        before = os.open(".", syscalls.OPEN_DIRECTORY)
        try:
            os.chdir(directory)  # its path may be too long for a socket's
            listener.bind("socket")
        finally:
            os.fchdir(before)
            os.close(before)
    listener.listen()
    return listener


class _Noted(logging.Filter):
    """Notes what the master logs as a warning or an error, once each."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self._texts.setdefault(record.getMessage(), record.levelno)
        return True

    def found(self, *, but_errors: bool) -> list[tuple[int, str]]:
        """Return the levels and texts.

        :param but_errors: without errors, because one that has ended the trial is known.
        """
        return [(level, text) for text, level in self._texts.items() if level < logging.ERROR or not but_errors]


def _how(supervisor: TrialSupervisor, settings: Settings) -> str:
    version = f" ({supervisor.label})" if supervisor.label else ""
    warm = f", warmed up with {', '.join(settings.warmup)}" if settings.warmup else ""
    imported = f"; imported by each worker: {supervisor.not_preloaded}" if supervisor.not_preloaded else ""
    return f"loaded{version}, a worker has booted{warm} and left{imported}"
