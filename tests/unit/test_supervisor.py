"""Whatever an action, an observer, a hook or a callback raises: the master goes on, and the core waits for nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker.core import events
from zdworker.core.fleet import Phase
from zdworker.core.history import Requester
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import PROTOCOL, SERVER_REPORT_BYTES, Loaded, Upgraded, encode
from zdworker.master import launch
from zdworker.master.children import ForkServer
from zdworker.master.control import Control
from zdworker.master.effects import Executor
from zdworker.master.observers import Observer
from zdworker.master.reactor import Reactor
from zdworker.master.statsd import Meter
from zdworker.master.status import Journal
from zdworker.master.supervisor import Supervisor
from zdworker.master.systemd import Notifier
from zdworker.master.upgrade import Upgrader
from zdworker.settings import Settings

RAISED = [RuntimeError("broken \udce9"), StopIteration(), SystemExit(1), asyncio.CancelledError(), KeyError()]
each_exception = pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)


class Configuration(Observer):
    """A configuration that can be taken over, and does nothing."""

    current = SimpleNamespace(cfg=None, settings=Settings(control_socket="none"), file="")
    hook_environment = SimpleNamespace(note=lambda: None, changes=dict)

    def policy(self) -> events.Policy:
        return events.Policy(workers=1)

    def withdraw(self, generation: int) -> None:
        pass

    def is_kept(self, number: int) -> bool:
        return False

    def is_offered(self, generation: int) -> bool:
        return True

    def evaluate(self, generation: int) -> None:
        pass


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_arguments: object, **_names: object) -> None:
        raise error

    return raise_it


def make_supervisor() -> Supervisor:
    """One whose fork servers and workers cannot be started."""
    gunicorn: Any = SimpleNamespace(
        log=logging.getLogger("test"),
        zd_configuration=Configuration(),
        zd_listeners=Observer(),
        zd_print=print,
        zd_hook=lambda *_arguments: None,
        kill_worker=lambda *_arguments: None,
        manage_workers=lambda: None,
    )
    command = launch.Command("/nowhere/python", [], ["-c", ""], {}, "/", safe_path=False, started=0)
    return Supervisor(gunicorn, command, Observer())


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = make_supervisor()
    yield made
    made.reactor.close_in_child()


@each_exception
def test_a_fork_server_that_cannot_be_started(
    supervisor: Supervisor, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "start_generation", raising(error))
    supervisor.start()
    assert supervisor.halt is not None
    assert supervisor.halt.status == 3
    assert type(error).__name__ in supervisor.halt.reason


@each_exception
def test_a_worker_that_cannot_be_ordered(
    supervisor: Supervisor, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "start_generation", raising(OSError()))
    monkeypatch.setattr(Executor, "_start_generation", lambda *_arguments: None)
    monkeypatch.setattr(Executor, "_worker_record", raising(error))
    supervisor.start()
    supervisor.handle(events.GenerationLoaded(1, preloaded=True))
    until = time.monotonic() + 10
    while supervisor.halt is None and time.monotonic() < until:
        supervisor.poll(0.05)
    assert supervisor.halt is not None
    assert supervisor.halt.status == 3
    assert supervisor.children.workers == {}


@pytest.mark.parametrize("step", ["evaluate", "take"])
@each_exception
def test_a_configuration_that_cannot_be_taken_over(
    supervisor: Supervisor, error: BaseException, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = supervisor.fleet
    monkeypatch.setattr(Executor, "_start_generation", lambda *_arguments: None)
    monkeypatch.setattr(Executor, "_spawn", lambda *_arguments: None)
    supervisor.start()
    supervisor.handle(events.GenerationLoaded(1, preloaded=True))
    supervisor.handle(events.WorkerForked(1))
    supervisor.handle(events.WorkerReady(1))
    supervisor.handle(events.Reload())
    monkeypatch.setattr(Configuration, step, raising(error), raising=False)
    supervisor.handle(events.GenerationLoaded(2, preloaded=True))
    until = time.monotonic() + 10
    while fleet.loading is not None and time.monotonic() < until:
        supervisor.poll(0.05)
    assert fleet.loading is None
    assert (fleet.phase, fleet.state) == (Phase.STEADY, "failed")


@each_exception
def test_a_report_that_cannot_be_handled(
    supervisor: Supervisor, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generation is ended, and the core learns of that instead of waiting for it to load."""
    ours, theirs = Channel.pair(SERVER_REPORT_BYTES)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(15)"]) as process:
        server = ForkServer(1, process.pid, ours, reader, logging.getLogger("test"), print)
        monkeypatch.setattr(launch, "start_generation", lambda *_arguments: server)
        monkeypatch.setattr(Settings, "from_plain", raising(error))
        supervisor.start()
        theirs.sendall(encode(Loaded(PROTOCOL, preloaded=True, values={}, settings={})))
        supervisor.poll(5)
        assert process.wait(10) == -signal.SIGKILL
    assert supervisor.reaped(process.pid, -signal.SIGKILL)
    assert supervisor.halt is not None
    theirs.close()
    os.close(writer)


