"""How the benchmark of deploys counts: figures from answers whose times are known."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tests.benchmarks.deploys.figures import Deploy, Span, course, kinds, outside, span, spread, turn
from tests.benchmarks.deploys.loads import Seen
from tests.benchmarks.deploys.measures import Timeline
from tests.benchmarks.deploys.pictures import timeline
from tests.harness.clients import Answer, Failure

DEPLOY = Deploy("2", 10.0, 14.0, 15.0)


def answers(version: str, pid: int, begin: float, end: float, step: float = 0.05) -> list[Answer]:
    number = round((end - begin) / step)
    return [Answer(begin + step * each, 0.001, version, pid) for each in range(number + 1)]


def test_a_span_counts_what_ended_in_it() -> None:
    seen = Seen([Answer(0.5, 0.1, "1", 1), Answer(0.9, 0.2, "1", 1), Answer(2.5, 0.1, "1", 1)], [])
    found = span(seen, 0.0, 2.0)
    assert (found.answers, found.p50, found.p99) == (2, 0.1, 0.2)
    assert abs(found.gap - 0.9) < 1e-9


def test_failures_are_counted_by_kind() -> None:
    failures = [
        Failure(10.5, 0.1, "reset", True),
        Failure(10.6, 0.1, "reset", False),
        Failure(11.0, 0.1, "refused", True),
    ]
    found = turn(Seen([], failures), DEPLOY, 2)
    assert found.span.failures == {"reset": 2, "refused": 1}
    assert kinds([found.span.failures]) == "2 reset, 1 refused"
    assert kinds([{}]) == "0"


def test_the_course_of_a_deploy_counts_in_tenths_of_a_second() -> None:
    seen = Seen(
        [Answer(9.3, 0.05, "1", 1), Answer(10.2, 0.05, "1", 1), Answer(10.26, 0.01, "2", 2), Answer(30, 1, "2", 2)],
        [Failure(10.21, 0.02, "reset", False)],
        reconnects=[9.36, 10.29],
    )
    found = {begin: counts for begin, *counts in course(seen, DEPLOY)}
    assert list(found)[::60] == [-1.0, 5.0]
    assert {begin: counts for begin, counts in found.items() if any(counts)} == {-0.7: [1, 0, 0, 1], 0.2: [1, 1, 1, 1]}


def test_the_last_old_answer_counts_from_the_signal() -> None:
    found = turn(Seen([Answer(11.5, 0.5, "1", 1), Answer(10.1, 0.1, "2", 2)], []), DEPLOY, 2)
    assert found.last_old is not None
    assert abs(found.last_old - 2.0) < 1e-9


def test_who_has_answered_and_will_again_is_ready() -> None:
    overlapping = [
        *answers("1", 1, 5, 12),
        *answers("1", 2, 5, 13),
        *answers("2", 3, 11, 20),
        *answers("2", 4, 12.5, 20),
    ]
    assert turn(Seen(overlapping, []), DEPLOY, 2).least == 2


def test_one_worker_fewer_is_seen() -> None:
    first_out = [*answers("1", 1, 5, 11), *answers("1", 2, 5, 13), *answers("2", 3, 12, 20), *answers("2", 4, 13, 20)]
    assert turn(Seen(first_out, []), DEPLOY, 2).least == 1


def test_nobody_ready_is_seen() -> None:
    gap = [*answers("1", 1, 5, 10.5), *answers("2", 3, 12, 20)]
    assert turn(Seen(gap, []), DEPLOY, 1).least == 0


def test_a_spread_is_the_median_and_its_bounds() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert spread([1.0]) == "1.00"
    assert spread([None]) == "-"


def test_a_picture_is_well_formed_and_shows_every_failure() -> None:
    seen = Seen([*answers("1", 1, 5, 12), *answers("2", 2, 11, 18)], [Failure(11.0, 0.1, "reset", True)])
    text = timeline("a < b", "load", Timeline(seen, 5.0, 18.0, [DEPLOY]))
    ET.fromstring(text)  # noqa: S314 (our own text)
    assert "1 of the requests shown failed" in text


def test_a_span_sums_its_failures() -> None:
    assert Span(0, {"reset": 2, "cut": 1}, None, None, None, 0.0).failed == 3


def test_failures_between_deploys_are_not_lost() -> None:
    seen = Seen([], [Failure(11.0, 0.1, "reset", True), Failure(20.0, 0.1, "reset", True)])
    assert outside(seen, [turn(seen, DEPLOY, 2)]) == {"reset": 1}
