"""The master's view of its children: fork servers and workers, each with its channel, and the registry of all of them.

Rules: nothing is decided here, and no constructor starts a process. A record holds what belongs to one process;
removing it from the registry gives that back.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from gunicorn.workers.base import Worker

from zdworker import texts
from zdworker.descendants import Descendant, before_kill
from zdworker.ipc.channel import Channel
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.ipc.messages import (
    SERVER_REPORT_BYTES,
    WORKER_REPORT_BYTES,
    CountAnswers,
    Drained,
    HookData,
    Leave,
    Message,
    Spawn,
    Stopping,
)
from zdworker.master.reactor import Reactor
from zdworker.master.report_rules import ReportRules
from zdworker.plain import attributes, can_be_written, set_attributes

if TYPE_CHECKING:  # the core takes a while to import, and a fork server's interpreter is started before that
    from zdworker.core.fleet import Fleet

KILLED_WAIT_S = 1.0
"""Seconds that the master waits at its end for the processes that it has killed."""

REAP_INTERVAL_S = 0.01
"""Seconds between two looks whether they have ended."""

STDERR_READS = 16
"""Reads at a time from a fork server's standard error: one that prints without end must not hold up the master."""


_GIVEN_TO_SERVER = ("number", "pid", "channel", "stderr", "_log", "_show")
"""Attributes of a fork server's record that its constructor is given."""

_GIVEN_TO_WORKER = (
    *("age", "worker_id", "slot", "generation", "ppid", "sockets", "app", "cfg", "log"),
    *("tmp", "channel", "probes", "report_rules", "_own_names"),
)
"""Attributes of a worker's record that its constructor is given, or that belong to this program alone."""


class ForkServer:
    """A generation's fork server, as ``launch.py`` has started it.

    :param stderr: the reading end of the pipe that is its standard error until it has loaded.
    :param log: the master's logger.
    :param show: is called with what it has written there, made printable.
    """

    def __init__(
        self, number: int, pid: int, channel: Channel, stderr: int, log: Any, show: Callable[[str], None]
    ) -> None:
        self.number = number
        self.pid = pid
        self.channel = channel
        self.stderr = stderr
        self.descendants: list[Descendant] | None = None
        """The processes below it when it was killed; None as long as it was not."""
        self.interpreter = ""
        """The path by which its interpreter was started."""
        self.places: dict[str, dict[str, str]] = {}
        """The places that it comes from (``messages.Place``), once it has loaded."""
        self.not_preloaded = ""
        """Why ``zd_preload = "auto"`` has left the import to the workers, "" if it has not."""
        self.label = ""
        """The version of its application, once it has loaded; "" if nothing tells."""
        self.versions: dict[str, str] = {}
        """The versions of what it runs, once it has loaded."""
        self._log = log
        self._show = show
        self.printed_characters = 0
        """How many characters it has written to its standard error."""
        self._tail = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._hook_data = HookData()

    def to_state(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """Return it as :meth:`from_state` reads it, in another program of this process (an upgrade).

        :param keep: has a descriptor go along, and returns its number.
        """
        return {
            "number": self.number,
            "pid": self.pid,
            "stderr": keep(self.stderr) if self.stderr >= 0 else -1,
            "channel": self.channel.to_state(keep) if self.channel.fileno() >= 0 else None,
            "decoder": self._decoder.getstate(),
            "facts": attributes(self, but=(*_GIVEN_TO_SERVER, "_decoder")),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], log: Any, show: Callable[[str], None]) -> ForkServer:
        """Return the fork server that :meth:`to_state` has written out."""
        if state["channel"] is not None:
            channel = Channel.from_state(state["channel"], SERVER_REPORT_BYTES)
        else:  # it was killed, and only its standard error is read
            channel, other = Channel.pair(SERVER_REPORT_BYTES)
            channel.close()
            other.close()
        server = cls(state["number"], state["pid"], channel, state["stderr"], log, show)
        set_attributes(server, state["facts"])
        server._decoder.setstate(state["decoder"])
        return server

    def send(self, message: Message, descriptors: list[int]) -> None:
        """Send a message, with descriptors. What it has no room for waits: it may be at a fork, which can take long.

        :raises OSError: the fork server is gone, or the master has no descriptors left.
        """
        self._log.debug("master -> fork server of generation %s: %r", self.number, message)
        self.channel.post(message, descriptors)

    def send_hook_data(self, data: HookData) -> None:
        """Send what hooks have set, if that has changed since it was sent last.

        :raises OSError: the fork server is gone.
        """
        if data != self._hook_data:
            self.send(data, [])
            self._hook_data = data

    def read_stderr(self) -> bool:
        """Pass on what the fork server has written to its standard error; return False when that has ended."""
        if self.stderr < 0:
            return False
        for _ in range(STDERR_READS):
            try:
                data = os.read(self.stderr, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            text = texts.printed(self._decoder.decode(data))
            self._tail = (self._tail + text)[-texts.LINES_MAX :]
            self.printed_characters += len(text)
            self._show(text)
        return True

    def printed_since(self, characters: int) -> str:
        """Return what it has written there after that many characters, as far as it is kept."""
        new = self.printed_characters - characters
        return self._tail[-new:] if new else ""

    def printed(self) -> str:
        """Return the last that it wrote to its standard error."""
        return texts.lines(self._tail.strip())

    def last_line(self) -> str:
        """Return the last line of that, which tells the cause more often than not."""
        return self.printed().rpartition("\n")[2]

    def kill(self) -> None:
        """Kill it: it keeps nothing that could be lost, and its workers are not its children."""
        self.descendants = before_kill(self.pid) or self.descendants or []  # a second time it may be a zombie
        self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def close_stderr(self) -> None:
        """Close the pipe that was its standard error."""
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1


UNKNOWN_PIDS = 1 << 30
"""The first key in the ``WORKERS`` of hooks for workers whose process is not known yet: above any pid (PID_MAX_LIMIT in
include/linux/threads.h), so that no signal to it reaches a process."""

_PLAIN = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset)


