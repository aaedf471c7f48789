"""The page and the data of the benchmark of deploys, from reports that are made up."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.deploys import applications
from tests.benchmarks.deploys.contenders import CONTENDERS, Contender
from tests.benchmarks.deploys.figures import Hurt, Loaded, Quiet, Report, Span, Storm, Turn
from tests.benchmarks.deploys.growth import Grown
from tests.benchmarks.deploys.measures import QUICK
from tests.benchmarks.deploys.pages import store
from tests.benchmarks.deploys.servers import KEEPALIVE_S, Lost
from tests.benchmarks.deploys.storms import TOOLS, read

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
    return _pages(directory)


def _pages(directory: Path) -> str:
    return "".join((directory / name).read_text(encoding="utf-8") for name in ("deploys.md", "deploys-appendix.md"))


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


def test_connections_that_were_made_anew_stand_in_the_table(tmp_path: Path) -> None:
    crowd = replace(LOADED, turns=LOADED.turns[:1], reconnects=1234, course=[(0.0, 1, 1, 1, 2)], work_s=2.0)
    text = written(tmp_path, replace(MEASURED, loads={"crowd": crowd}))
    assert "## A thousand keep-alive connections" in text
    assert "| uvicorn --workers | **3 reset** | **1,234** | 2 → 20 | 0.2 | 1.2 | 1.5 | 2.0 |" in text


def test_each_server_that_keeps_connections_is_told_how_long() -> None:
    for contender in CONTENDERS.values():
        if "crowd" not in contender.loads or contender.name == "granian":  # that one has no such limit
            continue
        told = " ".join([*contender.keeping().command, *contender.files.values()])
        told += applications.LANGUAGES[contender.kind].text
        assert str(KEEPALIVE_S) in told or "KEEPALIVE" in told, contender.name
        assert contender.keeping().command[-1] == contender.command[-1]


def test_all_failures_are_counted_at_a_glance(tmp_path: Path) -> None:
    storm = Storm(1000, 500.0, 900.0, {"receive": 4}, None, "")
    text = written(tmp_path, replace(MEASURED, storms={"wrk": storm}))
    assert "| uvicorn --workers | **10** | 20 | 500 | 4.0 | 2.0 | 3 | - | version 1 | down |" in text
    assert "| uvicorn --workers | - | - | **4 receive** | - | 900 → 500 |" in text


def test_what_faulty_code_hurts_stands_on_both_pages(tmp_path: Path) -> None:
    text = written(tmp_path, replace(MEASURED, hurt=Hurt(950, 50, 30.0, 29.9, "2")))
    assert "| 3 | 50 of 1,000 | version 1 | down |" in text
    assert "| uvicorn --workers | 50 of 1,000 | 5.0 % | 29.9 | 2 |" in text
    assert "50 of 1,000" in written(tmp_path, MEASURED), "a later run that did not measure it keeps it"


def test_growth_and_memory_are_drawn(tmp_path: Path) -> None:
    grown = [
        Grown(number, preload, [1.0], [0.5], [0.01], [2.0], 2**20, [2**21])
        for number in (1, 2)
        for preload in (False, True)
    ]
    quiet = Quiet([2.0], [3.0], 2**20, [3 * 2**20], [2**20], curve=[(0.0, 2**20), (0.1, 3 * 2**20)])
    store(tmp_path, {}, QUICK, [replace(MEASURED, quiet=quiet)], grown)
    text = _pages(tmp_path)
    assert "| 2 | yes | 1.00 | 0.50 | 10 | 2.00 | 1 | 2 |" in text
    for name in ("memory", "growth"):
        assert f"(pictures/deploys-{name}.svg)" in text
        ET.parse(tmp_path / "pictures" / f"deploys-{name}.svg")  # noqa: S314 (written by ourselves)


AB = """\
Complete requests:      1000
Failed requests:        7
   (Connect: 1, Receive: 2, Length: 0, Exceptions: 4)
Non-2xx responses:      5
Requests per second:    123.40 [#/sec] (mean)
"""
WRK = """\
  2400 requests in 2.00s, 1.00MB read
  Socket errors: connect 0, read 3, write 0, timeout 6
Requests/sec:   1200.50
"""


def test_what_the_tools_say_is_read() -> None:
    seen = read(TOOLS["ab"], AB, "")
    assert (seen.answered, seen.rate) == (1000, 123.4)
    assert seen.failures == {"connect": 1, "receive": 2, "exception": 4, "not 2xx": 5}
    seen = read(TOOLS["wrk"], WRK, "")
    assert (seen.answered, seen.rate, seen.failures) == (2400, 1200.5, {"read": 3, "timeout": 6})
    with pytest.raises(Lost, match="ab gave up: apr_pollset_poll"):
        read(TOOLS["ab"], "", "apr_pollset_poll: The timeout specified has expired (70007)\n")


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
