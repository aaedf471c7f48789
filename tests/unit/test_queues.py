"""The master's queues: each slot has one, until a worker leaves without a successor or the slot goes away."""

from __future__ import annotations

import pytest

from zdworker.core.events import Policy
from zdworker.core.fleet import Fleet, Phase, Worker, WorkerState
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.master.queues import Queues


def fleet(size: int, *slots: int) -> Fleet:
    made = Fleet(Policy(workers=size), size=size)
    for number, slot in enumerate(slots, 1):
        made.workers[number] = Worker(number, slot, 1, WorkerState.READY, None)
    return made


def test_a_slot_keeps_its_queue_until_it_is_closed() -> None:
    queues = Queues()
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


def test_the_queues_of_slots_that_are_gone_are_closed() -> None:
    queues = Queues()
    for slot in range(3):
        queues.of_slot(slot)
    queues.observe(fleet(1, 0, 2), 0.0)  # the worker of slot 2 is not told to leave yet
    assert len(queues.every()) == 2
    queues.observe(fleet(1, 0), 0.0)
    assert queues.every() == [queues.of_slot(0)]
    ending = fleet(1, 0)
    ending.phase = Phase.STOPPING
    queues.observe(ending, 0.0)
    assert queues.every() == []


def test_without_descriptors_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> HandOverQueue:
        raise OSError("no descriptors")

    monkeypatch.setattr(HandOverQueue, "open", refuse)
    assert Queues().of_slot(0) is None
