"""What each generation has answered, and the judge of the one that is rolled out.

Rules:

* Workers report what they have answered since they began to count, four times a second; here that is added up for each
  generation. Only counts that have grown count, whatever a worker reports.
* The judge compares the generation of a reload with the one before it, from the moment at which its first worker is
  ready to the reload's end. What it finds is an event: how the code is given up is decided in the core.
* The test is pure (``zdworker/core/judgement.py``). A round of it ends by the clock, not with a report.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from zdworker.core.events import Event, GenerationJudged
from zdworker.core.fleet import Fleet, WorkerState
from zdworker.core.judgement import Judgement, Tally
from zdworker.ipc.messages import LATENCY_BOUNDS_S, NEWEST_FAILURES, Answers
from zdworker.master.observers import Crash, Observer, Reload
from zdworker.plain import attributes, set_attributes
from zdworker.settings import Settings

ROUND_S = 0.5
"""Seconds between two looks of the judge."""

CRASHES_MAX = 1
"""Crashes of new workers, where no old one crashes, with which a reload goes on: a single one is chance more often than
not. (The canary has none: it is given up for its first one, by the core.)"""


@dataclass
class Figures:
    """What one generation has answered."""

    answers: int = 0
    errors: int = 0
    exceptions: int = 0
    seconds: float = 0.0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    newest: deque[str] = field(default_factory=lambda: deque(maxlen=NEWEST_FAILURES))

    @property
    def tally(self) -> Tally:
        """Return what is judged of it."""
        return Tally(self.answers, self.errors + self.exceptions)

    def add(self, before: Answers, after: Answers) -> None:
        """Add what a worker has answered between two of its reports."""
        self.answers += max(0, after.answers - before.answers)
        self.errors += max(0, after.errors - before.errors)
        self.exceptions += max(0, after.exceptions - before.exceptions)
        self.seconds += max(0.0, after.seconds - before.seconds)
        earlier = before.latency or [0] * len(after.latency)
        for bucket, (more, less) in enumerate(zip(after.latency, earlier, strict=True)):
            self.latency[bucket] += max(0, more - less)
        failed = after.errors + after.exceptions - before.errors - before.exceptions
        if failed > 0:
            self.newest.extend(after.newest[-failed:])

    def quantile(self, share: float) -> float | None:
        """Return the seconds within which this share of the answers came, as the buckets tell; None without answers.

        Within a bucket the answers are taken for evenly spread, as Prometheus' ``histogram_quantile`` does; above the
        last bound that bound is returned.
        """
        rank, below, lower = share * sum(self.latency), 0, 0.0
        if not rank:
            return None
        for upper, count in zip(LATENCY_BOUNDS_S, self.latency, strict=False):
            if below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below, lower = below + count, upper
        return LATENCY_BOUNDS_S[-1]

    def to_plain(self) -> dict[str, Any]:
        """Return them as ``status`` shows them."""
        p50, p99 = self.quantile(0.5), self.quantile(0.99)
        return {
            "answers": self.answers,
            "errors": self.errors,
            "exceptions": self.exceptions,
            "seconds": round(self.seconds, 3),
            "p50_s": None if p50 is None else round(p50, 4),
            "p99_s": None if p99 is None else round(p99, 4),
            "latency": list(self.latency),
            "newest_failures": list(self.newest),
        }


class AnswerBook(Observer):
    """The figures of all generations that there are."""

    def __init__(self) -> None:
        self.of_generation: dict[int, Figures] = {}
        self._reported: dict[int, Answers] = {}
        self._gone: list[int] = []

    def to_state(self) -> dict[str, Any]:
        """Return all figures, for :meth:`adopt` in another program of this process (an upgrade)."""
        return attributes(self)

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`to_state` has returned: what workers report later is counted from there."""
        set_attributes(self, state)

    def worker_answered(self, worker_id: int, generation: int, answers: Answers) -> None:
        """Add what a worker has answered since its last report."""
        figures = self.of_generation.setdefault(generation, Figures())
        figures.add(self._reported.get(worker_id, Answers(0)), answers)
        self._reported[worker_id] = answers

    def plain(self, generation: int) -> dict[str, Any] | None:
        """Return the figures of a generation as ``status`` shows them; None if its workers do not count."""
        figures = self.of_generation.get(generation)
        return None if figures is None else figures.to_plain()

    def tally(self, generations: Iterable[int]) -> Tally:
        """Return what these generations have answered together."""
        total = Tally()
        for number in generations:
            if number in self.of_generation:
                total = total.plus(self.of_generation[number].tally)
        return total

    def observe(self, fleet: Fleet, now: float) -> None:
        """Drop what belongs to workers that are gone, and to generations, once all observers have seen that."""
        for worker_id in [number for number in self._reported if number not in fleet.workers]:
            del self._reported[worker_id]
        for number in self._gone:
            del self.of_generation[number]
        self._gone = [number for number in self.of_generation if number not in fleet.generations]


@dataclass
class Watch:
    """One reload under judgement.

    ``new`` and ``old`` are the generations that are compared, ``seen_new`` and ``seen_old`` what they had answered at
    the last look, ``of_new`` and ``of_old`` the generations that had answered it, ``crashes_new`` and ``crashes_old``
    their crashes since the first one.
    """

    generation: int
    before: int
    judgement: Judgement
    seen_new: Tally
    seen_old: Tally
    look_at: float
    of_new: list[int]
    of_old: list[int]
    crashes_new: int = 0
    crashes_old: int = 0

    def words(self) -> str:
        """Return the figures, for a reader."""
        return (
            f"{self.judgement.new.words(self.generation)} failed, {self.judgement.old.words(self.before, first=False)}"
        )


