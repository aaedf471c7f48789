"""The test behind ``zd_max_error_rate``: what it fires at, and how seldom it fires at equal code."""

from __future__ import annotations

import math
import random

import pytest

from zdworker.core.judgement import EVIDENCE_NEEDED, RATIOS, ROUND_ANSWERS, Judgement, Tally, log_evidence


def failures(chance: random.Random, answers: int, rate: float) -> int:
    return sum(chance.random() < rate for _ in range(answers))


def given_up_after(  # one for each property of a site
    chance: random.Random, *, answers: int, share: float, new: float, old: float, rounds: int, allowed: float = 0.0
) -> int | None:
    """The round in which new code is given up, None if it is not.

    :param answers: of both generations, in each round.
    :param share: of them that the new code gives.
    :param new, old: the chances of a failure.
    """
    judgement = Judgement(allowed)
    for number in range(rounds):
        mine = failures(chance, answers, share)
        judgement.count(
            Tally(mine, failures(chance, mine, new)), Tally(answers - mine, failures(chance, answers - mine, old))
        )
        if judgement.is_bad:
            return number + 1
    return None


@pytest.mark.parametrize("new", [1, 5, 12])
@pytest.mark.parametrize("old", [1, 7, 30])
@pytest.mark.parametrize("failed", [0, 1, 4])
def test_with_equal_code_the_average_evidence_is_one(new: int, old: int, failed: int) -> None:
    """The whole proof rests on that. The average is over all ways in which the failures can fall, by enumeration."""
    for place in range(len(RATIOS)):
        average = (
            sum(
                math.comb(new, mine)
                * math.comb(old, failed - mine)
                * math.exp(log_evidence(Tally(new, mine), Tally(old, failed - mine))[place])
                for mine in range(max(0, failed - old), min(failed, new) + 1)
            )
            / math.comb(new + old, failed)
            if failed <= new + old
            else 1.0
        )
        assert average == pytest.approx(1.0)


@pytest.mark.parametrize(("rate", "share"), [(0.02, 0.2), (0.02, 0.5), (0.3, 0.2), (0.3, 0.8)], ids=str)
def test_equal_code_is_given_up_in_less_than_one_deploy_of_a_hundred(rate: float, share: float) -> None:
    """However often it is looked at: here after each of forty rounds, in 500 deploys."""
    chance = random.Random(17)
    given_up = sum(
        given_up_after(chance, answers=40, share=share, new=rate, old=rate, rounds=40) is not None for _ in range(500)
    )
    assert given_up < 5


def test_equal_code_with_two_percent_of_errors_is_never_given_up_in_200_deploys() -> None:
    """The issue's own figures: 200 requests a second, a canary beside four, two percent of errors on both sides."""
    chance = random.Random(17)
    assert not any(
        given_up_after(chance, answers=200, share=0.2, new=0.02, old=0.02, rounds=30, allowed=0.01) for _ in range(200)
    )


def test_a_bare_comparison_of_rates_would_give_up_equal_code() -> None:
    """The same deploys, judged as the issue warns of: the test above can tell the difference."""
    chance, fired = random.Random(17), 0
    for _ in range(200):
        new = old = Tally()
        for _ in range(30):
            new = new.plus(Tally(40, failures(chance, 40, 0.02)))
            old = old.plus(Tally(160, failures(chance, 160, 0.02)))
            if new.failed / new.answers > max(0.02, 1.5 * old.failed / old.answers) and new.answers >= 100:
                fired += 1
                break
    assert fired > 20


@pytest.mark.parametrize(
    ("new", "old", "share", "rounds"),
    [(1.0, 0.0, 0.2, 1), (0.2, 0.0, 0.2, 4), (0.2, 0.02, 0.2, 5), (0.2, 0.0, 0.5, 4), (0.2, 0.0, 0.8, 5)],
)
def test_bad_code_is_given_up_soon(new: float, old: float, share: float, rounds: int) -> None:
    """At 200 answers a round, which takes a second."""
    chance = random.Random(17)
    for _ in range(100):
        after = given_up_after(chance, answers=200, share=share, new=new, old=old, rounds=20, allowed=0.05)
        assert after is not None
        assert after <= rounds


def test_code_below_the_rate_that_is_allowed_is_not_given_up() -> None:
    judgement = Judgement(error_rate=0.05)
    for _ in range(20):
        judgement.count(Tally(100, 4), Tally(100, 0))
    assert judgement.evidence > EVIDENCE_NEEDED
    assert not judgement.is_bad
    judgement.count(Tally(100, 60), Tally(100, 0))
    assert judgement.is_bad


def test_a_failure_of_everything_is_not_the_new_codes() -> None:
    """A database goes down when most of the traffic is the new code's already. All answers together look bad: 800 of
    1000 failed against 200 of 1800. In each round both have failed alike.
    """
    judgement = Judgement(error_rate=0.05)
    for _ in range(8):
        judgement.count(Tally(20, 0), Tally(200, 0))
    for _ in range(8):
        judgement.count(Tally(100, 100), Tally(25, 25))
    assert judgement.new == Tally(960, 800)
    assert judgement.old == Tally(1800, 200)
    assert judgement.evidence == pytest.approx(1.0)
    assert not judgement.is_bad


def test_better_code_is_not_given_up() -> None:
    judgement = Judgement(error_rate=0.0)
    for _ in range(50):
        judgement.count(Tally(40, 1), Tally(160, 80))
    assert judgement.evidence < 1
    assert not judgement.is_bad


def test_too_few_answers_are_known_for_what_they_are() -> None:
    judgement = Judgement(error_rate=0.0)
    assert not judgement.had_enough
    judgement.count(Tally(ROUND_ANSWERS, 0), Tally(ROUND_ANSWERS, 0))
    assert not judgement.had_enough, "five failures beside five answers come by chance in one of 252 deploys"
    for _ in range(6):
        judgement.count(Tally(ROUND_ANSWERS, 0), Tally(4 * ROUND_ANSWERS, 0))
    assert judgement.had_enough


def test_without_answers_of_the_old_code_nothing_is_judged() -> None:
    judgement = Judgement(error_rate=0.0)
    judgement.count(Tally(1000, 1000), Tally(0, 0))
    judgement.count(Tally(1000, 1000), Tally(ROUND_ANSWERS - 1, 0))
    assert judgement.evidence == 1.0
    assert not judgement.is_bad
    assert not judgement.had_enough


def test_a_round_goes_on_until_it_has_answers_of_both() -> None:
    """A site with a request each few seconds: the rounds are as long as they have to be."""
    judgement = Judgement(error_rate=0.0)
    for _ in range(ROUND_ANSWERS - 1):
        judgement.count(Tally(1, 1), Tally(1, 0))
        assert judgement.evidence == 1.0
    judgement.count(Tally(1, 1), Tally(1, 0))
    assert judgement.evidence > 10


def test_large_numbers_are_no_trouble() -> None:
    judgement = Judgement(error_rate=0.0)
    judgement.count(Tally(3000, 3000), Tally(3000, 0))
    assert judgement.is_bad
    assert judgement.evidence < math.inf


def test_a_tally_for_a_reader() -> None:
    assert Tally(120, 41).words(8) == "41 of 120 answers of generation 8"
    assert Tally(512, 0).words(7, first=False) == "0 of 512 of generation 7"
