"""The master's half that does not know Gunicorn: the core, what reports to it, what carries out its actions.

Rules:

* :meth:`Supervisor.handle` is the only way to the core. What an action brings about is handled after the actions
  before it: nothing recurses, and nothing is lost.
* Nothing that a process, a hook, an observer or an action does ends the master: what goes wrong is logged here.
* With ``--log-level debug`` each event is one line, with the actions that it led to; so is each message.
"""

from __future__ import annotations

import collections
import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any

from zdworker.core import events
from zdworker.core.fleet import Fleet, WorkerState
from zdworker.core.history import Kind, Requester
from zdworker.core.rollout import Rollout, rollout
from zdworker.errors import GenerationError
from zdworker.ipc.hand_over import Connection, HandOverQueue, QueueClosed
from zdworker.ipc.messages import Upgraded
from zdworker.master.answers import AnswerBook, Judge
from zdworker.master.children import Children, ForkServer, WorkerRecord
from zdworker.master.control import Control
from zdworker.master.effects import Executor
from zdworker.master.history import Recorder
from zdworker.master.launch import Command
from zdworker.master.leftovers import LeftoverProcesses
from zdworker.master.observers import Observer, Observers
from zdworker.master.parts import Gunicorn, Parts
from zdworker.master.queues import Queues
from zdworker.master.reactor import Reactor
from zdworker.master.receiver import Receiver
from zdworker.master.reconfiguration import Site
from zdworker.master.state import Descriptors
from zdworker.master.statsd import Meter
from zdworker.master.status import Journal, waiting
from zdworker.master.systemd import Notifier
from zdworker.master.upgrade import REPLACING, Upgrader

TICK_INTERVAL_S = 0.05
"""Seconds, at least, between an event and the tick after it, if the loop has turned without another event."""

WATCHDOG_LIMITS = 3
"""How often an upgrade may use up its limit of time: in the next program, and twice in the one before."""


