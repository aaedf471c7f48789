"""One timeline per contender: a dot for each request, when × how long, in its version's colour, failures in red.

Rules:

* Plain SVG with its own background; the colours follow the reader's light or dark scheme. Old and new differ in
  lightness too, failures in shape, so that nobody has to see colours.
* The same scales for all: nine seconds to a width are a different picture from thirty, so every picture says its time.
* Dots on the same spot are drawn once; no failure is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from html import escape

from tests.benchmarks.deploys.measures import Timeline, middle

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 } .note { fill: #57606a; font-size: 12px }
.end { text-anchor: end } .middle { text-anchor: middle }
.ground { fill: #ffffff } .grid { stroke: #d8dee4; stroke-width: 1 } .mark { stroke: #57606a; stroke-dasharray: 3 4 }
.old, .new { fill: none; stroke-width: 3; stroke-linecap: round } .bad { fill: none; stroke-width: 2 }
.old { stroke: #8094b4 } .new { stroke: #1f8a4c } .bad { stroke: #d1242f } .badtext { fill: #d1242f; font-weight: 600 }
.gap { fill: #d1242f; opacity: 0.09 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9da7b3 } .ground { fill: #161b22 } .grid { stroke: #30363d }
  .mark { stroke: #9da7b3 } .old { stroke: #6b8bb0 } .new { stroke: #56d08a } .bad { stroke: #ff6b60 }
  .badtext { fill: #ff6b60 } .gap { fill: #ff6b60; opacity: 0.14 }
}
"""
WIDTH, HEIGHT = 910, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 890, 64, 252
LEAD = 0.9
"""Seconds that are shown before the signal. Further away the workers are counted, which holds them up."""
DECADES = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
NAMES = ("0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s")
NOTICED = 0.25
"""Seconds without an answer that are shown as such."""
STEPS = (0.5, 1, 2, 5, 10, 20)


def timeline(title: str, load: str, shown: Timeline) -> str:
    """The picture's text: the deploy of median length."""
    deploy = middle(shown)
    begin = max(deploy.told - LEAD, shown.begin)
    end = min(deploy.end, shown.end)

    def across(moment: float) -> float:
        return LEFT + (moment - begin) / (end - begin) * (RIGHT - LEFT)

    groups: dict[str, dict[tuple[int, int], None]] = {"old": {}, "new": {}}
    for answer in shown.seen.answers:
        if begin <= answer.time <= end:
            kind = "new" if answer.version == deploy.version else "old"
            groups[kind][round(across(answer.time)), round(_up(answer.latency))] = None
    failures = [failure for failure in shown.seen.failures if begin <= failure.time <= end]
    spots = [(round(across(failure.time)), round(_up(failure.latency))) for failure in failures]
    caption = f"{len(failures)} of the requests shown failed" if failures else "no request failed"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img"><title>{escape(title)}: a deploy, {escape(load)}; {caption}</title>'
    )
    parts = [head, f"<style>{STYLE}</style>", f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" class="ground"/>']
    parts += [_text(LEFT, 24, title, "title"), _text(RIGHT, 24, caption, "end badtext" if failures else "end")]
    parts += [*_gap(shown, begin, end, across), *_scales(begin, end, deploy.told)]
    parts += _mark(across(deploy.told), "told")
    if deploy.over is not None:
        parts += _mark(across(deploy.over), f"over, {deploy.over - deploy.told:.1f} s")
    parts += [f'<path class="{kind}" d="{_dots(list(group))}"/>' for kind, group in groups.items()]
    if spots:
        parts.append(f'<path class="bad" d="{_crosses(spots)}"/>')
    parts += [*_key(load), "</svg>"]
    return "\n".join(parts) + "\n"


def _gap(shown: Timeline, begin: float, end: float, across: Callable[[float], float]) -> list[str]:
    """The longest time without an answer, if it is one that somebody notices."""
    arrivals = sorted(answer.time + answer.latency for answer in shown.seen.answers)
    moments = [begin, *(moment for moment in arrivals if begin <= moment <= end), end]
    first, last = max(itertools.pairwise(moments), key=lambda pair: pair[1] - pair[0])
    if last - first < NOTICED:
        return []
    band = f'<rect x="{across(first):.0f}" y="{TOP}" width="{across(last) - across(first):.0f}" '
    middle_of = (across(first) + across(last)) / 2
    words = f"{last - first:.1f} s without an answer"
    return [f'{band}height="{BOTTOM - TOP}" class="gap"/>', _text(middle_of, BOTTOM - 12, words, "note middle")]


def _up(latency: float) -> float:
    """Where a latency stands: decades from 1 ms to 10 s."""
    share = math.log10(min(max(latency, DECADES[0]), DECADES[-1]) / DECADES[0]) / (len(DECADES) - 1)
    return BOTTOM - share * (BOTTOM - TOP)


def _dots(spots: list[tuple[int, int]]) -> str:
    """Round ends of lines without length (SVG 2, 13.5.4): the shortest way to write a dot."""
    return "".join(f"M{x} {y}h0" for x, y in spots)


def _crosses(spots: list[tuple[int, int]]) -> str:
    return "".join(f"M{x - 3} {y - 3}l6 6m0-6l-6 6" for x, y in dict.fromkeys(spots))


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{escape(words)}</text>'


def _mark(x: float, words: str) -> list[str]:
    kind = "note end" if x > (LEFT + RIGHT) / 2 else "note"
    shift = -4 if x > (LEFT + RIGHT) / 2 else 4
    return [f'<path d="M{x:.0f} {TOP - 18}V{BOTTOM}" class="mark"/>', _text(x + shift, TOP - 8, words, kind)]


def _scales(begin: float, end: float, told: float) -> list[str]:
    parts: list[str] = []
    for value, name in zip(DECADES, NAMES, strict=True):
        y = _up(value)
        parts.append(f'<path d="M{LEFT} {y:.0f}H{RIGHT}" class="grid"/>')
        parts.append(_text(LEFT - 6, y + 4, name, "note end"))
    step = next((step for step in STEPS if (end - begin) / step <= 12), 30)
    number = math.ceil((begin - told) / step)
    while told + number * step <= end:
        x = LEFT + (told + number * step - begin) / (end - begin) * (RIGHT - LEFT)
        parts.append(f'<path d="M{x:.0f} {BOTTOM}v5" class="grid"/>')
        parts.append(_text(x, BOTTOM + 17, f"{number * step:g} s", "note middle"))
        number += 1
    return parts


def _key(load: str) -> list[str]:
    y, parts, x = HEIGHT - 12, list[str](), float(LEFT)
    for kind, words in (("old", "old version"), ("new", "new version")):
        parts += [f'<path class="{kind}" d="{_dots([(round(x) + 4, y - 4)])}"/>', _text(x + 14, y, words, "note")]
        x += 110
    parts += [f'<path class="bad" d="{_crosses([(round(x) + 4, y - 4)])}"/>', _text(x + 14, y, "failed", "note")]
    return [*parts, _text(RIGHT, y, load, "note end")]
