"""Each part of the master goes on in the next program from what it has written out, with real descriptors.

In the place of the next program there is a second object in this process. It gets copies of the descriptors, and what
it writes out then has to be what it was made from.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.instrument.statsd import Statsd
from gunicorn.sock import create_sockets

from tests.harness.control_orders import Orders
from zdworker import plain
from zdworker.core.events import Outcome, Policy
from zdworker.core.fleet import Fleet, Phase
from zdworker.core.history import Requester
from zdworker.descendants import Descendant
from zdworker.ipc.channel import Channel
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.ipc.messages import (
    LATENCY_BOUNDS_S,
    SERVER_REPORT_BYTES,
    WORKER_REPORT_BYTES,
    Answers,
    CountAnswers,
    Drained,
    Hello,
    HookData,
    Leave,
    Message,
    Order,
    Ready,
    Spawn,
    Upgraded,
    encode,
)
from zdworker.master.addresses import places
from zdworker.master.answers import AnswerBook
from zdworker.master.children import Children, ForkServer, WorkerRecord
from zdworker.master.control import Control
from zdworker.master.history import Recorder
from zdworker.master.leftovers import LeftoverProcesses
from zdworker.master.listeners import Listeners
from zdworker.master.observers import Crash, Observer, Reload
from zdworker.master.queues import Queues
from zdworker.master.reactor import Reactor
from zdworker.master.reconfiguration import Site
from zdworker.master.state import Descriptors, sealed
from zdworker.master.statsd import Meter
from zdworker.master.status import Journal
from zdworker.master.systemd import Notifier
from zdworker.settings import Settings

LOG = logging.getLogger("test")


def number(descriptor: int) -> int:
    """Stand in for what has a descriptor go along: here it stays open anyway."""
    return descriptor


def carried(state: Any) -> Any:
    """Return a state as the next program reads it."""
    return plain.decode(plain.encode(state))


@pytest.fixture
def reactors() -> Iterator[Callable[[], Reactor]]:
    made: list[Reactor] = []

    def make() -> Reactor:
        made.append(Reactor())
        return made[-1]

    yield make
    for reactor in made:
        reactor.close_in_child()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


def one_end(stack: contextlib.ExitStack, accepts: Mapping[type[Message], int]) -> Channel:
    """Return the master's end of a channel, whose other end stays open until the test's end."""
    channel, other = Channel.pair(accepts)
    stack.callback(other.close)
    return channel


def record(worker_id: int) -> WorkerRecord:
    return WorkerRecord(worker_id, os.getpid(), [], None, 30, Config(), LOG, slot=worker_id - 1, generation=1)


def test_the_file_of_the_state_cannot_be_changed() -> None:
    descriptor = sealed(b"state")
    try:
        assert os.pread(descriptor, 100, 0) == b"state"
        assert not os.get_inheritable(descriptor)
        for change in (lambda: os.write(descriptor, b"x"), lambda: os.ftruncate(descriptor, 0)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(descriptor)


def test_descriptors_go_along_by_name() -> None:
    descriptors = Descriptors()
    with socket.socket() as one, socket.socket() as other:
        keep = descriptors.keeper("listener")
        assert (keep(one.fileno()), keep(other.fileno())) == (one.fileno(), other.fileno())
        assert descriptors.named == {"listener 0": one.fileno(), "listener 1": other.fileno()}
        descriptors.set_inheritable(True)
        assert os.get_inheritable(one.fileno())
        descriptors.set_inheritable(False)
        assert not os.get_inheritable(other.fileno())


def test_a_channel_goes_on_in_the_middle_of_a_message() -> None:
    channel, other = Channel.pair(WORKER_REPORT_BYTES)
    message = encode(Hello(7))
    other.sendall(message[:5])
    assert channel.receive().messages == []
    again = Channel.from_state(carried(channel.to_state(os.dup)), WORKER_REPORT_BYTES)
    channel.close()
    other.sendall(message[5:])
    assert again.receive().messages == [(Hello(7), os.getpid())]
    again.close()
    other.close()


def test_what_a_fork_server_has_no_room_for_goes_along_with_its_descriptors() -> None:
    channel, other = Channel.pair(SERVER_REPORT_BYTES)
    reader = Channel(other, takes_descriptors=True)
    other.setblocking(False)
    large = Spawn(1, 0, 1, ["heartbeat"], {"attribute": "x" * 1_000_000})
    with open(os.devnull, "rb") as file:
        for _ in range(3):
            channel.post(large, [file.fileno()])
    again = Channel.from_state(carried(channel.to_state(os.dup)), SERVER_REPORT_BYTES)
    channel.close()
    found: list[Any] = []
    while not again.flush() or len(found) < 3:
        found += [message for message, _sender in reader.receive().messages]
    assert found == [large] * 3
    assert len(reader.descriptors) == 3
    again.close()
    reader.close()


def test_fork_servers_and_workers(reactors: Callable[[], Reactor], stack: contextlib.ExitStack) -> None:
    children = Children(reactors())
    shown: list[str] = []
    stderr, writer = os.pipe()
    stack.callback(os.close, writer)
    channel, theirs = Channel.pair(SERVER_REPORT_BYTES)
    server = ForkServer(3, 4001, channel, stderr, LOG, shown.append)
    server.places, server.label, server.descendants = {"path": {"/a": "/b"}}, "v1", [Descendant(7, 8, "sh")]
    server.send_hook_data(HookData({"A": None}, {"b": [1]}))
    os.set_blocking(stderr, False)
    os.write(writer, "é".encode()[:1])
    assert server.read_stderr()
    children.add_server(server, lambda _server: None)
    killed = ForkServer(2, 4000, one_end(stack, SERVER_REPORT_BYTES), -1, LOG, shown.append)
    children.servers[2] = killed
    children.killed_servers[4000] = children.servers.pop(2)
    killed.channel.close()
    one, two = record(1), record(2)
    for made in (one, two):
        children.add_worker(made, one_end(stack, WORKER_REPORT_BYTES), lambda _record: None)
    children.set_pid(one, 4002)
    one.announce(Leave)
    one.report_rules.started = True
    one.report_rules.admit(Hello(1), 1.0, own=True)
    one.report_rules.admit(Ready(True), 2.0, own=True)
    one.booted, one.aborted, one.requests = True, True, 12
    one.set_by_a_hook = {"plain": [1, 2]}
    one.not_plain = object()

    first = children.to_state(os.dup)
    again = Children(reactors())
    for known in carried(first)["servers"]:
        again.adopt_server(ForkServer.from_state(known, LOG, shown.append), lambda _server: None, killed=False)
    for known in carried(first)["killed_servers"]:
        again.adopt_server(ForkServer.from_state(known, LOG, shown.append), lambda _server: None, killed=True)
    for known in carried(first)["workers"]:
        adopted = record(known["worker_id"])
        adopted.adopt(known)
        again.adopt_worker(adopted, lambda _record: None)
    assert again.to_state(number) == first
    assert again.workers_by_pid == {4002: again.workers[1]}
    assert again.workers[1].is_announced(Leave)
    assert again.workers[1].hook_attributes() == {"set_by_a_hook": {"plain": [1, 2]}}
    assert again.workers[1].report_rules.started
    assert again.servers[3].channel.fileno() >= 0
    assert again.killed_servers[4000].channel.fileno() < 0
    again.servers[3].send(HookData(), [])
    for registry in (children, again):
        for made in list(registry.workers.values()):
            registry.remove_worker(made)
        for closed in list(registry.servers.values()):
            registry.close_stderr(closed)
            registry.remove_server(closed)
    theirs.close()


def test_a_worker_that_drains_from_an_address_that_a_reload_has_removed() -> None:
    """The master has closed it, and Gunicorn's object has no socket then."""
    own = {"address": [("127.0.0.1", 0)], "reuse_port": False, "uid": os.geteuid(), "gid": os.getegid()}
    cfg: Any = SimpleNamespace(backlog=64, is_ssl=False, certfile=None, keyfile=None, umask=0, **own)
    closed, kept = create_sockets(cfg, LOG) + create_sockets(cfg, LOG)
    worker = record(1)
    worker.sockets = [closed, kept]
    closed.close()
    assert worker.to_state(os.dup)["sockets"] == [kept.fileno()]
    kept.close()
    worker.close()


