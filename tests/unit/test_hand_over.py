"""The queue through which connections go: what is given is taken, whole, once, and by the next one that takes."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdworker import syscalls
from zdworker.ipc.hand_over import BATCH, Connection, HandOverQueue, QueueClosed, Room
from zdworker.ipc.messages import Leave
from zdworker.ipc.report import Reporter
from zdworker.settings import Settings
from zdworker.workers.base import ZeroDowntime, give_all
from zdworker.workers.wsgi.taken import listening_name, parser_for


@pytest.fixture
def queue() -> Iterator[HandOverQueue]:
    made = HandOverQueue.open()
    yield made
    made.close()


def pairs(number: int) -> tuple[list[socket.socket], list[Connection]]:
    """Return clients and their connections."""
    made = [socket.socketpair() for _ in range(number)]
    return [client for client, _server in made], [Connection(server) for _client, server in made]


def test_a_connection_arrives_with_its_bytes_and_facts(queue: HandOverQueue) -> None:
    client, server = socket.socketpair()
    client.send(b"unread")
    until = time.monotonic() + 5
    assert queue.give([Connection(server, until, 7, {"client_addr": "192.0.2.1"})])
    assert server.fileno() == -1
    (taken,) = queue.take()
    assert (taken.idle_until, taken.requests, taken.proxy) == (until, 7, {"client_addr": "192.0.2.1"})
    assert taken.sock.gettimeout() == 0.0
    assert not os.get_inheritable(taken.sock.fileno())
    assert taken.sock.recv(100) == b"unread"
    taken.sock.close()
    assert client.recv(1) == b"", "no other descriptor is open"
    client.close()
    assert queue.take() == []


def test_what_is_given_while_no_worker_takes_is_the_next_one_s(queue: HandOverQueue) -> None:
    clients, connections = pairs(3 * BATCH)
    for begin in range(0, len(connections), BATCH):
        assert queue.give(connections[begin : begin + BATCH])
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    taken = [connection for _ in range(3) for connection in queue.take()]
    assert [connection.sock.recv(10) for connection in taken] == [b"%d" % number for number in range(3 * BATCH)]
    for each in [*clients, *(connection.sock for connection in taken)]:
        each.close()


def test_a_full_queue_says_so_and_keeps_nothing_of_what_it_refuses(queue: HandOverQueue) -> None:
    given = 0
    clients, connections = pairs(1)
    while queue.give(connections):
        given += 1
        clients[0].close()
        clients, connections = pairs(1)
    clients[0].close()
    assert connections[0].sock.fileno() >= 0
    taken = []
    while found := queue.take():
        taken += found
    assert len(taken) == given
    assert queue.give(connections)
    taken += queue.take()
    for connection in taken:
        connection.sock.close()


def test_into_a_closed_queue_nothing_gets_and_what_is_in_it_can_be_taken(queue: HandOverQueue) -> None:
    clients, connections = pairs(2)
    assert queue.give(connections[:1])
    before = queue.is_closed
    queue.shut()
    assert (before, queue.is_closed) == (False, True)
    with pytest.raises(QueueClosed):
        queue.give(connections[1:])
    (taken,) = queue.take()
    assert queue.take() == []
    for each in (*clients, taken.sock, connections[1].sock):
        each.close()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[", b"[1, 2, 3]", b"\xff", json.dumps([{"idle_until": "soon", "requests": None}]).encode()]
)
def test_strange_words_cost_nothing_but_themselves(queue: HandOverQueue, data: bytes) -> None:
    client, server = socket.socketpair()
    giving = socket.socket(fileno=os.dup(queue.descriptors()[0]))
    syscalls.send_message(giving, data, [server.fileno()])
    server.close()
    (taken,) = queue.take()
    assert (taken.idle_until, taken.requests, taken.proxy) == (None, 0, None)
    taken.sock.close()
    giving.close()
    client.close()


def test_what_is_no_connection_is_closed(queue: HandOverQueue) -> None:
    reading, writing = os.pipe()
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    giving = socket.socket(fileno=os.dup(queue.descriptors()[0]))
    syscalls.send_message(giving, b"[]", [writing, datagrams[0].fileno()])
    os.close(writing)
    assert queue.take() == []
    assert os.read(reading, 1) == b"", "its other end is closed"
    os.close(reading)
    for each in (giving, *datagrams):
        each.close()


def test_a_queue_without_descriptors_left_is_full(queue: HandOverQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise OSError(errno.ETOOMANYREFS, "too many")

    monkeypatch.setattr(syscalls, "send_message", refuse)
    (client,), connections = pairs(1)
    assert not queue.give(connections)
    client.close()
    connections[0].sock.close()


def test_a_default_timeout_of_the_application_s_makes_nothing_wait(queue: HandOverQueue) -> None:
    """Each heartbeat looks into the queue: with ``socket.setdefaulttimeout(20)`` no worker would be seen alive."""
    socket.setdefaulttimeout(20)
    try:
        inherited = HandOverQueue(*(socket.socket(fileno=os.dup(number)) for number in queue.descriptors()))
    finally:
        socket.setdefaulttimeout(None)
    began = time.monotonic()
    assert inherited.take() == []
    assert time.monotonic() - began < 15
    inherited.close()


def test_a_message_without_room_for_its_descriptors_waits(queue: HandOverQueue) -> None:
    clients, connections = pairs(50)
    assert queue.give(connections)
    used = len(os.listdir("/proc/self/fd"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, before[1]))
    try:
        assert queue.take() == []
        assert queue.lacks_descriptors
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    taken = queue.take()
    assert (len(taken), queue.lacks_descriptors) == (50, False)
    for each in (*clients, *(connection.sock for connection in taken)):
        each.close()


@pytest.mark.parametrize(("error", "left"), [(FileNotFoundError, sys.maxsize), (OSError, 0)])
def test_descriptors_that_cannot_be_counted(monkeypatch: pytest.MonkeyPatch, error: type[OSError], left: int) -> None:
    """Without /proc there may be any number; without a descriptor to look with there is none left."""

    def fail(path: str) -> list[str]:
        raise error(path)

    monkeypatch.setattr(os, "listdir", fail)
    assert Room().has(left - 100 if left else 0) is (left > 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["give", "take", "die"]), max_size=40))
def test_each_connection_is_with_exactly_one_worker(schedule: list[str]) -> None:
    """Whatever the order, and whichever worker dies: each is in the queue, or with one worker, or was a dead one's."""
    queue = HandOverQueue.open()
    clients, connections = pairs(20)
    numbered = {client: number for number, client in enumerate(clients)}
    for client, number in numbered.items():
        client.send(b"%d" % number)
    giver, taker, lost = list(connections), list[Connection](), 0
    for step in schedule:
        if step == "give" and giver:
            assert queue.give([giver.pop()])
        elif step == "take":
            taker += queue.take()
        elif step == "die":
            lost += len(taker)
            for connection in taker:
                connection.sock.close()
            taker = []
    while found := queue.take():
        taker += found
    alive = [*giver, *taker]
    seen = sorted(int(connection.sock.recv(10)) for connection in alive)
    assert len(seen) == len(set(seen)) == 20 - lost
    for each in (*clients, *(connection.sock for connection in alive)):
        each.close()
    queue.close()


