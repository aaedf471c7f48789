"""The master: Gunicorn's arbiter, with its workers in the hands of the supervisor.

Rules:

* The loop stays Gunicorn's (``Arbiter.run``). ``wait_for_signals`` is the supervisor's poll; a signal's handler tells
  the core what is asked for and returns. Nothing here waits for anything.
* The master never imports the application and never forks Python, but for Gunicorn's dirty arbiter.
* This file, and ``adoption.py`` below it, know Gunicorn's private attributes; :data:`NEEDED` is checked at start.
* A hook that raises in the master is logged and ends nothing, once the master is up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn import sock
from gunicorn.arbiter import Arbiter
from gunicorn.config import Chdir
from gunicorn.errors import HaltServer
from gunicorn.workers.workertmp import WorkerTmp

from zdworker import gunicorn_config, log_files, syscalls
from zdworker.core import events
from zdworker.core.steps import KILL_MARGIN
from zdworker.errors import GenerationError, SettingError, UnsupportedGunicorn
from zdworker.forkserver.local import LocalGeneration
from zdworker.master import launch
from zdworker.master.children import WorkerRecord
from zdworker.master.hook_environment import Environment
from zdworker.master.listeners import Listeners
from zdworker.master.reconfiguration import AdoptingArbiter
from zdworker.master.supervisor import Supervisor
from zdworker.settings import Settings, unknown_environment

# fmt: off
NEEDED = (
    "SIG_QUEUE", "WORKERS", "LISTENERS", "SIG_NAMES", "setup", "start", "init_signals", "run", "wait_for_signals",
    "wakeup", "manage_workers", "murder_workers", "reap_workers", "reap_dirty_arbiter", "manage_dirty_arbiter",
    "kill_dirty_arbiter", "kill_worker", "kill_workers", "_num_workers", "halt", "stop", "reload", "spawn_workers",
    "handle_chld", "handle_usr1", "handle_usr2", "handle_winch",
)
# fmt: on
SD_LISTEN_FDS_START = 3
NEEDED_ELSEWHERE = ((sock, "_sock_type"), (sock, "close_sockets"), (WorkerTmp, "last_update"))
KNOWN_VERSIONS = "25.0.3 to 27"


class ZeroDowntimeArbiter(AdoptingArbiter):
    """Gunicorn's arbiter with rolling, ready-gated reloads. Never constructed: a running ``Arbiter`` becomes one."""

    WORKERS: dict[int, WorkerRecord]
    dirty_arbiter: Any

    def run(self, stock_run: Callable[[Any], None]) -> None:
        """Take over, then go on as Gunicorn would.

        :param stock_run: Gunicorn's own ``Arbiter.run``.
        """
        try:
            self._zd_take_over()
        except (SettingError, UnsupportedGunicorn, GenerationError) as error:
            sys.stderr.write(f"\nError: {error}\n")
            sys.exit(1)
        stock_run(self)

    def _zd_take_over(self) -> None:
        # Not hasattr(self, …): that would find our own methods, which Gunicorn may have ceased to call.
        missing = [name for name in NEEDED if name not in vars(self) and not hasattr(Arbiter, name)]
        missing += [name for owner, name in NEEDED_ELSEWHERE if not hasattr(owner, name)]
        if missing:
            raise UnsupportedGunicorn(
                f"this Gunicorn lacks {', '.join(missing)}: install one that zdworker knows, {KNOWN_VERSIONS}"
            )
        gunicorn_config.refuse_patching()
        self.zd_settings = gunicorn_config.zd_settings(self.cfg)
        self.cfg.zd_hooks = gunicorn_config.zd_hooks(self.cfg)
        self._zd_start_environment = dict(self.cfg.env_orig)
        self._zd = Supervisor(self, self._zd_command(), self.zd_policy())
        self.zd_environment = Environment()
        log_files.guard(self.log)
        self._zd_before_reload: tuple[Any, Settings, list[Any]] | None = None
        self._zd_previous: tuple[Any, Settings, list[Any]] | None = None
        self._zd_halt_by = 0.0
        self._zd_workers_told = self.num_workers
        self.zd_listeners = Listeners(self.log)
        self.WORKERS = {}
        for name in unknown_environment(os.environ):
            self.log.warning("The environment sets %s, which is no setting of zdworker.", name)
        self._zd_own_names = {*vars(self), "_zd_own_names", "pid", "pidfile", "LISTENERS", "systemd", "dirty_pidfile"}

    def _zd_command(self) -> launch.Command | None:
        """Return what a generation runs, or None with a warning where there can be no fork servers."""
        try:
            if not syscalls.become_subreaper():
                raise GenerationError("this system has no subreaper")
            self._zd_warn_of_unknown_directory()
            return launch.capture(self._zd_start_environment, str(Chdir.default))
        except GenerationError as error:
            self.log.warning(
                "Workers are forked from the master (%s): modules that the configuration imports stay as they are "
                "until a restart, and nothing is preloaded.",
                error,
            )
            return None

    def _zd_warn_of_unknown_directory(self) -> None:
        # A relative --chdir is an absolute one by now, below the start directory.
        if "PWD" not in self._zd_start_environment and str(self.cfg.chdir).startswith(str(Chdir.default)):
            self.log.warning(
                "PWD is not in the environment, so it is unknown whether %s was reached by a link such as 'current': "
                "reloads will not follow one. Set PWD, or give the link as an absolute --chdir.",
                Chdir.default,
            )

    # -- Gunicorn's life cycle -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Gunicorn's, and the first event."""
        os.register_at_fork(after_in_child=self._zd_in_forked_child)
        with self._zd_not_ready_yet():
            super().start()
        if not self.LISTENERS:  # with reuse_port Gunicorn leaves that to its workers
            self.LISTENERS = sock.create_sockets(self.cfg, self.log, self._zd_inherited())
            self.log.info("Listening at: %s (a socket for each worker)", ",".join(str(x) for x in self.LISTENERS))
        self.zd_listeners.take(self.LISTENERS, self.cfg.reuse_port and not self.systemd)
        self.zd_open_control()
        self._zd.tell(events.Start())

    @contextlib.contextmanager
    def _zd_not_ready_yet(self) -> Iterator[None]:
        """Keep Gunicorn from telling systemd that it is ready: nobody accepts yet (see ``systemd.py``)."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        try:
            yield
        finally:
            if address is not None:
                os.environ["NOTIFY_SOCKET"] = address

    def _zd_inherited(self) -> range | None:
        """Return the descriptors that systemd has handed over (sd_listen_fds(3))."""
        if not self.systemd:
            return None
        return range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + int(self._zd_start_environment["LISTEN_FDS"]))

    def init_signals(self) -> None:
        """Gunicorn's; and signals wake the poll."""
        super().init_signals()
        self._zd.reactor.take_signals()

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Poll up to ``timeout`` seconds, handle what came, return the signals."""
        self._zd.poll(timeout if self.SIG_QUEUE.empty() else 0.0)
        self._zd_end_if_halted()
        signals = []
        while not self.SIG_QUEUE.empty():
            signals.append(self.SIG_QUEUE.get_nowait())
        return [number for number in signals if number in self.SIG_NAMES]

    def _zd_end_if_halted(self) -> None:
        halt = self._zd.halt
        if halt is None or (self.dirty_arbiter_pid and time.monotonic() < self._zd_halt_by):
            return
        if halt.status == 0:
            raise StopIteration
        raise HaltServer(halt.reason, halt.status)

    def wakeup(self) -> None:
        """End the poll; Gunicorn's control server calls it from its thread."""
        self._zd.reactor.wake()

    def manage_workers(self) -> None:
        """Follow a changed number of workers (TTIN, TTOU, WINCH, ``gunicornc worker add``)."""
        if not self._zd.core.fleet.ending and self.num_workers != self._zd_workers_told:
            self._zd_workers_told = self.num_workers
            self._zd.tell(events.Scale(self.num_workers))

    def _set_num_workers(self, value: int) -> None:
        before, self._num_workers = self._num_workers, value
        self.zd_hook("nworkers_changed", value, before)

    num_workers = property(lambda self: self._num_workers, _set_num_workers)

    def spawn_workers(self) -> None:
        """Nothing: the core says when."""

    def manage_dirty_arbiter(self) -> None:
        """Gunicorn's, unless the end is near."""
        if not self._zd.core.fleet.ending:
            super().manage_dirty_arbiter()

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send ``sig`` to a worker; one that has just died is reaped as any other."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)
            self.zd_count("workers_killed" if sig in (signal.SIGTERM, signal.SIGKILL) else "")

    def reap_workers(self) -> None:
        """Find out which children have ended. Orphans of the application, adopted by the subreaper, are ignored."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.dirty_arbiter_pid:
                self.dirty_arbiter_pid, self.dirty_arbiter = 0, None
            elif not self._zd.reaped(pid, os.waitstatus_to_exitcode(status)):
                self.log.debug("Reaped a child that is not ours (pid:%s)", pid)

    def stop(self, graceful: bool = True) -> None:
        """End what is left. Reached when all workers are gone, or when the loop itself has failed."""
        self.zd_close_listeners()
        self._zd.end_all()
        self._zd.notifier.close()
        self._zd.control.close()
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGKILL)

    # -- signals -------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Ask for a rolling reload."""
        self._zd.notifier.reload_asked_for()
        self._zd.tell(events.Reload())

    def zd_roll_back(self) -> None:
        """Ask for the newest reload to be undone.

        :raises GenerationError: that cannot be; nothing has changed.
        """
        core = self._zd.core
        refusal = core.rollback_refusal()
        if refusal:
            raise GenerationError(refusal)
        self._zd.notifier.reload_asked_for()
        self._zd.tell(events.Rollback(None if core.reload_under_way() else self.zd_take_previous()))

    def handle_hup(self) -> None:
        """HUP: rolling reload. The dirty arbiter is told when the new configuration is taken over."""
        self.reload()

    def handle_usr2(self) -> None:
        """USR2: rolling reload, under the same PID."""
        self.reload()

    def handle_term(self) -> None:
        """TERM: graceful end."""
        self._zd_stop(quick=False)

    def handle_int(self) -> None:
        """INT: quick end."""
        self._zd_stop(quick=True)

    def handle_quit(self) -> None:
        """QUIT: quick end."""
        self._zd_stop(quick=True)

    def handle_usr1(self) -> None:
        """USR1: open the log files anew, here, in the workers and in the fork servers."""
        super().handle_usr1()
        self._zd.signal_servers(signal.SIGUSR1)

    def handle_winch(self) -> None:
        """WINCH: with ``--daemon``, no workers until the next reload."""
        if self.cfg.daemon:
            self.num_workers = 0

    def _zd_stop(self, quick: bool) -> None:
        if quick and self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGQUIT)
        self._zd.tell(events.Stop(quick=quick))

    # -- for the supervisor --------------------------------------------------------------------------------------

    def zd_worker_record(self, worker_id: int, slot: int, generation: int) -> WorkerRecord:
        """Return the record of a worker that is to be born.

        :raises OSError: there can be no heartbeat file, or no socket for a new slot.
        :raises RuntimeError: ``worker_tmp_dir`` does not exist.
        """
        self.worker_age = worker_id
        listeners = self.zd_listeners.of_slot(slot, self.LISTENERS)
        arguments = (worker_id, self.pid, listeners, self.app, self.timeout / 2.0, self.cfg, self.log)
        return WorkerRecord(*arguments, slot=slot, generation=generation)

    def zd_local_generation(self, number: int) -> LocalGeneration:
        """Return the generation that is this process itself."""
        return LocalGeneration(number, self.pid, self.app, self.cfg, self.log, self.zd_settings, self.worker_class)

    def zd_count(self, name: str) -> None:
        """Count in what ``gunicornc show stats`` shows (Gunicorn 25.1 and later)."""
        statistics = getattr(self, "_stats", {})
        if name in statistics:
            statistics[name] += 1

    def zd_hook_attributes(self) -> dict[str, Any]:
        """Return what hooks have set on the arbiter."""
        return {n: v for n, v in vars(self).items() if n not in self._zd_own_names and not hasattr(Arbiter, n)}

    def zd_end(self, quick: bool) -> None:
        """The workers leave: close the listening sockets, and end Gunicorn's dirty arbiter."""
        self.zd_close_listeners()
        self._zd_halt_by = time.monotonic() + self.cfg.graceful_timeout + KILL_MARGIN
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGQUIT if quick else signal.SIGTERM)

    def zd_close_listeners(self) -> None:
        """Close the listening sockets, and unlink those that have a path."""
        self.LISTENERS = []
        self.zd_listeners.close(unlink=not self.systemd)

    def _zd_in_forked_child(self) -> None:
        """In Gunicorn's dirty arbiter, or a worker forked from here: let go of the other processes' channels."""
        if os.getpid() != self.pid:
            self._zd.reactor.leave_to_child()
