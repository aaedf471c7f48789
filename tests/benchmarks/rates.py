"""Requests per second of each worker class, over those of the stock class whose place it takes.

Rules:

* One worker each, the same application, the same command but for the class.
* Only ratios of neighbouring runs are judged: A B, B A, …, so that whatever else the machine does hurts both. The
  processor time of a request is given beside, because it hardly depends on what else the machine does.
* A run in which a single request failed is none: zdworker's ends the measurement, stock's is done again (some of
  the stock classes reset connections when a thousand come at once).
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import psutil

from tests.benchmarks.figures import Rate, Sample
from tests.benchmarks.servers import Server, serve

GOAL = 0.98
COUNTING_GOAL = 0.97
"""Where our side counts its answers, which stock does not."""
CONNECTIONS = 1000
TRIES = 10


@dataclass(frozen=True)
class Contest:
    """A class of zdworker and the one whose place it takes, with options that both need; ``counts``: our side counts
    its answers (``zd_count_answers``).
    """

    name: str
    stock: str
    kind: str
    options: tuple[str, ...] = ()
    counts: bool = False


CONTESTS = (
    Contest("UvicornWorker", "uvicorn_worker.UvicornWorker", "asgi"),
    Contest("UvicornH11Worker", "uvicorn_worker.UvicornH11Worker", "asgi"),
    Contest("ASGIWorker", "asgi", "asgi"),
    Contest("ThreadWorker", "gthread", "wsgi", ("--threads", "4", "--worker-connections", "4000")),
    Contest("GeventWorker", "gevent", "wsgi", ("--worker-connections", "4000")),
    Contest("TornadoWorker", "tornado", "tornado"),
    Contest("WSGIWorker", "sync", "wsgi"),
)


@dataclass(frozen=True)
class Effort:
    """How often and how long: new servers in each round, pairs of runs in each of those."""

    rounds: int
    pairs: int
    seconds: int
    requests: int


# wrk keeps its connections, and some of the stock classes take seconds until they have accepted a thousand (uvloop: one
# in a turn of the loop). A short run would set ours, with all of them, against stock with a few, which is less work.
THOROUGH = {
    "wrk": Effort(rounds=4, pairs=2, seconds=12, requests=0),
    "ab": Effort(rounds=4, pairs=5, seconds=0, requests=8_000),
}
QUICK = Effort(rounds=1, pairs=3, seconds=1, requests=3_000)


@dataclass
class Runs:
    """What one side has done so far."""

    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


def compare(contest: Contest, tool: str, effort: Effort) -> Rate:
    """Let both sides of a contest run in turns.

    :param tool: ``wrk`` (connections are kept where the class keeps them) or ``ab`` (HTTP/1.0, a connection for each
        request).
    """
    measure = {"wrk": _wrk, "ab": _ab}[tool]
    stock, ours = Runs(), Runs()
    ratios, cost_ratios = list[float](), list[float]()
    for _ in range(effort.rounds):  # new servers each round: where memory happens to lie makes a per cent or two
        with contextlib.ExitStack() as stack:
            sides = []
            for path, runs in ((contest.stock, stock), (f"zdworker.{contest.name}", ours)):
                counts = {"ZD_COUNT_ANSWERS": "true"} if contest.counts and runs is ours else {}
                server = stack.enter_context(
                    serve(path, 1, "", *contest.options, kind=contest.kind, environment=counts)
                )
                _again(measure, server, QUICK)  # warm
                sides.append((server, runs))
            for number in range(effort.pairs):
                for server, runs in sides if number % 2 else reversed(sides):
                    rate, cost = _again(measure, server, effort) if runs is stock else measure(server, effort)
                    runs.rates.append(rate)
                    runs.costs.append(cost * 1e6)
                ratios.append(ours.rates[-1] / stock.rates[-1])
                cost_ratios.append(stock.costs[-1] / ours.costs[-1])
    return Rate(
        name=f"{contest.name}, counting" if contest.counts else contest.name,
        stock=contest.stock,
        tool=f"{tool} -c {CONNECTIONS}",
        ratio=Sample(ratios).text(3),
        goal=COUNTING_GOAL if contest.counts else GOAL,
        good=statistics.median(ratios) >= (COUNTING_GOAL if contest.counts else GOAL),
        rates=(f"{Sample(stock.rates).median:,.0f}", f"{Sample(ours.rates).median:,.0f}"),
        cost_ratio=Sample(cost_ratios).text(3),
        costs=(f"{Sample(stock.costs).median:.1f}", f"{Sample(ours.costs).median:.1f}"),
    )


Measure = Callable[[Server, Effort], tuple[float, float]]


def _again(measure: Measure, server: Server, effort: Effort) -> tuple[float, float]:
    """Measure until a run is whole, at most :data:`TRIES` times."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(RuntimeError):
            return measure(server, effort)
    return measure(server, effort)


def _wrk(server: Server, effort: Effort) -> tuple[float, float]:
    duration = str(effort.seconds)
    words = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", duration, "--timeout", "20"]
    return _run(server, words, r"Requests/sec:\s+([\d.]+)", r"(\d+) requests in", ("Socket errors", "Non-2xx"))


def _ab(server: Server, effort: Effort) -> tuple[float, float]:
    # -l: the pid in the answer need not have the same length always.
    words = ["ab", "-q", "-l", "-n", str(effort.requests), "-c", str(CONNECTIONS), "-s", "60"]
    failures = ("Non-2xx", "Failed requests:        [1-9]")
    return _run(server, words, r"Requests per second:\s+([\d.]+)", r"Complete requests:\s+(\d+)", failures)


def _run(server: Server, words: list[str], rate: str, number: str, failures: tuple[str, ...]) -> tuple[float, float]:
    """Requests per second, and the only worker's processor seconds per request; raises when any request failed."""
    worker = psutil.Process(server.get()[1])
    before = worker.cpu_times()
    url = f"http://127.0.0.1:{server.port}/"
    tool = subprocess.run([*words, url], capture_output=True, text=True, timeout=120, check=False)
    said = tool.stdout
    after = worker.cpu_times()
    rates, numbers = re.search(rate, said), re.search(number, said)
    if tool.returncode or rates is None or numbers is None or any(re.search(failure, said) for failure in failures):
        raise RuntimeError(f"{words[0]}: {said}{tool.stderr}")
    return float(rates[1]), (after.user + after.system - before.user - before.system) / int(numbers[1])


def _comparison(contest: Contest, tool: str) -> Callable[[bool], Rate]:
    return lambda quick: compare(contest, tool, QUICK if quick else THOROUGH[tool])


RATES = {f"{contest.name}-{tool}": _comparison(contest, tool) for contest in CONTESTS for tool in ("wrk", "ab")}
RATES |= {f"{contest.name}-counting": _comparison(replace(contest, counts=True), "wrk") for contest in CONTESTS}
