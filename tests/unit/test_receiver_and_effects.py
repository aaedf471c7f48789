"""What the children report becomes events, and what the core orders is carried out: without a process or Gunicorn."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from zdworker.core import events
from zdworker.core.events import Event, KillReason, Outcome, Policy
from zdworker.core.fleet import Fleet, Generation, GenerationState, Phase, Worker, WorkerState
from zdworker.errors import GenerationError
from zdworker.ipc.channel import Channel
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.ipc.messages import (
    CUT_PATH_MAX,
    SERVER_REPORT_BYTES,
    WORKER_REPORT_BYTES,
    Counts,
    Drained,
    Draining,
    Failed,
    Hello,
    Leave,
    LoadFailed,
    Ready,
    ReplacementRequested,
    Start,
    encode,
)
from zdworker.master import receiver
from zdworker.master.children import Children, ForkServer, WorkerRecord
from zdworker.master.effects import Executor
from zdworker.master.leftovers import LeftoverProcesses
from zdworker.master.observers import Crash, Observer, Observers, Reload
from zdworker.master.parts import Parts
from zdworker.master.queues import Queues
from zdworker.master.reactor import Reactor
from zdworker.master.receiver import Receiver
from zdworker.master.state import Descriptors
from zdworker.settings import Settings
from zdworker.syscalls import STACK_SIGNAL

log = logging.getLogger("test_receiver_and_effects")


class Seen(Observer):
    """Remembers the reloads, and how often something else happened."""

    def __init__(self) -> None:
        self.reloads: list[Reload] = []
        self.names: list[str] = []
        self.begun: Reload | None = None

    def reload_started(self, reload: Reload) -> None:
        self.begun = reload

    def reload_finished(self, reload: Reload, fleet: Fleet) -> None:
        self.reloads.append(reload)

    def worker_crashed(self, crash: Crash) -> None:
        self.names.append("crashed")

    def worker_ready(self, boot_s: float) -> None:
        self.names.append("ready")

    def configuration_changed(self, settings: Settings) -> None:
        self.names.append("configuration")


class Gunicorn:
    """Gunicorn's side: it remembers hooks and signals, and takes or refuses configurations as told."""

    def __init__(self) -> None:
        self.log: Any = SimpleNamespace(
            **{name: getattr(log, name) for name in ("debug", "info", "warning", "error", "critical", "exception")},
            reopen_files=lambda: None,
        )
        self.hooks: list[str] = []
        self.killed: list[tuple[int, int]] = []
        self.refusal: Exception | None = None
        self.offered = {2}
        self.undisturbed = False
        self.evaluated_by: list[threading.Thread] = []
        self.restored: list[int] = []
        self.lost = ""
        current = SimpleNamespace(cfg=Config(), settings=Settings(), listeners=[])
        hook_environment = SimpleNamespace(changes=dict, server_attributes=dict, note=lambda: None)
        self.zd_configuration: Any = SimpleNamespace(
            app=None,
            current=current,
            hook_environment=hook_environment,
            loaded_code=None,
            modules=SimpleNamespace(undisturbed=self._undisturbed),
            is_kept=lambda number: number == 0,
            timeout_of=lambda _generation: 30.0,
            is_offered=lambda number: number in self.offered,
            evaluate=self._evaluate,
            take=self._take,
            restore=self.restored.append,
            offer=lambda *_: None,
            not_listened_on=lambda: self.lost,
            withdraw=self.offered.discard,
        )
        self.zd_listeners: Any = SimpleNamespace(of_slot=lambda *_: [], slots=set, every=list)

    def zd_state(self, descriptors: Descriptors) -> dict[str, Any]:
        return {}

    def zd_signals(self) -> list[int]:
        return []

    def zd_settle_log(self) -> bool:
        return True

    def _evaluate(self, number: int) -> str:
        self.evaluated_by.append(threading.current_thread())
        if self.refusal is not None and threading.current_thread() is not threading.main_thread():
            raise self.refusal
        return "evaluated"

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        self.undisturbed = True
        yield
        self.undisturbed = False

    def _take(self, number: int, evaluated: str | None) -> Policy:
        assert (evaluated is None) == (number == 0)
        return Policy(configuration=number)

    def manage_workers(self) -> None:
        pass

    def zd_hook(self, name: str, *arguments: Any) -> None:
        self.hooks.append(name)

    def zd_print(self, text: str) -> None:
        pass

    def kill_worker(self, pid: int, sig: int) -> None:
        self.killed.append((pid, sig))


