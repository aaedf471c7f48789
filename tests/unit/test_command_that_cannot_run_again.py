"""A program that must not be started once more for each generation is noticed when the master starts."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from zdworker import syscalls
from zdworker.errors import GenerationError
from zdworker.master import launch

pytestmark = pytest.mark.linux


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own command may be anything."""
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "gunicorn", "app:app"])


def test_a_frozen_application(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(GenerationError, match="this is a frozen application"):
        launch.capture({}, str(tmp_path), daemon=False)


def test_a_fork_of_another_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(syscalls, "was_forked", lambda: True)
    with pytest.raises(GenerationError, match="this is a fork of the program that was started"):
        launch.capture({}, str(tmp_path), daemon=False)
    assert launch.capture({}, str(tmp_path), daemon=True).target == ["-m", "gunicorn", "app:app"]


def test_the_kernel_knows_a_fork() -> None:
    assert not syscalls.was_forked()
    child = syscalls.fork()
    if child == 0:
        os._exit(syscalls.was_forked())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_fork_with_threads_is_none_to_warn_of() -> None:
    """Warnings are errors here: Python 3.15 would raise one in the parent, and leave the child running."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        child = syscalls.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        over.set()
        thread.join()


def test_where_the_kernel_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", fail)
    assert not syscalls.was_forked()


def test_only_pex_unpacks_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script, archive = tmp_path / "pex", tmp_path / "app.pex"
    script.touch()
    archive.write_text("one")
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, str(script)])
    environment = {"PEX": str(archive)}  # which programs that a PEX file starts have, too
    other = launch.capture(environment, str(tmp_path), daemon=False)
    (tmp_path / "PEX-INFO").touch()
    unpacked = launch.capture(environment, str(tmp_path), daemon=False)
    launch.refuse_changed_archive(unpacked)
    archive.write_text("another")
    launch.refuse_changed_archive(other)
    with pytest.raises(GenerationError, match="only a restart unpacks it again"):
        launch.refuse_changed_archive(unpacked)
