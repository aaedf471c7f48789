"""The master: Gunicorn's arbiter, in which the core decides and this carries out.

Rules:

* The loop stays Gunicorn's (``Arbiter.run``). ``wait_for_signals`` is our poll; signals and messages become events, the
  core (``zdworker.core.rollout``) answers with actions, the methods named ``_do_…`` carry them out. An action that fails
  is an event again. Nothing here waits for anything but the poll.
* The master never imports the application and never forks Python: fork servers are spawned, workers are forked by them.
* This is the one file that knows Gunicorn's private attributes; :data:`NEEDED` is checked at start.
* A hook that raises in the master is logged and ends nothing, once the master is up.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn import sock, util
from gunicorn.arbiter import Arbiter
from gunicorn.config import Chdir
from gunicorn.errors import HaltServer

from zdworker import configuration, launch, system
from zdworker.channel import Channel
from zdworker.core import events
from zdworker.core.fleet import Fleet, GenerationState, Phase
from zdworker.core.messages import (
    PROTOCOL,
    Counts,
    Draining,
    Failed,
    Forked,
    Go,
    Hello,
    Loaded,
    Message,
    NotForked,
    Ready,
    Spawn,
    Tired,
    Unusable,
)
from zdworker.core.rollout import KILL_MARGIN, Rollout
from zdworker.errors import GenerationError, SettingError, UnsupportedGunicorn
from zdworker.processes import ForkServer, WorkerRecord
from zdworker.reactor import Reactor
from zdworker.settings import Settings, unknown_environment

if TYPE_CHECKING:
    from zdworker.core.events import Policy

NEEDED = (
    "SIG_QUEUE WORKERS LISTENERS SIG_NAMES setup start init_signals run wait_for_signals wakeup manage_workers "
    "murder_workers reap_workers reap_dirty_arbiter manage_dirty_arbiter kill_dirty_arbiter kill_worker kill_workers "
    "halt stop reload spawn_workers handle_chld handle_usr1 handle_usr2 handle_winch"
).split()
KNOWN_VERSIONS = "25.0.3 to 27"


class ZeroDowntimeArbiter(Arbiter):  # type: ignore[misc]  # Gunicorn has no types
    """Gunicorn's arbiter with rolling, ready-gated reloads. Never constructed: a running ``Arbiter`` becomes one."""

    WORKERS: dict[int, WorkerRecord]
    LISTENERS: list[Any]
    dirty_arbiter_pid: int

    def run(self, stock_run: Callable[[Any], None]) -> None:
        """Take over, then go on as Gunicorn would.

        :param stock_run: Gunicorn's own ``Arbiter.run``.
        """
        try:
            self._zd_take_over()
        except (SettingError, UnsupportedGunicorn, GenerationError) as error:
            print(f"\nError: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        stock_run(self)

    def _zd_take_over(self) -> None:
        missing = [name for name in NEEDED if not hasattr(self, name)]
        if missing:
            raise UnsupportedGunicorn(
                f"this Gunicorn lacks {', '.join(missing)}: zdworker knows Gunicorn {KNOWN_VERSIONS}; install one of these"
            )
        _refuse_patched_master()
        self.zd_settings = configuration.zd_settings(self.cfg)
        self._zd_command = launch.capture(self.cfg.env_orig, str(Chdir.default))
        self._zd_environment = dict(os.environ)
        self._zd_core = Rollout(Fleet(self._zd_policy(self.zd_settings), self.num_workers), random.random)
        self._zd_reactor = Reactor()
        self._zd_events: collections.deque[events.Event] = collections.deque()
        self._zd_handling = False
        self._zd_servers: dict[int, ForkServer] = {}
        self._zd_records: dict[int, WorkerRecord] = {}
        self._zd_ended: set[int] = set()
        self._zd_before_reload: tuple[Any, Settings, list[Any]] | None = None
        self._zd_halt: events.Halt | None = None
        self._zd_halt_by = 0.0
        self._zd_warned: set[str] = set()
        self.WORKERS = {}
        for name in unknown_environment(os.environ):
            self.log.warning("The environment sets %s, which is no setting of zdworker.", name)
        self._zd_own_names = {*vars(self), "_zd_own_names", "pid", "pidfile", "LISTENERS", "systemd", "dirty_pidfile"}

    def _zd_policy(self, settings: Settings) -> Policy:
        workers = self.cfg.workers
        return events.Policy(
            workers=workers,
            surge=settings.surge(workers),
            unavailable=settings.unavailable(workers),
            boot_timeout=settings.boot_timeout,
            min_ready=settings.min_ready_seconds,
            graceful_timeout=float(self.cfg.graceful_timeout),
            exit_on_crash=settings.on_crash == "exit",
        )

    # -- Gunicorn's life cycle -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Gunicorn's, and before it: become the parent of workers that fork servers fork."""
        system.become_subreaper()
        os.register_at_fork(after_in_child=self._zd_in_forked_child)
        super().start()
        for listener in self.LISTENERS:
            # Gunicorn makes them inheritable for its own re-exec, which is not used. A fork server must not have them.
            os.set_inheritable(listener.fileno(), False)
        self._zd_tell(events.Start())

    def init_signals(self) -> None:
        """Gunicorn's; and signals wake the poll."""
        super().init_signals()
        self._zd_reactor.take_signals()

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Poll up to ``timeout`` seconds or the core's next deadline, handle what came, return the signals."""
        deadline = self._zd_core.next_deadline()
        now = time.monotonic()
        if deadline is not None:
            timeout = min(timeout, deadline - now)
        if not self.SIG_QUEUE.empty():
            timeout = 0.0
        self._zd_reactor.wait(timeout)
        self._zd_tell(events.Tick())
        self._zd_end_if_halted()
        signals = []
        while not self.SIG_QUEUE.empty():
            signals.append(self.SIG_QUEUE.get_nowait())
        return [number for number in signals if number in self.SIG_NAMES]

    def _zd_end_if_halted(self) -> None:
        if self._zd_halt is None or (self.dirty_arbiter_pid and time.monotonic() < self._zd_halt_by):
            return
        if self._zd_halt.status == 0:
            raise StopIteration
        raise HaltServer(self._zd_halt.reason, self._zd_halt.status)

    def wakeup(self) -> None:
        """End the poll; Gunicorn's control server calls it from its thread."""
        self._zd_reactor.wake()

    def manage_workers(self) -> None:
        """Follow a changed number of workers (TTIN, TTOU, WINCH, ``gunicornc worker add``)."""
        if self._zd_core.fleet.phase is not Phase.STOPPING and self.num_workers != self._zd_core.fleet.size:
            self._zd_tell(events.Scale(self.num_workers))

    def spawn_workers(self) -> None:
        """Nothing: the core says when."""

    def reload(self) -> None:
        """Ask for a rolling reload (HUP)."""
        self._zd_tell(events.Reload())

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

    def handle_winch(self) -> None:
        """WINCH: with ``--daemon``, no workers until the next reload."""
        if self.cfg.daemon:
            self.num_workers = 0

    def _zd_stop(self, quick: bool) -> None:
        self._zd_halt_by = time.monotonic() + self.cfg.graceful_timeout + KILL_MARGIN
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGQUIT if quick else signal.SIGTERM)
        self._zd_tell(events.Stop(quick=quick))

    def _zd_close_listeners(self) -> None:
        """The workers have been told to stop accepting: who connects from now on is to be refused, not kept waiting."""
        listeners, self.LISTENERS = self.LISTENERS, []
        with contextlib.suppress(OSError):
            sock.close_sockets(listeners, not self.systemd and not self.cfg.reuse_port)

    def stop(self, graceful: bool = True) -> None:
        """End what is left. Reached when all workers are gone, or when the loop itself has failed."""
        self._zd_close_listeners()
        for record in list(self._zd_records.values()):
            if record.born:
                self.kill_worker(record.pid, signal.SIGKILL)
        for server in list(self._zd_servers.values()):
            self._zd_end_server(server)
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGKILL)
            self._zd_ended.add(self.dirty_arbiter_pid)
        for pid in [*self._zd_ended, *self.WORKERS]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)  # they were killed: this does not take long

    def manage_dirty_arbiter(self) -> None:
        """Gunicorn's, unless the end is near."""
        if self._zd_core.fleet.phase is not Phase.STOPPING and self._zd_halt is None:
            super().manage_dirty_arbiter()

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send ``sig`` to a worker; one that has just died is reaped as any other."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)
            if hasattr(self, "_stats") and sig in (signal.SIGTERM, signal.SIGKILL):
                self._stats["workers_killed"] += 1

    def reap_workers(self) -> None:
        """Find out which children have ended: fork servers, workers, and orphans of the application, which are ignored."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._zd_reaped(pid, os.waitstatus_to_exitcode(status))

    # -- events in -----------------------------------------------------------------------------------------------

    def _zd_tell(self, event: events.Event) -> None:
        """Tell the core, and do what it answers. What comes up meanwhile is told after that."""
        self._zd_events.append(event)
        if self._zd_handling:
            return
        self._zd_handling = True
        try:
            while self._zd_events:
                for action in self._zd_core.handle(self._zd_events.popleft(), time.monotonic()):
                    getattr(self, f"_do_{type(action).__name__.lower()}")(action)
        finally:
            self._zd_handling = False
        if self._zd_core.fleet.phase is Phase.STOPPING and self.LISTENERS:
            self._zd_close_listeners()

    def _zd_reaped(self, pid: int, code: int) -> None:
        server = next((s for s in self._zd_servers.values() if s.pid == pid), None)
        if server is not None:
            self._zd_server_gone(server, code)
            return
        if pid in self._zd_ended:
            self._zd_ended.discard(pid)
            return
        if pid == self.dirty_arbiter_pid:
            self.log.info("Dirty arbiter (pid:%s) %s", pid, _how(code))
            self.dirty_arbiter_pid, self.dirty_arbiter = 0, None
            return
        if pid not in self.WORKERS:
            # One that died right after its first word, which may not have been read yet.
            for record in [r for r in self._zd_records.values() if not r.born]:
                self._zd_hear_worker(record)
        record = self.WORKERS.pop(pid, None)
        if record is None:
            self.log.debug("Reaped a child that is not ours (pid:%s, %s)", pid, _how(code))
            return
        self._zd_worker_gone(record, code)

    def _zd_worker_gone(self, record: WorkerRecord, code: int) -> None:
        self._zd_hear_worker(record)
        if code:
            log = self.log.info if code == -signal.SIGTERM else self.log.error
            hint = " Perhaps out of memory?" if code == -signal.SIGKILL else ""
            log("Worker (pid:%s) %s.%s", record.pid, _how(code), hint)
        self._zd_forget(record)
        self._zd_hook("child_exit", record)
        self._zd_tell(events.WorkerGone(record.age, _how(code), code))

    def _zd_forget(self, record: WorkerRecord) -> None:
        self._zd_records.pop(record.age, None)
        if record.channel is not None:
            self._zd_reactor.remove(record.channel.fileno())
        record.close()

    def _zd_never_born(self, record: WorkerRecord, how: str) -> None:
        self._zd_forget(record)
        self._zd_tell(events.WorkerGone(record.age, how))

    def _zd_hear_worker(self, record: WorkerRecord) -> None:
        if record.channel is None:
            return
        received = record.channel.receive()
        for message, sender in received.messages:
            self._zd_worker_said(record, message, sender)
        if received.error:
            self.log.warning("Worker (pid:%s) sent something strange: %s", record.pid, received.error)
        if received.closed:
            # Not its death: that is for waitpid to say. But whoever has not said hello by now never will.
            self._zd_reactor.remove(record.channel.fileno())
            record.channel.close()
            record.channel = None
            if not record.born:
                self._zd_never_born(record, "ended before it was a worker")

    def _zd_worker_said(self, record: WorkerRecord, message: Message, sender: int | None) -> None:
        if isinstance(message, Hello):
            if not record.born and sender:
                record.pid = sender
                self.WORKERS[sender] = record
                self._zd_go(record)
        elif sender != record.pid:
            return  # a child of the application holds a copy of the channel
        elif isinstance(message, Ready):
            record.booted = True
            self._zd_tell(events.WorkerReady(record.age))
        elif isinstance(message, Draining):
            self._zd_tell(events.WorkerLeaving(record.age))
        elif isinstance(message, Failed):
            self._zd_tell(events.WorkerFailed(record.age, message.reason, message.traceback, message.exit_code))
        elif isinstance(message, Tired):
            self.log.info("Worker (pid:%s) is to be replaced: %s", record.pid, message.reason)
            self._zd_tell(events.WorkerTired(record.age))
        elif isinstance(message, Counts):
            record.connections, record.requests = message.connections, message.requests

    def _zd_go(self, record: WorkerRecord) -> None:
        """Let a worker go on when it has said hello, and its fork server that it is our child."""
        if not (record.born and record.forked) or record.channel is None:
            return
        with contextlib.suppress(OSError):
            record.channel.send(Go())
        if hasattr(self, "_stats"):
            self._stats["workers_spawned"] += 1
        self._zd_tell(events.WorkerBorn(record.age, record.pid))

    def _zd_hear_server(self, server: ForkServer) -> None:
        received = server.channel.receive()
        for message, _sender in received.messages:
            self._zd_server_said(server, message)
        if received.closed or received.error:
            self._zd_reactor.remove(server.channel.fileno())
            if received.error:
                self.log.error("Generation %s sent something strange: %s", server.number, received.error)
                server.end()

    def _zd_server_said(self, server: ForkServer, message: Message) -> None:
        if server.number not in self._zd_servers:
            return
        if isinstance(message, Loaded):
            self._zd_loaded(server, message)
        elif isinstance(message, Unusable):
            server.hear_stderr()
            text = message.traceback or server.said()
            self._zd_tell(events.GenerationFailed(server.number, message.reason, text, message.exit_code))
        elif isinstance(message, Forked):
            record = self._zd_records.get(message.age)
            if record is not None:
                record.forked = True
                self._zd_go(record)
        elif isinstance(message, NotForked):
            record = self._zd_records.get(message.age)
            if record is not None:
                self._zd_never_born(record, f"could not be forked: {message.reason}")

    def _zd_server_gone(self, server: ForkServer, code: int) -> None:
        self._zd_hear_server(server)
        if server.number not in self._zd_servers:
            return
        server.hear_stderr()
        loading = self._zd_core.fleet.generations[server.number].state is GenerationState.LOADING
        self._zd_drop(server)
        if loading:
            reason = f"the new code's interpreter {_how(code)} while it was loading"
            self._zd_tell(events.GenerationFailed(server.number, reason, server.said(), code if code in (3, 4) else 3))
            return
        self.log.error("The fork server of generation %s (pid:%s) %s.", server.number, server.pid, _how(code))
        self._zd_tell(events.GenerationGone(server.number))

    def _zd_drop(self, server: ForkServer) -> None:
        self._zd_servers.pop(server.number, None)
        self._zd_reactor.remove(server.channel.fileno())
        self._zd_reactor.remove(server.stderr)
        server.close()
        for record in [r for r in self._zd_records.values() if r.generation == server.number and not r.born]:
            # Whatever it was about to be, nobody will let it go on.
            self._zd_never_born(record, "lost its fork server")

    def _zd_loaded(self, server: ForkServer, message: Loaded) -> None:
        for warning in message.warnings:
            self.log.warning("Generation %s: %s", server.number, warning)
        loading = self._zd_core.fleet.loading
        policy = None
        try:
            if message.protocol != PROTOCOL:
                raise GenerationError(
                    f"the new zdworker speaks protocol {message.protocol}, this master {PROTOCOL}: a restart is needed"
                )
            settings = Settings.from_plain(message.settings)
            if loading is not None and loading.purpose == "reload" and not self._zd_core.fleet.reload_again:
                self._zd_adopt(message, settings)
            if loading is not None and loading.purpose != "restore":
                self.zd_settings = settings
                policy = self._zd_policy(settings)
        except (GenerationError, SettingError) as error:
            self._zd_tell(events.GenerationFailed(server.number, str(error)))
            return
        self._zd_tell(events.GenerationLoaded(server.number, message.preloaded, policy))

    # -- the configuration ---------------------------------------------------------------------------------------

    def _zd_adopt(self, message: Loaded, settings: Settings) -> None:
        """Take the new configuration over, whole.

        :raises GenerationError: that cannot be done; nothing has changed.
        """
        before = self.cfg, self.zd_settings, self.LISTENERS
        cfg = configuration.evaluate(self.app, self._zd_command.environment, message.values)
        if cfg.settings["logger_class"].value != self.cfg.settings["logger_class"].value:
            raise GenerationError("logger_class has changed: that needs a restart")
        listeners = self._zd_open(cfg)
        try:
            self._zd_swap(cfg, settings, listeners)
        except (Exception, SystemExit) as error:
            self._zd_swap(*before)
            raise GenerationError(f"the new configuration cannot be taken over: {error!r}") from error
        self._zd_before_reload = before
        self._zd_environment = dict(os.environ)
        self.log.reopen_files()
        self._zd_hook("on_reload")
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGHUP)

    def _zd_swap(self, cfg: Any, settings: Settings, listeners: list[Any]) -> None:
        self.app.cfg = cfg
        self.setup(self.app)
        self.zd_settings, self.LISTENERS = settings, listeners

    def _zd_open(self, cfg: Any) -> list[Any]:
        """Return the listeners for ``cfg``: those that are open already, and new ones for new addresses."""
        if cfg.address == self.cfg.address or self.systemd or not self.LISTENERS:
            return list(self.LISTENERS)
        known = dict(zip(self.cfg.address, self.LISTENERS, strict=False))
        opened: list[Any] = []
        for address in cfg.address:
            if address in known:
                continue
            try:
                opened.append(sock._sock_type(address)(address, cfg, self.log))
            except (OSError, ValueError, TypeError) as error:
                for listener in opened:
                    listener.close()
                raise GenerationError(f"the new address {address!r} cannot be opened: {error}") from error
            os.set_inheritable(opened[-1].fileno(), False)
            known[address] = opened[-1]
        return [known[address] for address in cfg.address]

    def _zd_settle_configuration(self, keep: bool) -> None:
        """A reload has ended: keep its configuration, or go back to the one before."""
        if self._zd_before_reload is None:
            return
        before, self._zd_before_reload = self._zd_before_reload, None
        now = self.LISTENERS
        if not keep:
            self._zd_swap(*before)
            self._zd_environment = dict(os.environ)
        for listener in [*now, *before[2]]:
            if listener not in self.LISTENERS and listener.sock is not None:
                listener.close()

    # -- actions out ---------------------------------------------------------------------------------------------

    def _do_startgeneration(self, action: events.StartGeneration) -> None:
        try:
            server = ForkServer(action.generation, self._zd_command)
        except (OSError, GenerationError) as error:
            reason = f"no fork server can be started: {error}"
            self._zd_tell(events.GenerationFailed(action.generation, reason))
            return
        self._zd_servers[action.generation] = server
        self._zd_reactor.add(server.channel.fileno(), lambda: self._zd_hear_server(server))
        self._zd_reactor.add(server.stderr, lambda: self._zd_hear_stderr(server))

    def _zd_hear_stderr(self, server: ForkServer) -> None:
        if not server.hear_stderr():
            self._zd_reactor.remove(server.stderr)

    def _do_endgeneration(self, action: events.EndGeneration) -> None:
        server = self._zd_servers.get(action.generation)
        if server is not None:
            self._zd_end_server(server)

    def _zd_end_server(self, server: ForkServer) -> None:
        self._zd_drop(server)
        self._zd_ended.add(server.pid)
        server.end()

    def _do_spawn(self, action: events.Spawn) -> None:
        try:
            record = WorkerRecord(
                action.age, self.pid, self.LISTENERS, self.app, self.timeout / 2.0, self.cfg, self.log,
                slot=action.slot, generation=action.generation,
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            self._zd_tell(events.WorkerGone(action.age, f"got no heartbeat file: {error}"))
            return
        self.worker_age = action.age
        self._zd_records[action.age] = record
        self._zd_hook("pre_fork", record)
        try:
            self._zd_ask_for(record)
        except OSError as error:
            self._zd_never_born(record, f"could not be asked for: {error}")

    def _zd_ask_for(self, record: WorkerRecord) -> None:
        server = self._zd_servers[record.generation]
        record.channel, theirs = Channel.pair()
        with contextlib.closing(theirs):
            listeners = [listener.fileno() for listener in self.LISTENERS]
            message = Spawn(
                age=record.age,
                slot=record.slot,
                generation=record.generation,
                descriptors=[*["listener"] * len(listeners), "heartbeat", "report"],
                environment=self._zd_environment_changes(),
                server_attributes=self._zd_plain("server", self._zd_hook_attributes()),
                worker_attributes=self._zd_plain("worker", record.hook_attributes()),
                workers=self.num_workers,
            )
            server.channel.send(message, [*listeners, record.tmp.fileno(), theirs.fileno()])
        channel = record.channel
        self._zd_reactor.add(channel.fileno(), lambda: self._zd_hear_worker(record))

    def _zd_environment_changes(self) -> dict[str, str | None]:
        """Return what hooks in the master have changed in the environment since the configuration was evaluated."""
        names = self._zd_environment.keys() | os.environ.keys()
        changed = [name for name in names if self._zd_environment.get(name) != os.environ.get(name)]
        return {name: os.environ.get(name) for name in changed}

    def _zd_hook_attributes(self) -> dict[str, Any]:
        return {n: v for n, v in vars(self).items() if n not in self._zd_own_names and n not in vars(Arbiter)}

    def _zd_plain(self, owner: str, attributes: dict[str, Any]) -> dict[str, Any]:
        plain = {name: value for name, value in attributes.items() if configuration.is_plain(value)}
        for name in attributes.keys() - plain.keys() - self._zd_warned:
            self._zd_warned.add(name)
            self.log.warning("%s.%s is not plain data: hooks in the workers will not see it", owner, name)
        return plain

    def _do_drain(self, action: events.Drain) -> None:
        self._zd_leave(action.age, signal.SIGQUIT if action.quick else signal.SIGTERM)

    def _do_kill(self, action: events.Kill) -> None:
        record = self._zd_records.get(action.age)
        if record is not None and record.born:
            what = {"booting": "did not get ready in time", "draining": "did not end in time"}
            self.log.critical("Worker (pid:%s) %s: killed", record.pid, what.get(action.why, "is still there"))
        self._zd_leave(action.age, signal.SIGKILL)

    def _zd_leave(self, age: int, signum: int) -> None:
        record = self._zd_records.get(age)
        if record is None:
            return
        state = self._zd_core.fleet.workers[age]
        if not record.born:
            self._zd_never_born(record, "was not needed any more")
        elif state.pid is None and record.channel is not None and signum != signal.SIGKILL:
            # It waits for its go: the end of the channel tells it that there will be none.
            self._zd_reactor.remove(record.channel.fileno())
            record.channel.close()
            record.channel = None
        else:
            self.kill_worker(record.pid, signum)

    def _do_reloadstarted(self, action: events.ReloadStarted) -> None:
        if hasattr(self, "_stats"):
            self._stats["reloads"] += 1
        self.log.info("Reload: loading generation %s", action.generation)

    def _do_reloadfinished(self, action: events.ReloadFinished) -> None:
        if action.outcome != "superseded":
            self._zd_settle_configuration(keep=action.outcome == "done")
        if action.outcome == "failed":
            text = f"\n{action.traceback.rstrip()}" if action.traceback else ""
            self.log.error(
                "Reload failed, the code that was running serves on: generation %s: %s%s",
                action.generation, action.reason, text,
            )  # fmt: skip
        else:
            outcome = "all workers are new" if action.outcome == "done" else "superseded by a newer one"
            self.log.info("Reload: generation %s: %s", action.generation, outcome)

    def _do_degraded(self, action: events.Degraded) -> None:
        text = f"\n{action.traceback.rstrip()}" if action.traceback else ""
        self.log.error("Degraded: %s%s", action.reason, text)

    def _do_halt(self, action: events.Halt) -> None:
        self._zd_halt = action
        self.wakeup()

    # -- odds and ends of being a master -------------------------------------------------------------------------

    def _zd_hook(self, name: str, *arguments: Any) -> None:
        try:
            getattr(self.cfg, name)(self, *arguments)
        except Exception:
            self.log.exception("The hook %s raised; nothing else comes of it.", name)

    def _zd_in_forked_child(self) -> None:
        """In Gunicorn's dirty arbiter, the one thing forked from here: let go of the workers' and servers' channels."""
        if os.getpid() == self.pid:
            return
        self._zd_reactor.leave_to_child()


def _refuse_patched_master() -> None:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("os"):
        raise GenerationError(
            "the configuration has monkey-patched the master (gevent.monkey.patch_all): remove that from it, "
            "the worker class patches where it is needed"
        )


def _how(code: int) -> str:
    """Return how a process ended, for a reader."""
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
