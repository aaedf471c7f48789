"""The map of docs/tests.md and the tree and the walks of docs/architecture.md name what there is.

Rules: both are data. The map's tables have a file of the package, its unit tests and its integration tests in each row;
the tree has a file in each line, indented by two spaces below its directory.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import documents
from tests.harness.documents import ROOT

PACKAGE = ROOT / "zdworker"
UNIT = ROOT / "tests" / "unit"
INTEGRATION = ROOT / "tests" / "integration"


def has_code(path: Path) -> bool:
    """Whether there is more in a file than its docstring: the ``__init__.py`` of a directory has no row of its own."""
    return len(ast.parse(path.read_text()).body) > 1 or path.name != "__init__.py"


FILES = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if has_code(path)}


def rows(text: str) -> Iterator[list[list[str]]]:
    """Yield the rows of the map: for each cell what stands in backquotes in it."""
    between = text.partition("<!-- map -->")[2].partition("<!-- end of map -->")[0]
    for line in between.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [re.findall(r"`([^`]+)`", cell) for cell in line.strip("| ").split(" | ")]


def tree(text: str) -> Iterator[str]:
    """Yield the files of the architecture's tree, by their paths in the package."""
    directories: list[str] = []
    for line in text.splitlines():
        found = re.match(r"( *)(\S+)", line)
        if found is None:
            continue
        depth, name = len(found[1]) // 2, found[2]
        directories[depth:] = [name] if name.endswith("/") else []
        if not name.endswith("/"):
            yield "".join([*directories[1:], name])


MAP = list(rows(documents.text("docs/tests.md")))
NAMED_UNIT = {name for row in MAP for name in row[1]}
NAMED_INTEGRATION = {name for row in MAP for name in row[2]}


def test_each_file_of_the_package_has_one_row() -> None:
    named = [name for row in MAP for name in row[0]]
    assert len(named) == len(set(named))
    assert set(named) == FILES


def test_each_file_of_unit_tests_is_named_and_exists() -> None:
    assert {path.name for path in UNIT.glob("test_*.py")} == NAMED_UNIT


@pytest.mark.parametrize("name", sorted(NAMED_INTEGRATION))
def test_integration_tests_exist(name: str) -> None:
    path = INTEGRATION / name
    assert path.is_dir() if name.endswith("/") else path.is_file()


def test_each_folder_of_integration_tests_is_named() -> None:
    folders = {path.parent.name for path in INTEGRATION.rglob("test_*.py")}
    assert folders == {name.partition("/")[0] for name in NAMED_INTEGRATION}


def test_the_tree_of_the_architecture_has_each_file() -> None:
    blocks = documents.blocks("docs/architecture.md")
    drawn = list(tree(next(block.text for block in blocks if block.opening == "zdworker/")))
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == FILES


def hops() -> Iterator[tuple[str, str]]:
    """Yield file and function of each hop in the architecture's walks: what stands behind a file is in that file."""
    for line in documents.text("docs/architecture.md").splitlines():
        cells = line.split(" | ")
        file = ""
        for name in re.findall(r"`([^`]+)`", cells[1]) if re.match(r"\| \d+ \|", line) else ():
            file = name if name.endswith(".py") else file
            yield file, "" if name == file else name.rpartition(".")[2]


def test_each_hop_of_the_walks_exists() -> None:
    found = list(hops())
    assert len(found) > 50
    for file, function in found:
        nodes = list(ast.walk(ast.parse((PACKAGE / file).read_text())))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not function or function in {node.name for node in nodes if isinstance(node, kinds)}, (file, function)


def test_rows_and_trees_are_read() -> None:
    text = "| `no.py` | - | - |\n<!-- map -->\n| file | a | b |\n| --- | --- | --- |\n"
    text += "| `a.py` | `t.py`, `u.py` | - |\n<!-- end of map -->\n| `no.py` | - | - |\n"
    assert list(rows(text)) == [[[], [], []], [["a.py"], ["t.py", "u.py"], []]]
    drawn = "top/\n  a.py  text\n\n  b/    text\n    c/\n      d.py\n  e.py\n"
    assert list(tree(drawn)) == ["a.py", "b/c/d.py", "e.py"]
