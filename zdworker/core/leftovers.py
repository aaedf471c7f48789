"""What ended processes leave behind: whose it is, when it gets TERM, and when it is killed.

Rules:

* Processes go in as the edge has seen them (``zdworker/master/leftovers.py``), with the time; actions come out. Nothing
  here knows a process: one that is alive is one that the edge has found alive.
* A process that was killed by the master comes with a list of what was below it. What a crash leaves is not known, and
  is guessed: the children that the master has now and did not have at its last look. So the master looks often, and
  notes what it starts itself.
* Nothing is ended while there is a worker of which the master does not know the process: it might be that process.
* What a fork server has left is ended when its generation has no worker any more, which may need it.
* TERM, then KILL. A process that is there after that is held by the kernel, and is given up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

TERM_S = 2.0
"""Seconds between TERM and KILL."""

KILLED_S = 1.0
"""Seconds after which the master waits no longer for a process that it has killed: the kernel holds it."""

LOOK_INTERVAL_S = 0.2
"""Seconds between two looks at the master's children."""


class Process(Protocol):
    """A process, which is equal to itself alone: not to a later one with its pid."""

    @property
    def pid(self) -> int:
        """Its id."""


# -- actions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """Send TERM to these processes, which ``owner`` has left."""

    owner: str
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class KillLeft:
    """Kill these processes, which have not ended."""

    owner: str
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class GiveUp:
    """Wait no longer for these processes, which were killed."""

    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Release:
    """Nothing is left of what the fork server of ``generation`` has started."""

    generation: int


Action = End | KillLeft | GiveUp | Release


# -- facts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What the edge has seen.

    ``living`` has those of :meth:`Leftovers.processes` that are alive, each with what is below it. ``workers`` are the
    pids of all workers, ``generations`` the numbers of the generations that have some. ``unknown`` means that there is
    a worker whose process is not known.
    """

    living: Mapping[Process, Sequence[Process]]
    workers: Collection[int] = ()
    generations: Collection[int] = ()
    unknown: bool = False


@dataclass
class _Left:
    """What one process has left; ``generation`` is set if that was a fork server."""

    owner: str
    processes: list[Process]
    generation: int | None
    next_at: float | None = None
    """When the next thing is done to it; None before the first signal that ends it."""
    killed: bool = False


class Leftovers:
    """What is to be ended, and the children that the master is known to have."""

    def __init__(self) -> None:
        self._left: list[_Left] = []
        self._known: set[int] = set()
        self._next_look = 0.0

    # -- whose it is ---------------------------------------------------------------------------------------------

    def look_is_due(self, now: float) -> bool:
        """Return whether it is time to look at the master's children."""
        return now >= self._next_look

    def looked(self, children: Iterable[int], now: float, *, unreaped: bool) -> None:
        """Note the children that the master has: none of them was left by a process that ends later.

        :param unreaped: one has ended that is not reaped yet. What it has left is among the children already, so
            nothing is noted, and the next look is due at once.
        """
        if not unreaped:
            self._known, self._next_look = set(children), now + LOOK_INTERVAL_S

    def started_by_master(self, children: Iterable[int]) -> None:
        """Note children that the master has started itself."""
        self._known |= set(children)

    def newcomers(self, children: Iterable[int], fork_servers: Collection[int]) -> list[int]:
        """Return the master's new children: as far as is known, a process that has just ended has left them."""
        new = [pid for pid in children if pid not in self._known and pid not in fork_servers]
        self._known.update(new)
        return new

    def ended(self, owner: str, processes: Iterable[Process], generation: int | None = None) -> None:
        """Note what an ended process has left.

        :param generation: set for a fork server. There is an end to note, even if it has left nothing.
        """
        left = _Left(owner, list(processes), generation)
        if left.processes or generation is not None:
            self._left.append(left)

    # -- when it is ended ----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether there is something to wait for, so that :meth:`advance` has to be called again."""
        return bool(self._left)

    def processes(self) -> list[Process]:
        """Return all processes that are to be ended, those that have got a signal included."""
        return [process for left in self._left for process in left.processes]

    def to_state(self) -> dict[str, Any]:
        """Return all that is known, for :meth:`adopt` in another program of the master's process (an upgrade)."""
        return {"left": list(self._left), "known": set(self._known)}

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`to_state` has returned. The next look is due at once."""
        self._left, self._known = list(state["left"]), set(state["known"])

    def advance(self, seen: Seen, now: float) -> list[Action]:
        """Return what is to be done now."""
        actions: list[Action] = []
        for left in list(self._left):
            left.processes = [p for p in left.processes if p in seen.living and p.pid not in seen.workers]
            actions += self._advance(left, seen, now)
            if left.next_at is not None and not left.processes:
                self._left.remove(left)
                actions += [Release(left.generation)] if left.generation is not None else []
        return actions

    def _advance(self, left: _Left, seen: Seen, now: float) -> list[Action]:
        if left.next_at is None:
            if seen.unknown or left.generation in seen.generations:
                return []
            left.next_at = now + TERM_S
            below = [process for above in left.processes for process in seen.living[above]]
            left.processes = list(dict.fromkeys((*left.processes, *below)))
            return [End(left.owner, tuple(left.processes))] if left.processes else []
        if now < left.next_at or not left.processes:
            return []
        processes = tuple(left.processes)
        if left.killed:
            left.processes = []
            return [GiveUp(processes)]
        left.killed, left.next_at = True, now + KILLED_S
        return [KillLeft(left.owner, processes)]


def has_to_be_searched_for(*, listed: bool, cleanly: bool) -> bool:
    """Return whether nothing is known of what an ended process has left.

    :param listed: what was below it was listed before it was killed.
    :param cleanly: it has ended by itself, as workers do, which end what is below them first.
    """
    return not listed and not cleanly
