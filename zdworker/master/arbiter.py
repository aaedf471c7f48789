"""Gunicorn's side of the master: its arbiter, with the workers in the hands of the supervisor.

Rules:

* The loop stays Gunicorn's (``Arbiter.run``). ``wait_for_signals`` is the supervisor's poll; a signal's handler hands
  the core an event and returns. Nothing here waits for anything.
* The master never imports the application and never forks Python, except for Gunicorn's dirty arbiter.
* This file and ``reconfiguration.py`` know Gunicorn's private attributes; :data:`NEEDED` is checked at start.
* A hook that raises in the master is logged and ends nothing, once the master is up.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

from gunicorn import __version__, sock, util
from gunicorn.arbiter import Arbiter
from gunicorn.config import Chdir
from gunicorn.errors import HaltServer
from gunicorn.pidfile import Pidfile
from gunicorn.workers.workertmp import WorkerTmp

from zdworker import boot, gunicorn_config, log_files, syscalls, texts
from zdworker.core import events
from zdworker.core.fleet import Fleet
from zdworker.core.history import Requester
from zdworker.core.steps import KILL_MARGIN_S
from zdworker.descendants import before_kill
from zdworker.errors import GenerationError, SettingError, UnsupportedGunicorn
from zdworker.forkserver import worker_boot
from zdworker.forkserver.bytecode import distrust_stale_bytecode
from zdworker.master import addresses, launch, pidfile
from zdworker.master.children import WorkerRecord
from zdworker.master.listeners import Listeners
from zdworker.master.loaded_code import LoadedCode
from zdworker.master.log_writer import LogWriter
from zdworker.master.observers import Observer, Reload
from zdworker.master.reconfiguration import Configuration
from zdworker.master.state import Descriptors
from zdworker.master.supervisor import Supervisor
from zdworker.settings import GENERATION_VARIABLE, unknown_environment
from zdworker.versions import versions

# fmt: off
NEEDED = (
    "SIG_QUEUE", "WORKERS", "LISTENERS", "SIG_NAMES", "setup", "start", "init_signals", "run", "wait_for_signals",
    "wakeup", "manage_workers", "murder_workers", "reap_workers", "reap_dirty_arbiter", "manage_dirty_arbiter",
    "spawn_dirty_arbiter",
    "kill_dirty_arbiter", "kill_worker", "kill_workers", "_num_workers", "halt", "stop", "reload", "spawn_workers",
    "handle_chld", "handle_usr1", "handle_usr2", "handle_winch",
)
# fmt: on
NEEDED_ELSEWHERE = ((sock, "_sock_type"), (sock, "create_sockets"), (WorkerTmp, "last_update"))
KNOWN_VERSIONS = "25.0.3 to 27"
KNOWN_REQUIREMENT = "gunicorn>=25.0.3,<28"

MISSING_SHOWN = 3
"""Names of Gunicorn's that an error lists at most: a version that is too old lacks many."""

HOOKS_IN_THE_MASTER = ("on_starting", "when_ready", "pre_fork")
"""Hooks that stock Gunicorn runs in the process that workers are forked from, which some set modules up in."""

OLD_SCRIPT_S = 600.0
"""Seconds after USR2 in which WINCH and QUIT are taken for the rest of a script that was written for stock Gunicorn."""

HEARTBEATS_S = 0.5
"""Seconds between two looks at the workers' heartbeats, at least."""

REOPEN_WAIT_S = 1.0
"""Seconds for which the workers wait for the master to have reopened the log: a pipe that is not read holds it up."""

LEFTOVERS_S = 4.0
"""Seconds for which the master's end waits for processes that the application has left to end."""


CARRIED = (
    *("systemd", "master_pid", "master_name", "proc_name", "dirty_arbiter_pid", "dirty_pidfile", "_stats"),
    *("_zd_usr2_at", "_zd_scale_request"),
)
"""Attributes of the arbiter that another program of the master's process goes on with."""