class Bench:
    """A receiver and an executor with their surroundings."""

    def __init__(self) -> None:
        self.gunicorn, self.seen = Gunicorn(), Seen()
        self.published: list[Event] = []
        self.reactor = Reactor()
        self.children = Children(self.reactor)
        self.fleet = Fleet(Policy(), size=1, last_worker_id=9)
        observers = Observers(self.gunicorn.log, [self.seen])
        self.queues = Queues(self.gunicorn.log)
        parts = Parts(
            self.gunicorn, self.fleet, self.reactor, self.children, observers, self.queues, self.published.append
        )
        leftovers = LeftoverProcesses(self.gunicorn.log, self.reactor, self.children)
        self.receiver = Receiver(parts, leftovers)
        self.executor = Executor(parts, self.receiver, None)

    def worker(self, worker_id: int = 1, pid: int = 0) -> tuple[WorkerRecord, socket.socket]:
        """Register a worker, as if it had been ordered; with ``pid`` one that has got its start order."""
        cfg = self.gunicorn.zd_configuration.current.cfg
        record = WorkerRecord(worker_id, os.getpid(), [], None, 30, cfg, self.gunicorn.log, slot=0, generation=1)
        channel, theirs = Channel.pair(WORKER_REPORT_BYTES)
        self.children.add_worker(record, channel, self.receiver.receive_from_worker)
        if pid:
            self.children.set_pid(record, pid)
            record.forked = True
            record.report_rules.admit(Hello(worker_id), 0.0, own=True)
            record.report_rules.started = True
            self.fleet.workers[worker_id] = Worker(worker_id, 0, 1, WorkerState.BOOTING, None)
        return record, theirs

    def taken(self) -> list[Event]:
        """Return the events since the last call."""
        taken, self.published[:] = list(self.published), []
        return taken


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for record in list(made.children.workers.values()):
        made.children.remove_worker(record)
    made.fleet.phase = Phase.STOPPING
    made.queues.observe(made.fleet, 0.0)
    made.reactor.close_in_child()


def test_a_worker_starts_when_it_has_greeted_and_its_fork_is_reported(bench: Bench) -> None:
    record, theirs = bench.worker()
    with theirs:
        theirs.sendall(encode(Hello(1)))
        bench.reactor.wait(5.0)
        assert bench.children.workers_by_pid == {os.getpid(): record}, "the kernel tells who has sent it"
        assert bench.taken() == []
    record, theirs = bench.worker(2)
    with theirs:
        record.forked = True
        theirs.sendall(encode(Hello(2)))
        bench.reactor.wait(5.0)
        assert bench.taken() == [events.WorkerForked(2)]
        assert theirs.recv(1000) == encode(Start())


def test_each_report_of_a_worker_is_an_event(bench: Bench) -> None:
    record, theirs = bench.worker(pid=os.getpid())
    with theirs:
        for message in (Ready(), Counts(3, 7), ReplacementRequested("max_requests"), Draining()):
            theirs.sendall(encode(message))
        bench.reactor.wait(5.0)
    assert bench.taken() == [
        events.WorkerReady(1),
        events.WorkerReplacementRequested(1),
        events.WorkerLeaving(1),
    ]
    assert (record.connections, record.requests) == (3, 7)
    assert bench.gunicorn.hooks == ["zd_worker_ready"]
    assert bench.seen.names == ["ready"]


