"""Measure, print, and (unless ``--quick``) write ``docs/benchmarks.md`` and ``docs/benchmarks.json``.

``tox -e bench``, or ``python -m tests.benchmarks [--quick] [--only NAME ...]``; exit code 1: a goal missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.benchmarks.measures import MEASURES, Figure

DOCS = Path(__file__).resolve().parents[2] / "docs"
PACKAGES = ("zdworker", "gunicorn", "uvicorn", "uvicorn-worker", "uvloop", "httptools", "starlette")


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} logical cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        **{name: version(name) for name in PACKAGES},
    }


def table(figures: list[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| what | goal | measured: median (least to most) | met |", "| --- | --- | --- | --- |"]
    for figure in figures:
        lines.append(f"| {figure.name} | {figure.goal} | {figure.measured} | {'yes' if figure.good else '**no**'} |")
        lines += [f"| &emsp;{name} | | {text} | |" for name, text in figure.parts.items()]
    return "\n".join(lines)


def page(facts: dict[str, str], figures: list[Figure]) -> str:
    """The whole of ``docs/benchmarks.md``."""
    return f"""\
# Benchmarks

Written by `tox -e bench` (`tests/benchmarks/`); the same as data in `benchmarks.json`. Stock is
`uvicorn_worker.UvicornWorker` under the same Gunicorn, measured in turns in the same run. Only the ratios and
differences mean something elsewhere; take your own on your own machine.

{table(figures)}

Taken on: {"; ".join(f"{name} {value}" for name, value in facts.items())}.

* Requests per second: one worker each, a small ASGI application, `wrk` with 64 kept connections; the ratio is
  of neighbouring runs.
* Reload: the application's import is one second of work; from the signal until the last old worker is gone.
* Replacement: one worker, so that nobody else can answer; from `kill -9` to the end of the new one's answer.
* Memory: proportional set size (`/proc/<pid>/smaps_rollup`) of the master and all its descendants, an
  application with Starlette and some 60 MB of objects, after requests to every worker; the bare interpreter
  runs beside stock's tree.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short runs, nothing written: does it work at all")
    parser.add_argument("--only", nargs="+", choices=MEASURES, metavar="NAME", help=f"of {', '.join(MEASURES)}")
    options = parser.parse_args()
    facts = machine()
    figures = []
    for name in options.only or MEASURES:
        print(f"measuring {name} ...", flush=True)
        figure = MEASURES[name](options.quick)
        figures.append(figure)
        print(table([figure]), flush=True)
    if not options.quick and not options.only:
        DOCS.mkdir(exist_ok=True)
        data = {"machine": facts, "figures": [asdict(figure) for figure in figures]}
        (DOCS / "benchmarks.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        (DOCS / "benchmarks.md").write_text(page(facts, figures), encoding="utf-8")
    return 0 if all(figure.good for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