class ZeroDowntimeArbiter(Arbiter):  # type: ignore[misc]  # Gunicorn has no types
    """Gunicorn's arbiter with rolling, ready-gated reloads. Never constructed: a running ``Arbiter`` becomes one."""

    WORKERS: dict[int, WorkerRecord]
    dirty_arbiter: Any
    dirty_arbiter_pid: int
    pidfile: Any
    systemd: bool
    zd_configuration: Configuration
    zd_listeners: Listeners

    def run(self, stock_run: Callable[[Any], None]) -> None:
        """Take over, then run Gunicorn's loop.

        :param stock_run: Gunicorn's own ``Arbiter.run``.
        """
        try:
            self.zd_take_over()
        except BaseException as error:
            if boot.current is not None:
                boot.current.fail(error)
            if isinstance(error, (SettingError, UnsupportedGunicorn, GenerationError)):
                refuse_start(str(error))
            raise
        try:
            stock_run(self)
        except BaseException as end:
            if not self._zd_log_writer.end():
                # Python's own exit would wait for the log.
                os._exit(worker_boot.exit_code(end.code) if isinstance(end, SystemExit) else 1)
            raise

    def zd_take_over(self) -> None:
        """Become the master, and start nothing yet.

        :raises SettingError: a ``zd_`` setting is bad.
        :raises UnsupportedGunicorn: this Gunicorn lacks something.
        :raises GenerationError: the configuration cannot be used.
        """
        # Not hasattr(self, …): that would find methods of this class that Gunicorn may have ceased to call.
        missing = [name for name in NEEDED if name not in vars(self) and not hasattr(Arbiter, name)]
        missing += [name for owner, name in NEEDED_ELSEWHERE if not hasattr(owner, name)]
        if missing:
            raise UnsupportedGunicorn(
                f"Gunicorn {__version__} is installed, zdworker needs {KNOWN_VERSIONS}: pip install "
                f"'{KNOWN_REQUIREMENT}' (it lacks {', '.join(missing[:MISSING_SHOWN])})"
            )
        gunicorn_config.refuse_patching()
        log_files.guard(self.log)
        self._zd_log_writer = LogWriter(self.log)
        distrust_stale_bytecode(time.time_ns() - launch.SAME_DEPLOY_NS)
        os.environ[GENERATION_VARIABLE] = "0"
        self._zd_scale_request: int | None = None
        self._zd_halt_by = self._zd_heartbeats_at = 0.0
        self._zd_usr2_at = -math.inf
        self._zd_reopened = self._zd_reopened_in_children = 0  # how often the log's files were
        self._zd_leftovers_by: float | None = None
        if boot.current is not None:
            self._zd_adopt(boot.current)
            return
        self._zd_start_environment = dict(self.cfg.env_orig)
        self._zd_handed_over = addresses.handed_over()
        self.zd_refuse_bind(addresses.places(self.cfg, os.getcwd()))
        self.zd_listeners = Listeners(self.log)
        self.zd_configuration = Configuration(self, self.zd_listeners)
        self._zd = self.zd_supervisor(self._zd_command())
        self.WORKERS = self._zd.children.workers_by_pid
        self.zd_warn_of_environment()
        hooks = self.zd_hooks_in_the_master()
        if hooks:
            self.log.info(
                "In the master, from which no worker is forked: %s. What they do to modules stays there: have the "
                "application do it, or post_fork.",
                ", ".join(hooks),
            )

    def zd_supervisor(self, command: launch.Command | None) -> Supervisor:
        """Return the other half of the master."""
        return Supervisor(self, command, _GunicornObserver(self))

    def zd_capture(self) -> launch.Command:
        """Return the command that a generation runs once more.

        :raises GenerationError: it cannot be run again; the text says why.
        """
        if launch.early is not None:
            return launch.early.command
        return launch.capture(self._zd_start_environment, str(Chdir.default), daemon=self.cfg.daemon)

    def zd_refuse_bind(self, places: list[addresses.Place]) -> None:
        """Refuse addresses that cannot be listened on.

        :raises GenerationError: there are such.
        """
        addresses.refuse_unusable_at_start(places, self._zd_handed_over)

    def zd_warn_of_environment(self) -> None:
        """Warn of variables that look like settings, and are none."""
        for name in unknown_environment(os.environ):
            self.log.warning("The environment sets %s, which is no setting of zdworker.", name)

    def zd_hooks_in_the_master(self) -> list[str]:
        """Return the hooks of the configuration that stock Gunicorn runs in the process that it forks workers from."""
        return [name for name in HOOKS_IN_THE_MASTER if self._zd_hook_of(name) is not None]

    def _zd_command(self) -> launch.Command | None:
        """Return what a generation runs, or None with a warning where there can be no fork servers."""
        try:
            if not syscalls.become_subreaper():
                raise GenerationError("this system has no subreaper")
            self._zd_warn_of_unknown_directory()
            return self.zd_capture()
        except GenerationError as error:
            loaded = self.zd_configuration.loaded_code = LoadedCode(str(Chdir.default), str(error))
            self.log.warning(
                "Workers are forked from the master (%s): what it has imported stays in its memory until a restart "
                "(%s), and a reload fails once that has changed on disk. Nothing is preloaded.",
                error,
                loaded.summary(),
            )
            return None

    def _zd_warn_of_unknown_directory(self) -> None:
        # A relative --chdir has been made absolute by now, below the start directory.
        if "PWD" not in self._zd_start_environment and str(self.cfg.chdir).startswith(str(Chdir.default)):
            self.log.warning(
                "PWD is not in the environment, so it is unknown whether %s was reached by a link such as 'current': "
                "reloads will not follow one. Set PWD, or give the link as an absolute --chdir.",
                Chdir.default,
            )

    # -- Gunicorn's life cycle -----------------------------------------------------------------------------------

    def setup(self, app: Any) -> None:
        """Go by ``app.cfg``, as Gunicorn does; the number of workers reaches the core with the configuration."""
        super().setup(app)
        self._zd_scale_request = None
        util._setproctitle(f"master [{self.proc_name}]")

    def zd_move_pidfile(self, cfg: Any, directory: str) -> None:
        """Have the pidfile where a configuration has it.

        :param directory: where a relative path of it starts.
        :raises GenerationError: it cannot be moved there; it stays where it is.
        """
        path = cfg.pidfile
        if path is not None:
            path = os.path.join(directory, path + (".2" if self.master_pid else ""))  # as in Gunicorn's start
        before = self.pidfile.fname if self.pidfile is not None else None
        try:
            self.pidfile = pidfile.moved(self.pidfile, path, self.pid)
        except GenerationError as error:
            if path != before:
                raise
            self.log.warning("%s", error)  # the configuration is not to blame

    def start(self) -> None:
        """Start as Gunicorn does, then start the first generation; or go on in the place of an earlier program."""
        os.register_at_fork(after_in_child=self._zd_in_forked_child)
        if boot.current is not None:
            self._zd_resume(boot.current)
            return
        with self._zd_systemd_not_notified():
            super().start()
        pidfile.make_absolute(self.pidfile, os.getcwd())
        if not self.LISTENERS:  # with reuse_port Gunicorn leaves that to its workers
            self.LISTENERS = sock.create_sockets(self.cfg, self.log, self._zd_handed_over)
            self.log.info("Listening at: %s (a socket for each worker)", ",".join(str(x) for x in self.LISTENERS))
        self.zd_configuration.take_start(self._zd_handed_over)
        self._zd.start()

    @contextlib.contextmanager
    def _zd_systemd_not_notified(self) -> Iterator[None]:
        """Keep Gunicorn from notifying systemd that it is ready: no worker accepts yet (see ``systemd.py``)."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        try:
            yield
        finally:
            if address is not None:
                os.environ["NOTIFY_SOCKET"] = address

    def _start_control_server(self) -> None:
        """Start Gunicorn's control server (25.1 and later), if there can be one at its default place.

        A user without a home directory, as in a container, has none there, and has not asked for one.
        """
        setting = self.cfg.settings["control_socket"]
        if setting.value == setting.default and not self.cfg.control_socket_disable:
            directory = os.path.dirname(self._get_control_socket_path())
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                writable = os.access(directory, os.W_OK | os.X_OK)
                obstacle = "" if writable else os.strerror(errno.EACCES)
            except OSError as error:
                obstacle = error.strerror or str(error)
            if obstacle:
                self.log.info("gunicornc will not reach this master: %s: %s (control_socket)", directory, obstacle)
                return
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, boot.HELD)  # which its thread inherits (see boot.py)
        try:
            super()._start_control_server()
        except Exception:  # Gunicorn imports it only now, from a release that may have gone
            self.log.exception("Gunicorn's control server cannot be started: gunicornc will not reach this master")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def init_signals(self) -> None:
        """Set Gunicorn's handlers, and have signals wake the poll."""
        super().init_signals()
        self._zd.reactor.wake_on_signals()

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Poll up to ``timeout`` seconds, handle what came, return the signals."""
        self._zd.poll(timeout if self.SIG_QUEUE.empty() else 0.0)
        self._zd_end_if_halted()
        signals = []
        while not self.SIG_QUEUE.empty():
            signals.append(self.SIG_QUEUE.get_nowait())
        return [number for number in signals if number in self.SIG_NAMES]

    def murder_workers(self) -> None:
        """Look for workers that have lost their heartbeat, about as often as Gunicorn's own loop: this one takes a turn
        with each event, and the look costs a system call for each worker.

        What happens to one is as in Gunicorn's ``arbiter.py``, but each has the ``timeout`` of its own configuration: a
        reload that brings a shorter one is not to end requests that the old workers may still answer.
        """
        now = time.monotonic()
        if now < self._zd_heartbeats_at:
            return
        self._zd_heartbeats_at = now + HEARTBEATS_S
        for pid, record in list(self.WORKERS.items()):
            if not record.is_silent():
                continue
            if not record.aborted:
                self.log.critical("WORKER TIMEOUT (pid:%s)", pid)
                record.aborted = True
                self.kill_worker(pid, signal.SIGABRT)
            else:
                self.kill_worker(pid, signal.SIGKILL)

    def _zd_end_if_halted(self) -> None:
        halt, now = self._zd.halt, time.monotonic()
        if halt is None or (self.dirty_arbiter_pid and now < self._zd_halt_by):
            return
        if self._zd_leftovers_by is None:
            self._zd_leftovers_by = now + LEFTOVERS_S
        if self._zd.leftovers.pending and now < self._zd_leftovers_by:
            return
        if halt.status == 0:
            raise StopIteration
        raise HaltServer(halt.reason, halt.status)

    def wakeup(self) -> None:
        """End the poll; Gunicorn's control server calls this from its thread."""
        self._zd.reactor.wake()

    @property
    def LISTENERS(self) -> list[Any]:  # noqa: N802  # Gunicorn's name
        """The listening sockets of the configuration in force."""
        return self.zd_configuration.current.listeners

    @LISTENERS.setter
    def LISTENERS(self, listeners: list[Any]) -> None:  # noqa: N802  # see above
        self.zd_configuration.current.listeners = listeners

    # -- workers -------------------------------------------------------------------------------------------------

    @property
    def num_workers(self) -> int:
        """The number of workers that was asked for: by a request that the core has not seen yet, or the core's."""
        request = self._zd_scale_request
        return self._zd.fleet.wanted_size if request is None else request

    @num_workers.setter
    def num_workers(self, value: int) -> None:
        # Only noted here: Gunicorn's control server sets it from its thread.
        before, self._zd_scale_request = self.num_workers, value
        self.zd_hook("nworkers_changed", value, before)

    @property
    def worker_age(self) -> int:
        """The id of the newest worker, by Gunicorn's name, for hooks."""
        return self._zd.fleet.last_worker_id

    def manage_workers(self) -> None:
        """Hand a changed number of workers to the core (TTIN, TTOU, WINCH, ``gunicornc worker add``)."""
        request, self._zd_scale_request = self._zd_scale_request, None
        if request is not None and not self._zd.fleet.ending and request != self._zd.fleet.wanted_size:
            self._zd.handle(events.Scale(request))

    def spawn_workers(self) -> None:
        """Do nothing: the core decides when a worker is forked."""

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send ``sig`` to a worker; one that has just died is reaped as any other."""
        record = self.WORKERS.get(pid)
        if sig == signal.SIGKILL and record is not None:
            found = before_kill(pid)
            if found is not None:  # a second time it may be a zombie, of which the first time has told more
                record.descendants = found
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            return
        except PermissionError as error:
            self.log.warning("Worker (pid:%s) cannot be sent a signal, is it another user's now? %s", pid, error)
            return
        if sig in (signal.SIGTERM, signal.SIGKILL):
            self._zd_count("workers_killed")

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
                self.log.debug("Reaped a child that is not a worker or fork server (pid:%s)", pid)

    def manage_dirty_arbiter(self) -> None:
        """Keep Gunicorn's dirty arbiter running, unless the master ends."""
        if not self._zd.fleet.ending:
            super().manage_dirty_arbiter()

    def spawn_dirty_arbiter(self) -> int | None:
        """Start Gunicorn's dirty arbiter, which is a process of the master's own; return its pid, if it was started."""
        with self._zd.leftovers.masters_own():
            pid: int | None = super().spawn_dirty_arbiter()
            return pid

    def zd_hook(self, name: str, *arguments: Any) -> object:
        """Call a server hook of Gunicorn's or of zdworker's, and return what that returns; what it raises is logged."""
        try:
            hook = self._zd_hook_of(name)
            if hook is not None:
                self.WORKERS = self._zd.seen_by_hooks(arguments[0] if name == "pre_fork" else None)
                with self._zd.leftovers.masters_own(), self.zd_configuration.modules.of_hooks():
                    return hook(self, *arguments)
        except BaseException:  # an exit, or what asyncio and gevent end their tasks with
            what = "the worker starts without what it has not set" if name == "pre_fork" else "the master continues"
            self.log.exception("The hook %s raised; %s.", name, what)
        finally:
            self.WORKERS = self._zd.children.workers_by_pid
        return None

    def _zd_hook_of(self, name: str) -> Callable[..., object] | None:
        """Return the hook of the configuration; None for Gunicorn's own, which does nothing."""
        if name.startswith("zd_"):
            zd_hook: Callable[..., object] | None = self.cfg.zd_hooks.get(name)
            return zd_hook
        hook: Callable[..., object] = getattr(self.cfg, name)
        return hook if gunicorn_config.is_set(self.cfg, name) else None

    def zd_print(self, text: str) -> None:
        """Write a text to the master's standard error, in its turn among the lines of the log."""
        self._zd_log_writer.write(text)

    def _zd_count(self, name: str) -> None:
        """Count in what ``gunicornc show stats`` shows (Gunicorn 25.1 and later)."""
        statistics = getattr(self, "_stats", {})
        if name in statistics:
            statistics[name] += 1

    # -- signals -------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Begin a rolling reload."""
        self._zd.reload(Requester())

    def handle_hup(self) -> None:
        """HUP: rolling reload. The dirty arbiter reloads when the new configuration is taken over."""
        self._zd.reload(Requester(signal="HUP"))

    def handle_usr2(self) -> None:
        """USR2: rolling reload, under the same PID."""
        self._zd_usr2_at = time.monotonic()
        self._zd.reload(Requester(signal="USR2"))

    def handle_term(self) -> None:
        """TERM: graceful end."""
        self._zd_stop(quick=False)

    def handle_int(self) -> None:
        """INT: quick end."""
        self._zd_stop(quick=True)

    def handle_quit(self) -> None:
        """QUIT: quick end."""
        self._zd_warn_of_old_script("QUIT")
        self._zd_stop(quick=True)

    def handle_usr1(self) -> None:
        """USR1: reopen the log files here, then in the workers and in the fork servers.

        In this order, because only a master that was started as root may be able to create the new files.
        """
        self._zd_reopened += 1
        reopen_in_children = partial(self._zd_reopen_in_children, self._zd_reopened)
        self.log.reopen_files()
        self._zd_log_writer.in_turn(lambda: self._zd.reactor.call_from_thread(reopen_in_children))
        self._zd.reactor.call_later(REOPEN_WAIT_S, reopen_in_children)

    def _zd_reopen_in_children(self, number: int) -> None:
        """Have all other processes reopen the log files for the ``number``-th USR1, unless they have done that."""
        if number <= self._zd_reopened_in_children:
            return
        self._zd_reopened_in_children = number
        self.kill_workers(signal.SIGUSR1)
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGUSR1)
        self._zd.children.signal_servers(signal.SIGUSR1)

    def handle_winch(self) -> None:
        """WINCH: with ``--daemon``, no workers until the next reload."""
        self._zd_warn_of_old_script("WINCH")
        if self.cfg.daemon:
            self.num_workers = 0

    def _zd_warn_of_old_script(self, name: str) -> None:
        """Say what is different here if this is the script that upgrades stock Gunicorn: USR2, then WINCH and QUIT."""
        if time.monotonic() - self._zd_usr2_at < OLD_SCRIPT_S:
            self.log.warning(
                "%s after USR2: with zdworker USR2 starts no second master, but replaces the workers of this one. So "
                "%s is for this master, and the script that sends it has to end with USR2 (docs: migration)",
                name,
                name,
            )

    def _zd_stop(self, quick: bool) -> None:
        if quick and self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGQUIT)
        self._zd.handle(events.Stop(quick=quick))

    # -- an upgrade ----------------------------------------------------------------------------------------------

    def zd_state(self, descriptors: Descriptors) -> dict[str, Any]:
        """Return what another program of this process goes on from (:meth:`_zd_adopt`)."""
        return {
            "listeners": self.zd_listeners.to_state(descriptors.keeper("listener")),
            "configuration": self.zd_configuration.to_state(),
            "gunicorn": {
                "facts": {name: getattr(self, name) for name in CARRIED if hasattr(self, name)},
                "pidfile": self.pidfile.fname if self.pidfile is not None else None,
                "start_environment": self._zd_start_environment,
                "name": syscalls.process_name(self.pid) or "",
            },
        }

    def zd_signals(self) -> list[int]:
        """Return the signals that have come and are not handled yet; they stay in the queue."""
        signals = []
        while not self.SIG_QUEUE.empty():
            signals.append(int(self.SIG_QUEUE.get_nowait()))
        for number in signals:
            self.SIG_QUEUE.put_nowait(number)
        return signals

    def zd_settle_log(self) -> bool:
        """Write and do what the log has waiting; return False if the log does not take it."""
        settled = self._zd_log_writer.settle()
        self._zd_reopen_in_children(self._zd_reopened)
        return settled

    def _zd_adopt(self, program: boot.Boot) -> None:
        """Make everything that this program needs from the state of the one before, and have no effect by that.

        :raises GenerationError: this program cannot go on from the state.
        """
        state, self.pid = program.known, program.master
        self._zd_start_environment = dict(state["gunicorn"]["start_environment"])
        if not syscalls.become_subreaper():
            raise GenerationError("this system has no subreaper")
        facts = state["gunicorn"]["facts"]
        if facts.get("master_pid"):
            # Gunicorn's state of a master that another one has started by USR2. It deletes the variable when that one
            # has ended; it is set before the configuration is made, to which it would be a hook's otherwise.
            os.environ["GUNICORN_PID"] = str(facts["master_pid"])
        if not getattr(self.cfg, "control_socket_disable", True):
            # Gunicorn would import it when the upgrade is done, and a deploy may have led the path elsewhere by then.
            importlib.import_module("gunicorn.ctl.server")
        self.zd_listeners = Listeners(self.log)
        self.zd_configuration = Configuration(self, self.zd_listeners)
        sockets = self.zd_listeners.adopt(state["listeners"], self.cfg)
        self.zd_configuration.adopt(state["configuration"], sockets)
        self._zd = Supervisor(self, state["command"], _GunicornObserver(self), state["fleet"])
        self._zd.adopt(state, lambda known: self._zd_record(known, sockets))
        self.WORKERS = self._zd.children.workers_by_pid
        for name, value in facts.items():
            setattr(self, name, value)
        if state["gunicorn"]["pidfile"] is not None:
            self.pidfile = Pidfile(state["gunicorn"]["pidfile"])
            self.pidfile.pid = self.pid
        if state["directory"] >= 0:
            os.fchdir(state["directory"])

    def _zd_record(self, known: dict[str, Any], sockets: Mapping[int, Any]) -> WorkerRecord:
        """Return the record of a worker that the program before has ordered."""
        cfg = self.cfg
        own = [sockets[number] for number in known["sockets"] if number in sockets]
        arguments = (known["worker_id"], self.pid, own, self.app, cfg.timeout / 2.0, cfg, self.log)
        record = WorkerRecord(*arguments, slot=known["slot"], generation=known["generation"])
        record.adopt(known)
        return record

    def _zd_resume(self, program: boot.Boot) -> None:
        """Become the master: from here on this program has effects, and there is no way back."""
        program.adopted({"versions": versions()})
        syscalls.set_process_name(program.known["gunicorn"]["name"])
        if program.known["directory"] >= 0:
            os.close(program.known["directory"])
        self.init_signals()
        for number in program.signals:
            self.SIG_QUEUE.put_nowait(number)
        self.reap_workers()
        ordered = program.known["upgrade"]
        outcome = ordered.outcome("done")
        if program.failure:
            outcome = ordered.outcome("failed", f"the next program failed: {program.failure}")
            self.log.error("Upgrade failed, the program that was running is still in place: %s", program.failure)
        if program.without_configuration:
            text = f"the configuration cannot be evaluated, its hooks are missing: {program.without_configuration}"
            outcome = ordered.outcome("failed", "; ".join(filter(None, [outcome.error, text])))
            self.log.error("Upgrade: %s. Reload when it can be evaluated", text)
        if outcome.result == "done":
            self.log.info("Upgrade: done, %.1f s", outcome.duration_s)
        self.zd_hook("when_ready")  # what a hook has running in the master has ended with the program before
        program.forget()
        try:
            self._zd.go_on(outcome)
        except Exception:  # the workers serve, whatever could not be taken up again
            self.log.exception("zdworker: not everything goes on after the upgrade")

    # -- the end -------------------------------------------------------------------------------------------------

    def zd_begin_end(self, quick: bool) -> None:
        """Close the listening sockets, because the workers leave, and end Gunicorn's dirty arbiter."""
        self._zd_close_listeners()
        self._zd_halt_by = time.monotonic() + self.cfg.graceful_timeout + KILL_MARGIN_S
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGQUIT if quick else signal.SIGTERM)

    def stop(self, graceful: bool = True) -> None:
        """End what is left. Reached when all workers are gone, or when the loop itself has failed."""
        self._zd_close_listeners()
        self._zd.end()
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGKILL)

    def _zd_close_listeners(self) -> None:
        """Close the listening sockets, and unlink those that have a path."""
        self.LISTENERS = []
        # As in Gunicorn: an old master that has handed its sockets over, and is still there, needs their files.
        self.zd_listeners.close(unlink=not self.systemd and not self.master_pid)

    def _zd_in_forked_child(self) -> None:
        """Let go of the other processes' channels, in Gunicorn's dirty arbiter or a worker forked from the master."""
        if os.getpid() != self.pid:
            self._zd.reactor.close_in_child()


