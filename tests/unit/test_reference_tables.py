"""The reference is that of the code, and the README's tables say the same."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.harness import documents
from zdworker import settings

README = (documents.ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return documents.script("reference_tables")


def test_the_pages_are_up_to_date(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0, "run: python docs/reference_tables.py"


def test_it_writes_between_the_markers_only(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "DIRECTORY", tmp_path)
    monkeypatch.setattr(script, "SECTIONS", {"a.md": {"one": lambda: "new", "two": lambda: "newer"}})
    sections = [f"{script.BEGIN.format(name)}\nold\n{script.END.format(name)}" for name in ("one", "two")]
    (tmp_path / "a.md").write_text("before\n{}\nbetween\n{}\nafter\n".format(*sections))
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    lines = (tmp_path / "a.md").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("<!--")] == [
        "before",
        "new",
        "between",
        "newer",
        "after",
    ]


def test_a_page_without_markers_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="lacks the markers of 'master'"):
        script.renewed("signals.md", "nothing here")


def test_a_field_without_a_meaning_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="'new'"):
        script._fields({"old": "it is known"}, ["old", "new"])


def test_everything_is_there(script: ModuleType) -> None:
    written = "".join((script.DIRECTORY / page).read_text() for page in script.SECTIONS)
    for name in [*settings.SPECS, *settings.HOOKS]:
        assert f"`{name}" in written
    for name in ("`USR2`", "### `zdworker rollback`", "`--no-wait`", "`rss_bytes`", "130"):
        assert name in written


# -- the README ----------------------------------------------------------------------------------------------------


def readme_rows(heading: str) -> dict[str, list[str]]:
    """Return the first table below a heading of the README: the other cells, by the first."""
    section = README.partition(f"\n{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table, heading
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def test_the_readme_says_the_same_of_the_settings() -> None:
    rows = readme_rows("## Settings")
    assert list(rows) == [f"`{name}`" for name in settings.SPECS]
    assert {name: cells[-1] for name, cells in rows.items()} == {
        f"`{name}`": spec.meaning for name, spec in settings.SPECS.items()
    }


def test_the_readme_says_the_same_of_the_hooks() -> None:
    rows = readme_rows("Server hooks, beside Gunicorn's; one that raises is logged and hurts nothing:")
    assert {name: cells[-1] for name, cells in rows.items()} == {
        f"`{name}{hook.arguments}`": hook.meaning for name, hook in settings.HOOKS.items()
    }
