"""The reference is that of the code."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.harness import documents
from zdworker import settings


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


@pytest.mark.parametrize("name", settings.SPECS)
def test_a_settings_example_is_valid(script: ModuleType, name: str) -> None:
    example: dict[str, object] = {}
    exec(script.SETTINGS[name].example, example)  # noqa: S102 (a line of the documentation)
    assert settings.read({name: example[name]}, {}) != settings.Settings(), "an example that is the default"


def test_everything_is_there(script: ModuleType) -> None:
    written = "".join((script.DIRECTORY / page).read_text() for page in script.SECTIONS)
    for name in [*settings.SPECS, *settings.HOOKS]:
        assert f"`{name}" in written
    for name in ("`USR2`", "### `zdworker rollback`", "`--no-wait`", "`rss_bytes`", "130"):
        assert name in written
