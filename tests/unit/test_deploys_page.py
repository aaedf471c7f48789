"""The page and the data of the benchmark of deploys, from reports that are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.deploys import applications
from tests.benchmarks.deploys.contenders import CONTENDERS, Contender
from tests.benchmarks.deploys.figures import Loaded, Quiet, Report, Span, Turn
from tests.benchmarks.deploys.measures import QUICK
from tests.benchmarks.deploys.pages import store

BEFORE = Span(100, {}, 0.001, 0.002, 0.003, 0.05)
DURING = Span(100, {"reset": 3}, 0.001, 0.02, 0.03, 0.5)
LOADED = Loaded(BEFORE, [Turn(DURING, 3.0, 2.5, 1, ""), Turn(DURING, 5.0, 3.5, 2, "")], {})
MEASURED = Report(
    "uvicorn", "uvicorn --workers", "HUP", "uvicorn", "https://www.uvicorn.org/", "0.54", loads={"new": LOADED}
)
MEASURED = replace(MEASURED, quiet=Quiet([2.0], [3.0], 2**20, [3 * 2**20], [2**20]), broken="version 1", crash="down")
MISSING = Report("granian", "granian", "HUP", "granian", "-", "", missing="program granian is not installed")


def written(directory: Path, *reports: Report) -> str:
    store(directory, {"system": "Linux"}, QUICK, reports)
    return (directory / "deploys.md").read_text(encoding="utf-8")


def test_failures_and_spreads_stand_in_the_table(tmp_path: Path) -> None:
    text = written(tmp_path, MEASURED)
    assert "| uvicorn --workers | **6 reset** | 1.0 → 1.0 |" in text
    assert "| 4.00 (3.00 to 5.00) |" in text
    assert "| uvicorn --workers | 2.00 | 3.00 | 1 | 3 | 1 |" in text
    assert "(pictures/deploys-uvicorn.svg)" in text


def test_who_is_missing_is_told_with_the_reason(tmp_path: Path) -> None:
    text = written(tmp_path, MISSING)
    assert "missing: program granian is not installed" in text
    assert "pictures/deploys-granian.svg" not in text


def test_a_later_run_keeps_what_it_did_not_measure(tmp_path: Path) -> None:
    written(tmp_path, MEASURED)
    text = written(
        tmp_path, MISSING, replace(MEASURED, loads={"websocket": replace(LOADED, closed={"closed 1012": 4})})
    )
    known = json.loads((tmp_path / "deploys.json").read_text(encoding="utf-8"))["contenders"]
    assert set(known) == {"uvicorn", "granian"}
    assert set(known["uvicorn"]["loads"]) == {"new", "websocket"}
    assert "4 closed 1012" in text


def test_every_contender_is_whole() -> None:
    for contender in CONTENDERS.values():
        assert contender.kind in applications.LANGUAGES
        assert contender.source
        assert "@PORT@" in " ".join([*contender.command, *contender.files.values()]) or contender.kind == "node"


def test_what_is_not_installed_says_so() -> None:
    lacking: Contender = replace(CONTENDERS["puma"], needs=("module nowhere_to_be_found",))
    assert lacking.missing() == "Python module nowhere_to_be_found is not installed"


def test_python_applications_compile(tmp_path: Path) -> None:
    kinds: tuple[applications.Kind, ...] = ("asgi", "wsgi", "tornado")
    works: tuple[applications.Work, ...] = ("trivial", "import", "large", "broken")
    for kind in kinds:
        for work in works:
            applications.write(tmp_path, kind, "7", work)
            compile((tmp_path / "application.py").read_text(encoding="utf-8"), "application.py", "exec")
