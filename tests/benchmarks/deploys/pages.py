"""``docs/deploys.md``, ``docs/deploys-appendix.md`` and ``docs/deploys.json`` from the reports.

Rules:

* Each run writes both pages whole, from the JSON. What people have made of the figures is a page of its own
  (``docs/deploys-found.md``), and is written by hand.
* Who is missing stands in the table with the reason; what could not be measured stands below it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.deploys.contenders import CONTENDERS, Style
from tests.benchmarks.deploys.curves import growing, memory
from tests.benchmarks.deploys.figures import Hurt, Loaded, Quiet, Report, Span, Storm, Turn, kinds, spread
from tests.benchmarks.deploys.growth import Grown
from tests.benchmarks.deploys.loads import TITLES
from tests.benchmarks.deploys.measures import Size
from tests.benchmarks.deploys.servers import KEEPALIVE_S

HEAD = """\
# Deploys at a glance

A server is deployed to while it serves: what do its clients notice, and what does the deploy cost? Each server that can
be deployed to without a stop was measured under the same loads, on the same machine. The table has the sums of all
loads. [What was found](deploys-found.md) says what the figures mean and why they are so, and
[the appendix](deploys-appendix.md) has them all.

![HUP: no answer while the application is imported. zdworker: every request answered](pictures/kept-connections.svg)

"""

MEASURED = """\
## How it was measured

* {workers} workers each. The application's import is one second of work; without load it also keeps 150 MB of objects.
* {deploys} deploys per load, or one fewer, and one with a thousand keep-alive connections.
* *Failed* counts the requests that were sent and not answered whole with 200, and the connections that could not be
  made. A WebSocket that is closed with a close frame has failed only if it left a message unanswered.
* *p99* and *longest gap* are those of requests on new connections, from the signal until a second after the deploy was
  over.
* *Over* is the time from the signal until only the new version answers, from all workers, and no old process is left.
* *Faulty code*: a deploy of code that answers every fifth request with 500; the requests that fail within 30 s.
* *Broken code*: a deploy of code that raises when it is imported. *A crash*: `kill -9` of a worker beside such files.

`tox -e bench` takes these figures (`tests/benchmarks/deploys/`) and writes this page and the appendix; `deploys.json`
has them as data. Take your own on your own machine.
"""

APPENDIX = """\
# Deploys: all figures

The figures behind [deploys at a glance](deploys.md), which says how they were measured. Written by `tox -e bench`.

