"""What generations have answered, added up; and the judge, who looks at that in time with the core's facts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from tests.harness.core_stage import Stage, roll_on, steady
from zdworker.core.events import Event, GenerationJudged, Outcome, Policy, Rollback, WorkerFailed
from zdworker.core.judgement import SILENT_ANSWERS, SILENT_MIN_S, SILENT_REQUESTS
from zdworker.ipc.messages import LATENCY_BOUNDS_S, Answers
from zdworker.master.answers import ROUND_S, AnswerBook, Figures, Judge
from zdworker.master.observers import Crash, Reload
from zdworker.settings import Settings

BUCKETS = len(LATENCY_BOUNDS_S) + 1


def report(answers: int, errors: int = 0, exceptions: int = 0, newest: list[str] | None = None) -> Answers:
    return Answers(answers, errors, exceptions, 0.5, [answers, *[0] * (BUCKETS - 1)], newest or [])


def crash_of(generation: int) -> Crash:
    """Return the death of a worker of a generation."""
    return Crash(generation, 0, 4711, "killed by SIGKILL")


class Court:
    """A fleet of two old workers and a canary, of which a test reports what they have answered.

    :param error_rate: the percentage that is allowed, None if nothing is judged.
    """

    def __init__(self, error_rate: float | None = 5.0, veto: object = None, canary: float = 60.0) -> None:
        self.stage: Stage = steady(2, canary=canary)
        self.book = AnswerBook()
        self.verdicts: list[Event] = []
        self.reports: list[dict[str, Any]] = []
        self.veto = veto
        self.open: dict[int, int] = {}
        self.judge = Judge(self.stage.fleet, self.book, self.verdicts.append, self.ask, self.in_flight)
        self.judge.configuration_changed(Settings(max_error_rate=error_rate))
        self.counts: dict[int, list[int]] = {}

    def in_flight(self, generations: Collection[int]) -> int:
        return sum(self.open.get(number, 0) for number in generations)

    def ask(self, seen: dict[str, Any]) -> object:
        self.reports.append(seen)
        return self.veto

    def answer(self, worker_id: int, answers: int, failed: int = 0) -> None:
        known = self.counts.setdefault(worker_id, [0, 0])
        known[0] += answers
        known[1] += failed
        generation = self.stage.fleet.workers[worker_id].generation
        self.book.worker_answered(
            worker_id, generation, report(known[0], known[1], newest=["GET /: 500"] if failed else [])
        )

    def look(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.stage.now += ROUND_S
            self.book.observe(self.stage.fleet, self.stage.now)
            self.judge.observe(self.stage.fleet, self.stage.now)

    def reload(self) -> None:
        self.stage.reload().boot()
        self.look()

    def finish(self, outcome: Outcome = Outcome.DONE) -> Reload:
        reload = Reload(2, 0.0, 0.0, 1.0, outcome)
        self.judge.reload_finished(reload, self.stage.fleet)
        return reload


def test_bad_code_is_given_up_with_figures_and_its_newest_failures() -> None:
    court = Court()
    court.answer(1, 1000, 900)  # long ago
    court.reload()
    for _ in range(4):
        for worker_id in (1, 2):
            court.answer(worker_id, 20)
        court.answer(3, 10, 5)
        court.look()
    (verdict,) = court.verdicts[:1]
    assert isinstance(verdict, GenerationJudged)
    assert verdict.generation == 2
    assert verdict.reason.startswith("given up: 5 of 10 answers of generation 2 failed, 0 of 40 of generation 1")
    assert verdict.newest == "GET /: 500"
    court.stage.tell(verdict)
    assert court.stage.reloads == {2: "failed"}


@pytest.mark.parametrize("order", [GenerationJudged(2, "worse"), Rollback()])
def test_the_figures_of_a_reload_that_has_failed_are_its_own(order: GenerationJudged | Rollback) -> None:
    """When its end is reported, the old generation is the current one again."""
    court = Court(error_rate=50.0)
    court.answer(1, 1000)  # long ago
    court.reload()
    court.answer(3, 30, 10)
    court.answer(1, 100)
    court.look()
    court.stage.tell(order)
    assert court.finish(Outcome.FAILED).judgement.startswith("10 of 30 answers of generation 2 failed, 0 of 100 of")


def test_code_that_answers_nothing_is_given_up() -> None:
    """It hangs, while the old code answers; the event loop goes on, and so does the heartbeat."""
    court = Court()
    court.answer(1, 1000)
    court.reload()
    court.open[2] = SILENT_REQUESTS
    court.answer(1, SILENT_ANSWERS)
    court.look(int(SILENT_MIN_S / ROUND_S))
    assert court.verdicts == []
    court.look()
    (verdict,) = court.verdicts
    assert isinstance(verdict, GenerationJudged)
    assert verdict.reason == (
        f"given up: {SILENT_REQUESTS} requests wait for generation 2, which answers none; generation 1 has answered "
        f"{SILENT_ANSWERS} meanwhile"
    )


@pytest.mark.parametrize("why", ["slow answers", "few answers", "few requests", "one answer", "a pause", "not judged"])
def test_code_that_may_answer_yet_is_not_given_up(why: str) -> None:
    court = Court(error_rate=None if why == "not judged" else 5.0)
    slow = why == "slow answers"
    bucket = BUCKETS - 1 if slow else 0
    latency = [1000 if number == bucket else 0 for number in range(BUCKETS)]
    court.book.worker_answered(1, 1, Answers(1000, latency=latency))
    court.reload()
    court.open[2] = SILENT_REQUESTS - (why == "few requests")
    answers = 1000 + SILENT_ANSWERS - (why == "few answers")
    court.book.worker_answered(1, 1, Answers(answers, latency=[n * answers // 1000 for n in latency]))
    if why == "one answer":
        court.answer(3, 1)
    for _ in range(10):
        court.look(int(SILENT_MIN_S / ROUND_S))
        if why == "a pause":
            court.open[2] = 0
            court.look()
            court.open[2] = SILENT_REQUESTS
    assert court.verdicts == []


def test_equal_code_is_not_given_up() -> None:
    court = Court()
    court.reload()
    for _ in range(50):
        for worker_id in (1, 2, 3):
            court.answer(worker_id, 10, 1)
        court.look()
    assert court.verdicts == []
    assert court.finish().judgement == "50 of 500 answers of generation 2 failed, 100 of 1000 of generation 1"


def test_without_a_rate_nothing_is_judged() -> None:
    court = Court(error_rate=None)
    court.reload()
    for _ in range(10):
        court.answer(1, 20)
        court.answer(3, 10, 10)
        court.look()
    assert court.verdicts == []
    assert court.finish().judgement == ""


@pytest.mark.parametrize(("requests", "words"), [(0, "0 requests"), (1, "1 request"), (12, "12 requests")])
def test_too_few_requests_say_so(requests: int, words: str) -> None:
    court = Court()
    court.reload()
    court.answer(1, 4)
    court.answer(3, requests, requests)
    court.look()
    assert court.verdicts == []
    assert court.finish().judgement == f"{words}: too few to judge"


def test_the_hook_may_veto() -> None:
    court = Court(error_rate=None, veto="orders are down")
    court.reload()
    court.answer(1, 20)
    court.answer(3, 10, 1)
    court.look()
    (verdict,) = court.verdicts
    assert isinstance(verdict, GenerationJudged)
    assert verdict.reason == "given up: zd_judge: orders are down"
    (seen,) = court.reports
    assert (seen["generation"], seen["before"], seen["canary"], seen["held"]) == (2, 1, True, False)
    assert (seen["answers"], seen["failed"], seen["answers_before"], seen["failed_before"]) == (10, 1, 20, 0)
    assert seen["figures"]["errors"] == 1
    assert seen["figures_before"]["answers"] == 20


@pytest.mark.parametrize("veto", [None, "", False, 7])
def test_nothing_but_a_text_is_a_veto(veto: object) -> None:
    court = Court(veto=veto)
    court.reload()
    court.look(3)
    assert len(court.reports) == 3
    assert court.verdicts == []


def test_crashes_of_new_workers_alone_are_a_reason() -> None:
    court = Court(canary=0.0)
    court.reload()
    court.judge.worker_crashed(crash_of(2))
    assert court.verdicts == []
    court.judge.worker_crashed(crash_of(2))
    (verdict,) = court.verdicts
    assert isinstance(verdict, GenerationJudged)
    assert verdict.reason == "given up: 2 workers of generation 2 have crashed, none of 1"


@pytest.mark.parametrize("error_rate", [None, 5.0])
def test_crashes_of_both_are_none(error_rate: float | None) -> None:
    court = Court(error_rate)
    court.reload()
    court.judge.worker_crashed(crash_of(1))
    for _ in range(5):
        court.judge.worker_crashed(crash_of(2))
    assert court.verdicts == []


def test_a_crash_while_nothing_is_rolled_out_is_not_counted() -> None:
    court = Court()
    court.judge.worker_crashed(crash_of(1))
    court.reload()
    court.judge.worker_crashed(crash_of(7))
    court.judge.worker_crashed(crash_of(2))
    court.judge.worker_crashed(crash_of(2))
    assert len(court.verdicts) == 1


def test_nothing_is_looked_at_before_the_first_new_worker_is_ready() -> None:
    court = Court()
    court.stage.reload()
    court.look(3)
    assert court.reports == []
    court.stage.born().tell(WorkerFailed(3, "no"))
    court.look(3)
    assert court.reports == []
    assert court.finish(Outcome.FAILED).judgement == ""


def test_a_rollback_is_not_judged() -> None:
    """Who orders it has judged already."""
    court = Court(canary=0.0)
    court.stage = steady(2, preloaded=True, rollback_window=300.0)
    court.judge = Judge(court.stage.fleet, court.book, court.verdicts.append, court.ask, lambda _: 0)
    court.judge.configuration_changed(Settings(max_error_rate=5.0))
    roll_on(court.stage.reload(preloaded=True))
    court.stage.tell(Rollback())
    court.stage.boot()
    assert court.stage.fleet.reloading == 1
    court.look(3)
    court.judge.worker_crashed(crash_of(1))
    court.judge.worker_crashed(crash_of(1))
    assert court.reports == []
    assert court.verdicts == []


def test_a_worker_that_reports_less_than_before_takes_nothing_away() -> None:
    figures = Figures()
    figures.add(Answers(0), report(10, 2, newest=["a", "b"]))
    figures.add(report(10, 2), report(4, 0))
    assert (figures.answers, figures.errors, figures.latency[0]) == (10, 2, 10)
    assert list(figures.newest) == ["a", "b"]


def test_figures_go_with_their_generation() -> None:
    book = AnswerBook()
    fleet = Stage(Policy(workers=1)).start().fleet
    book.worker_answered(1, 1, report(5))
    book.worker_answered(2, 9, report(5))
    book.observe(fleet, 0.0)
    assert book.plain(9) is not None, "the other observers have not seen yet that it is gone"
    book.observe(fleet, 0.0)
    assert book.plain(9) is None
    assert book.tally([1, 9]).answers == 5
    shown = book.plain(1)
    assert shown is not None
    assert (shown["answers"], shown["p50_s"], shown["p99_s"]) == (5, 0.0025, 0.005)


def test_quantiles_come_from_the_buckets() -> None:
    figures = Figures()
    assert figures.quantile(0.5) is None
    figures.latency[3] = 90  # 25 to 50 ms
    figures.latency[-1] = 10
    assert figures.quantile(0.45) == pytest.approx(0.0375)
    assert figures.quantile(0.99) == LATENCY_BOUNDS_S[-1]
