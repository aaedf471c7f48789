"""Measure, print, and (unless ``--quick``) write ``docs/benchmarks.md`` and ``docs/benchmarks.json``.

``tox -e bench``, or ``python -m tests.benchmarks [--quick] [--only NAME ...]``; exit code 1: a goal missed. The names
of contenders are handed on to :mod:`tests.benchmarks.deploys`, which writes pages of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from tests.benchmarks.connections import CONNECTIONS as GROWTHS
from tests.benchmarks.deploys.__main__ import NAMES as DEPLOYS
from tests.benchmarks.deploys.__main__ import main as deploys
from tests.benchmarks.figures import Figure, Rate, rate_table, table
from tests.benchmarks.instructions import CONNECTIONS as OPEN
from tests.benchmarks.instructions import INSTRUCTIONS
from tests.benchmarks.machine import DOCS, machine
from tests.benchmarks.measures import MEASURES
from tests.benchmarks.rates import CONNECTIONS, RATES, THOROUGH

COUNTS = {**INSTRUCTIONS, **GROWTHS}
WRK, AB = THOROUGH["wrk"], THOROUGH["ab"]


def page(facts: dict[str, str], rates: list[Rate], counts: list[Figure], figures: list[Figure]) -> str:
    """The whole of ``docs/benchmarks.md``."""
    return f"""\
# Benchmarks

Written by `tox -e bench` (`tests/benchmarks/`); the same as data in `benchmarks.json`. Stock is the class that
zdworker's replaces (in the second table `uvicorn_worker.UvicornWorker`) under the same Gunicorn, measured in turns in
the same run. Only the ratios and differences mean something elsewhere; take your own on your own machine.

## Requests per second

{rate_table(rates)}

* One worker each, a small application, {CONNECTIONS:,} connections: `wrk` keeps them where the class does (`sync` does
  not), `ab` makes a new one for each request. A run of stock's in which a
  request failed was done again; none of zdworker's failed.
* Ratios: median (least to most) of neighbouring runs, {AB.rounds} pairs of servers with {WRK.pairs} pairs of
  runs of `wrk` ({WRK.seconds} s each) or {AB.pairs} of `ab`; more than 1: zdworker is the better one.
  Beside them the medians, stock → zdworker.
* Counting: ours counts its answers (`zd_count_answers`), which stock does not, and has a goal of its own.
* GeventWorker: under a load that never rests, Gunicorn's class answers one connection for as long as that has a
  request, and leaves the others waiting. Ours goes on to the next connection after eight requests, which costs about
  two per cent. It sends an answer with fewer system calls, which saves more.
* Processor time: of the worker, microseconds per request. It depends least on what else the machine does.

## Instructions, and what a connection leaves

{table(counts)}

* Counted by valgrind's callgrind, with one worker, {OPEN} connections that send together, and Gunicorn's parser in
  Python on both sides (valgrind does not know the instructions of the one in C). What the worker executes without
  requests is subtracted. System calls are counted, what the kernel does for them is not.
* Connections: some end as they should, some in the middle of a request, some unused, some with a reset.

## Reload, start, replacement, memory

{table(figures)}

* Reload: the application's import is one second of work; from the signal until the last old worker is gone.
* Reload with keep-alive connections: each client rests a tenth of a second to a second between two requests (some 2,000
  requests a second); an import is measured right before each reload.
* `wrk` through ten reloads: a small application; runs with and without reloads in turns.
* Reload of many workers: a small application; what the kernel does for the master is in its time.
* Start: a small application without `--preload`, asked every 5 ms; stock and zdworker in turns.
* Replacement: one worker, so that nobody else can answer; from `kill -9` to the end of the new one's answer.
* Memory: proportional set size (`/proc/<pid>/smaps_rollup`) of the master and all its descendants, an
  application with Starlette and some 60 MB of objects, after requests to every worker; the bare interpreter
  runs beside stock's tree.
* Why the goal is missed with --preload: zdworker's tree has two programs, the master and the fork server. Measured in
  fresh interpreters (private and proportional), a bare interpreter has 3 to 4 MiB, Gunicorn's modules 11 MiB more,
  and zdworker's own modules 6 to 7 MiB more. A stock master shares Gunicorn's modules with the workers that it forks.
  zdworker's workers are forked from the fork server, which gives each generation a fresh interpreter, so the master's
  copy of these modules is a second one. The difference cannot become smaller than about Gunicorn's modules in a
  second process.

Taken on:

{chr(10).join(f"* {name} {value}" for name, value in facts.items())}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short runs, nothing written: does it work at all")
    names = [*RATES, *COUNTS, *MEASURES, *DEPLOYS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    options = parser.parse_args()
    facts = machine()
    wanted = options.only or names
    rates, counts, figures = list[Rate](), list[Figure](), list[Figure]()
    for name in (name for name in wanted if name not in DEPLOYS):
        print(f"measuring {name} ...", flush=True)
        if name in RATES:
            rates.append(RATES[name](options.quick))
            print(rate_table(rates[-1:]), flush=True)
        else:
            kind, measures = (counts, COUNTS) if name in COUNTS else (figures, MEASURES)
            kind.append(measures[name](options.quick))
            print(table(kind[-1:]), flush=True)
    if not options.quick and not options.only:
        DOCS.mkdir(exist_ok=True)
        data = {
            "machine": facts,
            "rates": [asdict(rate) for rate in rates],
            "counts": [asdict(figure) for figure in counts],
            "figures": [asdict(figure) for figure in figures],
        }
        (DOCS / "benchmarks.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        (DOCS / "benchmarks.md").write_text(page(facts, rates, counts, figures), encoding="utf-8")
    if chosen := [name for name in wanted if name in DEPLOYS]:
        deploys(["--only", *chosen, *(["--quick"] if options.quick else [])])
    return 0 if all([*(rate.good for rate in rates), *(figure.good for figure in [*counts, *figures])]) else 1


if __name__ == "__main__":
    sys.exit(main())
