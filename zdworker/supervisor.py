"""The edge of the core: events come in from processes, actions go out to them.

Rules:

* :meth:`Supervisor.tell` is the only way to the core. What an action brings about is told after the actions before it:
  nothing recurses, nothing is lost.
* A worker's death is what ``waitpid`` says. An end of file says only that a channel was closed; but whoever has not
  said hello by then never will.
* Nothing that a process says or does ends the master: what goes wrong here is logged and told to the core as an event.
* Gunicorn's side (configuration, hooks, listeners, log) is the arbiter's; this asks it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

from zdworker import configuration
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
from zdworker.core.rollout import Rollout
from zdworker.errors import GenerationError, IllegalEvent, SettingError
from zdworker.localfork import LocalGeneration
from zdworker.processes import ForkServer, WorkerRecord
from zdworker.reactor import Reactor
from zdworker.settings import Settings

if TYPE_CHECKING:
    from zdworker.arbiter import ZeroDowntimeArbiter
    from zdworker.launch import Command


class Supervisor:
    """Fork servers and workers, and the core that decides about them.

    :param arbiter: Gunicorn's side.
    :param command: what a fork server runs, or None: workers are forked from the master.
    """

    def __init__(self, arbiter: ZeroDowntimeArbiter, command: Command | None, policy: events.Policy, size: int) -> None:
        self.core = Rollout(Fleet(policy, size), random.random)
        self.reactor = Reactor()
        self.records: dict[int, WorkerRecord] = {}
        self.halt: events.Halt | None = None
        self._arbiter = arbiter
        self._command = command
        self._servers: dict[int, ForkServer] = {}
        self._local: dict[int, LocalGeneration] = {}
        self._ended: set[int] = set()
        self._events: collections.deque[events.Event] = collections.deque()
        self._handling = False
        self._warned: set[str] = set()

    @property
    def stopping(self) -> bool:
        """Whether the master is about to end."""
        return self.core.fleet.phase in (Phase.STOPPING, Phase.STOPPED)

    def poll(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds or the core's next deadline, and handle what came."""
        deadline = self.core.next_deadline()
        if deadline is not None:
            timeout = min(timeout, deadline - time.monotonic())
        self.reactor.wait(timeout)
        self.tell(events.Tick())

    def tell(self, event: events.Event) -> None:
        """Tell the core, and do what it answers. What comes up meanwhile is told after that."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                self._tell_one(self._events.popleft())
        finally:
            self._handling = False
        if self.stopping and self._arbiter.LISTENERS:
            # The workers have been told by now: who connects from here on is to be refused, not kept waiting.
            self._arbiter.zd_close_listeners()

    def _tell_one(self, event: events.Event) -> None:
        try:
            actions = self.core.handle(event, time.monotonic())
        except IllegalEvent:
            # A bug of ours; but the site is served by workers that know nothing of it.
            self._arbiter.log.exception("zdworker: %r was not expected", event)
            return
        for action in actions:
            getattr(self, f"_do_{type(action).__name__.lower()}")(action)

    def reaped(self, pid: int, code: int) -> bool:
        """Take note that a child has ended; False when it was none of ours (an orphan of the application).

        :param code: its exit code, negative for a signal.
        """
        server = next((s for s in self._servers.values() if s.pid == pid), None)
        if server is not None:
            self._server_gone(server, code)
            return True
        if pid in self._ended:
            self._ended.discard(pid)
            return True
        if pid not in self._arbiter.WORKERS:
            # One that died right after its first word, which may not have been read yet.
            for record in [r for r in self.records.values() if not r.born]:
                self._hear_worker(record)
        if pid not in self._arbiter.WORKERS:
            return False
        self._worker_gone(self._arbiter.WORKERS.pop(pid), code)
        return True

    def _worker_gone(self, record: WorkerRecord, code: int) -> None:
        self._hear_worker(record)
        if code:
            log = self._arbiter.log.info if code == -signal.SIGTERM else self._arbiter.log.error
            hint = " Perhaps out of memory?" if code == -signal.SIGKILL else ""
            log("Worker (pid:%s) %s.%s", record.pid, _how(code), hint)
        self._forget(record)
        self._arbiter.zd_hook("child_exit", record)
        self.tell(events.WorkerGone(record.age, _how(code), code))

    def _forget(self, record: WorkerRecord) -> None:
        self.records.pop(record.age, None)
        if record.channel is not None:
            self.reactor.remove(record.channel.fileno())
        record.close()

    def _never_born(self, record: WorkerRecord, how: str) -> None:
        self._forget(record)
        self.tell(events.WorkerGone(record.age, how))

    def _hear_worker(self, record: WorkerRecord) -> None:
        if record.channel is None:
            return
        received = record.channel.receive()
        for message, sender in received.messages:
            self._worker_said(record, message, sender)
        if received.error:
            self._arbiter.log.warning("Worker (pid:%s) sent something strange: %s", record.pid, received.error)
        if received.closed:
            # Not its death: that is for waitpid to say. But whoever has not said hello by now never will.
            self._close_channel(record)
            if not record.born:
                self._never_born(record, "ended before it was a worker")

    def _worker_said(self, record: WorkerRecord, message: Message, sender: int | None) -> None:
        if isinstance(message, Hello):
            if not record.born and sender:
                record.pid = sender
                self._arbiter.WORKERS[sender] = record
                self._go(record)
        elif sender != record.pid:
            return  # a child of the application holds a copy of the channel
        elif isinstance(message, Ready):
            record.booted = True
            self.tell(events.WorkerReady(record.age))
        elif isinstance(message, Draining):
            self.tell(events.WorkerLeaving(record.age))
        elif isinstance(message, Failed):
            self.tell(events.WorkerFailed(record.age, message.reason, message.traceback, message.exit_code))
        elif isinstance(message, Tired):
            self._arbiter.log.info("Worker (pid:%s) is to be replaced: %s", record.pid, message.reason)
            self.tell(events.WorkerTired(record.age))
        elif isinstance(message, Counts):
            record.connections, record.requests = message.connections, message.requests

    def _go(self, record: WorkerRecord) -> None:
        """Let a worker go on when it has said hello, and its fork server that it is our child."""
        if not (record.born and record.forked) or record.channel is None:
            return
        with contextlib.suppress(OSError):
            record.channel.send(Go())
        self._arbiter.zd_count("workers_spawned")
        self.tell(events.WorkerBorn(record.age, record.pid))

    def _hear_server(self, server: ForkServer) -> None:
        received = server.channel.receive()
        for message, _sender in received.messages:
            self._server_said(server, message)
        if received.closed or received.error:
            self.reactor.remove(server.channel.fileno())
            if received.error:
                self._arbiter.log.error("Generation %s sent something strange: %s", server.number, received.error)
                server.end()

    def _server_said(self, server: ForkServer, message: Message) -> None:
        if server.number not in self._servers:
            return
        if isinstance(message, Loaded):
            self._loaded(server, message)
        elif isinstance(message, Unusable):
            server.hear_stderr()
            if message.traceback:
                self._arbiter.log.error(
                    "Generation %s cannot be loaded:\n%s", server.number, message.traceback.rstrip()
                )
            text = message.traceback or server.said()
            # A reason that ends in a colon goes on with the last that was printed: that is Gunicorn's own word on it.
            reason = f"{message.reason} {server.last_line()}" if message.reason.endswith(":") else message.reason
            self.tell(events.GenerationFailed(server.number, reason, text, message.exit_code))
        elif isinstance(message, Forked):
            record = self.records.get(message.age)
            if record is not None:
                record.forked = True
                self._go(record)
        elif isinstance(message, NotForked):
            record = self.records.get(message.age)
            if record is not None:
                self._never_born(record, f"could not be forked: {message.reason}")

    def _server_gone(self, server: ForkServer, code: int) -> None:
        self._hear_server(server)
        if server.number not in self._servers:
            return
        server.hear_stderr()
        loading = self.core.fleet.generations[server.number].state is GenerationState.LOADING
        self._drop(server)
        if loading:
            reason = f"the new code's interpreter {_how(code)} while it was loading"
            self.tell(events.GenerationFailed(server.number, reason, server.said(), code if code in (3, 4) else 3))
            return
        self._arbiter.log.error("The fork server of generation %s (pid:%s) %s.", server.number, server.pid, _how(code))
        # In this order: the core must not ask the dead one for the workers that it calls off.
        self.tell(events.GenerationGone(server.number))
        self._call_off_births(server.number)

    def _drop(self, server: ForkServer) -> None:
        self._servers.pop(server.number, None)
        self.reactor.remove(server.channel.fileno())
        self.reactor.remove(server.stderr)
        server.close()

    def _call_off_births(self, generation: int) -> None:
        for record in [r for r in self.records.values() if r.generation == generation and not r.forked]:
            self._call_off(record, "lost its fork server")

    def _loaded(self, server: ForkServer, message: Loaded) -> None:
        for warning in message.warnings:
            self._arbiter.log.warning("Generation %s: %s", server.number, warning)
        try:
            if message.protocol != PROTOCOL:
                raise GenerationError(
                    f"the new zdworker speaks protocol {message.protocol}, this master {PROTOCOL}: a restart is needed"
                )
            policy = self._take_over(message.values, Settings.from_plain(message.settings))
        except (GenerationError, SettingError) as error:
            self.tell(events.GenerationFailed(server.number, str(error)))
            return
        self.tell(events.GenerationLoaded(server.number, message.preloaded, policy))

    def _take_over(self, values: dict[str, Any], settings: Settings | None) -> events.Policy | None:
        """Take the configuration of the generation that has just loaded over, if it is to be."""
        loading = self.core.fleet.loading
        if loading is None or loading.purpose == "restore" or self.core.fleet.reload_again:
            return None
        if loading.purpose == "reload":
            self._arbiter.zd_adopt(values, settings)
        return self._arbiter.zd_policy()

    def _do_startgeneration(self, action: events.StartGeneration) -> None:
        if self._command is None:
            self._start_local(action.generation)
            return
        try:
            server = ForkServer(action.generation, self._command, configuration.file_of(self._arbiter.cfg))
        except (OSError, GenerationError) as error:
            reason = f"no fork server can be started: {error}"
            self.tell(events.GenerationFailed(action.generation, reason))
            return
        self._servers[action.generation] = server
        self.reactor.add(server.channel.fileno(), lambda: self._hear_server(server))
        self.reactor.add(server.stderr, lambda: self._hear_stderr(server))

    def _start_local(self, number: int) -> None:
        try:
            policy = self._take_over({}, None)
        except (GenerationError, SettingError) as error:
            self.tell(events.GenerationFailed(number, str(error)))
            return
        self._local[number] = self._arbiter.zd_local_generation(number)
        self.tell(events.GenerationLoaded(number, preloaded=False, policy=policy))

    def _hear_stderr(self, server: ForkServer) -> None:
        if not server.hear_stderr():
            self.reactor.remove(server.stderr)

    def _do_endgeneration(self, action: events.EndGeneration) -> None:
        self._local.pop(action.generation, None)
        server = self._servers.get(action.generation)
        if server is not None:
            self._end_server(server)

    def _end_server(self, server: ForkServer) -> None:
        self._drop(server)
        self._call_off_births(server.number)
        self._ended.add(server.pid)
        server.end()

    def _do_spawn(self, action: events.Spawn) -> None:
        try:
            record = self._arbiter.zd_worker_record(action.age, action.slot, action.generation)
        except (OSError, RuntimeError) as error:
            self.tell(events.WorkerGone(action.age, f"got no heartbeat file: {error}"))
            return
        self._arbiter.worker_age = action.age
        self.records[action.age] = record
        self._arbiter.zd_hook("pre_fork", record)
        try:
            self._ask_for(record)
        except OSError as error:
            self._never_born(record, f"could not be asked for: {error}")

    def _ask_for(self, record: WorkerRecord) -> None:
        record.channel, theirs = Channel.pair()
        with contextlib.closing(theirs):
            listeners = [listener.fileno() for listener in self._arbiter.LISTENERS]
            message = Spawn(
                age=record.age,
                slot=record.slot,
                generation=record.generation,
                descriptors=[*["listener"] * len(listeners), "heartbeat", "report"],
                environment=self._arbiter.zd_environment_changes(),
                server_attributes=self._plain("server", self._arbiter.zd_hook_attributes()),
                worker_attributes=self._plain("worker", record.hook_attributes()),
                workers=self._arbiter.num_workers,
            )
            self.reactor.add(record.channel.fileno(), lambda: self._hear_worker(record))
            self._hand_to_generation(record, message, [*listeners, record.tmp.fileno(), theirs.fileno()])

    def _hand_to_generation(self, record: WorkerRecord, message: Spawn, descriptors: list[int]) -> None:
        if record.generation in self._local:
            self._local[record.generation].fork(message, descriptors, self._arbiter.LISTENERS)
            record.forked = True
        elif record.generation in self._servers:
            self._servers[record.generation].channel.send(message, descriptors)
        else:
            raise BrokenPipeError("its fork server has just ended")

    def _plain(self, owner: str, attributes: dict[str, Any]) -> dict[str, Any]:
        plain = {name: value for name, value in attributes.items() if configuration.is_plain(value)}
        for name in attributes.keys() - plain.keys() - self._warned:
            self._warned.add(name)
            self._arbiter.log.warning("%s.%s is not plain data: hooks in the workers will not see it", owner, name)
        return plain

    def _do_drain(self, action: events.Drain) -> None:
        self._leave(action.age, signal.SIGQUIT if action.quick else signal.SIGTERM)

    def _do_kill(self, action: events.Kill) -> None:
        record = self.records.get(action.age)
        if record is not None and record.born:
            what = {"booting": "did not get ready in time", "draining": "did not end in time"}
            self._arbiter.log.critical("Worker (pid:%s) %s: killed", record.pid, what.get(action.why, "is still there"))
        self._leave(action.age, signal.SIGKILL)

    def _leave(self, age: int, signum: int) -> None:
        record = self.records.get(age)
        if record is None:
            return
        if record.born and record.forked:
            self._arbiter.kill_worker(record.pid, signum)
        else:
            self._call_off(record, "was not needed any more")

    def _call_off(self, record: WorkerRecord, why: str) -> None:
        """Have a worker that waits for its go end: the end of the channel tells it that there will be none."""
        if not record.born:
            self._never_born(record, why)
        else:
            self._close_channel(record)

    def _close_channel(self, record: WorkerRecord) -> None:
        if record.channel is None:
            return
        self.reactor.remove(record.channel.fileno())
        record.channel.close()
        record.channel = None

    def _do_reloadstarted(self, action: events.ReloadStarted) -> None:
        self._arbiter.zd_count("reloads")
        self._arbiter.log.info("Reload: loading generation %s", action.generation)

    def _do_reloadfinished(self, action: events.ReloadFinished) -> None:
        if action.outcome != "superseded":
            self._arbiter.zd_settle_configuration(keep=action.outcome == "done")
        if action.outcome == "failed":
            # The traceback is in the log already: the worker wrote it, or it came with the news.
            self._arbiter.log.error(
                "Reload to generation %s failed, the code that was running serves on: %s",
                action.generation,
                action.reason,
            )
        else:
            outcome = "all workers are new" if action.outcome == "done" else "superseded by a newer one"
            self._arbiter.log.info("Reload: generation %s: %s", action.generation, outcome)

    def _do_degraded(self, action: events.Degraded) -> None:
        self._arbiter.log.error("Degraded: %s", action.reason)

    def _do_halt(self, action: events.Halt) -> None:
        self.halt = action
        self.reactor.wake()

    def end_all(self) -> None:
        """Kill whatever is left and wait for it: it has been killed, that does not take long."""
        for record in self.records.values():
            if record.born:
                self._arbiter.kill_worker(record.pid, signal.SIGKILL)
        for server in list(self._servers.values()):
            self._end_server(server)
        for pid in [*self._ended, *self._arbiter.WORKERS]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _how(code: int) -> str:
    """Return how a process ended, for a reader."""
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