def test_the_names_of_cut_requests_are_made_printable_whatever_a_worker_sends(bench: Bench) -> None:
    record, theirs = bench.worker(pid=os.getpid())
    with theirs:
        theirs.sendall(encode(Drained(cut_requests=1, cut_paths=["GET /\x1b[2J\n" + "\0" * 100])))
        bench.reactor.wait(5.0)
    assert record.drained is not None
    (name,) = record.drained.cut_paths
    assert name.startswith(r"GET /\x1b[2J \x00")
    assert len(name) <= CUT_PATH_MAX


def test_the_log_names_the_requests_that_a_reload_has_cut(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for started in (events.ReloadStarted(2), events.ReloadStarted(1, rollback=True)):
        bench.executor.execute(started)
        assert bench.seen.begun is not None
        bench.seen.begun.cost = Drained(cut_requests=2, cut_paths=["GET /export"])
        bench.executor.execute(events.ReloadFinished(started.generation, Outcome.DONE))
    found = [record.getMessage() for record in caplog.records if "cut" in record.getMessage()]
    assert [text.rpartition("; ")[2] for text in found] == ["2 requests cut (among them GET /export)"] * 2


def test_a_worker_that_cannot_boot_is_an_event(bench: Bench) -> None:
    _record, theirs = bench.worker(pid=os.getpid())
    with theirs:
        theirs.sendall(encode(Failed("why", "tb", 4)))
        bench.reactor.wait(5.0)
    assert bench.taken() == [events.WorkerFailed(1, "why", "tb", 4)]


def test_a_wish_to_be_replaced_waits_until_the_worker_is_ready(bench: Bench) -> None:
    _record, theirs = bench.worker(pid=os.getpid())
    with theirs:
        theirs.sendall(encode(ReplacementRequested("now")))
        bench.reactor.wait(5.0)
        assert bench.taken() == []
        theirs.sendall(encode(Ready()))
        bench.reactor.wait(5.0)
    assert bench.taken() == [events.WorkerReady(1), events.WorkerReplacementRequested(1)]


def of_another_process(bench: Bench, number: int) -> tuple[ForkServer, socket.socket]:
    """Register a fork server whose process ended long ago."""
    process = subprocess.Popen(["true"])  # whichever there is
    process.wait()
    channel, theirs = Channel.pair(SERVER_REPORT_BYTES)
    server = ForkServer(number, process.pid, channel, -1, bench.gunicorn.log, lambda _text: None)
    bench.children.add_server(server, bench.receiver.receive_from_server)
    bench.fleet.generations[number] = Generation(number, GenerationState.LOADING, 1.0)
    bench.fleet.last_generation = number
    return server, theirs


def test_a_fork_server_whose_last_words_have_it_ended_is_not_awaited_once_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the end of a later worker, whose process has got the same number, would be taken for the fork server's."""
    server, theirs = of_another_process(bench, 2)

    def publish(event: Event) -> None:
        bench.published.append(event)
        if isinstance(event, events.GenerationFailed):  # as the core does it
            bench.fleet.generations[2].state = GenerationState.LOST
            bench.executor.execute(events.EndGeneration(2))

    monkeypatch.setattr(bench.receiver, "_publish", publish)
    theirs.sendall(encode(LoadFailed("ImportError: broken")))
    theirs.close()
    assert bench.receiver.reaped(server.pid, 3)
    assert [type(event) for event in bench.taken()][:1] == [events.GenerationFailed]
    _record, channel = bench.worker(1, pid=server.pid)
    with channel:
        assert bench.receiver.reaped(server.pid, -9)
    assert [type(event) for event in bench.taken()] == [events.WorkerGone]


def test_a_reload_that_is_turned_back_has_its_version(bench: Bench) -> None:
    """Its fork server is ended first."""
    server, theirs = of_another_process(bench, 2)
    server.label = "v2"
    bench.executor.execute(events.ReloadStarted(2))
    with theirs:
        bench.executor.execute(events.EndGeneration(2))
    bench.executor.execute(events.ReloadFinished(2, Outcome.FAILED, "the canary crashed"))
    assert [reload.label for reload in bench.seen.reloads] == ["v2"]


def test_a_broken_channel_is_closed_and_a_worker_that_boots_has_failed(bench: Bench) -> None:
    record, theirs = bench.worker(pid=os.getpid())
    with theirs:
        theirs.sendall(encode(Counts(1, 1)) + b"garbage\n" + encode(Ready()))
        bench.reactor.wait(5.0)
        assert theirs.recv(1) == b""
    assert record.channel is None
    (failed,) = bench.taken()
    assert isinstance(failed, events.WorkerFailed)
    assert "not JSON" in failed.reason


def test_a_ready_worker_with_a_broken_channel_is_replaced_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "BROKEN_CHANNEL_REPLACEMENT_S", 0.2)
    _record, theirs = bench.worker(pid=os.getpid())
    with theirs:
        theirs.sendall(encode(Ready()))
        bench.reactor.wait(5.0)
        assert bench.taken() == [events.WorkerReady(1)]
        bench.fleet.workers[1].state = WorkerState.READY
        theirs.sendall(encode(Ready()))
        bench.reactor.wait(5.0)
        bench.reactor.wait(5.0)
    assert bench.taken() == [events.WorkerReplacementRequested(1)]
    assert bench.gunicorn.killed == []


