"""What a master has in memory, and what has changed on disk since."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zdworker.errors import GenerationError
from zdworker.master import loaded_code
from zdworker.master.loaded_code import LoadedCode

NAME = "a_module_of_the_loaded_code"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the import path, with a module that is not imported yet."""
    (tmp_path / f"{NAME}.py").write_text("VERSION = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop(NAME, None)


def refusal(loaded: LoadedCode) -> str:
    try:
        loaded.refuse_outdated()
    except GenerationError as error:
        return str(error)
    return ""


def test_what_is_unchanged_is_not_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_code, "NAMES_MAX", 10_000)  # whatever else the tests have imported
    importlib.import_module(NAME)
    loaded = LoadedCode(str(place), "this is a test")
    assert refusal(loaded) == ""
    assert NAME in loaded.summary()


def test_a_changed_file_is_named_with_its_module(place: Path) -> None:
    importlib.import_module(NAME)
    loaded = LoadedCode(str(place), "this is a test")
    (place / f"{NAME}.py").write_text("VERSION = 22\n")
    for _ in range(2):  # the next reload is no better
        assert refusal(loaded) == (
            "workers are forked from this master (this is a test), and what it has in memory has changed on disk: "
            f"{NAME} ({place / NAME}.py); restart the program"
        )


def test_a_file_of_the_same_size_and_time_is_another(place: Path) -> None:
    importlib.import_module(NAME)
    loaded = LoadedCode(str(place), "this is a test")
    file, new = place / f"{NAME}.py", place / "new.py"
    new.write_text("VERSION = 2\n")
    shutil.copystat(file, new)
    new.replace(file)
    assert NAME in refusal(loaded)


def test_a_file_that_is_gone(place: Path) -> None:
    importlib.import_module(NAME)
    loaded = LoadedCode(str(place), "this is a test")
    (place / f"{NAME}.py").unlink()
    assert NAME in refusal(loaded)


def test_a_module_that_was_imported_once_more_is_new(place: Path) -> None:
    importlib.import_module(NAME)
    loaded = LoadedCode(str(place), "this is a test")
    (place / f"{NAME}.py").write_text("VERSION = 22\n")
    del sys.modules[NAME]
    assert refusal(loaded) == ""
    importlib.import_module(NAME)
    assert refusal(loaded) == ""
    (place / f"{NAME}.py").write_text("VERSION = 333\n")
    assert NAME in refusal(loaded)


def test_a_module_that_was_imported_later(place: Path) -> None:
    loaded = LoadedCode(str(place), "this is a test")
    importlib.import_module(NAME)
    loaded.note()
    (place / f"{NAME}.py").write_text("VERSION = 22\n")
    assert NAME in refusal(loaded)


def test_a_module_in_an_archive(place: Path) -> None:
    archive = place / "archive.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(f"{NAME}.py", "VERSION = 1\n")
    (place / f"{NAME}.py").unlink()
    sys.path.insert(0, str(archive))
    importlib.import_module(NAME)
    loaded = LoadedCode(str(place), "this is a test")
    assert refusal(loaded) == ""
    archive.write_bytes(archive.read_bytes() + b"\0")
    assert f"{NAME} ({archive}" in refusal(loaded)


def test_a_file_that_was_never_there_is_not_missed(place: Path) -> None:
    importlib.import_module(NAME).__file__ = str(place / "nowhere" / "generated.py")
    loaded = LoadedCode(str(place), "this is a test")
    assert refusal(loaded) == ""


class Lazy(ModuleType):
    """A module that is loaded when something asks it for an attribute."""

    def __getattribute__(self, name: str) -> Any:
        raise ImportError(f"{name}: what it needs is not installed")


def test_modules_are_not_loaded_by_the_look(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = Lazy(NAME)
    vars_of_lazy: dict[str, Any] = object.__getattribute__(lazy, "__dict__")
    vars_of_lazy["__file__"] = str(place / f"{NAME}.py")
    monkeypatch.setitem(sys.modules, NAME, lazy)
    monkeypatch.setitem(sys.modules, f"{NAME}.object", object())  # as some programs do
    loaded = LoadedCode(str(place), "this is a test")
    (place / f"{NAME}.py").write_text("VERSION = 22\n")
    assert NAME in refusal(loaded)


def test_the_interpreter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = place / "python"
    python.write_text("1")
    monkeypatch.setattr(sys, "executable", str(python))
    loaded = LoadedCode(str(place), "this is a test")
    python.write_text("22")
    assert f"the interpreter ({python})" in refusal(loaded)


def test_a_link_that_leads_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, current = tmp_path / "one", tmp_path / "two", tmp_path / "current"
    one.mkdir()
    two.mkdir()
    current.symlink_to(one)
    loaded = LoadedCode(str(current), "this is a test")
    monkeypatch.syspath_prepend(str(current))
    current.unlink()
    current.symlink_to(two)
    assert refusal(loaded) == ""  # what is imported by way of the link is new
    monkeypatch.syspath_prepend(str(one / "lib"))
    text = f"which imports from {one}, but {current} is {two} by now; restart the program"
    assert refusal(loaded).endswith(text)


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_code, "NAMES_MAX", 1)
    loaded = LoadedCode(os.getcwd(), "this is a test")
    assert re.fullmatch(r"[\w.]+ and \d+ more", loaded.summary())
