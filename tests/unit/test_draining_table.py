"""The table of docs/reference/worker-classes.md and the tests behind it: none of its cells says what no test shows.

Rules:

* Files of tests are read, not imported: nothing runs here.
* A test shows a cell when it runs with the cell's class: its ``@for_each(...)`` names the class, or its kind of
  connection (``@scenario.kind(...)``) is not kept from it; else the test, or at least its file, names the class. What
  names none has a server as the fixture ``start`` begins it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import worker_classes as classes

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "worker-classes.md").read_text()
LISTED = {int(number): name for number, name in re.findall(r"^(\d+)\. `([\w./]+::\w+)`$", TEXT, re.MULTILINE)}
NOTHING = "-"
"""The class does not have such connections."""


def rows() -> list[tuple[str, dict[str, str], list[int]]]:
    """Return the table: a row's name, its cells by class, the numbers of its tests."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if line.startswith("| ")]
    head = next(number for number, line in enumerate(lines) if "tests" in line)
    names = lines[head][1:-1]
    body = [line for line in lines[head + 2 :] if len(line) == len(names) + 2]
    return [(row[0], dict(zip(names, row[1:-1], strict=True)), [int(n) for n in row[-1].split(", ")]) for row in body]


def shown_by(test: str) -> set[str]:
    """Return the names of the classes with which ``test`` ("folder/file.py::name") runs.

    :raises AssertionError: there is no such test.
    """
    file, _, name = test.partition("::")
    text = (ROOT / "tests" / "integration" / file).read_text()
    body = ast.parse(text).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    assert name in functions, f"{test} does not exist"
    known = _constants(body)
    drained = tuple(_params_of(functions["drained"], known)) if "drained" in functions else ()
    runs_with = _runs_with(functions[name], known, drained)
    named = {worker.name for worker in classes.ALL if re.search(rf"\b{worker.name}\b", text)}
    return runs_with or named or {classes.UVICORN.name}


def _constants(body: list[ast.stmt]) -> dict[str, Any]:
    """Return what a module's lines give names to, as far as that is made of the classes and of literals."""
    known: dict[str, Any] = dict(vars(classes))
    for node in body:
        if isinstance(node, ast.Assign) and {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)} <= set(
            known
        ):
            known[ast.unparse(node.targets[0])] = _evaluated(node.value, known)
    return known


def _runs_with(node: ast.FunctionDef, known: dict[str, Any], drained: tuple[classes.WorkerClass, ...]) -> set[str]:
    for decorator in node.decorator_list:
        name = ast.unparse(decorator.func) if isinstance(decorator, ast.Call) else ""
        if not isinstance(decorator, ast.Call) or name not in ("for_each", "scenario.kind"):
            continue
        values = [_evaluated(argument, known) for argument in decorator.args]
        if name == "for_each":
            return {worker.name for worker in values[0]}
        return {worker.name for worker in drained if not values or values[0](worker)}
    if any(argument.arg == "drained" for argument in node.args.args):  # the end of a scenario
        return {worker.name for worker in drained}
    used = [known.get(n.id) for n in ast.walk(node) if isinstance(n, ast.Name)]
    return {worker.name for worker in classes.ALL if worker in used}


def _params_of(fixture: ast.FunctionDef, known: dict[str, Any]) -> Iterator[classes.WorkerClass]:
    """Yield the classes with which a scenario is played: themselves, or named in what is."""
    for decorator in fixture.decorator_list:
        for keyword in decorator.keywords if isinstance(decorator, ast.Call) else []:
            if keyword.arg == "params":
                for param in _evaluated(keyword.value, known):
                    yield from (worker for worker in classes.ALL if re.search(rf"\b{worker.name}\b", str(param)))


def _evaluated(node: ast.expr, known: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<test>", "eval"), known)  # noqa: S307  # our own files


ROWS = rows()


def test_the_table_is_whole() -> None:
    assert len(ROWS) > 20
    for _, cells, _ in ROWS:
        assert list(cells) == [worker.name for worker in classes.ALL]
        assert all(cells.values())


@pytest.mark.parametrize(("name", "cells", "numbers"), ROWS, ids=[row[0] for row in ROWS])
def test_each_cell_is_shown_by_a_test(name: str, cells: dict[str, str], numbers: list[int]) -> None:
    shown = set().union(*(shown_by(LISTED[number]) for number in numbers))
    said = {worker for worker, cell in cells.items() if cell.split()[0] != NOTHING}
    assert said <= shown, f"{name}: no test for {said - shown}"


def test_each_listed_test_exists_and_is_spoken_of() -> None:
    prose = TEXT.partition("## The tests")[0]
    spoken = {int(number) for row in ROWS for number in row[2]}
    spoken |= {int(n) for group in re.findall(r"\((?:tests? )?(\d\d?(?:, \d\d?)*)\)", prose) for n in group.split(", ")}
    assert list(LISTED) == list(range(1, len(LISTED) + 1))
    assert spoken == set(LISTED)
    for test in LISTED.values():
        assert shown_by(test), test


def test_what_does_not_exist_is_noticed() -> None:
    with pytest.raises(AssertionError, match="does not exist"):
        shown_by("drain/test_connections.py::test_that_nobody_wrote")
    assert shown_by("drain/test_connections.py::test_connection_idle_and_left_alone") == {
        one.name for one in classes.KEEPING
    }
    assert shown_by("drain/test_slow_clients.py::test_slow_bodies_hold_threads") == {"ThreadWorker", "WSGIWorker"}