RAISED = [RuntimeError("broken"), SystemExit(1), KeyError()]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("state", [*WorkerState, None])
def test_a_report_whose_handling_raises_does_not_leave_the_core_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, state: WorkerState | None, error: BaseException
) -> None:
    """Whatever the core takes the worker for, its end or its replacement is under way."""

    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(receiver, "BROKEN_CHANNEL_REPLACEMENT_S", 0.0)
    monkeypatch.setattr(bench.receiver, "_handle_report", fail)
    record, theirs = bench.worker(pid=os.getpid())
    if state is None:
        del bench.fleet.workers[1]
    else:
        bench.fleet.workers[1].state = state
    with theirs:
        theirs.sendall(encode(ReplacementRequested("why")))
        bench.reactor.wait(5.0)
        bench.reactor.wait(0.0)
    assert record.channel is None, "no more reports are read"
    followed = [type(event) for event in bench.taken()], bench.gunicorn.killed
    if state is WorkerState.BOOTING:
        assert followed == ([events.WorkerFailed], [])
    elif state is WorkerState.READY:
        assert followed == ([events.WorkerReplacementRequested], [])
    elif state in (WorkerState.DRAINING, WorkerState.DYING):
        assert followed == ([], []), "it has its deadline"
    else:
        assert followed == ([], [(os.getpid(), signal.SIGKILL)])


def test_a_worker_that_is_ready_and_of_which_the_core_does_not_learn_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _record, theirs = bench.worker(pid=os.getpid())

    def fail(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(bench.gunicorn, "zd_hook", fail)
    with theirs:
        theirs.sendall(encode(Ready()))
        bench.reactor.wait(5.0)
    assert bench.taken() == []
    assert bench.gunicorn.killed == [(os.getpid(), signal.SIGKILL)]


def test_the_core_learns_of_an_end_whatever_is_raised_on_the_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_names: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LeftoverProcesses, "worker_gone", fail)
    monkeypatch.setattr(bench.receiver, "_receive_piece", fail)
    _record, theirs = bench.worker(pid=4711)
    with theirs:
        assert bench.receiver.reaped(4711, 1)
    assert bench.taken() == [events.WorkerGone(1, "exited with code 1", 1)]
    assert bench.children.workers == {}


def test_a_worker_that_breaks_its_channel_before_its_start_is_killed_or_never_starts(bench: Bench) -> None:
    for worker_id, greeting, killed in ((1, encode(Hello(1)), [(os.getpid(), signal.SIGKILL)]), (2, b"", [])):
        bench.gunicorn.killed.clear()
        _record, theirs = bench.worker(worker_id)
        with theirs:
            theirs.sendall(greeting + encode(Leave()))
            bench.reactor.wait(5.0)
        assert bench.gunicorn.killed == killed
        assert [type(event) for event in bench.taken()] == ([] if killed else [events.WorkerGone])


