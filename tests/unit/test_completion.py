"""What a TAB behind an option brings."""

from __future__ import annotations

import time
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from zdworker.command import cli, completion, finder
from zdworker.command.finder import Master
from zdworker.errors import NoInstance

SHOP = {"pid": 4711, "directory": "/srv/shop", "application": "app:app"}
BLOG = {"pid": 4720, "directory": "/srv/blog\nnext", "application": "app:app"}


def completed(*words: str) -> list[tuple[str, str, str | None]]:
    """Return what follows the words before the last one, which is begun: kind, value, help."""
    shell = ShellComplete(cli.main, {}, "zdworker", "_ZDWORKER_COMPLETE")
    items = shell.get_completions(list(words[:-1]), words[-1])
    return [(item.type, item.value, item.help) for item in items]


@pytest.fixture(autouse=True)
def masters(monkeypatch: pytest.MonkeyPatch) -> list[Master]:
    found = [
        Master("/run/zdworker/4720.sock", status=dict(BLOG)),
        Master("/run/zdworker/4711.sock", status=dict(SHOP)),
        Master("/run/zdworker/12.sock"),
        Master("/run/zdworker/odd\n.sock", status={"pid": 13}),
    ]
    monkeypatch.setattr(finder, "running", lambda _deadline: found)
    return found


@pytest.mark.parametrize("command", ["reload", "rollback", "status", "scale", "history", "metrics"])
def test_the_pids_of_masters(command: str) -> None:
    assert completed(command, "--pid", "4") == [
        ("plain", "4711", "in /srv/shop, app:app"),
        ("plain", "4720", "in /srv/blog next, app:app"),
    ]
    assert completed(command, "--pid", "12") == [("plain", "12", "does not answer")]
    assert completed(command, "--pid", "9") == []


def test_the_sockets_of_masters_or_else_files() -> None:
    assert [value for _kind, value, _help in completed("status", "--socket", "")] == [
        "/run/zdworker/12.sock",
        "/run/zdworker/4711.sock",
        "/run/zdworker/4720.sock",
    ]
    assert completed("status", "--socket", "/srv/") == [("file", "/srv/", None)]


def test_a_pidfile_is_a_file() -> None:
    assert completed("status", "--pidfile", "gun") == [("file", "gun", None)]


def test_where_nothing_can_be_looked_for_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def distrusted(_deadline: float) -> Any:
        raise NoInstance("the directory is not looked into")

    monkeypatch.setattr(finder, "running", distrusted)
    assert completed("status", "--pid", "") == []


def test_masters_have_little_time_to_answer(monkeypatch: pytest.MonkeyPatch, masters: list[Master]) -> None:
    def running(deadline: float) -> list[Master]:
        assert deadline <= time.monotonic() + completion.SEARCH_S
        return masters

    monkeypatch.setattr(finder, "running", running)
    assert completed("status", "--pid", "4711")


def test_the_worker_classes_behind_gunicorns_option() -> None:
    assert completed("check", "-c", "conf.py", "-k", "zdworker.T") == [
        ("plain", "zdworker.ThreadWorker", None),
        ("plain", "zdworker.TornadoWorker", None),
    ]
    assert len(completed("check", "--worker-class", "")) == 7
    assert completed("check", "-k", "zdworker.UvicornWorker", "ap") == [("file", "ap", None)]
