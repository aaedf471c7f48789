"""The differences from stock that are meant, or known: the table of docs/reliability.md is their one list.

A row names suite, worker classes or variants, states and cases; a case that ends in an ellipsis stands for all whose
names begin so. A row that nothing differs by any more is an error, as is a difference that no row names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tests.harness import documents

PAGE = "docs/reliability.md"
BEGIN, END = "<!-- differences -->", "<!-- end of differences -->"
CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Known:
    """One row."""

    suite: str
    variants: tuple[str, ...]
    states: tuple[str, ...]
    cases: tuple[str, ...]

    def about(self, suite: str, variant: str, state: str) -> bool:
        return suite == self.suite and variant in self.variants and state in self.states


def listed() -> list[Known]:
    """Return the rows of the table."""
    text = documents.text(PAGE).partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [Known(row[0], *(tuple(CODE.findall(cell)) for cell in row[1:4])) for row in rows[2:]]


def _is(name: str, case: str) -> bool:
    return name.startswith(case[:-1]) if case.endswith("…") else name == case


def judge(suite: str, variant: str, state: str, differing: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the differences that no row names, and what rows name although it does not differ."""
    found = set(differing)
    cases = [case for known in listed() if known.about(suite, variant, state) for case in known.cases]
    unlisted = sorted(name for name in found if not any(_is(name, case) for case in cases))
    stale = sorted(case for case in cases if not any(_is(name, case) for name in found))
    return unlisted, stale