def test_a_worker_that_ends_before_it_has_greeted_is_gone(bench: Bench) -> None:
    _record, theirs = bench.worker()
    theirs.close()
    bench.reactor.wait(5.0)
    assert bench.taken() == [events.WorkerGone(1, "ended before it was a worker")]
    assert bench.children.workers == {}


@pytest.mark.parametrize(
    ("code", "how"), [(0, "exited with code 0"), (-9, "was killed by SIGKILL"), (-77, "was killed by signal 77")]
)
def test_a_reaped_worker_is_gone_and_a_ready_one_has_crashed(bench: Bench, code: int, how: str) -> None:
    _record, theirs = bench.worker(pid=4711)
    bench.fleet.workers[1] = Worker(1, 0, 1, WorkerState.READY, None)
    with theirs:
        assert bench.receiver.reaped(4711, code)
    assert bench.taken() == [events.WorkerGone(1, how, code)]
    assert bench.gunicorn.hooks == ["child_exit"]
    assert bench.seen.names == ["crashed"]


def test_an_orphan_of_the_application_is_nothing_to_the_core(bench: Bench) -> None:
    assert not bench.receiver.reaped(4711, 3)
    assert bench.taken() == []


def test_a_worker_that_is_told_to_leave_gets_an_announcement_and_a_signal(bench: Bench) -> None:
    _record, theirs = bench.worker(pid=4711)
    with theirs:
        bench.executor.execute(events.Drain(1))
        assert theirs.recv(1000) == encode(Leave())
        bench.executor.execute(events.Drain(1, quick=True))
        bench.executor.execute(events.Kill(1, KillReason.NOT_DRAINED))
    assert bench.gunicorn.killed == [(4711, signal.SIGTERM), (4711, signal.SIGQUIT), (4711, signal.SIGKILL)]


def test_a_kill_that_waits_for_a_stack_is_carried_out_by_the_next_program(bench: Bench) -> None:
    _record, theirs = bench.worker(pid=4711)
    with theirs:
        bench.executor.execute(events.Kill(1, KillReason.NOT_READY))
        assert bench.gunicorn.killed == [(4711, STACK_SIGNAL)]
        known = bench.fleet.workers[1]
        known.state, known.killed = WorkerState.DYING, True
        bench.executor.resume()
        assert bench.gunicorn.killed[1:] == [(4711, signal.SIGKILL)]


def test_a_worker_that_was_killed_is_not_killed_again_by_the_next_program(bench: Bench) -> None:
    """Its descendants were listed before, and cannot be found any more."""
    record, theirs = bench.worker(pid=4711)
    with theirs:
        record.descendants = []
        bench.fleet.workers[1].killed = True
        bench.executor.resume()
    assert bench.gunicorn.killed == []


def test_a_worker_without_a_process_is_called_off(bench: Bench) -> None:
    _record, theirs = bench.worker()
    with theirs:
        bench.executor.execute(events.Drain(1))
        assert theirs.recv(1) == b""
    assert bench.taken() == [events.WorkerGone(1, "was not needed any more", called_off=True)]
    bench.executor.execute(events.Drain(1))
    assert bench.gunicorn.killed == []


def test_a_worker_whose_first_message_was_not_read_yet_is_called_off(bench: Bench) -> None:
    """Its process is there, and it may be stopped: the master must know of it, to kill it in the end."""
    record, theirs = bench.worker()
    with theirs:
        theirs.sendall(encode(Hello(1)))
        bench.receiver.call_off_boots(1)
        assert theirs.recv(1) == b"", "there will be no start order"
    assert bench.taken() == []
    assert bench.children.workers_by_pid == {os.getpid(): record}
    assert bench.receiver.reaped(os.getpid(), 0)
    assert bench.taken() == [events.WorkerGone(1, "exited with code 0", 0, called_off=True)]


