"""The check of the words: what it reads of a file, in which line it finds something, and what it leaves alone.

Rules: the rules are those of ``docs/prose.toml``, and each text says "anew" where something is to be found.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.harness import documents


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    return documents.script("prose")


def found(prose: ModuleType, directory: Path, name: str, text: str) -> list[int]:
    """Return the lines in which something is found."""
    path = directory / name
    path.write_text(text)
    return [line for line, _ in prose.findings(path)]


def words(number: int) -> str:
    """Return so many words."""
    return " ".join(f"w{one}" for one in range(number))


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.md", "One line.\n\nIt is made\nanew.\n", [4]),
        ("a.md", "| a | b |\n| --- | --- |\n| c | anew |\n", [3]),
        ("a.md", "* one\n* [anew](anew.md)\n", [2]),
        ("a.md", '`anew`, "anew", [b](anew.md), <i title="anew">c</i>\n\n```sh\nanew\n```\n', []),
        ("a.py", '"""One.\n\n* Two, anew.\n"""\n\nX = 1\n"""Anew."""\n', [3, 7]),
        ("a.py", "X = 1  # anew\n# It is\n# told.\n", [1, 2]),
        ("a.py", 'def f():\n    """Call ``anew`` and :class:`anew`."""\n    return "anew"\n', []),
        ("a.py", "X = 1  # noqa: anew (not again)\n", []),
        ("a.toml", "x = 1 # anew\nanew = 2\n", [1]),
        ("a.md", "He he had had that that he said.\n", [1]),
        ("a.md", f"{words(40)}.\n", []),
        ("a.md", f"One. {words(41)}.\n", [1]),
        ("a.md", f"{words(30)}\n\n{words(30)}\n", []),
    ],
)
def test_what_is_read(prose: ModuleType, tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    assert found(prose, tmp_path, name, text) == lines


def test_a_finding_says_what_to_write(prose: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.md"
    path.write_text("The old code serves on.\n")
    assert prose.main([str(path)]) == 1
    assert capsys.readouterr().out == f"{path}:1: serves on: write 'is still serving', 'keeps serving'\n"
    path.write_text("The old code keeps serving on port 80; it serves on every address.\n")
    assert prose.main([str(path)]) == 0
