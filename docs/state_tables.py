"""Write the core's state tables into docs/architecture.md, between its markers.

``python docs/state_tables.py`` rewrites the document; ``--check`` only tells, by its exit code, whether that is due.

Rules: the tables come from ``zdworker.core.fleet``, nothing is said twice; what is outside the markers is not touched.
The pictures beside them are drawn by ``pictures.py``, from the same tables.
"""

# ruff: noqa: INP001 (a script, no package)

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from zdworker.core.fleet import GENERATIONS, PHASES, WORKERS

DOCUMENT = Path(__file__).with_name("architecture.md")
BEGIN = "<!-- state tables: written by docs/state_tables.py, not by hand -->"
END = "<!-- end of state tables -->"

TABLES: Mapping[str, tuple[str, str, Mapping[tuple[Any, Any], Any]]] = {
    "The fleet": (
        "fleet",
        "`converged`: each slot has the worker that it should have; `empty`: no worker is left",
        PHASES,
    ),
    "A worker": ("worker", "`expire`: its deadline is over; after `gone` it is removed", WORKERS),
    "A generation": (
        "generation",
        "`configuring`: the master takes its configuration over; `gone`: its fork server's process has ended",
        GENERATIONS,
    ),
}


def text() -> str:
    """Return what stands between the markers."""
    parts = [_section(title, picture, note, table) for title, (picture, note, table) in TABLES.items()]
    return "\n\n".join([BEGIN, *parts, END])


def _section(title: str, picture: str, note: str, table: Mapping[tuple[Enum, Enum], Enum]) -> str:
    return f"### {title}\n\n{note}.\n\n![{title}: its states](pictures/state-{picture}.svg)\n\n{_grid(table)}"


def _grid(table: Mapping[tuple[Enum, Enum], Enum]) -> str:
    """Return the table as state × cause; a dash is what is illegal."""
    states = list(type(next(iter(table))[0]))
    causes = list(dict.fromkeys(cause for _, cause in table))
    rows = [["", *(cause.value for cause in causes)], ["---"] * (len(causes) + 1)]
    for state in states:
        cells = [table[state, cause].value if (state, cause) in table else "-" for cause in causes]
        rows.append([f"**{state.value}**", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def renewed(document: str) -> str:
    """Return the document with the tables of today.

    :raises ValueError: it has no markers.
    """
    head, begin, rest = document.partition(BEGIN)
    _old, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{DOCUMENT.name} lacks the markers {BEGIN!r} and {END!r}")
    return head + text() + tail


def main(arguments: list[str]) -> int:
    """Rewrite the document, or check it; 1 when it is out of date."""
    document = DOCUMENT.read_text(encoding="utf-8")
    if "--check" in arguments:
        return int(document != renewed(document))
    DOCUMENT.write_text(renewed(document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