def test_a_worker_that_has_ended_before_it_was_one_is_called_off(bench: Bench) -> None:
    _record, theirs = bench.worker()
    theirs.close()
    bench.receiver.call_off_boots(1)
    (gone,) = bench.taken()
    assert isinstance(gone, events.WorkerGone)
    assert gone.called_off


def test_a_spawn_without_a_fork_server_is_an_event(bench: Bench) -> None:
    bench.executor.execute(events.Spawn(1, 0, 7))
    (gone,) = bench.taken()
    assert gone == events.WorkerGone(1, "could not be asked for: its fork server has just ended")
    assert bench.gunicorn.hooks == ["pre_fork"]


def test_a_configuration_is_taken_and_the_core_learns_of_it_first(bench: Bench) -> None:
    bench.executor.execute(events.TakeConfiguration(2, 2))
    assert bench.taken() == [], "it is evaluated in a thread, and the loop goes on"
    bench.reactor.wait(5.0)
    assert bench.taken() == [events.ConfigurationTaken(2, Policy(configuration=2))]
    assert bench.gunicorn.hooks == ["on_reload"]
    assert bench.seen.names == ["configuration"]
    assert bench.gunicorn.evaluated_by != [threading.main_thread()]


def test_a_kept_configuration_is_taken_back_at_once(bench: Bench) -> None:
    bench.executor.execute(events.TakeConfiguration(1, 0))
    assert bench.taken() == [events.ConfigurationTaken(1, Policy(configuration=0))]


def test_a_configuration_that_was_evaluated_too_late_is_not_taken(bench: Bench) -> None:
    bench.executor.execute(events.TakeConfiguration(2, 2))
    bench.gunicorn.offered.clear()
    bench.reactor.wait(5.0)
    assert bench.taken() == []
    assert bench.gunicorn.hooks == []


def test_a_configuration_whose_fork_server_dies_while_it_is_evaluated_is_not_taken(bench: Bench) -> None:
    bench.fleet.generations[2] = Generation(2, GenerationState.CONFIGURING, 60.0)
    channel, theirs = Channel.pair(SERVER_REPORT_BYTES)
    stderr, written = os.pipe()
    os.close(written)
    server = ForkServer(2, 4711, channel, stderr, bench.gunicorn.log, print)
    bench.children.add_server(server, bench.receiver.receive_from_server)
    with theirs:
        bench.executor.execute(events.TakeConfiguration(2, 2))
        evaluation = bench.executor._evaluations[2]  # noqa: SLF001  # nothing tells of its end, for it has no effect
        assert bench.receiver.reaped(4711, -9)
    evaluation.join(5.0)
    assert not evaluation.is_alive()
    bench.reactor.wait(0.0)
    assert bench.taken() == [events.GenerationGone(2)]
    assert bench.gunicorn.hooks == []


@pytest.mark.parametrize(
    "cause",
    [
        ValueError("signal only works in main thread of the main interpreter"),
        RuntimeError("There is no current event loop in thread 'Dummy-2'."),
    ],
    ids=["signal", "event loop"],
)
def test_a_configuration_that_needs_the_main_thread_gets_it(bench: Bench, cause: Exception) -> None:
    bench.gunicorn.refusal = GenerationError("the configuration cannot be evaluated")
    bench.gunicorn.refusal.__cause__ = cause
    bench.executor.execute(events.TakeConfiguration(2, 2))
    bench.reactor.wait(5.0)
    assert bench.taken() == [events.ConfigurationTaken(2, Policy(configuration=2))]
    assert bench.gunicorn.evaluated_by[-1] is threading.main_thread()


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (GenerationError("the address is in use"), "the address is in use"),
        (RuntimeError("a bug"), "the configuration cannot be taken over: RuntimeError: a bug"),
    ],
)
def test_whatever_refuses_a_configuration_is_an_event(bench: Bench, refusal: Exception, reason: str) -> None:
    bench.gunicorn.refusal = refusal
    bench.executor.execute(events.TakeConfiguration(2, 2))
    bench.reactor.wait(5.0)
    assert bench.taken() == [events.ConfigurationRefused(2, reason)]
    assert bench.gunicorn.hooks == []


