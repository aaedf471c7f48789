"""The document's state tables are those of the code."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.harness import documents


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return documents.script("state_tables")


def test_the_document_is_up_to_date(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0, "run: python docs/state_tables.py"


def test_it_writes_between_the_markers_only(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "architecture.md"
    document.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    monkeypatch.setattr(script, "DOCUMENT", document)
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines


def test_a_document_without_markers_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="lacks the markers"):
        script.renewed("nothing here")


def test_every_transition_is_shown(script: ModuleType) -> None:
    text = script.text()
    assert "![A worker: its states](pictures/state-worker.svg)" in text
    assert "| **new** | starting | stopping |" in text