class WorkerRecord(Worker):  # type: ignore[misc]  # Gunicorn has no types
    """A worker as the master and its hooks see it.

    Its base is Gunicorn's base class and not the worker's own class, which would bring uvicorn and the like into the
    master. ``worker_id`` is what Gunicorn calls the worker's age. ``has_pid`` means that its process is known,
    ``forked`` that its fork server has reported it as a child of the master, ``greeted`` that it has sent ``Hello``.
    ``called_off`` means that it will get no start order, ``replacement_requested`` that it has asked for that before it
    was ready. ``ordered_at`` and ``leaving_since``, when it has reported that it drains, are by ``time.monotonic()``.
    ``drained`` is what that has cost. ``descendants`` are the processes below it when it was killed, None before.
    """

    def __init__(self, *args: Any, slot: int, generation: int) -> None:
        super().__init__(*args)
        self.worker_id = int(self.age)
        self.slot = slot
        self.generation = generation
        self.has_pid = False
        self.channel: Channel | None = None
        self.forked = False
        self.greeted = False
        self.called_off = False
        self.report_rules = ReportRules(self.worker_id)
        self.replacement_requested = False
        self.descendants: list[Descendant] | None = None
        self.ordered_at = time.monotonic()
        self.connections = 0
        self.requests = 0
        self.in_flight = self.websockets = 0
        self.leaving_since: float | None = None
        self.drained: Drained | None = None
        self.probes: HandOverQueue | None = None
        """What only a canary that is held has: a queue through which it gets a connection to be tried by."""
        self._announced: set[type[Stopping | Leave | CountAnswers]] = set()
        self._own_names = {*vars(self), "_own_names"}

    def __getattr__(self, name: str) -> Any:
        """Return what the user's worker class has as plain data, where hooks ask for it.

        :raises AttributeError: it has no such data. Methods are left out, because this is no object of that class.
        """
        cfg = vars(self).get("cfg")
        value = getattr(cfg.worker_class, name, None) if cfg is not None and not name.startswith("__") else None
        if not isinstance(value, _PLAIN):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value

    def send(self, message: Message) -> None:
        """Send a message; a worker that is gone gets none, and its end is seen elsewhere."""
        if self.channel is not None:
            self.log.debug("master -> worker %s (pid:%s): %r", self.worker_id, self.pid, message)
            with contextlib.suppress(OSError):
                self.channel.send(message)

    def announce(self, kind: type[Stopping | Leave | CountAnswers]) -> None:
        """Send, once, a message that the worker does not read but only looks for."""
        if kind not in self._announced and self.channel is not None:
            self._announced.add(kind)
            self.send(kind())

    @property
    def timeout_s(self) -> float:
        """Seconds for which it may send no heartbeat; 0 if that is not limited."""
        return float(self.timeout) * 2.0  # Gunicorn's arbiter gives a worker half of it

    def is_silent(self) -> bool:
        """Return whether it has sent no heartbeat for so long that it has to be ended."""
        try:
            silent_s = time.monotonic() - float(self.tmp.last_update())
        except (OSError, ValueError):  # its file is closed: it ends
            return False
        return 0 < self.timeout_s < silent_s

    @property
    def name(self) -> str:
        """How the log calls it."""
        return f"Worker (pid:{self.pid}, slot {self.slot}, generation {self.generation})"

    def is_announced(self, kind: type[Stopping | Leave | CountAnswers]) -> bool:
        """Return whether that was sent."""
        return kind in self._announced

    def hook_attributes(self) -> dict[str, Any]:
        """Return what hooks have set on this record."""
        # Nothing, as a rule, and each new worker asks this of all others. No attribute of its own is ever deleted.
        if len(vars(self)) == len(self._own_names):
            return {}
        return {name: value for name, value in vars(self).items() if name not in self._own_names}

    def to_state(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """Return it for :meth:`adopt`, in another program of this process (an upgrade).

        What hooks have set on it goes along as far as it is plain data.

        :param keep: has a descriptor go along, and returns its number.
        """
        return {
            "worker_id": self.worker_id,
            "slot": self.slot,
            "generation": self.generation,
            # A reload may have closed the address of one that drains: Gunicorn's listener has no socket then.
            "sockets": [listener.fileno() for listener in self.sockets if listener.sock is not None],
            "heartbeat": keep(self.tmp.fileno()),
            "channel": self.channel.to_state(keep) if self.channel is not None else None,
            "probes": list(map(keep, self.probes.descriptors())) if self.probes is not None else [],
            "rules": attributes(self.report_rules),
            "facts": {n: v for n, v in attributes(self, but=_GIVEN_TO_WORKER).items() if n in self._own_names},
            "hooked": {name: value for name, value in self.hook_attributes().items() if can_be_written(value)},
        }

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on as what :meth:`to_state` has returned."""
        self.tmp.close()
        vars(self.tmp)["_tmp"] = os.fdopen(state["heartbeat"], "w+b", 0)
        set_attributes(self, state["facts"])
        set_attributes(self.report_rules, state["rules"])
        if state["channel"] is not None:
            self.channel = Channel.from_state(state["channel"], WORKER_REPORT_BYTES)
        if state.get("probes"):
            self.probes = HandOverQueue(*(socket.socket(fileno=number) for number in state["probes"]))
        for name, value in state["hooked"].items():
            setattr(self, name, value)

    def close(self) -> None:
        """Close its descriptors."""
        if self.channel is not None:
            self.channel.close()
        self.close_probes()
        with contextlib.suppress(OSError):
            self.tmp.close()

    def close_probes(self) -> None:
        """Close the queue by which a canary is probed, once the worker is none any more."""
        if self.probes is not None:
            self.probes.close()
            self.probes = None


class Children:
    """The registry: fork servers by generation, workers by worker id and by pid.

    What is registered is polled; what is removed is not polled any more, and its descriptors are closed.
    """

    def __init__(self, reactor: Reactor) -> None:
        self.servers: dict[int, ForkServer] = {}
        self.workers: dict[int, WorkerRecord] = {}
        self.workers_by_pid: dict[int, WorkerRecord] = {}
        """Gunicorn's ``WORKERS``: a worker stays in there until it is reaped."""
        self._reactor = reactor
        self.killed_servers: dict[int, ForkServer] = {}
        """Fork servers that were killed and are not reaped yet, by pid."""

    def in_flight(self, generations: Collection[int]) -> int:
        """Return how many requests the workers of generations have begun and not answered, by their last reports."""
        return sum(record.in_flight for record in self.workers.values() if record.generation in generations)

    def to_state(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """Return all records, for :meth:`adopt` in another program of this process (an upgrade).

        :param keep: has a descriptor go along, and returns its number.
        """
        return {
            "servers": [server.to_state(keep) for server in self.servers.values()],
            "killed_servers": [server.to_state(keep) for server in self.killed_servers.values()],
            "workers": [record.to_state(keep) for record in self.workers.values()],
        }

    def adopt_server(self, server: ForkServer, on_message: Callable[[ForkServer], None], *, killed: bool) -> None:
        """Register a fork server that an earlier program of this process has started."""
        if killed:
            self.killed_servers[server.pid] = server
        else:
            self.servers[server.number] = server
            self._reactor.add(server.channel.fileno(), lambda: on_message(server))
        self.poll_stderr(server)

    def resume(self) -> None:
        """Send what an earlier program of this process could not send to the fork servers."""
        for server in list(self.servers.values()):
            self._flush(server)

    def poll_stderr(self, server: ForkServer) -> None:
        """Read what a fork server, or a process that it has started, writes to its standard error."""
        if server.stderr >= 0:
            self._reactor.add(server.stderr, lambda: self._read_stderr(server))

    def adopt_worker(self, record: WorkerRecord, on_message: Callable[[WorkerRecord], None]) -> None:
        """Register a worker that an earlier program of this process has ordered."""
        self.workers[record.worker_id] = record
        if record.has_pid:
            self.workers_by_pid[record.pid] = record
        if record.channel is not None:
            self._reactor.add(record.channel.fileno(), lambda: on_message(record))

    # -- fork servers --------------------------------------------------------------------------------------------

    def add_server(self, server: ForkServer, on_message: Callable[[ForkServer], None]) -> None:
        """Register a fork server; ``on_message`` is called when its channel is readable or closed."""
        self.servers[server.number] = server
        self._reactor.add(server.channel.fileno(), lambda: on_message(server))
        self.poll_stderr(server)
        self._flush(server)

    def _read_stderr(self, server: ForkServer) -> None:
        if not server.read_stderr():  # no process has it open any more: the usual case once a generation has loaded
            self.close_stderr(server)

    def order(self, server: ForkServer, hook_data: HookData, spawn: Spawn, descriptors: list[int]) -> None:
        """Send an order to a fork server, after what hooks have set; what does not fit now is sent when it does.

        :raises OSError: the fork server is gone, or the master has no descriptors left.
        """
        server.send_hook_data(hook_data)
        server.send(spawn, descriptors)
        self._flush(server)

    def _flush(self, server: ForkServer) -> None:
        try:
            if not server.channel.flush():
                self._reactor.when_writable(server.channel.fileno(), lambda: self._flush(server))
        except OSError:  # it is gone, or has got half of a message: in any case it is of no use any more
            server.kill()

    def close_stderr(self, server: ForkServer) -> None:
        """Read no more of what a fork server, or a process that it has started, writes to its standard error."""
        if server.stderr >= 0:
            self._reactor.remove(server.stderr)
            server.close_stderr()

    def stop_polling(self, server: ForkServer) -> None:
        """Stop to poll a fork server's channel, which is closed on its side."""
        self._reactor.remove(server.channel.fileno())

    def remove_server(self, server: ForkServer) -> None:
        """Remove a fork server. Its standard error is read to its end: processes that it has started may share it."""
        self.servers.pop(server.number, None)
        self._reactor.remove(server.channel.fileno())
        server.channel.close()

    def end_server(self, server: ForkServer) -> None:
        """Remove a fork server and kill it; its end is expected from now on."""
        self.killed_servers[server.pid] = server
        server.kill()  # before its channel is closed, with which it would end by itself
        self.remove_server(server)

    def server_of(self, pid: int) -> ForkServer | None:
        """Return the registered fork server with this pid."""
        return next((server for server in self.servers.values() if server.pid == pid), None)

    def killed_server(self, pid: int) -> ForkServer | None:
        """Return the fork server that was killed here and has ended now, if that is what a process was."""
        return self.killed_servers.pop(pid, None)

    def signal_servers(self, signum: int) -> None:
        """Send a signal to every fork server."""
        for server in self.servers.values():
            server.signal(signum)

    # -- workers -------------------------------------------------------------------------------------------------

    def add_worker(self, record: WorkerRecord, channel: Channel, on_message: Callable[[WorkerRecord], None]) -> None:
        """Register a worker that is about to be ordered; ``on_message`` as for a fork server."""
        record.channel = channel
        self.workers[record.worker_id] = record
        self._reactor.add(channel.fileno(), lambda: on_message(record))

    def set_pid(self, record: WorkerRecord, pid: int) -> None:
        """Register a worker's process."""
        record.pid, record.has_pid = pid, True
        self.workers_by_pid[pid] = record

    def seen_by_hooks(self, fleet: Fleet, but: WorkerRecord | None = None) -> dict[int, WorkerRecord]:
        """Return what hooks in the master see as ``server.WORKERS``, with each record's ``alive`` brought up to date.

        Gunicorn forks one worker after the other, and each hook sees those before. Here some have no pid yet when the
        next one's hook runs. One that leaves, or that has a successor in its slot, is not ``alive``: recipes that hand
        out ids look at that.

        :param but: a worker that is only about to be ordered, which Gunicorn's hooks do not see either.
        """
        newest = {record.slot: record.worker_id for record in self.workers.values()}  # in the order of their ids
        for record in self.workers.values():
            known = fleet.workers.get(record.worker_id)
            record.alive = known is not None and not known.leaving and newest[record.slot] == record.worker_id
        unknown = {UNKNOWN_PIDS + r.worker_id: r for r in self.without_pid() if r is not but}
        return {**self.workers_by_pid, **unknown}

    def without_pid(self) -> list[WorkerRecord]:
        """Return the workers whose process is not known yet."""
        return [record for record in self.workers.values() if not record.has_pid]

    def awaiting_fork(self, generation: int) -> list[WorkerRecord]:
        """Return the workers of a generation whose fork is not reported yet."""
        return [record for record in self.workers.values() if record.generation == generation and not record.forked]

    def close_channel(self, record: WorkerRecord) -> None:
        """Close a worker's channel: one that waits for its start order ends."""
        if record.channel is not None:
            self._reactor.remove(record.channel.fileno())
            record.channel.close()
            record.channel = None

    def remove_worker(self, record: WorkerRecord) -> None:
        """Remove a worker, whose process has ended or never came to be."""
        self.workers.pop(record.worker_id, None)
        self.close_channel(record)
        record.close()

    def announce_stop(self) -> None:
        """Let the booted workers know that the master has to end.

        One that still boots would read it together with ``Start``; it learns of the end by its ``TERM``.
        """
        for record in self.workers.values():
            if record.booted:
                record.announce(Stopping)

    # -- the end -------------------------------------------------------------------------------------------------

    def end_all(self, kill: Callable[[int, int], None]) -> list[int]:
        """Kill what is left and wait for it, for :data:`KILLED_WAIT_S` seconds at most.

        A killed process ends soon, unless it waits in the kernel for what does not come (state D in proc_pid_stat(5)):
        a disk of the network, say.

        :param kill: sends a signal to a worker's pid.
        :return: the pids of the processes that are still there.
        """
        for record in self.workers.values():
            if record.has_pid:
                kill(record.pid, signal.SIGKILL)
        for server in list(self.servers.values()):
            self.end_server(server)
        left = [pid for pid in [*self.killed_servers, *self.workers_by_pid] if not _reaped(pid)]
        until = time.monotonic() + KILLED_WAIT_S
        while left and time.monotonic() < until:
            time.sleep(REAP_INTERVAL_S)
            left = [pid for pid in left if not _reaped(pid)]
        return left


def _reaped(pid: int) -> bool:
    """Reap a child if it has ended; return False while it has not."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