class Supervisor:
    """Fork servers and workers, and the core that decides about them.

    :param gunicorn: Gunicorn's side of the master.
    :param command: what a fork server runs, or None: workers are forked from the master.
    :param observer: Gunicorn's own observer, notified after all others.
    :param fleet: the facts to go on from (an upgrade); None for a fleet that does not exist yet.
    """

    def __init__(
        self, gunicorn: Gunicorn, command: Command | None, observer: Observer, fleet: Fleet | None = None
    ) -> None:
        self.reactor = Reactor(gunicorn.log)
        self.children = Children(self.reactor)
        self.leftovers = LeftoverProcesses(gunicorn.log, self.reactor, self.children)
        self._gunicorn = gunicorn
        self._log: Any = gunicorn.log
        self._core = (
            rollout(gunicorn.zd_configuration.policy(), random.random)
            if fleet is None
            else Rollout(fleet, random.random)
        )
        self.fleet = self._core.fleet
        """The facts."""
        self._book = AnswerBook()
        self._journal = Journal(self._book)
        self._notifier = Notifier(os.environ, self.waiting)
        self._control = Control(self, self.reactor, self._log)
        self._recorder = Recorder(self.reactor, self._log, self._site, self._journal.label_of)
        self._queues, self._meter = Queues(self._log), Meter(self._log, self._book)
        self._judge = Judge(
            self.fleet,
            self._book,
            self._publish_later,
            lambda report: gunicorn.zd_hook("zd_judge", report),
            self.children.in_flight,
        )
        first = [self._book, self._judge, gunicorn.zd_listeners, gunicorn.zd_configuration]
        others = [self._journal, self._notifier, self._control, self._queues, self._recorder, self._meter, observer]
        self._observers = Observers(self._log, [*first, *others])
        parts = Parts(gunicorn, self.fleet, self.reactor, self.children, self._observers, self._queues, self.handle)
        self._receiver = Receiver(parts, self.leftovers)
        self._executor = Executor(parts, self._receiver, command)
        self._events: collections.deque[events.Event] = collections.deque()
        self._handling = self._handled = False
        self._handled_at = 0.0
        self._tick_at: float | None = None
        """When a tick is due because the loop has turned without an event; None if it has not."""
        self._upgrader = Upgrader(
            command,
            parts,
            self.leftovers,
            write=self._state,
            progress=self._upgrade_progress,
            ended=self._upgrade_ended,
        )

    @property
    def halt(self) -> events.Halt | None:
        """How the master has to end, once every worker is gone."""
        return self._executor.halt

    # -- the loop ------------------------------------------------------------------------------------------------

    def poll(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds or the core's next deadline, and handle what came."""
        deadline = self._core.next_deadline()
        if deadline is not None:
            timeout = min(timeout, deadline - time.monotonic())
        timeout = min(timeout, self._notifier.due_in())
        if self._tick_at is not None:
            timeout = min(timeout, self._tick_at - time.monotonic())
        self.leftovers.look()
        self._handled = False
        self.reactor.wait(timeout)
        # With an event the core and the observers have looked at everything. A tick is for turns without one. Hundreds
        # of workers report several hundred times a second, so not each of these turns is a tick.
        now = time.monotonic()
        if not self._handled and self._tick_at is None:
            self._tick_at = self._handled_at + TICK_INTERVAL_S
        if any(due is not None and now >= due for due in (deadline, self._tick_at)):
            self.handle(events.Tick())

    def handle(self, event: events.Event) -> None:
        """Hand an event to the core, and carry out what follows; an event of an action is handled after that."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = self._handled = True
        try:
            while self._events:
                self._handle_one(self._events.popleft())
        finally:
            self._handling = False
        if self.fleet.stopping:
            self.children.announce_stop()
        self._handled_at, self._tick_at = time.monotonic(), None
        self._observers.notify(Observer.observe, self.fleet, self._handled_at)
        self._upgrader.look()

    def _publish_later(self, event: events.Event) -> None:
        """Handle an event that an observer has found, once all observers are notified."""
        self.reactor.call_later(0.0, lambda: self.handle(event))

    def _handle_one(self, event: events.Event) -> None:
        try:
            actions = self._core.handle(event, time.monotonic())
        except Exception:  # noqa: BLE001  # see below
            # IllegalEvent, or a fault of zdworker's; but the site is served by workers that know nothing of it.
            self._log.exception("zdworker: %r was not expected", event)
            return
        if actions or not isinstance(event, events.Tick):  # a tick that leads to nothing comes every second
            self._log.debug("zdworker: %r -> %r", event, actions)
        for action in actions:
            try:
                self._executor.execute(action)
            except BaseException as error:  # noqa: BLE001  # an exit, too: nothing that is done here may end the master
                self._log.exception("zdworker: %r could not be carried out", action)
                self._executor.give_up(action, error)

    def reaped(self, pid: int, code: int) -> bool:
        """Handle the end of a child; return False when it is an orphan of the application.

        :param code: its exit code, negative for a signal.
        """
        try:
            return self._upgrader.reaped(pid, code) or self._receiver.reaped(pid, code)
        except BaseException:  # noqa: BLE001  # see above: the master goes on
            self._log.exception("zdworker: the end of a child (pid:%s) could not be handled", pid)
            return True

    # -- what users ask for --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the control socket and start the first generation."""
        self.leftovers.look()
        settings = self._gunicorn.zd_configuration.current.settings
        self._observers.notify(Observer.configuration_changed, settings)
        self.handle(events.Start())

    def reload(self, who: Requester, hold: float | None = None) -> None:
        """Begin a rolling reload; ``who`` has asked for it.

        :param hold: seconds for which it stops at its canary, unless it is resumed; then it is given up.
        """
        self._observers.notify(Observer.reload_requested, Kind.RELOAD, who)
        self.handle(events.Reload(hold))

    def resume(self) -> None:
        """Have a reload go on that stands at its canary.

        :raises GenerationError: there is none; the text says why.
        """
        refusal = self._core.resume_refusal()
        if refusal:
            raise GenerationError(refusal)
        self.handle(events.Resume())

    def roll_back(self, who: Requester) -> None:
        """Begin to undo the newest reload; ``who`` has asked for that.

        :raises GenerationError: that is impossible; the text says why, and nothing has changed.
        """
        refusal = self._core.rollback_refusal()
        if refusal:
            raise GenerationError(refusal)
        self._observers.notify(Observer.reload_requested, Kind.ROLLBACK, who)
        self.handle(events.Rollback())

    def probe(self) -> tuple[int, socket.socket]:
        """Return a connection to the canary that is held, and the canary's generation.

        :raises GenerationError: there can be none; the text says why.
        """
        cfg = self._gunicorn.zd_configuration.current.cfg
        if cfg.is_ssl or getattr(cfg, "protocol", "http") != "http":
            raise GenerationError("the canary can be probed over plain HTTP only, not with TLS in Gunicorn or uWSGI")
        for worker in self.fleet.workers.values():
            record = self.children.workers.get(worker.worker_id)
            if self.fleet.is_canary(worker) and worker.state is WorkerState.READY and record and record.probes:
                return worker.generation, _connection_to(record.probes)
        raise GenerationError("no canary is held (zdworker reload --hold)")

    def scale(self, workers: int) -> None:
        """Ask for this number of workers; the next configuration that is taken over brings its own."""
        self._gunicorn.manage_workers()  # what was asked for before
        self._gunicorn.zd_hook("nworkers_changed", workers, self.fleet.wanted_size)
        self.handle(events.Scale(workers, absolute=True))

    def upgrade(self, who: Requester) -> None:
        """Begin to replace the master's program; ``who`` has asked for that.

        :raises GenerationError: that is impossible; the text says why, and nothing has changed.
        """
        refusal = self._upgrader.refusal()
        if refusal:
            raise GenerationError(refusal)
        self._observers.notify(Observer.upgrade_started, who, self.fleet)
        self._upgrader.begin()

    def seen_by_hooks(self, but: WorkerRecord | None) -> dict[int, WorkerRecord]:
        """Return what hooks see as ``server.WORKERS`` (see :meth:`Children.seen_by_hooks`)."""
        return self.children.seen_by_hooks(self.fleet, but)

    def status(self) -> dict[str, Any]:
        """Return what ``status`` shows."""
        configuration = self._gunicorn.zd_configuration
        settings = configuration.current.settings
        return self._journal.status(self.fleet, self.children.workers, self.children.servers, settings, self._site())

    def _site(self) -> Site:
        return self._gunicorn.zd_configuration.site()

    def history(self) -> list[dict[str, Any]]:
        """Return what ``history`` shows."""
        return self._recorder.to_plain()

    def waiting(self) -> tuple[str, int] | None:
        """Return what a reload waits for (see :func:`zdworker.master.status.waiting`)."""
        return waiting(self.fleet, self.children.workers, time.monotonic())

    # -- an upgrade ----------------------------------------------------------------------------------------------

    def _state(self, descriptors: Descriptors) -> dict[str, Any]:
        """Return what another program of this process goes on from (:meth:`adopt`)."""
        return {
            **self._gunicorn.zd_state(descriptors),
            "fleet": self.fleet,
            "children": self.children.to_state(descriptors.keeper("child")),
            "leftovers": self.leftovers.to_state(descriptors.keeper("ended fork server")),
            "queues": self._queues.to_state(descriptors.keeper("queue")),
            "control": self._control.to_state(descriptors.keeper("control")),
            "notifier": self._notifier.to_state(descriptors.keeper("systemd")),
            "journal": self._journal.to_state(),
            "answers": self._book.to_state(),
            "history": self._recorder.to_state(),
            "meter": self._meter.to_state(),
        }

    def adopt(self, state: dict[str, Any], worker: Callable[[dict[str, Any]], WorkerRecord]) -> None:
        """Go on from the state of an earlier program. Nothing is read, sent or signalled here.

        :param worker: makes a worker's record.
        """
        show, receiver = self._gunicorn.zd_print, self._receiver
        for name, killed in (("servers", False), ("killed_servers", True)):
            for known in state["children"][name]:
                server = ForkServer.from_state(known, self._log, show)
                self.children.adopt_server(server, receiver.receive_from_server, killed=killed)
        for known in state["children"]["workers"]:
            self.children.adopt_worker(worker(known), receiver.receive_from_worker)
        ended = [ForkServer.from_state(known, self._log, show) for known in state["leftovers"]["servers"]]
        self.leftovers.adopt(state["leftovers"], ended)
        self._queues.adopt(state["queues"])
        self._control.adopt(state["control"])
        self._notifier.adopt(state["notifier"])
        self._journal.adopt(state["journal"])
        self._book.adopt(state["answers"])
        self._recorder.adopt(state["history"])
        self._meter.adopt(state["meter"])
        self._judge.configuration_changed(self._gunicorn.zd_configuration.current.settings)

    def go_on(self, upgrade: Upgraded) -> None:
        """Begin to work in the place of an earlier program, and answer to those who have ordered that."""
        try:
            self.children.resume()
            self._receiver.resume()
            self._executor.resume()
            self.leftovers.look()
        finally:
            self._upgrade_ended(upgrade)
        self.handle(events.Tick())

    def _upgrade_progress(self, step: str) -> None:
        if step == REPLACING:
            self._notifier.suspend(WATCHDOG_LIMITS * self.fleet.policy.boot_timeout)
        self._control.upgrade_progress(step)

    def _upgrade_ended(self, upgrade: Upgraded) -> None:
        self._notifier.resume()
        self._observers.notify(Observer.upgrade_ended, upgrade)

    def end(self) -> None:
        """Kill whatever is left, and close what is open to the outside."""
        self._upgrader.kill_rehearsal()
        left = self.children.end_all(self._gunicorn.kill_worker)
        if left:
            self._log.critical("Processes that cannot be killed are left behind (pids: %s)", ", ".join(map(str, left)))
        self.leftovers.kill_all()
        self._recorder.close()
        self._notifier.close()
        self._control.close()


def _connection_to(probes: HandOverQueue) -> socket.socket:
    """Return one end of a TCP connection whose other end is put into a worker's queue.

    :raises GenerationError: there are no descriptors left, or the worker takes nothing.
    """
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
            ours = socket.create_connection(listener.getsockname(), timeout=1.0)
            theirs, peer = listener.accept()
        if peer != ours.getsockname() or not probes.give([Connection(theirs, requests=1)]):
            theirs.close()
            ours.close()
            raise GenerationError("the canary takes no connection now: try again")
    except (OSError, QueueClosed) as error:
        raise GenerationError(f"there can be no connection to the canary: {error}") from error
    return ours
