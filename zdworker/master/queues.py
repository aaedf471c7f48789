"""The queues through which workers hand their connections over: one for each slot.

Rules:

* A slot's queue is opened with its first worker, and given to each of its workers.
* It is closed for writing when a worker is told to leave that has no successor, and when the slot goes away. The next
  worker of the slot gets another one; those that hold the closed one keep what is in it.
* Where there can be none (no descriptors are left, or the system has no such sockets), the workers do without.
"""

from __future__ import annotations

from zdworker.core.fleet import Fleet
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.master.observers import Observer


class Queues(Observer):
    """The queues that can be written to, by slot."""

    def __init__(self) -> None:
        self._queues: dict[int, HandOverQueue] = {}

    def of_slot(self, slot: int) -> HandOverQueue | None:
        """Return the queue of a slot, which is opened if there is none."""
        if slot not in self._queues:
            try:
                self._queues[slot] = HandOverQueue.open()
            except OSError:
                return None
        return self._queues[slot]

    def every(self) -> list[HandOverQueue]:
        """Return all queues."""
        return list(self._queues.values())

    def close(self, slot: int) -> None:
        """Close the queue of a slot, of which a worker leaves without a successor."""
        queue = self._queues.pop(slot, None)
        if queue is not None:
            queue.shut()
            queue.close()

    def observe(self, fleet: Fleet, now: float) -> None:
        """Close the queues of slots that have gone away."""
        kept = {*range(fleet.size), *(worker.slot for worker in fleet.workers.values() if not worker.leaving)}
        for slot in [number for number in self._queues if number not in kept or fleet.ending]:
            self.close(slot)
