"""Pictures of the memory over a deploy, and of how a reload grows with the number of workers.

Rules:

* As in ``pictures.py``: plain SVG that follows the reader's light or dark scheme, the same scales for all.
* What has to be compared stands side by side on one scale; who is worst is seen without reading a number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from html import escape

from tests.benchmarks.deploys.figures import Report
from tests.benchmarks.deploys.growth import WORKERS, Grown
from tests.benchmarks.deploys.pictures import STYLE

MORE = """
.curve { fill: none; stroke: #1f8a4c; stroke-width: 2 } .other { stroke: #8094b4 } .limit { stroke-dasharray: 2 4 }
.area { fill: #1f8a4c; opacity: 0.18 }
@media (prefers-color-scheme: dark) {
  .curve { stroke: #56d08a } .other { stroke: #6b8bb0 } .area { fill: #56d08a }
}
"""
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 3, 300, 122
LONGEST = 30.0
"""Seconds of a deploy that are shown."""
MIB = 2**20


def memory(reports: Iterable[Report]) -> str:
    """A small picture per contender: the memory of all its processes over its first deploy of code with 150 MB."""
    shown = [(report, report.quiet) for report in reports if report.quiet is not None and report.quiet.curve]
    most = max(size for _, quiet in shown for _, size in quiet.curve)
    longest = min(max(quiet.curve[-1][0] for _, quiet in shown), LONGEST)
    rows = math.ceil(len(shown) / COLUMNS)
    width, height = COLUMNS * PANEL_WIDTH + 10, rows * PANEL_HEIGHT + 40
    parts = [_head(width, height, "Memory over a deploy")]
    for number, (report, quiet) in enumerate(shown):
        left, top = 10 + number % COLUMNS * PANEL_WIDTH, 10 + number // COLUMNS * PANEL_HEIGHT
        right, bottom, ceiling = left + PANEL_WIDTH - 20, top + PANEL_HEIGHT - 14, top + 34
        spots = [
            (
                left + min(max(second, 0.0), longest) / longest * (right - left),
                bottom - size / most * (bottom - ceiling),
            )
            for second, size in quiet.curve
        ]
        level = bottom - quiet.before / most * (bottom - ceiling)
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in spots)
        parts += [
            _text(left, top + 12, report.title, "note"),
            _text(right, top + 28, f"{max(size for _, size in quiet.curve) / MIB:,.0f} MiB", "note end"),
            f'<polygon class="area" points="{spots[0][0]:.0f},{bottom} {line} {spots[-1][0]:.0f},{bottom}"/>',
            f'<polyline class="curve" points="{line}"/>',
            f'<path class="mark" d="M{left} {level:.0f}H{right}"/><path class="grid" d="M{left} {bottom}H{right}"/>',
        ]
    words = f"all on one scale, {longest:.0f} s wide; dashed: before the signal; the number: the most"
    return "\n".join([*parts, _text(10, height - 10, words, "note"), "</svg>"]) + "\n"


LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT = 64, 760, 44, 270, 910, 310
DECADES = ((0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s"), (100.0, "100 s"))


def growing(grown: Sequence[Grown]) -> str:
    """Seconds of a reload by the number of workers, with and without ``--preload``, and the limit."""
    parts = [_head(WIDTH, HEIGHT, "A reload by the number of workers")]
    parts.append(_text(LEFT, 24, "zdworker.UvicornWorker: seconds of a reload, by the number of workers", "title"))
    for value, name in DECADES:
        parts.append(f'<path class="grid" d="M{LEFT} {_up(value):.0f}H{RIGHT}"/>')
        parts.append(_text(LEFT - 6, _up(value) + 4, name, "note end"))
    parts += [_text(_across(number), BOTTOM + 17, str(number), "note middle") for number in WORKERS]
    preloaded = [one for one in grown if one.preload]
    curves = [
        ("curve other", "without --preload", [(one.workers, one.seconds) for one in grown if not one.preload]),
        ("curve", "--preload", [(one.workers, one.seconds) for one in preloaded]),
        ("curve limit", "one import, n forks", [(one.workers, one.limit) for one in preloaded]),
    ]
    for kind, words, values in curves:
        spots = [(_across(workers), _up(statistics.median(seconds))) for workers, seconds in values]
        if spots:
            parts.append(f'<polyline class="{kind}" points="{" ".join(f"{x:.0f},{y:.0f}" for x, y in spots)}"/>')
            parts.append(_text(spots[-1][0] + 8, spots[-1][1] + 4, words, "note"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _across(workers: int) -> float:
    return LEFT + 10 + math.log2(workers) / math.log2(WORKERS[-1]) * (RIGHT - LEFT - 20)


def _up(seconds: float) -> float:
    least, most = DECADES[0][0], DECADES[-1][0]
    share = math.log10(min(max(seconds, least), most) / least) / math.log10(most / least)
    return BOTTOM - share * (BOTTOM - TOP)


def _head(width: int, height: int, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{escape(title)}</title><style>{STYLE}{MORE}</style>'
        f'<rect width="{width}" height="{height}" rx="6" class="ground"/>'
    )


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{escape(words)}</text>'