def refuse_start(reason: str) -> NoReturn:
    """End the master, before it serves, with one line that gives the reason.

    :raises SystemExit: 1, always.
    """
    with contextlib.suppress(OSError):  # not sys.stderr: that is None where it was closed at start
        os.write(2, f"\nError: {texts.lines(reason)}\n".encode())
    sys.exit(1)


class _GunicornObserver(Observer):
    """What Gunicorn's own parts learn of the fleet: its statistics, its dirty arbiter, its listening sockets."""

    def __init__(self, arbiter: ZeroDowntimeArbiter) -> None:
        self._arbiter = arbiter

    def reload_started(self, reload: Reload) -> None:
        """Count a reload for ``gunicornc show stats``."""
        self._arbiter._zd_count("reloads")

    def worker_forked(self) -> None:
        """Count a worker for ``gunicornc show stats``."""
        self._arbiter._zd_count("workers_spawned")

    def configuration_taken(self) -> None:
        """Have the dirty arbiter reload, too, and say what that means.

        Gunicorn imports the dirty applications in the master, whose fork the dirty arbiter is, and so in all the dirty
        workers that this ever forks (Gunicorn 25.0 to 27.0).
        """
        if self._arbiter.dirty_arbiter_pid:
            self._arbiter.kill_dirty_arbiter(signal.SIGHUP)
            self._arbiter.log.warning(
                "Gunicorn's dirty workers run the code of the master's start (%s): a change of it needs a restart",
                ", ".join(map(str, self._arbiter.cfg.dirty_apps)) or "dirty_apps is empty now",
            )

    def observe(self, fleet: Fleet, now: float) -> None:
        """Close the listening sockets once the workers have the order to leave.

        A client that connects from then on has to be refused, and not be kept waiting.
        """
        if fleet.ending and self._arbiter.LISTENERS:
            self._arbiter.zd_begin_end(fleet.quick)
