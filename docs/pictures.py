"""Draw the documentation's pictures: ``docs/pictures/*.svg``.

``python docs/pictures.py`` writes them; ``--check`` only tells, by its exit code, whether that is due.

Rules: plain SVG, no program and nothing from elsewhere is needed to look at it. Each picture brings its background, and
its colours follow the reader's light or dark scheme, so that it can be read on any page. The diagrams of states come
from ``zdworker.core.fleet``, nothing is said twice.
"""

# ruff: noqa: INP001 (a script, no package)

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from html import escape
from pathlib import Path
from typing import Any

from zdworker.core.fleet import GENERATIONS, PHASES, WORKERS

DIRECTORY = Path(__file__).with_name("pictures")

STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.small, .note { font-size: 12px }
.note { fill: #57606a; paint-order: stroke; stroke: #ffffff; stroke-width: 4 }
.middle { text-anchor: middle } .end { text-anchor: end }
.ground { fill: #ffffff } .box { fill: #eef1f4 } .tip { fill: #57606a }
.old { fill: #a9bdd6 } .new { fill: #7cc894 } .load { fill: #f0c869 } .bad { fill: #ec8e87 }
.answered { fill: #3f9d5d } .failed { fill: #c9372c }
.line { stroke: #57606a; fill: none; stroke-width: 1.5 } .mark { stroke: #57606a; stroke-dasharray: 3 4 }
.boot { stroke: #3f9d5d; fill: none; stroke-width: 1.5; stroke-dasharray: 4 3 }
.stripe { stroke: #ffffff; stroke-width: 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9da7b3; stroke: #161b22 } .ground { fill: #161b22 }
  .line, .mark { stroke: #9da7b3 } .tip { fill: #9da7b3 }
  .old { fill: #46607f } .new { fill: #2f7d4b } .load { fill: #8f6d1e } .bad { fill: #973f39 } .box { fill: #262d36 }
  .boot { stroke: #5fc283 } .stripe { stroke: #161b22 }
}
"""

PATTERN = (
    '<pattern id="drains" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="8" height="8" class="old"/><line x1="0" y1="0" x2="0" y2="8" class="stripe"/></pattern>'
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto-start-reverse">'
    '<path d="M0 0 L8 4 L0 8 z" class="tip"/></marker>'
)


@dataclass
class Picture:
    """An SVG under construction; lengths are in its units, pixels at full size.

    :param title: what a reader hears who cannot see it.
    """

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Write ``words`` with their baseline at ``y``."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str, words: str = "") -> None:
        """Draw a rectangle with ``words`` in its middle; of kind "drains" it is striped."""
        look = 'fill="url(#drains)"' if kind == "drains" else f'class="{kind}"'
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" {look}/>')
        if words:
            self.text(x + width / 2, y + height / 2 + 5, words, "middle")

    def dot(self, x: float, y: float, kind: str) -> None:
        """Draw a dot around a point."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="2.5" class="{kind}"/>')

    def path(self, data: str, kind: str = "line", tip: bool = False) -> None:
        """Draw a line along ``data`` (SVG 2, 9.3), with an arrow's tip at its end."""
        end = ' marker-end="url(#tip)"' if tip else ""
        self.parts.append(f'<path d="{data}" class="{kind}"{end} fill="none"/>')

    def svg(self) -> str:
        """Return the picture's text."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img"><title>{escape(self.title)}</title>'
        )
        ground = f'<rect width="{self.width}" height="{self.height}" rx="6" class="ground"/>'
        lines = [head, f"<style>{STYLE}</style>", f"<defs>{PATTERN}</defs>", ground, *self.parts, "</svg>"]
        return "\n".join(lines) + "\n"


# -- timelines -----------------------------------------------------------------------------------------------------

PHONE = 480
"""The width of timelines: shrunk to a phone's 360 pixels their text can still be read."""
LEFT, UNIT, END = 118, 37, 9.4
"""Where a timeline begins, what one unit of its time is, and how many units it has."""


def _at(time: float) -> float:
    return LEFT + time * UNIT


def _span(picture: Picture, begin: float, end: float, y: float, kind: str, words: str = "", height: float = 16) -> None:
    picture.bar(_at(begin), y, _at(end) - _at(begin), height, kind, words)


def _mark(picture: Picture, time: float, top: float, bottom: float, words: str) -> None:
    picture.path(f"M{_at(time):g} {top:g} V{bottom:g}", "mark")
    picture.text(_at(time), top - 6, words, "note middle")


def _key(picture: Picture, y: float, entries: list[tuple[str, str]]) -> None:
    x = 14
    for kind, words in entries:
        picture.bar(x, y, 22, 12, kind)
        picture.text(x + 28, y + 11, words, "note")
        x += 50 + 7 * len(words)


TURNS = [(2.5 + 1.5 * slot, 2.9 + 1.5 * slot, 4.0 + 1.5 * slot) for slot in range(4)]
"""Of each slot: when its new worker begins to boot, when that is ready, when the old one is gone."""


def reload() -> Picture:
    """Draw a reload that goes well."""
    picture = Picture(PHONE, 398, "A reload of four workers with zd_max_surge = 1")
    end, last = END, TURNS[-1][2]
    picture.text(14, 53, "fork servers")
    _span(picture, 0, last, 34, "old")
    _span(picture, 1, TURNS[0][0], 54, "load", "loads")
    _span(picture, TURNS[0][0], end, 54, "new")
    for slot, (boots, ready, gone) in enumerate(TURNS):
        y = 88 + 46 * slot
        picture.text(14, y + 21, f"worker, slot {slot}")
        _span(picture, 0, ready, y, "old")
        _span(picture, ready, gone, y, "drains")
        _span(picture, boots, ready, y + 20, "boot")
        _span(picture, ready, end, y + 20, "new")
    _counts(picture, end)
    for time, words in ((1, "reload"), (TURNS[0][0], "loaded"), (last, "done")):
        _mark(picture, time, 28, 326, words)
    _key(picture, 346, [("old", "old code"), ("drains", "old code, drains"), ("new", "new code")])
    _key(picture, 372, [("load", "new code loads"), ("boot", "a new worker boots")])
    return picture


def _counts(picture: Picture, end: float) -> None:
    picture.text(14, 294, "processes")
    more, again = _at(TURNS[0][0]), _at(TURNS[-1][2])  # one slot's turn begins when the one before is over
    picture.path(f"M{_at(0):g} 296 H{more:g} V282 H{again:g} V296 H{_at(end):g}")
    picture.text(_at(end) + 4, 301, "4", "note")
    picture.text(_at(TURNS[0][0]) + 4, 279, "5", "note")
    picture.text(14, 321, "ready")
    picture.path(f"M{_at(0):g} 316 H{_at(end):g}")
    picture.text(_at(end) + 4, 321, "4", "note")


def failed() -> Picture:
    """Draw a reload whose code raises."""
    picture = Picture(PHONE, 196, "A reload that fails while the new code is loaded")
    end, over = END, 3.6
    picture.text(14, 53, "fork servers")
    _span(picture, 0, end, 34, "old")
    _span(picture, 1, over, 54, "bad", "ImportError")
    picture.text(_at(over) + 8, 67, "the traceback is in the log", "note")
    for slot in range(4):
        y = 86 + 20 * slot
        picture.text(14, y + 13, f"worker, slot {slot}")
        _span(picture, 0, end, y, "old")
    _mark(picture, 1, 28, 168, "reload")
    _mark(picture, over, 28, 168, "failed: exit code 1")
    _key(picture, 176, [("old", "old code, still serving"), ("bad", "new code")])
    return picture


def given_up() -> Picture:
    """Draw a reload whose code answers a part of its requests with 500, as dots."""
    picture = Picture(PHONE, 324, "A reload whose canary fails a fifth of its requests, and is given up")
    end, asked, ready, over, gone = END, 1.0, 3.2, 6.2, 6.8
    picture.text(14, 53, "fork servers")
    _span(picture, 0, end, 34, "old")
    _span(picture, asked, over, 54, "bad")
    rows = [(f"worker, slot {slot}", 86 + 34 * slot, 0.0, end, "old") for slot in range(4)]
    rows.insert(1, ("canary, slot 0", 86 + 34 * 4, ready, over, "bad"))
    for words, y, begin, until, kind in rows:
        picture.text(14, y + 13, words)
        _span(picture, begin, until, y, kind)
        answered = until if kind == "old" else gone
        for number in range(int((answered - begin) * 5)):
            failed_one = kind == "bad" and number % 5 == 4
            picture.dot(_at(begin + 0.1 + number / 5), y + 24, "failed" if failed_one else "answered")
    for time, words in ((asked, "reload"), (ready, "canary serves"), (over, "given up: exit code 1")):
        _mark(picture, time, 28, 254, words)
    _key(picture, 268, [("old", "old code"), ("bad", "new code")])
    _key(picture, 294, [("answered", "a request that was answered"), ("failed", "one that failed")])
    return picture


def drain() -> Picture:
    """Draw what a draining worker does with its connections."""
    picture = Picture(PHONE, 352, "The connections of a worker that drains")
    begun, over = 1.0, 8.2
    rows: list[tuple[str, list[tuple[float, float, str]], str]] = [
        ("idle", [(0, begun, "boot")], "handed over at once"),
        ("request", [(0.2, 2.2, "new")], "answered, then handed over"),
        ("half a body", [(0.6, 2.4, "new")], "read, answered, handed over"),
        ("TLS, in use", [(0, 1.8, "boot"), (1.8, 2.3, "new")], "answered, Connection: close"),
        ("TLS, idle", [(0, 4.0, "boot")], "closed after keepalive"),
        ("connecting", [], "accepted by another worker"),
        ("WebSocket", [(0, 1.9, "new")], "closed with 1012, one by one"),
        ("too long", [(0.8, over, "new")], "cut"),
    ]
    _mark(picture, begun, 28, 300, "the drain begins")
    _mark(picture, over, 28, 300, "graceful_timeout")
    for number, (name, bars, words) in enumerate(rows):
        y = 40 + 32 * number
        picture.text(14, y + 13, name)
        for begin, stop, kind in bars:
            _span(picture, begin, stop, y, kind)
        picture.text(_at(bars[-1][1] if bars else begun) + 8, y + 13, words, "note")
    _key(picture, 324, [("new", "a request, or a WebSocket"), ("boot", "open and idle")])
    return picture


# -- a deploy, measured ---------------------------------------------------------------------------------------------

MEASURED = Path(__file__).with_name("deploys.json")
COMPARED = {
    "gunicorn-uvicorn_worker-hup": "Gunicorn, HUP",
    "zdworker-UvicornWorker-preload": "zdworker, --preload",
}
EDGE, FAR, PANEL, ROOM, BELOW = 44, PHONE - 14, 170, 84, 34
"""Where the time begins and ends, the height of a panel, and how high its answers and how deep its others reach."""
LEAD = 0.15
"""Imports before the signal that are shown."""
DECADES, CEILING = (1, 10, 100), 1000
"""Answers in a tenth of a second."""


def crowd() -> Picture:
    """Draw a deploy under a thousand keep-alive connections, with Gunicorn's own reload and with zdworker.

    Both are on one time axis. Its unit is an import, since the machine had other work: how long one takes was measured
    right before each deploy.
    """
    known = json.loads(MEASURED.read_text(encoding="utf-8"))["contenders"]
    found = {words: known[name]["loads"]["crowd"] for name, words in COMPARED.items()}
    last = max(loaded["turns"][0]["seconds"] / loaded["work_s"] for loaded in found.values()) + 0.1
    picture = Picture(PHONE, PANEL * len(found) + 88, "A deploy under a thousand keep-alive connections")
    width = (FAR - EDGE) / (LEAD + last)
    for number, (words, loaded) in enumerate(found.items()):
        _panel(picture, PANEL * number + 8, words, loaded, width)
    foot = PANEL * len(found) + 22
    for number in range(math.floor(last) + 1):
        words = ("the signal", "one import", f"{number} imports")[min(number, 2)]
        picture.text(EDGE + (LEAD + number) * width, foot, words, "note middle")
    _key(picture, foot + 16, [("old", "answered: old code"), ("new", "answered: new code")])
    _key(picture, foot + 42, [("bad", "failed"), ("load", "connections opened again")])
    return picture


def _panel(picture: Picture, top: float, words: str, loaded: dict[str, Any], width: float) -> None:
    """Draw what came of the requests: answers go up from the axis, failures and new connections go down from it."""
    (turn,), work_s, axis = loaded["turns"], loaded["work_s"], top + PANEL - BELOW - 6
    failed = sum(turn["span"]["failures"].values())
    facts = f"{failed:,} requests failed, {loaded['reconnects']:,} connections had to be opened again"
    picture.text(14, top + 16, f"{words}: longest gap {turn['span']['gap'] / work_s:.2g} imports")
    picture.text(14, top + 33, facts, "note")
    for value in DECADES:
        y = axis - _height(value, ROOM)
        picture.path(f"M{EDGE} {y:g} H{FAR}", "mark")
        picture.text(EDGE - 6, y + 4, str(value), "note end")
    for number in range(math.floor((FAR - EDGE) / width - LEAD) + 1):
        picture.path(f"M{EDGE + (LEAD + number) * width:g} {axis - ROOM:g} V{axis + BELOW:g}", "mark")
    for begin, old, new, broken, opened in loaded["course"]:
        x, right = (EDGE + (LEAD + second / work_s) * width for second in (begin, begin + 0.1))
        if x < EDGE or right > FAR:
            continue
        height = _height(old + new, ROOM)
        share = height * old / max(old + new, 1)
        down = _height(broken, BELOW)
        bars = [(axis - share, share, "old"), (axis - height, height - share, "new")]
        bars += [(axis, down, "bad"), (axis + down, _height(opened, BELOW - down), "load")]
        for y, size, kind in bars:
            if size:
                picture.bar(x, y, right - x, size, kind)
    end = EDGE + (LEAD + loaded["course"][-1][0] / work_s) * width
    picture.path(f"M{EDGE} {axis:g} H{min(end, FAR):g}")
    if end < FAR - 100:
        picture.text(end + 8, axis + 4, "deploy over", "note")


def _height(count: int, room: float) -> float:
    """Return how far so many reach, on a logarithmic axis that begins with a half."""
    return math.log(min(count, CEILING) * 2) / math.log(CEILING * 2) * room if count else 0.0


# -- processes -----------------------------------------------------------------------------------------------------


def processes() -> Picture:
    """Draw who is whose child in the middle of a reload."""
    picture = Picture(910, 250, "The processes in the middle of a reload")
    picture.bar(300, 18, 310, 48, "box")
    picture.text(455, 38, "gunicorn master", "middle")
    picture.text(455, 57, "keeps its PID; has the sockets; no application", "small middle")
    children = [
        ("fork server", "generation 1", "old", 14),
        ("fork server", "generation 2", "new", 164),
        ("worker, slot 0", "generation 2", "new", 334),
        ("worker, slot 0", "generation 1, drains", "drains", 476),
        ("worker, slot 1", "generation 1", "old", 618),
        ("worker, slot 2", "generation 1", "old", 760),
    ]
    for name, words, kind, x in children:
        picture.path(f"M455 66 C455 100 {x + 68} 84 {x + 68} 118", tip=True)
        picture.bar(x, 120, 136, 46, kind)
        if kind == "drains":
            picture.bar(x + 6, 125, 124, 36, "box")
        picture.text(x + 68, 140, name, "middle")
        picture.text(x + 68, 157, words, "small middle")
    picture.path("M232 168 C232 204 402 204 402 170", "boot")
    picture.path("M82 168 C82 236 686 236 686 170", "boot")
    picture.text(14, 240, "dashed: from which fork server a worker was forked; the master became its parent", "note")
    return picture


# -- states --------------------------------------------------------------------------------------------------------

ROW, MIDDLE = 78, 200
"""From one state to the next below it, and where the column of states stands."""


def states(title: str, table: Mapping[Any, Enum]) -> Picture:
    """Draw a state table: states in a column, what leads down on the right, up on the left."""
    order = list(type(next(iter(table.values()))))
    causes: dict[tuple[Enum, Enum], list[str]] = {}
    for (before, cause), after in table.items():
        if before is not after:
            causes.setdefault((before, after), []).append(cause.value)
    picture = Picture(640, 40 + ROW * len(order) - 30, title)
    for number, state in enumerate(order):
        picture.bar(MIDDLE - 60, 20 + ROW * number, 120, 32, "new", str(state.value))
    far = []
    for (before, after), names in causes.items():
        first, last = order.index(before), order.index(after)
        if last - first == 1:
            picture.path(f"M{MIDDLE} {52 + ROW * first} V{19 + ROW * last}", tip=True)
            picture.text(MIDDLE + 6, 73 + ROW * first, ", ".join(names), "note")
        else:
            far.append((first, last, names))
    # The longer one goes around the shorter one: no two cross on their way.
    for down in (True, False):
        arcs = sorted((arc for arc in far if (arc[1] > arc[0]) is down), key=lambda arc: abs(arc[1] - arc[0]))
        for depth, (first, last, names) in enumerate(arcs):
            _arc(picture, first, last, depth, names)
    return picture


def _arc(picture: Picture, first: int, last: int, depth: int, names: list[str]) -> None:
    side = 1 if last > first else -1
    edge, reach, shift = MIDDLE + side * 60, MIDDLE + side * (110 + 80 * depth), side * (9 - 6 * depth)
    begin, end = 36 + ROW * first + shift, 36 + ROW * last - shift
    picture.path(f"M{edge} {begin} C{reach} {begin} {reach} {end} {edge + side} {end}", tip=True)
    # The middle of the curve: three quarters of the way from the edge to where it aims at.
    x, y = edge + 0.75 * (reach - edge) + side * 5, (begin + end) / 2 + 4 - 14 * (len(names) - 1)
    for number, name in enumerate(names):
        picture.text(x, y + 14 * number, name, "note" if side > 0 else "note end")


PICTURES: Mapping[str, Callable[[], Picture]] = {
    "reload": reload,
    "failed": failed,
    "given-up": given_up,
    "drain": drain,
    "kept-connections": crowd,
    "processes": processes,
    "state-fleet": lambda: states("The states of the fleet", PHASES),
    "state-worker": lambda: states("The states of a worker", WORKERS),
    "state-generation": lambda: states("The states of a generation", GENERATIONS),
}


def drawn() -> Iterator[tuple[Path, str]]:
    """Yield each picture's file and its text."""
    for name, draw in PICTURES.items():
        yield DIRECTORY / f"{name}.svg", draw().svg()


def main(arguments: list[str]) -> int:
    """Write the pictures, or check them; 1 when one is out of date."""
    found: dict[Path, Any] = {path: path.read_text() if path.exists() else None for path, _ in drawn()}
    if "--check" in arguments:
        return int(any(found[path] != text for path, text in drawn()))
    for path, text in drawn():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
