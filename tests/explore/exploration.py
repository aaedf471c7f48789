"""Breadth-first search through the states of the core.

Rules:

* A state is what later decisions depend on (``tests.explore.states``). Of each state that is found every legal event is
  tried (``tests.explore.steps``), on a stage that stands for it.
* ``Stage`` checks the invariant after each event, and that whatever is awaited has a deadline.
* From each state a way leads to rest on which all goes well, and that the core takes by itself: it orders every step,
  or says when it has to be called. At rest each slot has a verified worker of the newest code, or the master has ended.
* Where the number of disturbances is limited, states are reached with as few of them as possible, so that each is left
  once: all that follows with fewer disturbances to go follows with more.
* A failure is reported with the events that lead to it, the shortest way there is with the fewest disturbances.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.explore.states import (
    CURRENT,
    LOST_CURRENT,
    RUNNING,
    STOPPED,
    STOPPING,
    VERIFIED,
    Answer,
    Policies,
    State,
    copied,
    new_stage,
    reduced,
    stage_of,
)
from tests.explore.steps import TIME, Step, steps
from tests.harness.core_stage import Stage
from zdworker.core.events import Policy
from zdworker.core.fleet import Fleet
from zdworker.core.rollout import MAX_SUPERSEDED_LOADS, ROLL_ATTEMPTS, START_ATTEMPTS


@dataclass(frozen=True)
class Limits:
    """How far is explored.

    ``policies`` are those that a configuration may bring; the first is the one at the start. ``sizes`` are the numbers
    of workers that are asked for. ``disturbances`` is how many of them a way has at the most, without a limit if None.
    ``states`` and ``seconds`` end the search early.
    """

    policies: tuple[Policy, ...]
    sizes: tuple[int, ...] = ()
    disturbances: int | None = None
    states: int = 10_000_000
    seconds: float = 3600.0


@dataclass
class Found:
    """What an exploration has found.

    ``levels`` has the number of states by the disturbances that they need. All with up to ``disturbances`` of them were
    found, which is what was asked for when the exploration is ``complete`` (None: any number).
    """

    states: int = 0
    events: int = 0
    complete: bool = False
    disturbances: int | None = -1
    levels: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


# -- what follows from an event ----------------------------------------------------------------------------------


def outcomes(stage: Stage, step: Step, policies: Policies) -> Iterator[State]:
    """Yield the states that ``step`` may lead to, one for each answer of what a state leaves out."""
    first: Fleet | None = None
    ahead: list[tuple[Counter, ...]] = [()]
    for counters in ahead:
        for preloaded in (Answer(False), Answer(True)):
            after = copied(stage, preloaded)
            for name, value in counters:
                _set(after.fleet, name, value)
            step.apply(after)
            yield from _ends(stage, reduced(after, policies))
            if first is None:
                first = after.fleet
                ahead += _answers(first, stage.fleet.never_served)
            if not preloaded.asked:
                break


def _ends(stage: Stage, state: State) -> Iterator[State]:
    """Yield the state; where the end begins with it, once for each number of workers that were killed before."""
    yield state
    if state.phase == STOPPING and stage.fleet.running:
        workers, killed = len(state.leaving), sum(state.leaving)
        before = sum(worker.leaving for worker in stage.fleet.workers.values())
        for all_killed in range(killed + 1, min(killed + before, workers) + 1):
            yield state._replace(leaving=tuple([0] * (workers - all_killed) + [1] * all_killed))


Counter = tuple[str | int, int]


def _answers(fleet: Fleet, never_served: bool) -> Iterator[tuple[Counter, ...]]:
    """Yield what the counters may have been before an event that has raised some of them from 0, but 0 for all."""
    slot = (0, 1, START_ATTEMPTS - 1) if never_served else (0, 1)
    raised: list[list[Counter]] = [[(number, n) for n in slot] for number, s in fleet.slots.items() if s.failures]
    if fleet.roll_failures:
        raised.append([("roll_failures", n) for n in (0, 1, ROLL_ATTEMPTS - 1)])
    if fleet.restore_failures:
        raised.append([("restore_failures", n) for n in (0, 1)])
    if fleet.superseded_loads:
        raised.append([("superseded_loads", n) for n in (0, MAX_SUPERSEDED_LOADS)])
    if raised:
        yield from itertools.islice(itertools.product(*raised), 1, None)


def _set(fleet: Fleet, name: str | int, value: int) -> None:
    if isinstance(name, int):
        fleet.slot(name).failures = value
    else:
        setattr(fleet, name, value)


# -- the search --------------------------------------------------------------------------------------------------


class Search:
    """One search, from the beginning of a fleet. States are known by their numbers, in the order of being found."""

    def __init__(self, limits: Limits) -> None:
        self.found = Found()
        self._limits = limits
        self._policies = Policies(limits.policies)
        self._numbers: dict[bytes, int] = {}
        self._names: dict[str, int] = {}
        self._before, self._by = array("l"), array("l")  # the state before, and the name of the event
        self._level, self._left = array("l"), bytearray()  # the disturbances on the way, and whether it was left
        self._ways: dict[int, tuple[int, ...]] = {}  # where the step leads that is done when all goes well
        self._ahead: list[collections.deque[tuple[int, bytes]]] = []

    def run(self) -> Found:
        """Search until all is found, something fails, or a limit is reached."""
        end = time.monotonic() + self._limits.seconds
        self._reach(reduced(new_stage(self._policies), self._policies), -1, "", 0)
        for level in itertools.count():
            if level >= len(self._ahead):
                break
            while self._ahead[level]:
                number, packed = self._ahead[level].popleft()
                if self._left[number]:
                    continue
                if self.found.states >= self._limits.states or time.monotonic() > end:
                    self._check_ways(level)
                    self.found.disturbances = level - 1
                    return self.found
                self._left[number] = True
                self.found.states += 1
                self.found.levels[level] += 1
                self._leave(number, State.unpacked(packed), level)
                if self.found.failures:
                    return self.found
        self._check_ways(len(self._ahead))
        self.found.complete = not self.found.failures
        self.found.disturbances = self._limits.disturbances
        return self.found

    def _leave(self, number: int, state: State, level: int) -> None:
        """Try everything that can happen in a state."""
        stage = stage_of(state, self._policies)
        best: tuple[int, tuple[int, ...]] | None = None
        for step in steps(stage, self._policies, self._limits.sizes):
            after = level + step.disturbs
            if self._limits.disturbances is not None and after > self._limits.disturbances:
                continue
            self.found.events += 1
            try:
                numbers = [self._reach(s, number, step.name, after) for s in outcomes(stage, step, self._policies)]
                rank = step.rank
                if rank is None or (best is not None and rank >= best[0]):
                    continue
                if rank < TIME or step.is_awaited(copied(stage)):
                    best = rank, tuple(numbers)
            except Exception as error:  # noqa: BLE001  # whatever the core raises is what is looked for
                self._fail(number, f"{step.name}: {type(error).__name__}: {error}")
                return
        if best is not None:
            self._ways[number] = best[1]
        elif not _at_rest(state):
            self._fail(number, f"all that was tried has worked, and it does not come to rest: {state}")

    def _reach(self, state: State, before: int, name: str, level: int) -> int:
        packed = state.packed()
        digest = hashlib.blake2b(packed, digest_size=16).digest()
        number = self._numbers.setdefault(digest, len(self._numbers))
        if number == len(self._left):
            self._before.append(before)
            self._by.append(self._names.setdefault(name, len(self._names)))
            self._level.append(level)
            self._left.append(False)
        elif level < self._level[number]:
            self._before[number], self._level[number] = before, level
            self._by[number] = self._names.setdefault(name, len(self._names))
        else:
            return number
        while level >= len(self._ahead):
            self._ahead.append(collections.deque())
            self.found.levels.append(0)
        self._ahead[level].append((number, packed))
        return number

    def _fail(self, number: int, what: str) -> None:
        """Report a failure, with the events that lead to it."""
        names, way = list(self._names), [what]
        while self._before[number] >= 0:
            way.append(names[self._by[number]])
            number = self._before[number]
        self.found.failures.append(" > ".join(reversed(way)))

    def _check_ways(self, end: int) -> None:
        """Check that the steps that are done when all goes well come to an end, from each state of a level below."""
        ends, under_way = 1, 2
        seen = bytearray(len(self._left))
        for first in range(len(self._left)):
            ahead = [first] if self._level[first] < end else []
            while ahead:
                number = ahead[-1]
                if seen[number] == 0:
                    seen[number] = under_way
                    following = [n for n in self._ways.get(number, ()) if seen[n] != ends]
                    if any(seen[n] == under_way for n in following):
                        self._fail(number, "all goes well, in a circle")
                        return
                    ahead += following
                else:
                    seen[number] = ends
                    ahead.pop()


def _at_rest(state: State) -> bool:
    """Return whether a state is one in which nothing has to follow."""
    if state.phase == STOPPED:
        return True
    whole = [(slot, VERIFIED, False) for slot in range(state.size)]
    return (
        state.phase == RUNNING
        and state.source
        and state.loading is None
        and state.shrink_to is None
        and not state.leaving
        and [(slot, what, wish) for slot, _, what, wish in state.staying] == whole
        and all(of in (CURRENT, LOST_CURRENT) for _, of, _, _ in state.staying)
    )


def explore(limits: Limits) -> Found:
    """Search through all states within ``limits``, and return what was found."""
    return Search(limits).run()
