"""Each row of docs/reliability.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.suites.differences import BEGIN, END, listed

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"
NAME = re.compile(r"`(\w+/test_\w+):(test_\w+)`")


def defined(file: str) -> set[str]:
    path = ROOT / "tests" / "integration" / f"{file}.py"
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def rows() -> list[str]:
    text = DOCUMENT.read_text()
    differences = text[text.index(BEGIN) : text.index(END)]  # the suites' own list, which they compare themselves
    lines = [line for line in text.replace(differences, "").splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith(("| what happens", "| ---"))]


def test_every_row_names_a_test() -> None:
    assert len(rows()) > 25
    assert [row for row in rows() if not NAME.search(row.rsplit(" | ", 1)[-1])] == []


def test_every_test_that_is_named_exists() -> None:
    named = NAME.findall(DOCUMENT.read_text())
    assert [f"{file}:{name}" for file, name in named if name not in defined(file)] == []


def test_the_differences_from_stock_are_read() -> None:
    assert len(listed()) > 5
    assert all(known.variants and known.states and known.cases for known in listed())
