"""Whether new code answers worse than the code before it: a test that may be asked again and again.

Rules:

* What is compared is answers and failed answers of both generations *in the same time*. Time is cut into rounds of
  half a second or more, and only within a round is one generation compared with the other. When a database is down for
  everybody, both fail, and no round tells them apart, however unequal their shares of the traffic are by then.
* Within a round this is Fisher's exact test. Given how many answers each generation gave and how many failed in all,
  equal code puts the failures among the new answers by chance alone (the hypergeometric distribution). The *evidence*
  of a round is how many times more probable its outcome is if the odds of a failure are ``ratio`` times as high in the
  new code (Fisher's noncentral hypergeometric distribution). The evidence of several rounds is multiplied, and what
  comes of several ratios is averaged, because nobody knows beforehand how much worse bad code is.
* Every look counts, and there may be any number of them. With equal code the expected evidence is 1 at every moment, so
  the chance that it *ever* reaches :data:`EVIDENCE_NEEDED` is at most one in that many. That is Ville's inequality
  (Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid inference", Statistical Science
  38, 2023, sections 2 and 3). A test at the level of 1 % that is made once a second fires within minutes instead.
* That needs a round to end for another reason than that something has failed in it. So it ends when it has
  :data:`ROUND_ANSWERS` answers of each generation. What has come since the last round's end is never evidence.
* Evidence alone does not give up code: its share of failed answers has to be above what the user allows, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

EVIDENCE_NEEDED = 200.0
"""The evidence from which code is given up. Equal code reaches it in at most one of so many deploys, 0.5 %: half of the
1 % that is promised. Five failures in a row of a canary with a fifth of the traffic are enough."""

RATIOS = (2.0, 5.0, 50.0)
"""How many times as high the odds of a failure are in bad code: a little worse, much worse, broken. Each has a third of
the evidence."""

ROUND_ANSWERS = 5
"""Answers of each generation that a round has at least. With fewer there would be little in it to compare."""

SILENT_REQUESTS = 3
"""Requests that new code has to have open at the same time, without one answer, to be suspected of answering none."""

SILENT_ANSWERS = 20
"""Answers of the old code in the same reload without which that may be chance."""

SILENT_MIN_S, SILENT_TIMES = 2.0, 5.0
"""Seconds for which that has to last, and how many times as long as 99 % of the old code's answers take."""


@dataclass(frozen=True)
class Tally:
    """Answers, and how many of them failed: with a status of 500 or above, or by an exception without an answer."""

    answers: int = 0
    failed: int = 0

    def plus(self, other: Tally) -> Tally:
        """Return the sum of both."""
        return Tally(self.answers + other.answers, self.failed + other.failed)

    def words(self, generation: int, *, first: bool = True) -> str:
        """Return it for a reader; what is not ``first`` is short."""
        answers = f"{self.answers} answers" if first else f"{self.answers}"
        return f"{self.failed} of {answers} of generation {generation}"


@dataclass
class Judgement:
    """The evidence against one generation.

    ``new`` and ``old`` are all that was compared or waits for it, ``_round_new`` and ``_round_old`` what has come since
    the last round ended. ``_evidence`` has the logarithm for each of :data:`RATIOS`, ``_possible`` what that would be
    if every answer of the new code had failed. ``silent_since`` is when the new code began to have requests open
    without having answered any, None if it does not.

    :param error_rate: the share of failed answers that is allowed, from 0 to 1.
    """

    error_rate: float
    new: Tally = Tally()
    old: Tally = Tally()
    _round_new: Tally = Tally()
    _round_old: Tally = Tally()
    _evidence: list[float] = field(default_factory=lambda: [0.0] * len(RATIOS))
    _possible: list[float] = field(default_factory=lambda: [0.0] * len(RATIOS))
    silent_since: float | None = None

    def count(self, new: Tally, old: Tally) -> None:
        """Add what both generations have answered since the last call; end the round if it can."""
        self.new, self.old = self.new.plus(new), self.old.plus(old)
        self._round_new, self._round_old = self._round_new.plus(new), self._round_old.plus(old)
        if min(self._round_new.answers, self._round_old.answers) >= ROUND_ANSWERS:
            self._end_round()

    def _end_round(self) -> None:
        new, old = self._round_new, self._round_old
        self._evidence = _sums(self._evidence, log_evidence(new, old))
        self._possible = _sums(self._possible, log_evidence(Tally(new.answers, new.answers), old))
        self._round_new = self._round_old = Tally()

    def is_silent(self, waiting: int, usual_s: float | None, now: float) -> bool:
        """Return whether the new code answers nothing, while the old code does: it hangs, and its heartbeat goes on.

        :param waiting: the requests that the new code has open; this is asked again and again, and each time counts.
        :param usual_s: the seconds within which 99 % of the old code's answers came, None if there were none.
        """
        if self.new.answers or waiting < SILENT_REQUESTS:
            self.silent_since = None
            return False
        if self.silent_since is None:
            self.silent_since = now
        if usual_s is None or self.old.answers < SILENT_ANSWERS:
            return False
        return now - self.silent_since >= max(SILENT_MIN_S, SILENT_TIMES * usual_s)

    @property
    def evidence(self) -> float:
        """How many times more probable all this is if the new code is worse."""
        return _average(self._evidence)

    @property
    def is_bad(self) -> bool:
        """Whether the new code is to be given up."""
        new = self.new
        return new.failed > self.error_rate * new.answers and self.evidence >= EVIDENCE_NEEDED

    @property
    def had_enough(self) -> bool:
        """Whether there was enough to judge: the new code would have been given up if all its answers had failed."""
        return _average(self._possible) >= EVIDENCE_NEEDED


def log_evidence(new: Tally, old: Tally) -> list[float]:
    """Return the natural logarithms of a round's evidence for each of :data:`RATIOS`.

    For a ratio that is ``ratio ** new.failed``, divided by what that is on the average over the hypergeometric
    distribution; so its own average is 1 with equal code. The sum goes over the ways in which the failures can fall.
    """
    failed = new.failed + old.failed
    ways = [
        (number, _log_ways(new.answers, number) + _log_ways(old.answers, failed - number))
        for number in range(max(0, failed - old.answers), min(failed, new.answers) + 1)
    ]
    whole = _log_ways(new.answers + old.answers, failed)
    found = []
    for weight in map(math.log, RATIOS):
        terms = [way - whole + number * weight for number, way in ways]
        largest = max(terms)
        average = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
        found.append(new.failed * weight - average)
    return found


def _log_ways(number: int, chosen: int) -> float:
    """Return the logarithm of the binomial coefficient."""
    return math.lgamma(number + 1) - math.lgamma(chosen + 1) - math.lgamma(number - chosen + 1)


def _average(logarithms: list[float]) -> float:
    """Return the average of what these are the logarithms of, at most what a float can hold."""
    return math.fsum(math.exp(min(one, 700.0)) for one in logarithms) / len(logarithms)


def _sums(one: list[float], other: list[float]) -> list[float]:
    return [mine + its for mine, its in zip(one, other, strict=True)]