class Plain(ZeroDowntime):
    """A worker class of a few lines, which keeps its connections in a list."""

    log = logging.getLogger("test")

    def __init__(self, queue: HandOverQueue | None, **settings: Any) -> None:
        self.held: list[Connection] = []
        self.zd_queue = queue
        self.zd_settings = Settings(**settings)
        self.cfg = SimpleNamespace(is_ssl=False)
        self.zd_reporter: Any = SimpleNamespace(send=lambda _message: None, was_announced=lambda kind: kind is Leave)

    def zd_take(self, connection: Connection) -> None:
        self.held.append(connection)

    def zd_give(self) -> list[Connection]:
        given, self.held = self.held, []
        return given


def test_a_worker_class_of_a_few_lines_gives_and_takes(queue: HandOverQueue) -> None:
    (client,), connections = pairs(1)
    old, new = Plain(queue), Plain(queue)
    old.held = connections
    assert old.zd_takes
    assert old.zd_gives
    assert not new.zd_take_waiting(), "it is not ready"
    new.zd_ready()
    give_all(old)
    assert new.zd_take_waiting()
    assert len(new.held) == 1
    assert not new.zd_take_waiting()
    for each in (client, new.held[0].sock):
        each.close()


def test_what_cannot_be_given_stays(queue: HandOverQueue) -> None:
    (client,), connections = pairs(1)
    old = Plain(queue)
    old.held = connections
    queue.shut()
    assert not old.zd_gives
    give_all(old)
    assert old.held == connections
    for each in (client, connections[0].sock):
        each.close()