class Judge(Observer):
    """Watches reloads, and says when new code is to be given up.

    :param book: what the generations have answered.
    :param publish: takes the verdict, an event; it is called later, not while observers are notified.
    :param ask: calls the hook ``zd_judge`` with a report, and returns what that returns.
    :param in_flight: returns how many requests generations have begun and not answered.
    """

    def __init__(
        self,
        fleet: Fleet,
        book: AnswerBook,
        publish: Callable[[Event], None],
        ask: Callable[[dict[str, Any]], object],
        in_flight: Callable[[Collection[int]], int],
    ) -> None:
        self._fleet = fleet
        self._book = book
        self._publish = publish
        self._ask = ask
        self._in_flight = in_flight
        self._error_rate: float | None = None
        self._watch: Watch | None = None

    def configuration_changed(self, settings: Settings) -> None:
        """Go by the settings that are in force."""
        self._error_rate = settings.max_error_rate

    def worker_crashed(self, crash: Crash) -> None:
        """Give up code whose workers crash where those of the code before do not."""
        watch, generation = self._watch, crash.generation
        if watch is None:
            return
        if generation in self._fleet.current:
            watch.crashes_new += 1
        elif generation in self._fleet.fallback:
            watch.crashes_old += 1
        if self._error_rate is not None and watch.crashes_new > CRASHES_MAX and not watch.crashes_old:
            words = f"{watch.crashes_new} workers of generation {watch.generation} have crashed, none of {watch.before}"
            self._give_up(watch, words)

    def observe(self, fleet: Fleet, now: float) -> None:
        """Begin to watch a reload whose first worker is ready; look at it every :data:`ROUND_S` seconds."""
        if fleet.reloading is None or fleet.ending:
            self._watch = None
            return
        if self._watch is None or self._watch.generation != fleet.reloading:
            self._watch = self._begin(fleet, now)
        if self._watch is not None and now >= self._watch.look_at:
            self._look(self._watch, now)

    def _begin(self, fleet: Fleet, now: float) -> Watch | None:
        serves = any(w.generation in fleet.current and w.state is WorkerState.READY for w in fleet.workers.values())
        if not serves or fleet.reloading is None or not fleet.fallback:
            return None
        if fleet.reloading < fleet.fallback[-1]:
            return None  # a rollback: its code has served before, and who orders it has judged already
        judgement = Judgement((self._error_rate or 0.0) / 100)
        new, old = self._book.tally(fleet.current), self._book.tally(fleet.fallback)
        of_new, of_old = list(fleet.current), list(fleet.fallback)
        return Watch(fleet.reloading, fleet.fallback[-1], judgement, new, old, now + ROUND_S, of_new, of_old)

    def _look(self, watch: Watch, now: float) -> None:
        watch.look_at = now + ROUND_S
        self._count(watch)
        if self._error_rate is not None and watch.judgement.is_bad:
            self._give_up(watch, watch.words())
            return
        figures, waiting = self._book.of_generation.get(watch.before), self._in_flight(watch.of_new)
        usual_s = figures.quantile(0.99) if figures is not None else None
        if self._error_rate is not None and watch.judgement.is_silent(waiting, usual_s, now):
            answered = watch.judgement.old.answers
            words = f"{waiting} requests wait for generation {watch.generation}, which answers none"
            self._give_up(watch, f"{words}; generation {watch.before} has answered {answered} meanwhile")
            return
        veto = self._ask(self._report(watch))
        if isinstance(veto, str) and veto:
            self._give_up(watch, f"zd_judge: {veto}")

    def _count(self, watch: Watch) -> None:
        if self._fleet.reloading == watch.generation:  # else the reload has ended, and the fleet has moved on
            watch.of_new, watch.of_old = list(self._fleet.current), list(self._fleet.fallback)
        new, old = self._book.tally(watch.of_new), self._book.tally(watch.of_old)
        watch.judgement.count(_since(watch.seen_new, new), _since(watch.seen_old, old))
        watch.seen_new, watch.seen_old = new, old

    def _report(self, watch: Watch) -> dict[str, Any]:
        """Return what the hook ``zd_judge`` gets."""
        judgement = watch.judgement
        return {
            "generation": watch.generation,
            "before": watch.before,
            "canary": not self._fleet.newest_verified,
            "held": self._fleet.held,
            "answers": judgement.new.answers,
            "failed": judgement.new.failed,
            "answers_before": judgement.old.answers,
            "failed_before": judgement.old.failed,
            "figures": self._book.plain(watch.generation),
            "figures_before": self._book.plain(watch.before),
        }

    def _give_up(self, watch: Watch, why: str) -> None:
        figures = self._book.of_generation.get(watch.generation)
        newest = "\n".join(figures.newest) if figures is not None else ""
        self._publish(GenerationJudged(watch.generation, f"given up: {why}", newest))

    def reload_finished(self, reload: Reload, fleet: Fleet) -> None:
        """Note on the reload what was found, for its result."""
        watch, self._watch = self._watch, None
        if watch is None or watch.generation != reload.generation or self._error_rate is None:
            return
        self._count(watch)
        judgement = watch.judgement
        reload.judgement = watch.words()
        if not judgement.had_enough:
            requests = judgement.new.answers
            reload.judgement = f"{requests} request{'' if requests == 1 else 's'}: too few to judge"


def _since(before: Tally, now: Tally) -> Tally:
    """Return the difference of two tallies; nothing where a generation and its figures are gone."""
    return Tally(max(0, now.answers - before.answers), max(0, now.failed - before.failed))