@pytest.mark.parametrize("overdue", [True, False], ids=["it hangs", "it has loaded in the meantime"])
def test_a_generation_that_cannot_say_where_it_hangs_is_given_up_without_that(bench: Bench, overdue: bool) -> None:
    bench.fleet.generations[2] = Generation(2, GenerationState.LOADING, 60.0, overdue=overdue)
    bench.executor.execute(events.LocateHang(2, "not loaded"))
    assert bench.taken() == ([events.GenerationFailed(2, "not loaded")] if overdue else [])


def test_a_configuration_is_restored_without_an_answer(bench: Bench) -> None:
    bench.executor.execute(events.RestoreConfiguration(0))
    assert bench.gunicorn.restored == [0]
    assert bench.taken() == []


def test_a_reload_is_one_record_from_its_start_to_its_end(bench: Bench) -> None:
    bench.executor.execute(events.ReloadStarted(2))
    bench.executor.execute(events.ReloadFinished(2, Outcome.FAILED, "why", "Traceback ..."))
    (reload,) = bench.seen.reloads
    assert (reload.generation, reload.result, reload.error, reload.traceback) == (
        2,
        Outcome.FAILED,
        "why",
        "Traceback ...",
    )
    assert reload.duration is not None
    assert bench.gunicorn.hooks == ["zd_reload_started", "zd_reload_finished"]


def test_a_reload_is_not_done_while_an_address_is_not_listened_on(bench: Bench) -> None:
    bench.gunicorn.lost = "unix:/run/app.sock"
    bench.executor.execute(events.ReloadFinished(2, Outcome.DONE))
    (reload,) = bench.seen.reloads
    assert reload.result is Outcome.FAILED
    assert bench.gunicorn.lost in str(reload.error)


def test_a_worker_cannot_be_probed_once_its_reload_is_over(bench: Bench) -> None:
    record, theirs = bench.worker()
    theirs.close()
    record.probes = HandOverQueue.open()
    bench.executor.execute(events.ReloadFinished(1, Outcome.DONE))
    assert record.probes is None, "its descriptors are closed: a canary that stays may live for weeks"


def test_a_worker_that_is_forked_here_has_nothing_of_a_configuration_that_is_evaluated(bench: Bench) -> None:
    seen: list[bool] = []

    def fork(*_arguments: object) -> int:
        seen.append(bench.gunicorn.undisturbed)
        return 4711

    bench.executor.execute(events.StartGeneration(1))
    bench.executor._local[1] = SimpleNamespace(fork=fork, cfg=SimpleNamespace(timeout=30))  # type: ignore[assignment]  # noqa: SLF001  # no process
    bench.executor.execute(events.Spawn(1, 0, 1))
    assert seen == [True]
    assert bench.children.workers[1].has_pid


def test_a_held_canary_can_be_probed_although_another_reload_ends(bench: Bench) -> None:
    """Generation 1 is held; generation 2 cannot be loaded, or a third one is asked for meanwhile."""
    record, theirs = bench.worker(pid=4711)
    record.probes = HandOverQueue.open()
    with theirs:
        for outcome in (Outcome.FAILED, Outcome.SUPERSEDED, Outcome.ROLLED_BACK):
            bench.executor.execute(events.ReloadFinished(2, outcome))
            assert record.probes is not None
        bench.executor.execute(events.ReloadFinished(1, Outcome.DONE))
    assert record.probes is None


def test_the_halt_is_what_the_loop_asks_for(bench: Bench) -> None:
    assert bench.executor.halt is None
    bench.executor.execute(events.Halt(3, "why"))
    assert bench.executor.halt == events.Halt(3, "why")