def test_who_gives_and_takes(queue: HandOverQueue) -> None:
    assert not Plain(None).zd_takes
    assert not Plain(queue, hand_over=False).zd_takes
    assert not Plain(None).zd_gives
    with_tls = Plain(queue)
    with_tls.cfg.is_ssl = True
    assert not with_tls.zd_takes
    unasked = Plain(queue)
    unasked.zd_reporter = SimpleNamespace(was_announced=lambda _kind: False)
    assert not unasked.zd_gives

    class Base(ZeroDowntime):
        """A class that has none of it."""

    other = Base()
    other.zd_queue = queue
    assert not other.zd_takes
    assert other.zd_give() == []
    with pytest.raises(NotImplementedError):
        other.zd_take(Connection(queue_socket := socket.socket()))
    queue_socket.close()


def test_a_worker_without_descriptors_stops_watching_and_says_so_once(
    queue: HandOverQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The heartbeat looks on: a loop that watches a queue that stays readable would do nothing else."""
    new = Plain(queue)
    assert new.zd_take_or_stop()
    new.zd_ready()
    clients, connections = pairs(2)
    assert queue.give(connections)
    with monkeypatch.context() as patched:
        patched.setattr(Room, "has", lambda _room, number: False)
        assert not new.zd_take_or_stop()
        assert not new.zd_take_or_stop()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert new.zd_take_or_stop()
    assert len(new.held) == 2
    assert new.zd_take_or_stop(), "more may come"
    queue.shut()
    assert not new.zd_take_or_stop()
    for each in (*clients, *(connection.sock for connection in new.held)):
        each.close()


def test_the_name_of_the_listener_is_the_connection_s_address_or_a_wildcard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, _address = listener.accept()
        own = listener.getsockname()
        assert listening_name(served, [own]) == own
        assert listening_name(served, [("0.0.0.0", own[1])]) == ("0.0.0.0", own[1])
        assert listening_name(served, [("0.0.0.0", own[1] + 1), "unix"]) == own
        assert Connection(served).client() == client.getsockname()
        with contextlib.closing(client), served:
            pass
    assert Connection(served).client() == ""


def test_a_parser_goes_on_counting() -> None:
    from gunicorn.config import Config

    client, server = socket.socketpair()
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    parser = parser_for(Config(), Connection(server, requests=3), server, ("127.0.0.1", 1))
    assert next(parser).req_number == 4
    client.close()
    server.close()


def test_a_worker_that_leaves_takes_nothing(queue: HandOverQueue) -> None:
    """It would take back what it gives, and give it once more, without end."""
    (client,), connections = pairs(1)
    old = Plain(queue)
    old.zd_ready()
    old.held = connections
    give_all(old)
    old.zd_deadline = time.monotonic() + 5
    assert not old.zd_take_waiting()
    assert old.held == []
    for each in (client, *(connection.sock for connection in queue.take())):
        each.close()


def test_a_reporter_knows_whether_the_master_still_reads() -> None:
    ours, masters = socket.socketpair()
    reporter = Reporter(ours)
    seen = [reporter.is_connected]
    masters.send(b"announced")
    seen.append(reporter.is_connected)
    masters.close()
    assert ours.recv(100) == b"announced"
    seen.append(reporter.is_connected)
    ours.close()
    seen += [reporter.is_connected, Reporter(None).is_connected]
    assert seen == [True, True, False, False, False]
