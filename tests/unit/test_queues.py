"""The master's queues: each slot has one, until a worker leaves without a successor or the slot goes away."""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Iterator

import pytest

from zdworker.core.events import Policy
from zdworker.core.fleet import Fleet, Phase, Worker, WorkerState
from zdworker.ipc import hand_over
from zdworker.ipc.hand_over import Connection, HandOverQueue
from zdworker.master.queues import Queues

LOG = logging.getLogger("test.queues")


def fleet(size: int, *slots: int) -> Fleet:
    made = Fleet(Policy(workers=size), size=size)
    for number, slot in enumerate(slots, 1):
        made.workers[number] = Worker(number, slot, 1, WorkerState.READY, None)
    return made


def end(queues: Queues) -> None:
    ending = fleet(1)
    ending.phase = Phase.STOPPING
    queues.observe(ending, 0.0)


def test_a_slot_keeps_its_queue_until_it_is_closed() -> None:
    queues = Queues(LOG)
    first = queues.of_slot(0)
    assert first is not None
    assert queues.of_slot(0) is first
    queues.close(0)
    second = queues.of_slot(0)
    assert second is not None
    assert second is not first
    assert queues.every() == [second]
    queues.close(0)
    queues.close(0)
    assert queues.every() == []
    end(queues)


def test_the_queues_of_slots_that_are_gone_are_closed() -> None:
    queues = Queues(LOG)
    for slot in range(3):
        queues.of_slot(slot)
    queues.observe(fleet(1, 0, 2), 0.0)  # the worker of slot 2 is not told to leave yet
    assert len(queues.every()) == 2
    queues.observe(fleet(1, 0), 0.0)
    assert queues.every() == [queues.of_slot(0)]
    end(queues)
    assert queues.every() == []


def test_what_nobody_has_taken_from_a_closed_queue_goes_to_another_slot() -> None:
    """The giver has gone, its successor was killed, and the slot goes away before another one is there."""
    queues = Queues(LOG)
    here, there = queues.of_slot(0), queues.of_slot(1)
    assert here is not None
    assert there is not None
    server, client = socket.socketpair()
    assert there.give([Connection(server, requests=3)])
    shrunk = fleet(1, 0, 1)
    shrunk.workers[2].state = WorkerState.DRAINING
    queues.observe(shrunk, 0.0)
    assert here.take() == [], "the worker that leaves may still take it"
    del shrunk.workers[2]
    queues.observe(shrunk, 0.0)
    (moved,) = here.take()
    assert moved.requests == 3
    client.sendall(b"x")
    assert moved.sock.recv(1) == b"x"
    moved.sock.close()
    client.close()
    end(queues)


def test_a_full_queue_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = Queues(LOG)
    first, full, gone = (queues.of_slot(slot) for slot in range(3))
    assert first is not None
    assert full is not None
    assert gone is not None
    server, client = socket.socketpair()
    assert gone.give([Connection(server)])
    monkeypatch.setattr(full, "give", lambda _connections: False)
    queues.observe(fleet(2, 0, 1), 0.0)
    (moved,) = first.take()
    moved.sock.close()
    client.close()
    end(queues)


@pytest.fixture
def stranded() -> Iterator[tuple[Queues, HandOverQueue, socket.socket]]:
    """Two slots, of which the second goes away with a connection in its queue: the first one's queue, and the client's
    end of the connection.
    """
    queues = Queues(LOG)
    here, gone = queues.of_slot(0), queues.of_slot(1)
    assert here is not None
    assert gone is not None
    server, client = socket.socketpair()
    assert gone.give([Connection(server, requests=3)])
    yield queues, here, client
    end(queues)
    assert client.recv(1) == b"", "nothing holds the connection any more"
    client.close()


@pytest.mark.parametrize("lacks", ["room", "descriptors"])
def test_what_cannot_be_passed_on_is_tried_again(
    stranded: tuple[Queues, HandOverQueue, socket.socket], monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    queues, here, _ = stranded
    with monkeypatch.context() as poor:
        if lacks == "room":
            poor.setattr(here, "give", lambda _connections: False)
        else:
            poor.setattr(hand_over, "_descriptors_left", lambda: 0)
        queues.observe(fleet(1, 0), 0.0)
        assert here.take() == []
    queues.observe(fleet(1, 0), 1.0)
    (moved,) = here.take()
    assert moved.requests == 3
    moved.sock.close()


def test_what_has_no_room_is_closed_at_the_end(
    stranded: tuple[Queues, HandOverQueue, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    queues, here, _ = stranded
    monkeypatch.setattr(here, "give", lambda _connections: False)
    queues.observe(fleet(1, 0), 0.0)


def test_without_descriptors_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> HandOverQueue:
        raise OSError("no descriptors")

    monkeypatch.setattr(HandOverQueue, "open", refuse)
    assert Queues(LOG).of_slot(0) is None


def test_the_workers_own_descriptors_come_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (80, 80))
    queues = Queues(LOG)
    with caplog.at_level(logging.INFO):
        assert queues.of_slot(9) is not None
        assert [queues.of_slot(slot) for slot in (10, 11)] == [None, None]
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("Workers from slot 10 on hand no connections over: the limit of open files is 80")
    end(queues)