* A figure is the median of the deploys under one load (least to most); a number of failures is their sum.
* *During* is from the signal until a second after the deploy was over. *Before* is the time until the first signal.
* *Ready*: workers that were between their first and their last answer at the same time, at least, for 0.1 s or longer.
* *Over*: from the signal. *Last old answer*: from the signal to the last answer of the version before.
"""

CROWD = """\
Each client has one connection, on which it sends a POST of 2 kB, and rests from a tenth of a second to ten seconds
between an answer and the next request. Every server that keeps connections keeps an idle one for {keepalive} s. One
deploy. A client connects again when its connection is closed, when the server announces that, or when a request fails.
uWSGI's `http-socket`, `sync` and `WSGIWorker` keep none.
Times are in imports: an import is a second of processor time, and the last column has how long that took right before
the deploy. Taken on {taken}.
"""
STORM = """\
`ab -n 100000 -c 1000` (a connection for each request) and `wrk -c 1000` (kept where the server keeps them), one deploy
in the middle. The machine has nothing left meanwhile. *Gone*: from the signal until the last old worker was gone, "-":
not while the load lasted.
"""
FAULTY = """\
The new code starts well, and answers every fifth request with 500. Eight clients, a connection for each request; from
the signal on, for {seconds:.0f} s. zdworker has `zd_max_error_rate = 5` and `zd_canary_seconds = 10`. The others have
nothing like it: they go on to fail until somebody notices and deploys the old code.
"""
GROWTH = """\
`zdworker.UvicornWorker`, an import of a fifth of a second, no load. *Limit*: in the same run, one import in a fresh
interpreter and then a fork for each worker, one after the other. *Master*: its processor time for a reload.
"""


def store(
    directory: Path, machine: dict[str, str], size: Size, reports: Iterable[Report] = (), grown: Sequence[Grown] = ()
) -> None:
    """Write pages, data and those pictures that show all; what was not measured now stays as it was measured before."""
    data = directory / "deploys.json"
    known: dict[str, Any] = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    known = {"contenders": {}, "growth": [], **known, "machine": machine, "size": dataclasses.asdict(size)}
    for report in reports:
        before = known["contenders"].get(report.name, {"loads": {}, "storms": {}})
        now = dataclasses.asdict(report)
        for each in ("loads", "storms"):
            now[each] = before[each] | now[each]
        for each in ("quiet", "hurt", "broken", "crash"):
            now[each] = now[each] or before.get(each, now[each])
        known["contenders"][report.name] = now
    if grown:
        known["growth"] = [dataclasses.asdict(one) for one in grown]
    data.write_text(json.dumps(known, separators=(",", ":")).replace('"name":', '\n"name":') + "\n", encoding="utf-8")
    (directory / "deploys.md").write_text(glance(known), encoding="utf-8")
    (directory / "deploys-appendix.md").write_text(appendix(known), encoding="utf-8")
    _draw(directory / "pictures", known)


def _draw(directory: Path, known: dict[str, Any]) -> None:
    directory.mkdir(exist_ok=True)
    reports = _reports(known)
    if any(report.quiet is not None and report.quiet.curve for report in reports):
        (directory / "deploys-memory.svg").write_text(memory(reports), encoding="utf-8")
    if known["growth"]:
        (directory / "deploys-growth.svg").write_text(growing(_grown(known)), encoding="utf-8")


def glance(known: dict[str, Any]) -> str:
    """The whole of ``docs/deploys.md``."""
    there = [report for report in _reports(known) if not report.missing]
    return f"{HEAD}{_glance(there)}\n\n{MEASURED.format(**known['size'])}"


def appendix(known: dict[str, Any]) -> str:
    """The whole of ``docs/deploys-appendix.md``."""
    reports = _reports(known)
    there = [report for report in reports if not report.missing]
    parts = [APPENDIX]
    for style, title in TITLES.items():
        body = _crowd_section(there) if style == "crowd" else _load_table(style, there)
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n{body}\n")
    parts.append(f"## A thousand connections that never rest\n\n{STORM}\n{_storm_table(there)}\n")
    parts.append(f"## Processor time and memory, without load\n\n{_quiet_table(there)}\n")
    if any(report.quiet is not None and report.quiet.curve for report in there):
        parts.append("![Memory of each over its first deploy](pictures/deploys-memory.svg)\n")
    if seconds := [report.hurt.seconds for report in there if report.hurt is not None]:
        parts.append(f"## Code that fails\n\n{FAULTY.format(seconds=seconds[0])}\n{_hurt_table(there)}\n")
    parts.append(f"## Broken code, and a crash\n\n{_broken_table(there)}\n")
    if known["growth"]:
        parts.append(f"## Growth\n\n{GROWTH}\n{_growth_table(_grown(known))}\n")
        parts.append("![Seconds of a reload by the number of workers](pictures/deploys-growth.svg)\n")
    parts.append(_timelines(there))
    parts.append(f"## Configurations\n\n{_configurations(reports)}\n")
    if problems := [f"* {report.title}: {problem}" for report in reports for problem in report.problems]:
        parts.append("## What could not be measured\n\n" + "\n".join(problems) + "\n")
    taken = "\n".join(f"* {name} {value}" for name, value in known["machine"].items())
    return "\n".join([*parts, f"Taken on:\n\n{taken}\n"])


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _glance(reports: list[Report]) -> str:
    heads = ["", "failed, all loads", "p99 of new connections, ms", "longest gap, ms", "over, s"]
    heads += ["processor, s", "peak, MiB", "hurt by faulty code", "after broken code", "after a crash beside it"]
    rows: list[list[str]] = []
    for report in reports:
        failures = [one.span.failures for loaded in report.loads.values() for one in loaded.turns]
        failures += [loaded.outside for loaded in report.loads.values()]
        failures += [storm.failures for storm in report.storms.values()]
        failed = sum(sum(counts.values()) for counts in failures)
        new = report.loads["new"].turns if "new" in report.loads else []
        quiet = report.quiet or Quiet([], [], 0, [], [])
        rows.append(
            [
                report.title,
                f"**{failed:,}**" if failed else "0",
                spread([_median([one.span.p99 for one in new])], 0, 1000),
                spread([_median([one.span.gap for one in new])], 0, 1000),
                spread([_median([one.seconds for one in new])], 1),
                spread([_median(quiet.cpu)], 1),
                spread([_median(quiet.peak)], 0, 2**-20),
                _hurt(report.hurt),
                report.broken.partition(";")[0] or "-",
                report.crash.partition(";")[0] or "-",
            ]
        )
    return table(heads, rows)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _load_table(style: Style, reports: list[Report]) -> str:
    heads = ["", "failed", "p50, ms: before → during", "p99, ms", "p99.9, ms", "longest gap, ms", "last old answer, s"]
    heads.append("over, s")
    if style == "new":
        heads.append("ready, at least")
    if style == "websocket":
        heads.append("closed")
    return table(heads, [_load_row(report, report.loads[style], style) for report in reports if style in report.loads])


def _crowd_section(reports: list[Report]) -> str:
    heads = [
        "",
        "failed",
        "connections made again",
        "p99, ms: before → during",
        "longest gap",
        "last old answer",
        "over",
    ]
    rows: list[list[str]] = []
    for report in reports:
        if (loaded := report.loads.get("crowd")) is None:
            continue
        (turn,), again, work_s = loaded.turns, loaded.reconnects or 0, loaded.work_s or 1.0
        failed = kinds([turn.span.failures, loaded.outside])
        row = [report.title, failed if failed == "0" else f"**{failed}**", f"**{again:,}**" if again else "0"]
        row.append(" → ".join(spread([one.p99], 0, 1000) for one in (loaded.before, turn.span)))
        row += [spread([each], 1, 1 / work_s) for each in (turn.span.gap, turn.last_old)]
        row.append(turn.lost or spread([turn.seconds], 1, 1 / work_s))
        rows.append([*row, f"{work_s:.1f}"])
    taken = max((report.taken[:10] for report in reports if "crowd" in report.loads), default="")
    about = CROWD.format(keepalive=KEEPALIVE_S, taken=taken)
    return f"{about}\n{table([*heads, 'a second of work, s'], rows)}"


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


def _storm_table(reports: list[Report]) -> str:
    heads = ["", "`ab`: failed", "gone, s", "`wrk`: failed", "gone, s", "requests/s: without a deploy → with it"]
    rows: list[list[str]] = []
    for report in reports:
        if not report.storms:
            continue
        row = [report.title]
        for name in ("ab", "wrk"):
            if (storm := report.storms.get(name)) is None:
                row += ["-", "-"]
                continue
            failed = kinds([storm.failures])
            row += [failed if failed == "0" else f"**{failed}**", storm.lost or spread([storm.seconds], 1)]
        wrk = report.storms.get("wrk")
        rows.append([*row, f"{wrk.steady or 0:,.0f} → {wrk.rate:,.0f}" if wrk else "-"])
    return table(heads, rows)


def _growth_table(grown: list[Grown]) -> str:
    heads = ["workers", "`--preload`", "over, s", "limit, s", "master, ms", "all processes, s"]
    heads += ["memory before, MiB", "peak, MiB"]
    rows = [
        [
            str(one.workers),
            "yes" if one.preload else "no",
            spread(one.seconds),
            spread(one.limit),
            spread(one.master, 0, 1000),
            spread(one.spent),
            spread([one.before], 0, 2**-20),
            spread(one.peak, 0, 2**-20),
        ]
        for one in grown
    ]
    return table(heads, rows)


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


def _hurt(hurt: Hurt | None) -> str:
    return "-" if hurt is None else f"{hurt.failed:,} of {hurt.answers + hurt.failed:,}"


def _hurt_table(reports: list[Report]) -> str:
    heads = ["", "failed requests", "share", "last failure, s", "version that answers at the end"]
    rows = [
        [
            report.title,
            _hurt(hurt),
            f"{100 * hurt.failed / max(1, hurt.answers + hurt.failed):.1f} %",
            spread([hurt.last], 1),
            hurt.version,
        ]
        for report in reports
        if (hurt := report.hurt) is not None
    ]
    return table(heads, rows)


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
        f"`{file}` of {each.title}:\n\n```text\n{text}```"
        for each in reports
        for file, text in CONTENDERS[each.name].files.items()
    ]
    return "\n\n".join([table(["", "version", "command", "deploy", "as recommended in"], rows), *files])


def _version(report: Report) -> str:
    return f"missing: {report.missing}" if report.missing else report.version


# -- from JSON -----------------------------------------------------------------------------------------------------


def _reports(known: dict[str, Any]) -> list[Report]:
    return [_report(known["contenders"][name]) for name in CONTENDERS if name in known["contenders"]]


def _grown(known: dict[str, Any]) -> list[Grown]:
    return [Grown(**one) for one in known["growth"]]


def _report(plain: dict[str, Any]) -> Report:
    loads = {style: _loaded(one) for style, one in plain["loads"].items()}
    storms = {name: Storm(**one) for name, one in plain["storms"].items()}
    quiet = None if plain["quiet"] is None else Quiet(**plain["quiet"])
    hurt = None if plain.get("hurt") is None else Hurt(**plain["hurt"])
    return Report(**(plain | {"loads": loads, "storms": storms, "quiet": quiet, "hurt": hurt}))


def _loaded(plain: dict[str, Any]) -> Loaded:
    turns = [Turn(**(one | {"span": Span(**one["span"])})) for one in plain["turns"]]
    return Loaded(**(plain | {"before": Span(**plain["before"]), "turns": turns}))