@each_exception
def test_an_observer_that_raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, field in (
        (Journal, "reload_started"),
        (Control, "configuration_changed"),
        (Notifier, "reload_requested"),
    ):
        monkeypatch.setattr(kind, field, raising(error))
    monkeypatch.setattr(Meter, "observe", raising(error))
    supervisor = make_supervisor()
    monkeypatch.setattr(Executor, "_start_generation", lambda *_arguments: None)
    supervisor.start()
    supervisor.reload(Requester())
    assert supervisor.fleet.phase is Phase.STARTING
    supervisor.reactor.close_in_child()


@each_exception
def test_a_callback_that_raises_ends_nothing(error: BaseException) -> None:
    reactor = Reactor(logging.getLogger("test"))
    reader, writer = os.pipe()
    called: list[str] = []

    def read() -> None:
        os.read(reader, 1)
        raise error

    def expire() -> None:
        called.append("timer")
        raise error

    reactor.add(reader, read)
    reactor.call_later(0.0, expire)
    reactor.call_later(0.0, lambda: called.append("next"))
    os.write(writer, b"x")
    until = time.monotonic() + 5
    while len(called) < 2 and time.monotonic() < until:
        reactor.wait(0.1)
    assert called == ["timer", "next"]
    reactor.remove(reader)
    reactor.close_in_child()
    os.close(reader)
    os.close(writer)


def test_who_has_ordered_an_upgrade_gets_an_answer_whatever_raises(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Upgraded] = []
    monkeypatch.setattr(supervisor.children, "resume", raising(ValueError("no")))
    monkeypatch.setattr(supervisor, "_upgrade_ended", ended.append)
    upgrade = Upgraded("done", 1.0, {}, {})
    with pytest.raises(ValueError, match="no"):
        supervisor.go_on(upgrade)
    assert ended == [upgrade]


def test_a_number_of_workers_reaches_the_core_at_once(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noted for later it would be lost where a canary is given up in the same turn of the loop."""
    monkeypatch.setattr(Executor, "_start_generation", lambda *_arguments: None)
    supervisor.start()
    supervisor.scale(3)
    assert supervisor.fleet.wanted_size == 3
    assert supervisor.fleet.fallback_size == 3


def test_the_actions_that_the_core_waits_for_are_known() -> None:
    """Each action but these leads to no event, or to one that comes by itself; a new one is to be thought about."""
    waited_for = {events.StartGeneration, events.LocateHang, events.TakeConfiguration, events.Spawn}
    others = {
        *(events.EndGeneration, events.RestoreConfiguration, events.Drain, events.Kill, events.Halt),
        *(events.ReloadStarted, events.CanaryReady, events.ReloadFinished, events.Degraded),
    }
    assert waited_for | others == set(events.Action.__args__)
    assert all(dataclasses.is_dataclass(kind) for kind in waited_for)


def test_turns_without_an_event_look_at_everything_soon_and_not_each_time(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of workers report several hundred times a second, which leads to nothing."""
    now, seen = 100.0, list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(Upgrader, "look", lambda _self: seen.append(now))
    waits: list[float] = []
    monkeypatch.setattr(supervisor.reactor, "wait", waits.append)
    supervisor.poll(1.0)
    assert seen == [100.0], "an idle master looks in each turn"
    for _ in range(100):  # reports
        now += 0.001
        supervisor.poll(1.0)
    assert seen == pytest.approx([100.0, 100.05, 100.1])
    now += 0.001
    waits.clear()
    supervisor.poll(1.0)
    supervisor.poll(1.0)
    assert waits == pytest.approx([1.0, 0.049]), "what one of these turns has brought is looked at in time"
