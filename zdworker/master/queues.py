"""The queues through which workers hand their connections over: one for each slot.

Rules:

* A slot's queue is opened with its first worker, and given to each of its workers.
* It is closed for writing before a worker without a successor has to leave, and when the slot goes away. The next
  worker of the slot gets another one. The worker that leaves takes what is left in the closed one.
* If it cannot (it is killed, or the giver has gone and the successor was killed), the master passes what is left on to
  another slot when the slot has no leaving worker any more. What no slot has room for, or the master no descriptors,
  waits for the next event.
* Where there can be none (no descriptors are left, or the system has no such sockets), the workers do without. So do
  the slots beyond a part of the descriptors that the master may have, because its workers need the others.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from typing import Any

from zdworker.core.fleet import Fleet
from zdworker.ipc.hand_over import Connection, HandOverQueue
from zdworker.master.observers import Observer

DESCRIPTORS_PER_SLOT = 8
"""Descriptors that the master must be allowed for each slot with a queue. It needs two for the queue, and two for each
worker, of which there may be twice as many as slots."""


class Queues(Observer):
    """The queues that can be written to, by slot.

    :param log: the master's logger.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._queues: dict[int, HandOverQueue] = {}
        self._closed: list[tuple[int, HandOverQueue]] = []
        self._left_over: list[Connection] = []
        self._is_logged = False

    def of_slot(self, slot: int) -> HandOverQueue | None:
        """Return the queue of a slot, which is opened if there is none."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and slot >= limit // DESCRIPTORS_PER_SLOT:
            if not self._is_logged:
                self._is_logged = True
                self._log.info(
                    "Workers from slot %d on hand no connections over: the limit of open files is %d (ulimit -n)",
                    slot,
                    limit,
                )
            return None
        if slot not in self._queues:
            try:
                self._queues[slot] = HandOverQueue.open()
            except OSError:
                return None
        return self._queues[slot]

    def to_state(self, keep: Callable[[int], int]) -> dict[int, list[int]]:
        """Return the descriptors of each slot's queue, for :meth:`adopt` in another program of this process.

        :param keep: has a descriptor go along, and returns its number.
        """
        return {slot: list(map(keep, queue.descriptors())) for slot, queue in self._queues.items()}

    def adopt(self, state: dict[int, list[int]]) -> None:
        """Go on with the queues that :meth:`to_state` has returned."""
        for slot, (giving, taking) in state.items():
            self._queues[slot] = HandOverQueue(socket.socket(fileno=giving), socket.socket(fileno=taking))

    def every(self) -> list[HandOverQueue]:
        """Return all queues."""
        return list(self._queues.values())

    def close(self, slot: int) -> None:
        """Close the queue of a slot, of which a worker leaves without a successor."""
        queue = self._queues.pop(slot, None)
        if queue is not None:
            queue.shut()
            self._closed.append((slot, queue))

    def observe(self, fleet: Fleet, now: float) -> None:
        """Close the queues of slots that have gone away."""
        size, ending = fleet.size, fleet.ending
        outside = [slot for slot in self._queues if slot >= size or ending]
        if outside:  # seldom, and this is asked after each event
            kept = {worker.slot for worker in fleet.workers.values() if not worker.leaving}
            for slot in outside:
                if slot not in kept or ending:
                    self.close(slot)
        if self._closed:
            leaving = {worker.slot for worker in fleet.workers.values() if worker.leaving and not fleet.ending}
            for slot, queue in list(self._closed):
                if slot not in leaving and self._has_passed_on(queue):
                    self._closed.remove((slot, queue))
                    queue.close()

    def _has_passed_on(self, queue: HandOverQueue) -> bool:
        """Give what no worker has taken from a closed queue to the workers of other slots; return whether it is done
        with, and not to be tried again.
        """
        while self._queues:
            self._left_over = self._left_over or queue.take()
            if not self._left_over:
                return not queue.lacks_descriptors
            if not any(other.give(self._left_over) for other in self._queues.values()):
                return False  # all are full
            self._left_over = []
        for connection in self._left_over:  # there will be no worker
            connection.sock.close()
        self._left_over = []
        return True
