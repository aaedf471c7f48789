"""What tells against an import in the fork server, and what decides by word."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest
from gunicorn.config import Config
from gunicorn.workers.sync import SyncWorker

import zdworker
from zdworker import gunicorn_config
from zdworker.errors import SettingError
from zdworker.forkserver import preloading
from zdworker.settings import Settings


class Custom(zdworker.UvicornWorker):
    """A class with other options for uvicorn, which is the usual reason for one."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"log_config": None}


class Prepared(zdworker.WSGIWorker):
    """A class that does something before the import."""

    def init_process(self) -> None:
        os.environ["PREPARED"] = "1"
        super().init_process()


class Patched(zdworker.GeventWorker):
    """A class that patches more than gevent does."""

    def patch(self) -> None:
        super().patch()


class Mixed(zdworker.ZeroDowntime, SyncWorker):  # type: ignore[misc]  # Gunicorn has no types
    """A class of which zdworker does not know what it does before the import."""


def config(**settings: Any) -> Any:
    cfg = Config()
    for name, value in {"worker_class": zdworker.UvicornWorker, **settings}.items():
        cfg.set(name, value)
    return cfg


def test_nothing_tells_against_it() -> None:
    assert preloading.hindrance(config()) == ""


@pytest.mark.parametrize("kind", [getattr(zdworker, name) for name in zdworker.__all__ if name.endswith("Worker")])
def test_nor_do_the_worker_classes(kind: type) -> None:
    assert preloading.hindrance(config(worker_class=kind)) == ""


def on_reload(server: object) -> None:
    """Do nothing."""


def before_fork(server: object, worker: object) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"on_reload": on_reload}, "has on_reload,"),
        ({"pre_fork": before_fork}, "has pre_fork,"),
        ({"pre_fork": before_fork, "post_fork": before_fork}, "has pre_fork and post_fork,"),
        ({"user": os.getuid() + 1}, "another user or group"),
        ({"group": os.getgid() + 1}, "another user or group"),
        ({"reload": True}, "reload is on"),
        ({"worker_class": Prepared}, "its own init_process,"),
        ({"worker_class": Patched}, "its own patch,"),
        ({"worker_class": Mixed}, "its own __init__"),
    ],
    ids=lambda value: value if isinstance(value, str) else "given",
)
def test_what_tells_against_it_is_named(settings: dict[str, Any], named: str) -> None:
    assert named in preloading.hindrance(config(**settings))


def test_a_tool_tells_against_it() -> None:
    assert preloading.hindrance(config(), "memray").startswith("memray runs Gunicorn,")


@pytest.mark.parametrize(
    ("command", "tool"),
    [
        ("-m gunicorn app:app", ""),
        ("-m gunicorn.app.wsgiapp -c /etc/gunicorn app:app", ""),
        ("/srv/venv/bin/gunicorn app:app", ""),
        ("-c code -m gunicorn", ""),
        ("manage.py gunicorn", ""),
        ("serve.py", ""),
        ("-m coverage run -m gunicorn app:app", "coverage"),
        ("/srv/venv/bin/memray run --follow-fork -m gunicorn app:app", "memray"),
        ("/srv/venv/bin/viztracer venv/bin/gunicorn app:app", "viztracer"),
        ("/opt/pycharm/pydevd.py --client 127.0.0.1 --file gunicorn app:app", "pydevd.py"),
    ],
)
def test_a_tool_is_what_runs_gunicorns_command(command: str, tool: str) -> None:
    assert preloading.tool(command.split()) == tool


def test_a_class_that_changes_what_comes_later_does_not() -> None:
    assert preloading.hindrance(config(worker_class=Custom)) == ""


@pytest.mark.parametrize(
    ("preload_app", "word", "decided"), [(True, "auto", True), (False, "never", False), (False, "auto", None)]
)
def test_a_word_decides(preload_app: bool, word: str, decided: bool | None) -> None:
    assert preloading.by_word(config(preload_app=preload_app), Settings(preload=word)) is decided


def test_words_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ModuleType("__config__")
    vars(file)["zd_preload"] = "never"
    monkeypatch.setitem(sys.modules, "__config__", file)
    assert gunicorn_config.zd_settings(config()).preload == "never"
    with pytest.raises(SettingError, match="contradicts preload_app = True"):
        gunicorn_config.zd_settings(config(preload_app=True))