def test_a_worker_that_was_a_canary_and_drains(stack: contextlib.ExitStack) -> None:
    before, again = record(1), record(1)
    before.channel = one_end(stack, WORKER_REPORT_BYTES)
    before.announce(CountAnswers)
    before.leaving_since, before.drained = 3.0, Drained(handed_over=2)
    before.probes = HandOverQueue.open()
    state = before.to_state(os.dup)
    again.adopt(carried(state))
    assert again.to_state(number) == state
    assert again.is_announced(CountAnswers)
    assert (again.leaving_since, again.drained) == (3.0, Drained(handed_over=2))
    assert again.probes is not None
    before.probes.shut()
    assert again.probes.is_closed
    for made in (before, again):
        made.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(state["probes"][0])


def test_listening_sockets_with_their_slots(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    listeners, first = Listeners(LOG), []
    common = {"backlog": 64, "is_ssl": False, "certfile": None, "keyfile": None, "umask": 0}
    cfg: Any = None
    for address, reuse_port in ((("127.0.0.1", 0), True), (path, False)):
        own = {"address": [address], "reuse_port": reuse_port, "uid": os.geteuid(), "gid": os.getegid()}
        cfg = SimpleNamespace(**common, **own)
        first += create_sockets(cfg, LOG)
        listeners.take(first[-1:], places(cfg, str(tmp_path)), socket_per_slot=reuse_port)
    listeners.of_slot(1, first)
    listeners.steer([1])
    state = listeners.to_state(os.dup)
    again = Listeners(LOG)
    found = again.adopt(carried(state), cfg)
    assert sorted(found) == sorted(descriptor for group in state["groups"] for descriptor, _ in group["sockets"])
    assert again.to_state(number) == state
    assert again.slots() == {0, 1}
    assert list(map(str, again.every())) == list(map(str, listeners.every()))
    again.close(unlink=True)
    assert not os.path.exists(path)
    listeners.close(unlink=False)


def test_queues(stack: contextlib.ExitStack) -> None:
    queues, again = Queues(LOG), Queues(LOG)
    queue = queues.of_slot(2)
    assert isinstance(queue, HandOverQueue)
    again.adopt(carried(queues.to_state(os.dup)))
    assert again.to_state(number).keys() == {2}
    queues.close(2)
    found = again.of_slot(2)
    assert found is not None
    assert found.is_closed
    for each in (queues, again):
        each.observe(Fleet(Policy(), 0, Phase.STOPPING), 0.0)


def test_what_has_happened() -> None:
    journal, again = Journal(AnswerBook()), Journal(AnswerBook())
    journal.generation_loaded(1, {"path": {"/a": "/b"}}, "v1")
    journal.reload_started(Reload.begin(2))
    journal.worker_drained(Drained(handed_over=3))
    journal.ended[Outcome.FAILED] += 1
    again.adopt(carried(journal.to_state()))
    assert {**vars(again), "_book": None} == {**vars(journal), "_book": None}


def test_what_systemd_was_notified_of(tmp_path: Path) -> None:
    fleet = Fleet(Policy(), 1, Phase.STEADY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
        notifier, again = Notifier(environment), Notifier(environment)
        notifier.observe(fleet, 100.0)
        assert b"READY=1" in systemd.recv(1000)
        assert systemd.recv(1000) == b"WATCHDOG=1"
        again.adopt(carried(notifier.to_state(os.dup)))
        notifier.suspend(90)
        assert systemd.recv(1000) == b"WATCHDOG_USEC=90000000\nWATCHDOG=1"
        notifier.close()
        with pytest.raises(BlockingIOError):
            systemd.recv(1000)
        again.resume()
        again.observe(fleet, 101.0)
        assert systemd.recv(1000) == b"WATCHDOG_USEC=60000000"
        assert systemd.recv(1000) == b"WATCHDOG=1"
        with pytest.raises(BlockingIOError):
            systemd.recv(1000)
        again.close()


def test_without_systemd_there_is_nothing() -> None:
    again = Notifier({})
    again.adopt(carried(Notifier({}).to_state(number)))
    again.observe(Fleet(Policy(), 1, Phase.STEADY), 1.0)


def test_gauges() -> None:
    meter, again = Meter(LOG, AnswerBook()), Meter(LOG, AnswerBook())
    meter.observe(Fleet(Policy(), 1, Phase.STEADY), 1.0)
    again.adopt(carried(meter.to_state()))
    assert again.to_state() == meter.to_state() != {}


def answers(number: int) -> Answers:
    return Answers(number, number, 0, 0.5, [number, *[0] * len(LATENCY_BOUNDS_S)], [f"GET /{number}: 500"])


def test_answers_are_counted_from_where_they_were() -> None:
    book, again = AnswerBook(), AnswerBook()
    for number in (1, 2, 3, 4):
        book.worker_answered(1, 2, answers(number))
    again.adopt(carried(book.to_state()))
    assert vars(again) == vars(book)
    again.worker_answered(1, 2, answers(5))
    figures = again.of_generation[2]
    assert (figures.answers, figures.errors) == (5, 5)
    assert list(figures.newest) == ["GET /3: 500", "GET /4: 500", "GET /5: 500"]


def test_statsd_gets_no_answer_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Meter, "_send", lambda _self, *what: sent.append(what))
    book = AnswerBook()
    book.worker_answered(1, 2, answers(4))
    log = object.__new__(Statsd)
    meter, again = Meter(log, book), Meter(log, book)
    fleet = Fleet(Policy(), 1, Phase.STEADY)
    meter.observe(fleet, 1.0)
    assert ("increment", "zdworker.generation.2.answers", 4) in sent
    sent.clear()
    again.adopt(carried(meter.to_state()))
    book.worker_answered(1, 2, answers(6))
    again.observe(fleet, 2.0)
    assert ("increment", "zdworker.generation.2.answers", 2) in sent


def recorder(reactor: Reactor) -> Recorder:
    return Recorder(reactor, LOG, lambda: Site("/srv/app", "app:app", []), lambda _number: "v1")


def settled(reactor: Reactor, made: Recorder) -> list[dict[str, Any]]:
    """Have what is under way end, and return the entries."""
    while made.busy:
        reactor.wait(0.1)
    return made.to_plain()


def test_the_history_goes_on_and_has_the_upgrade(
    reactors: Callable[[], Reactor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    reactor, next_reactor, who = reactors(), reactors(), Requester(uid=1000, pid=4711, command="zdworker")
    before, again = recorder(reactor), recorder(next_reactor)
    before.configuration_changed(Settings())
    settled(reactor, before)
    before.worker_crashed(Crash(1, 0, 4712, "was killed by SIGKILL"))
    before.upgrade_started(who, Fleet(Policy(), 1, Phase.STEADY, current=[1]))
    settled(reactor, before)
    again.adopt(carried(before.to_state()))
    assert again.to_plain() == before.to_plain()
    again.upgrade_ended(Upgraded("done", 1.5))
    crash, upgrade = settled(next_reactor, again)
    assert (crash["kind"], crash["times"]) == ("crash", 1)
    assert (upgrade["kind"], upgrade["generation"], upgrade["label"]) == ("upgrade", 1, "v1")
    assert (upgrade["result"], upgrade["duration_s"], upgrade["error"]) == ("done", 1.5, None)
    assert upgrade["by"] == [{"signal": None, "uid": 1000, "pid": 4711, "command": "zdworker"}]
    later = recorder(next_reactor)
    later.configuration_changed(Settings())
    assert settled(next_reactor, later) == again.to_plain()


def test_a_history_that_was_not_read_yet_is_read_by_the_next_program(
    reactors: Callable[[], Reactor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    reactor, fleet = reactors(), Fleet(Policy(), 1, Phase.STEADY, current=[1])
    earlier = recorder(reactor)
    earlier.configuration_changed(Settings())
    settled(reactor, earlier)
    earlier.worker_crashed(Crash(1, 0, 4712, "was killed by SIGKILL"))
    settled(reactor, earlier)
    before, again = recorder(reactor), recorder(reactor)
    before.configuration_changed(Settings())  # its thread ends with its program
    before.upgrade_started(Requester(), fleet)
    again.adopt(carried(before.to_state()))
    again.upgrade_ended(Upgraded("failed", 1.5, error="why"))
    found = settled(reactor, again)
    assert [(entry["kind"], entry["result"], entry["error"]) for entry in found] == [
        ("crash", None, "was killed by SIGKILL"),
        ("upgrade", "failed", "why"),
    ]
    settled(reactor, before)


def test_without_a_control_socket_the_next_program_writes_no_history_either(
    reactors: Callable[[], Reactor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    reactor = reactors()
    before, again = recorder(reactor), recorder(reactor)
    before.configuration_changed(Settings(control_socket="none"))
    before.upgrade_started(Requester(), Fleet(Policy(), 1, Phase.STEADY, current=[1]))
    again.adopt(carried(before.to_state()))
    again.upgrade_ended(Upgraded("done", 1.5))
    assert [entry["result"] for entry in settled(reactor, again)] == ["done"]
    assert list(tmp_path.iterdir()) == []


WITHOUT_STATE = {
    "Judge": "it has something to remember during a reload only, which there is none at an upgrade",
    "Observer": "it remembers nothing",
    "_GunicornObserver": "it remembers nothing",
}


def test_each_observer_goes_along_or_there_is_a_reason_why_not() -> None:
    import zdworker.master.arbiter  # noqa: F401  # all observers of the master are known then

    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    observers = [kind for kind in below(Observer) if kind.__module__.startswith("zdworker.")]
    assert {kind.__name__ for kind in observers if not hasattr(kind, "to_state")} == WITHOUT_STATE.keys()


def test_processes_that_are_to_be_ended(reactors: Callable[[], Reactor], stack: contextlib.ExitStack) -> None:
    def made() -> tuple[LeftoverProcesses, Reactor]:
        reactor = reactors()
        return LeftoverProcesses(LOG, reactor, Children(reactor)), reactor

    (leftovers, _), (again, _) = made(), made()
    reading, writing = os.pipe()
    stack.callback(os.close, writing)
    server = ForkServer(1, 4001, one_end(stack, SERVER_REPORT_BYTES), reading, LOG, lambda _text: None)
    server.descendants = [Descendant(2**22 + 1, 5, "sh")]
    leftovers.server_gone(server)
    server.channel.close()
    first = leftovers.to_state(os.dup)
    again.adopt(carried(first), [ForkServer.from_state(carried(first)["servers"][0], LOG, lambda _text: None)])
    assert again.to_state(number) == first
    assert again.pending


def test_clients_of_the_control_socket(reactors: Callable[[], Reactor], tmp_path: Path) -> None:
    path, reactor, next_reactor = str(tmp_path / "control.sock"), reactors(), reactors()
    control, again = Control(Orders(), reactor, LOG), Control(Orders(), next_reactor, LOG)
    control.open(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.settimeout(10)
        client.sendall(encode(Order("upgrade", wait=True)) + b'{"type": "order", "comm')
        for _ in range(5):
            reactor.wait(0.01)
        (facts,) = (known["facts"] for known in control.to_state(number)["clients"])
        assert facts["peer"].pid == os.getpid()
        assert facts["upgrades"]
        first = control.to_state(os.dup)
        again.adopt(carried(first))
        assert again.to_state(number) == first
        client.sendall(b'and": "status"}\n')
        for _ in range(5):
            next_reactor.wait(0.01)
        assert b'"state": "steady"' in client.recv(1000)
        again.close()
    assert not os.path.exists(path)
    control.close()


def test_the_signals_that_wait_are_those_of_the_master() -> None:
    from zdworker import boot, syscalls

    assert set(boot.HELD) == set(syscalls.HELD_SIGNALS)
    assert signal.SIGCHLD not in boot.HELD
