"""Measure the contenders; write ``deploys.json``, two pages of it and ``pictures/deploys-*.svg``.

A part of ``tox -e bench``; ``python -m tests.benchmarks.deploys`` knows more options.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.deploys.contenders import CONTENDERS, found
from tests.benchmarks.deploys.figures import Report, kinds
from tests.benchmarks.deploys.growth import WORKERS, Grown, growth
from tests.benchmarks.deploys.loads import TITLES
from tests.benchmarks.deploys.measures import FULL, PARTS, QUICK, Timeline, report
from tests.benchmarks.deploys.pages import store
from tests.benchmarks.deploys.pictures import timeline
from tests.benchmarks.machine import DOCS, machine

GROWTH = "growth"
NAMES = [*CONTENDERS, GROWTH]


def facts() -> dict[str, str]:
    """The machine, and the versions of what is no Python package."""
    known = machine()
    for name in ("node", "puma"):
        if program := found(name):
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
            known[name] = said.stdout.strip().removeprefix("puma version ")
    if program := found("pm2"):  # not asked itself: even for its version it would leave a daemon behind
        package = Path(program).resolve().parents[1] / "package.json"
        known["pm2"] = json.loads(package.read_text(encoding="utf-8"))["version"]
    return known


def main(words: list[str] | None = None) -> int:
    """Measure what ``words`` say; None: the command line."""
    parser = argparse.ArgumentParser(prog="deploys", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short deploy of each, nothing in docs/: does it work")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--into", type=Path, help="where to write (docs/; with --quick a new directory)")
    parser.add_argument("--loads", nargs="+", choices=PARTS, default=PARTS, metavar="LOAD", help=", ".join(PARTS))
    parser.add_argument(
        "--deploys", type=int, help=f"under each load (with --quick {QUICK.deploys}, else {FULL.deploys})"
    )
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is stopped on the way out
    size = QUICK if options.quick else FULL
    size = replace(size, deploys=options.deploys or size.deploys)
    into: Path = options.into or (Path(tempfile.mkdtemp(prefix="zdworker-deploys-")) if options.quick else DOCS)
    (into / "pictures").mkdir(parents=True, exist_ok=True)
    known = facts()
    for name in options.only or NAMES:
        if name == GROWTH:
            store(into, known, size, grown=grow(options.quick))
            continue
        contender = CONTENDERS[name]
        print(f"{contender.title} ...", flush=True)
        done, timelines = report(contender, size, tuple(options.loads), lambda words: print(words, flush=True))
        print(summary(done), flush=True)
        store(into, known, size, [done])  # after each: a run that is ended has not been in vain
        draw(into, done, timelines)
    print(f"written into {into}")
    return 0


def grow(quick: bool) -> list[Grown]:
    """Measure reloads with more and more workers."""
    grown: list[Grown] = []
    for workers in WORKERS[:3] if quick else WORKERS:
        for preload in (False, True):
            print(f"{workers} workers {'with' if preload else 'without'} --preload ...", flush=True)
            grown.append(growth(workers, 1 if quick else 3, preload=preload))
    return grown


def draw(into: Path, done: Report, timelines: dict[str, Timeline]) -> None:
    """Write the pictures of a contender."""
    if "new" in timelines:
        picture = timeline(done.title, TITLES["new"], timelines["new"])
        (into / "pictures" / f"deploys-{done.name}.svg").write_text(picture, encoding="utf-8")


def summary(done: Report) -> str:
    """What was seen, in a few lines for who waits."""
    if done.missing:
        return f"  missing: {done.missing}"
    lines = [
        f"  {style}: failed {kinds(turn.span.failures for turn in loaded.turns)}"
        f"{f'; outside {kinds([loaded.outside])}' if loaded.outside else ''}"
        f"{''.join(f'; {turn.lost}' for turn in loaded.turns if turn.lost)}"
        for style, loaded in done.loads.items()
    ]
    lines += [f"  {name}: failed {kinds([each.failures])}; {each.lost}" for name, each in done.storms.items()]
    if done.hurt is not None:
        lines.append(f"  faulty: {done.hurt}")
    lines += [f"  broken: {done.broken}", f"  crash: {done.crash}", *(f"  problem: {each}" for each in done.problems)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
