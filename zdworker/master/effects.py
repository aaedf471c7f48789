"""The core's actions, carried out.

Rules: one method ``_do_…`` for each action of ``zdworker.core.events``. None waits; one that cannot be done is an
event (:meth:`Effects.tell`), as is everything that comes of the others. Gunicorn's side (configuration, hooks,
listeners, log) is the arbiter's; this asks it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from zdworker import gunicorn_config
from zdworker.core import events
from zdworker.core.fleet import WorkerState
from zdworker.core.rollout import rollout
from zdworker.errors import GenerationError, SettingError
from zdworker.forkserver.local import LocalGeneration
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import Leave, Spawn
from zdworker.master.children import ForkServer, WorkerRecord
from zdworker.master.listeners import HANDSHAKE
from zdworker.master.reactor import Reactor
from zdworker.master.statsd import Meter
from zdworker.master.status import Journal
from zdworker.settings import Settings

if TYPE_CHECKING:
    from zdworker.master.arbiter import ZeroDowntimeArbiter
    from zdworker.master.control import Control
    from zdworker.master.launch import Command


HOOK_DATA = 16 * 1024
"""Bytes that an attribute which a hook sets may have as JSON: a socket's buffer has to take the message at once."""


class Effects(ABC):
    """What can be done to fork servers and workers.

    :param arbiter: Gunicorn's side.
    :param command: what a fork server runs, or None: workers are forked from the master.
    """

    def __init__(self, arbiter: ZeroDowntimeArbiter, command: Command | None, policy: events.Policy) -> None:
        self.core = rollout(policy, random.random)
        self.reactor = Reactor()
        self.records: dict[int, WorkerRecord] = {}
        self.halt: events.Halt | None = None
        self.journal = Journal()
        self.meter = Meter(lambda: arbiter.log)
        self._arbiter = arbiter
        self._command = command
        self._servers: dict[int, ForkServer] = {}
        self._local: dict[int, LocalGeneration] = {}
        self._ended: set[int] = set()
        self._warned: set[str] = set()

    control: Control

    @abstractmethod
    def tell(self, event: events.Event) -> None:
        """Tell the core, after the actions that are being carried out."""

    @abstractmethod
    def _hear_worker(self, record: WorkerRecord) -> None:
        """Read what a worker says."""

    @abstractmethod
    def _hear_server(self, server: ForkServer) -> None:
        """Read what a fork server says."""

    def _do_startgeneration(self, action: events.StartGeneration) -> None:
        if self._command is None:
            self._start_local(action.generation)
            return
        try:
            server = ForkServer(action.generation, self._command, gunicorn_config.file_of(self._arbiter.cfg))
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

    def _take_over(self, values: dict[str, Any], settings: Settings | None) -> events.Policy | None:
        """Take the configuration of the generation that has just loaded over, if it is to be."""
        loading = self.core.fleet.loading
        if loading is None or loading.purpose == "restore" or self.core.fleet.reload_again:
            return None
        if loading.purpose == "reload":
            self._arbiter.zd_adopt(values, settings)
        return self._arbiter.zd_policy()

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

    def _drop(self, server: ForkServer) -> None:
        self._servers.pop(server.number, None)
        self.reactor.remove(server.channel.fileno())
        self.reactor.remove(server.stderr)
        server.close()

    def _call_off_births(self, generation: int) -> None:
        for record in [r for r in self.records.values() if r.generation == generation and not r.forked]:
            self._call_off(record, "lost its fork server")

    def _do_spawn(self, action: events.Spawn) -> None:
        try:
            record = self._arbiter.zd_worker_record(action.worker_id, action.slot, action.generation)
        except (OSError, RuntimeError) as error:
            self.tell(events.WorkerGone(action.worker_id, f"got no heartbeat file: {error}"))
            return
        try:
            channel, theirs = Channel.pair()
        except OSError as error:  # no descriptors are left: not for the fork server to pay for
            record.close()
            self.tell(events.WorkerGone(action.worker_id, f"got no channel: {error}"))
            return
        record.channel = channel
        self.records[action.worker_id] = record
        self.reactor.add(channel.fileno(), lambda: self._hear_worker(record))
        self._arbiter.zd_hook("pre_fork", record)
        try:
            self._ask_for(record, theirs)
        except OSError as error:
            if record.generation in self._servers:
                # It is dead, or does not read, or has got half of a message: whichever, it is of no use any more.
                self._servers[record.generation].end()
            self._never_born(record, f"could not be asked for: {error}")

    def _ask_for(self, record: WorkerRecord, theirs: socket.socket) -> None:
        with contextlib.closing(theirs):
            listeners = [listener.fileno() for listener in record.sockets]
            message = Spawn(
                worker_id=record.worker_id,
                slot=record.slot,
                generation=record.generation,
                descriptors=[*["listener"] * len(listeners), "heartbeat", "report"],
                environment=self._arbiter.zd_environment.changes(),
                server_attributes=self._plain("server", self._arbiter.zd_hook_attributes()),
                worker_attributes=self._plain("worker", record.hook_attributes()),
                workers=self._arbiter.num_workers,
            )
            self._hand_to_generation(record, message, [*listeners, record.tmp.fileno(), theirs.fileno()])

    def _hand_to_generation(self, record: WorkerRecord, message: Spawn, descriptors: list[int]) -> None:
        if record.generation in self._local:
            self._bear(
                record, self._local[record.generation].fork(message, descriptors, self._arbiter.zd_listeners.every())
            )
            record.forked = True
        elif record.generation in self._servers:
            self._servers[record.generation].channel.send(message, descriptors)
        else:
            raise BrokenPipeError("its fork server has just ended")

    def _bear(self, record: WorkerRecord, pid: int) -> None:
        record.pid = pid
        self._arbiter.WORKERS[pid] = record

    def _plain(self, owner: str, attributes: dict[str, Any]) -> dict[str, Any]:
        plain = {name: value for name, value in attributes.items() if gunicorn_config.is_plain(value, HOOK_DATA)}
        for name in attributes.keys() - plain.keys() - self._warned:
            self._warned.add(name)
            self._arbiter.log.warning(
                "%s.%s is not plain data of less than %d bytes: hooks in the workers will not see it",
                owner,
                name,
                HOOK_DATA,
            )
        return plain

    def _do_drain(self, action: events.Drain) -> None:
        signum = signal.SIGQUIT if action.quick else signal.SIGTERM
        if self._takes_socket_along(action.worker_id) and not action.quick and not self.core.fleet.ending:
            self._leave_slot(action.worker_id, time.monotonic())
        else:
            self._leave(action.worker_id, signum)

    def _takes_socket_along(self, worker_id: int) -> bool:
        slot = self.records[worker_id].slot if worker_id in self.records else 0
        return slot >= self.core.fleet.size and slot in self._arbiter.zd_listeners.slots()

    def _leave_slot(self, worker_id: int, since: float) -> None:
        """Tell a worker to leave when nothing waits for it any more in a socket that goes away with its slot."""
        record = self.records.get(worker_id)
        if record is None:
            return
        passed = time.monotonic() - since
        empty = not self._arbiter.zd_listeners.waiting(record.slot)
        over = passed >= self._arbiter.cfg.graceful_timeout
        if self.core.fleet.ending or over or (empty and passed >= HANDSHAKE):
            self._leave(worker_id, signal.SIGTERM)
        else:
            self.reactor.later(HANDSHAKE / 5, lambda: self._leave_slot(worker_id, since))

    def steer(self) -> None:
        """With ``reuse_port``: have connections go where a ready worker is, and close what no slot has any more."""
        fleet = self.core.fleet
        self._arbiter.zd_listeners.steer(w.slot for w in fleet.workers.values() if w.state is WorkerState.READY)
        self._arbiter.zd_listeners.keep_slots({*range(fleet.size), *(record.slot for record in self.records.values())})

    def _do_kill(self, action: events.Kill) -> None:
        record = self.records.get(action.worker_id)
        if record is not None and record.born:
            what = {"booting": "did not get ready in time", "draining": "did not end in time"}
            self._arbiter.log.critical("Worker (pid:%s) %s: killed", record.pid, what.get(action.why, "is still there"))
        self._leave(action.worker_id, signal.SIGKILL)

    def _leave(self, worker_id: int, signum: int) -> None:
        record = self.records.get(worker_id)
        if record is None:
            return
        if record.born and record.forked:
            if signum == signal.SIGTERM:
                record.say(Leave)  # one that boots may read it along with ``Go``: for that one any TERM is an order
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

    def _never_born(self, record: WorkerRecord, how: str) -> None:
        self._forget(record)
        self.tell(events.WorkerGone(record.worker_id, how))

    def _forget(self, record: WorkerRecord) -> None:
        self.records.pop(record.worker_id, None)
        if record.channel is not None:
            self.reactor.remove(record.channel.fileno())
        record.close()

    def _do_reloadstarted(self, action: events.ReloadStarted) -> None:
        self.journal.reload_started(action.generation)
        self.meter.reload_started()
        self._arbiter.zd_count("reloads")
        self._arbiter.log.info("Reload: loading generation %s", action.generation)
        self._arbiter.zd_hook("zd_reload_started")

    def _do_reloadfinished(self, action: events.ReloadFinished) -> None:
        ended = self.journal.reload_finished(action.generation, action.outcome, action.reason, action.traceback)
        self.meter.reload_finished(action.outcome, ended.lasted())
        if action.outcome != "superseded":
            self.control.finished(ended, self.core.fleet)
        if action.outcome != "superseded" and self.core.fleet.reloading is None:
            # Else it was refused while another one goes on, whose configuration it is.
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
        self._arbiter.zd_hook("zd_reload_finished", ended.to_plain())

    def _do_degraded(self, action: events.Degraded) -> None:
        self._arbiter.log.error("Degraded: %s", action.reason)
        if self.core.fleet.reloading is not None:
            self.control.stuck(action.reason, action.traceback, self.core.fleet)

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
