"""``docs/deploys.md`` and ``docs/deploys.json`` from the reports.

Rules:

* The page says nothing that the data does not: it is written anew from the JSON each time.
* Who is missing stands in the table with the reason; what could not be measured stands below it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.deploys.contenders import CONTENDERS, Style
from tests.benchmarks.deploys.figures import Loaded, Quiet, Report, Span, Turn, kinds, spread
from tests.benchmarks.deploys.loads import TITLES
from tests.benchmarks.deploys.measures import Size

HEAD = """\
# Deploys, measured

What a deploy does to those who are being served, with each server that can do one without stopping. Written by
`tox -e deploys` (`tests/benchmarks/deploys/`); the same as data in `deploys.json`. Take your own on your own
machine.

* {workers} workers each. The application's import is one second of work; without load it also keeps 150 MB of objects.
* {deploys} deploys per load; a figure is their median (least to most), a number of failures is their sum.
* *During* is from the signal until a second after the deploy was over: only the new version answers, from all workers,
  and no old one is left. *Before* is the time until the first signal.
* *Failed*: sent and not answered whole with 200, or no connection. A WebSocket that is closed with a close frame has
  failed only if it left a message unanswered.
* *Ready*: workers that were between their first and their last answer at the same time, at least, for 0.1 s or longer.
* *Over*: from the signal. *Last old answer*: from the signal to the last answer of the version before.
"""


def store(directory: Path, machine: dict[str, str], size: Size, reports: Iterable[Report]) -> None:
    """Write both files; contenders and loads that were not measured now keep what was measured before."""
    data = directory / "deploys.json"
    known: dict[str, Any] = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {"contenders": {}}
    known |= {"machine": machine, "size": dataclasses.asdict(size)}
    for report in reports:
        before = known["contenders"].get(report.name, {"loads": {}})
        now = dataclasses.asdict(report)
        known["contenders"][report.name] = now | {"loads": before["loads"] | now["loads"]}
    data.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (directory / "deploys.md").write_text(page(known), encoding="utf-8")


def page(known: dict[str, Any]) -> str:
    """The whole of ``docs/deploys.md``."""
    reports = [_report(known["contenders"][name]) for name in CONTENDERS if name in known["contenders"]]
    there = [report for report in reports if not report.missing]
    parts = [HEAD.format(**known["size"])]
    for style, title in TITLES.items():
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n{_load_table(style, there)}\n")
    parts.append(f"## Processor time and memory, without load\n\n{_quiet_table(there)}\n")
    parts.append(f"## Broken code, and a crash\n\n{_broken_table(there)}\n")
    parts.append(_timelines(there))
    parts.append(f"## Configurations\n\n{_configurations(reports)}\n")
    if problems := [f"* {report.title}: {problem}" for report in reports for problem in report.problems]:
        parts.append("## What could not be measured\n\n" + "\n".join(problems) + "\n")
    taken = "; ".join(f"{name} {value}" for name, value in known["machine"].items())
    return "\n".join([*parts, f"Taken on: {taken}.\n"])


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _load_table(style: Style, reports: list[Report]) -> str:
    heads = ["", "failed", "p50, ms: before → during", "p99, ms", "p99.9, ms", "longest gap, ms", "last old answer, s"]
    heads.append("over, s")
    if style == "new":
        heads.append("ready, at least")
    if style == "websocket":
        heads.append("closed")
    return table(heads, [_load_row(report, report.loads[style], style) for report in reports if style in report.loads])


def _load_row(report: Report, loaded: Loaded, style: Style) -> list[str]:
    spans = [turn.span for turn in loaded.turns]
    failed = kinds(one.failures for one in spans)
    row = [report.title, failed if failed == "0" else f"**{failed}**"]
    if loaded.outside:
        row[-1] += f"; outside of deploys {kinds([loaded.outside])}"
    for name in ("p50", "p99", "p999", "gap"):
        before = spread([getattr(loaded.before, name)], 1, 1000)
        row.append(f"{before} → {spread([getattr(one, name) for one in spans], 1, 1000)}")
    row.append(spread([turn.last_old for turn in loaded.turns]))
    lost = next((turn.lost for turn in loaded.turns if turn.lost), "")
    row.append(lost or spread([turn.seconds for turn in loaded.turns]))
    if style == "new":
        row.append(spread([turn.least for turn in loaded.turns], 0))
    if style == "websocket":
        row.append(kinds([loaded.closed]))
    return row


def _quiet_table(reports: list[Report]) -> str:
    heads = ["", "processor seconds per deploy", "over, s", "memory before, MiB", "peak, MiB", "after, MiB"]
    rows: list[list[str]] = []
    for report in reports:
        if (quiet := report.quiet) is not None:
            sizes = [spread(each, 0, 2**-20) for each in ([quiet.before], quiet.peak, quiet.after)]
            rows.append([report.title, spread(quiet.cpu), quiet.lost or spread(quiet.seconds), *sizes])
    return table(heads, rows)


def _broken_table(reports: list[Report]) -> str:
    heads = ["", "after a deploy of code that raises", "after `kill -9` of a worker beside files that raise"]
    return table(heads, [[report.title, report.broken or "-", report.crash or "-"] for report in reports])


def _timelines(reports: list[Report]) -> str:
    lines = ["## Timelines\n", f"A dot per request: {TITLES['new']}; the deploy that took the median time.\n"]
    lines += [
        f"![{report.title}: requests during a deploy](pictures/deploys-{report.name}.svg)\n"
        for report in reports
        if "new" in report.loads
    ]
    return "\n".join(lines)


def _configurations(reports: list[Report]) -> str:
    rows = [
        [
            each.title,
            _version(each),
            f"`{each.command}`",
            each.how,
            each.source,
        ]
        for each in reports
    ]
    files = [
        f"`{file}` of {each.title}:\n\n```\n{text}```"
        for each in reports
        for file, text in CONTENDERS[each.name].files.items()
    ]
    return "\n\n".join([table(["", "version", "command", "deploy", "as recommended in"], rows), *files])


def _version(report: Report) -> str:
    return f"missing: {report.missing}" if report.missing else report.version


# -- from JSON -----------------------------------------------------------------------------------------------------


def _report(plain: dict[str, Any]) -> Report:
    loads = {style: _loaded(one) for style, one in plain["loads"].items()}
    quiet = None if plain["quiet"] is None else Quiet(**plain["quiet"])
    return Report(**(plain | {"loads": loads, "quiet": quiet}))


def _loaded(plain: dict[str, Any]) -> Loaded:
    turns = [Turn(**(one | {"span": Span(**one["span"])})) for one in plain["turns"]]
    return Loaded(Span(**plain["before"]), turns, plain["closed"], plain["outside"])
