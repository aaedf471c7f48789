"""What is measured of a contender, and how it is counted.

Rules:

* A failure is any request that was sent and not answered whole with 200, and any connection that did not come about;
  a WebSocket that is closed with a close frame is none.
* "During" is from the signal to a second after the deploy was over, "before" is the time before the first signal.
* A deploy is over when only the new version answers, from all workers, and no worker of the old one is left.
* Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.benchmarks.deploys.loads import Seen
from tests.harness.clients import Answer

AFTER = 1.0
"""Seconds after a deploy that belong to it."""
SHORT = 0.1
"""Fewer workers for less than this are not told from two that take turns."""


@dataclass(frozen=True)
class Deploy:
    """One deploy: when it was ordered, and when it was over; None: not in time, ``lost`` says what was waited for."""

    version: str
    told: float
    over: float | None
    end: float
    lost: str = ""


@dataclass(frozen=True)
class Span:
    """The requests of a time: how many were answered, how many failed and how, and how long the others waited."""

    answers: int
    failures: dict[str, int]
    p50: float | None
    p99: float | None
    p999: float | None
    gap: float

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


@dataclass(frozen=True)
class Turn:
    """A deploy under load.

    :param last_old: seconds from the signal to the last answer of the version before; None: it answers still.
    :param least: workers that answered at the same time, at least.
    """

    span: Span
    seconds: float | None
    last_old: float | None
    least: int
    lost: str


Tenth = tuple[float, int, int, int, int]
"""A tenth of a second: when it began, from the signal on; the answers of older versions, those of the new one, requests
that failed, connections that clients had to make again."""


@dataclass(frozen=True)
class Loaded:
    """A contender under one load.

    ``outside`` has the failures that belong to no deploy, by kind. ``reconnects`` is how many connections a crowd has
    made beside the first of each client, None under another load. ``course`` is what came of its requests around the
    first deploy, ``work_s`` the seconds that a second of work took right before it.
    """

    before: Span
    turns: list[Turn]
    closed: dict[str, int]
    outside: dict[str, int] = field(default_factory=dict)
    reconnects: int | None = None
    course: list[Tenth] = field(default_factory=list)
    work_s: float | None = None


@dataclass(frozen=True)
class Storm:
    """A deploy under a load that never rests.

    :param rate: requests per second with the deploy among them.
    :param steady: without one; None: not measured.
    :param seconds: from the signal until the old workers were gone; None: not while the load lasted.
    """

    answered: int
    rate: float
    steady: float | None
    failures: dict[str, int]
    seconds: float | None
    lost: str


@dataclass(frozen=True)
class Quiet:
    """Deploys without load: processor seconds of each, and the memory of all processes.

    :param curve: of the first deploy: seconds since the signal, and bytes.
    """

    cpu: list[float]
    seconds: list[float]
    before: int
    peak: list[int]
    after: list[int]
    lost: str = ""
    curve: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Hurt:
    """A deploy of code that answers every fifth request with 500: what the clients saw from the signal on.

    :param seconds: how long was looked.
    :param last: seconds from the signal to the last failed request; None: none failed.
    :param version: what answered at the end.
    """

    answers: int
    failed: int
    seconds: float
    last: float | None
    version: str


@dataclass(frozen=True)
class Report:
    """All of one contender; ``missing`` says why there is nothing else, ``problems`` what could not be measured."""

    name: str
    title: str
    how: str
    command: str
    source: str
    version: str
    missing: str = ""
    loads: dict[str, Loaded] = field(default_factory=dict)
    storms: dict[str, Storm] = field(default_factory=dict)
    quiet: Quiet | None = None
    hurt: Hurt | None = None
    broken: str = ""
    crash: str = ""
    problems: list[str] = field(default_factory=list)
    taken: str = ""


def span(seen: Seen, begin: float, end: float) -> Span:
    """The requests that were answered, or failed, from ``begin`` to ``end``."""
    answers = [answer for answer in seen.answers if begin <= answer.time + answer.latency < end]
    failures = [failure for failure in seen.failures if begin <= failure.time + failure.latency < end]
    latencies = sorted(answer.latency for answer in answers)
    moments = sorted(answer.time + answer.latency for answer in answers)
    gap = max(later - earlier for earlier, later in itertools.pairwise([begin, *moments, end]))
    p50, p99, p999 = (_quantile(latencies, share) for share in (0.5, 0.99, 0.999))
    return Span(len(answers), dict(Counter(failure.how for failure in failures)), p50, p99, p999, gap)


def turn(seen: Seen, deploy: Deploy, workers: int) -> Turn:
    """What a deploy did to the load."""
    old = [answer for answer in seen.answers if answer.version != deploy.version and answer.time < deploy.end]
    last = max((answer.time + answer.latency for answer in old), default=deploy.told)
    took = None if deploy.over is None else deploy.over - deploy.told
    last_old = None if deploy.over is None else max(last - deploy.told, 0.0)
    least = min(workers, _least(seen.answers, deploy.told, deploy.end))
    return Turn(span(seen, deploy.told, deploy.end), took, last_old, least, deploy.lost)


def course(seen: Seen, deploy: Deploy) -> list[Tenth]:
    """What came of the requests in each tenth of a second, from a second before a deploy on to its end."""
    first, last = -10, round((deploy.end - deploy.told) * 10)
    counts = {number: [0, 0, 0, 0] for number in range(first, last + 1)}

    def count(moment: float, kind: int) -> None:
        if (number := math.floor((moment - deploy.told) * 10)) in counts:
            counts[number][kind] += 1

    for answer in seen.answers:
        count(answer.time + answer.latency, int(answer.version == deploy.version))
    for failure in seen.failures:
        count(failure.time + failure.latency, 2)
    for moment in seen.reconnects or ():
        count(moment, 3)
    return [(number / 10, old, new, failed, opened) for number, (old, new, failed, opened) in counts.items()]


def outside(seen: Seen, turns: Iterable[Turn]) -> dict[str, int]:
    """The failures that happened in none of ``turns``."""
    rest = Counter(failure.how for failure in seen.failures)
    for each in turns:
        rest -= Counter(each.span.failures)
    return dict(rest)


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1] if ordered else None


def _least(answers: Iterable[Answer], begin: float, end: float) -> int:
    """The smallest number of processes that were between their first and their last answer, for ``SHORT`` or longer."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for answer in answers:
        moment = answer.time + answer.latency
        first[answer.pid] = min(first.get(answer.pid, math.inf), moment)
        last[answer.pid] = max(last.get(answer.pid, 0.0), moment)
    latest = max(last.values(), default=0.0)
    # a worker that answers at the end of the load would have gone on
    steps = [(moment, 1) for moment in first.values()]
    steps += [(moment, -1) for moment in last.values() if moment < min(end, latest - 1)]
    steps.sort()
    count, least, since = 0, None, begin
    for moment, step in [*steps, (end, 0)]:
        if moment > begin and min(moment, end) - since >= SHORT:
            least = count if least is None else min(least, count)
        count += step
        since = max(moment, begin)
        if moment >= end:
            break
    return least or 0


def spread(values: Iterable[float | None], digits: int = 2, factor: float = 1.0) -> str:
    """The median, and least to most where they differ; "-": there is none."""
    known = [value * factor for value in values if value is not None]
    if not known:
        return "-"
    middle, least, most = (f"{value:,.{digits}f}" for value in (statistics.median(known), min(known), max(known)))
    return middle if least == most else f"{middle} ({least} to {most})"


def kinds(counts: Iterable[dict[str, int]]) -> str:
    """The sum of failures by kind: "3 reset, 1 refused"; "0": none."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return ", ".join(f"{number} {how}" for how, number in total.most_common()) or "0"
