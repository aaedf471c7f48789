"""What a generation notes of where it comes from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker.forkserver.places import Places
from zdworker.ipc.messages import Place


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A link to a release, which is the working directory."""
    (tmp_path / "one").mkdir()
    link = tmp_path / "current"
    link.symlink_to("one")
    monkeypatch.chdir(link)
    return link


def test_the_import_path(current: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = str(current.resolve())
    other = Path("/of a launcher")  # no string: nothing is searched there
    monkeypatch.setattr(sys, "path", ["", f"{current}/lib", other, "mark of an import hook"])
    places = Places(str(current))
    places.resolve_import_path()
    assert sys.path == [one, f"{one}/lib", other, "mark of an import hook"]
    current.unlink()
    current.symlink_to("two")
    sys.path.insert(0, f"{current}/late")
    sys.path.remove(one)
    places.resolve_import_path()
    assert list(places.to_plain()[Place.PATH].items()) == [
        (f"{current}/late", f"{current.parent}/two/late"),
        (f"{current}/lib", f"{one}/lib"),  # by the name that it had, and what that led to then
        ("mark of an import hook", "mark of an import hook"),
    ]


def test_the_start_directory(current: Path) -> None:
    places = Places(str(current))
    places.enter()
    assert places.obstacle == ""
    assert places.to_plain()[Place.DIRECTORY] == {str(current): str(current.resolve())}
    assert places.to_plain()[Place.INTERPRETER] == {sys.executable: os.path.realpath(sys.executable)}


def test_a_start_directory_that_cannot_be_entered(current: Path) -> None:
    places = Places(f"{current}/file")
    (current / "file").touch()
    places.enter()
    assert places.obstacle == f"the start directory {current}/file cannot be entered (Not a directory)"
    assert Place.DIRECTORY not in places.to_plain()


RAISES = "raise RuntimeError('imported')\n"


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("alone:app", "alone.py"),
        ("package.inner:make()", "package/inner.py"),
        ("space.inner", "space/inner.py"),
        ("space", None),
        ("missing:app", None),
        ("alone.missing:app", None),
        ("production.ini#main", None),
        ("sys:app", None),
        (None, None),
    ],
)
def test_the_file_of_the_application_is_found_without_an_import(
    current: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None, file: str | None
) -> None:
    monkeypatch.syspath_prepend(str(current.resolve()))
    for name in ("alone.py", "package/__init__.py", "package/inner.py", "space/inner.py"):
        (current / name).parent.mkdir(exist_ok=True)
        (current / name).write_text(RAISES)
    app: Any = SimpleNamespace(app_uri=uri)
    places = Places(str(current))
    places.note_application(app)
    expected = (
        {} if file is None else {Place.APPLICATION: {f"{current.resolve()}/{file}": f"{current.resolve()}/{file}"}}
    )
    assert places.to_plain() == expected
