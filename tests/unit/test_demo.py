"""The demo's verdicts: a demo that cannot fail would prove nothing."""

from __future__ import annotations

import pytest

from example_app.demo import Answer, Board, Period, only, summary, wrong


def answer(version: str, started: float = 1.0, error: str = "") -> Answer:
    return Answer("get", started, started + 0.1, version, error)


STEADY = [Period("1.0", 0.0, 10.0)]


def test_right_answers_pass() -> None:
    assert summary([answer("1.0"), answer("1.0", 2.0)], STEADY, {7}, "")


@pytest.mark.parametrize(
    ("answers", "masters", "trouble"),
    [
        ([], {7}, ""),
        ([answer("1.0"), answer("", error="reset")], {7}, ""),
        ([answer("1.0"), answer("2.0")], {7}, ""),
        ([answer("1.0"), answer("3.0", 20.0)], {7}, ""),
        ([answer("1.0"), answer("1.0", error="status 500")], {7}, ""),
        ([answer("1.0"), answer("4.0", 20.0, error="reset")], {7}, ""),
        ([answer("1.0"), answer("4.0", error="status 500")], {7}, ""),
        ([answer("1.0")], {7, 8}, ""),
        ([answer("1.0")], {0}, ""),
        ([answer("1.0")], {7}, "it hung"),
    ],
    ids=[
        "nothing",
        "failure",
        "wrong version",
        "broken code",
        "status 500",
        "reset by the failing code",
        "too late",
        "another master",
        "no master",
        "trouble",
    ],
)
def test_anything_else_fails(answers: list[Answer], masters: set[int], trouble: str) -> None:
    assert not summary(answers, STEADY, masters, trouble)


def test_the_failing_code_s_own_answers_are_meant() -> None:
    assert summary([answer("1.0"), answer("4.0", 20.0, error="status 500")], STEADY, {7}, "")


def test_two_versions_are_right_between_the_periods() -> None:
    periods = [Period("1.0", 0.0, 1.0), Period("2.0", 2.0, 3.0)]
    answers = [answer("1.0", 0.5), answer("2.0", 1.5), answer("1.0", 1.6), answer("2.0", 2.5)]
    assert wrong(answers, periods) == []


def test_no_answer_is_not_only_the_new_version() -> None:
    assert not only(Board(), "2.0")
