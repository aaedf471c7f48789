"""The edge of the core: what processes do and say becomes events; the core's answers are carried out (``effects.py``).

Rules:

* :meth:`Supervisor.tell` is the only way to the core. What an action brings about is told after the actions before it:
  nothing recurses, nothing is lost.
* A worker's death is what ``waitpid`` says. An end of file says only that a channel was closed; but whoever has not
  said hello by then never will.
* Nothing that a process says or does ends the master: what goes wrong here is logged and told to the core as an event.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from zdworker.core import events
from zdworker.core.fleet import GenerationState, WorkerState
from zdworker.errors import GenerationError, SettingError
from zdworker.ipc.messages import (
    PROTOCOL,
    Counts,
    Draining,
    Failed,
    Forked,
    Hello,
    Loaded,
    LoadFailed,
    Message,
    NotForked,
    Ready,
    ReplacementRequested,
    Start,
    Stopping,
)
from zdworker.master.children import ForkServer, WorkerRecord
from zdworker.master.control import Control
from zdworker.master.effects import Effects
from zdworker.master.systemd import Notifier
from zdworker.settings import Settings

if TYPE_CHECKING:
    from zdworker.master.arbiter import ZeroDowntimeArbiter
    from zdworker.master.launch import Command


class Supervisor(Effects):
    """Fork servers and workers, and the core that decides about them."""

    def __init__(self, arbiter: ZeroDowntimeArbiter, command: Command | None, policy: events.Policy) -> None:
        super().__init__(arbiter, command, policy)
        self._events: collections.deque[events.Event] = collections.deque()
        self._handling = False
        self.notifier = Notifier(os.environ)
        self.control = Control(self, arbiter.zd_roll_back)

    def poll(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds or the core's next deadline, and handle what came."""
        deadline = self.core.next_deadline()
        if deadline is not None:
            timeout = min(timeout, deadline - time.monotonic())
        timeout = min(timeout, self.notifier.due_in())
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
        self.steer()
        self.notifier.look(self.core.fleet)
        self.control.look(self.core.fleet)
        self.meter.look(self.core.fleet, time.monotonic())
        if self.core.fleet.stopping:
            self._end()

    def _end(self) -> None:
        """Let the workers know that all of this ends, and when it begins to, the rest of the master."""
        for record in self.records.values():
            if record.booted:  # until then it may still read what comes: it waits for ``Go``
                record.say(Stopping)
        if self.core.fleet.ending and self._arbiter.LISTENERS:
            # The workers have been told to leave by now: who connects from here on is to be refused, not kept waiting.
            self._arbiter.zd_end(self.core.fleet.quick)

    def signal_servers(self, signum: int) -> None:
        """Send a signal to every fork server."""
        for server in self._servers.values():
            server.signal(signum)

    def reload_by_order(self) -> None:
        """Ask for a reload, as a signal would."""
        self._arbiter.reload()

    def status(self) -> dict[str, Any]:
        """Return what ``status`` shows."""
        servers = {number: server.pid for number, server in self._servers.items()}
        return self.journal.status(self.core.fleet, self.records, servers, self._arbiter.zd_settings)

    def _tell_one(self, event: events.Event) -> None:
        try:
            actions = self.core.handle(event, time.monotonic())
        except Exception:
            # IllegalEvent, or a bug of ours; but the site is served by workers that know nothing of it.
            self._arbiter.log.exception("zdworker: %r was not expected", event)
            return
        for action in actions:
            try:
                getattr(self, f"_do_{type(action).__name__.lower()}")(action)
            except Exception:
                # Likewise: a disk that is full or a log that cannot be opened must not end the master.
                self._arbiter.log.exception("zdworker: %r could not be carried out", action)

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
        known = self.core.fleet.workers.get(record.worker_id)
        if known is not None and known.state is WorkerState.READY:
            self.journal.crashes += 1
            self.meter.crashed()
        if code:
            log = self._arbiter.log.info if code == -signal.SIGTERM else self._arbiter.log.error
            hint = " Perhaps out of memory?" if code == -signal.SIGKILL else ""
            log("Worker (pid:%s) %s.%s", record.pid, _how(code), hint)
        self._forget(record)
        self._arbiter.zd_hook("child_exit", record)
        self.tell(events.WorkerGone(record.worker_id, _how(code), code))

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
                self._bear(record, sender)
            record.greeted = True
            self._go(record)
        elif sender not in (None, record.pid):
            return  # a child of the application holds a copy of the channel
        elif isinstance(message, Ready):
            record.booted = True
            took = time.monotonic() - record.since
            self.journal.booted(took)
            self.meter.booted(took)
            self._arbiter.zd_hook("zd_worker_ready", record)
            self.tell(events.WorkerReady(record.worker_id))
        elif isinstance(message, Draining):
            self.tell(events.WorkerLeaving(record.worker_id))
        elif isinstance(message, Failed):
            self.tell(events.WorkerFailed(record.worker_id, message.reason, message.traceback, message.exit_code))
        elif isinstance(message, ReplacementRequested):
            self._arbiter.log.info("Worker (pid:%s) is to be replaced: %s", record.pid, message.reason)
            self.tell(events.WorkerReplacementRequested(record.worker_id))
        elif isinstance(message, Counts):
            record.connections, record.requests = message.connections, message.requests

    def _go(self, record: WorkerRecord) -> None:
        """Let a worker go on when it has said hello, and its fork server that it is our child."""
        if not (record.born and record.greeted and record.forked) or record.channel is None:
            return
        with contextlib.suppress(OSError):
            record.channel.send(Start())
        self._arbiter.zd_count("workers_spawned")
        self.tell(events.WorkerForked(record.worker_id, record.pid))

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
        elif isinstance(message, LoadFailed):
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
            record = self.records.get(message.worker_id)
            if record is not None:
                record.forked = True
                self._go(record)
        elif isinstance(message, NotForked):
            record = self.records.get(message.worker_id)
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
        except Exception as error:
            self._arbiter.log.exception("The new configuration cannot be taken over")
            self.tell(events.GenerationFailed(server.number, f"the configuration cannot be taken over: {error!r}"))
        else:
            self.tell(events.GenerationLoaded(server.number, message.preloaded, policy))


def _how(code: int) -> str:
    """Return how a process ended, for a reader."""
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
