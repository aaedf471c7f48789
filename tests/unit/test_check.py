"""What the check makes of names, versions and units; the whole of it is tried through the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from zdworker.check import configuration, systemd_unit, versions, worker_class
from zdworker.check.findings import Findings
from zdworker.settings import Settings


class Noted(Findings):
    """Findings that go nowhere."""

    def __init__(self) -> None:
        self.about = ""
        self.found: list[tuple[str, str]] = []

    def _send(self, level: str, text: str, about: str, details: str = "", *, printed: bool = False) -> None:
        self.found.append((level, text))


# -- versions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("27.0.1", "<28,>=25.0.3", True),
        ("25.0.3", "<28,>=25.0.3", True),
        ("25.0.2", "<28,>=25.0.3", False),
        ("28", "<28,>=25.0.3", False),
        ("28.0.0", "<28,>=25.0.3", False),
        ("0.36.0.post1", ">=0.36", True),
        ("1.0rc1", ">=0.36", True),
        ("(none)", ">=0.36", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, fits: bool) -> None:
    assert versions.fits(version, wanted) is fits


def test_zdworkers_own_metadata_are_understood() -> None:
    assert versions.required().keys() == {"gunicorn", "uvicorn"}


def test_another_version_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version_of", lambda name: "24.1" if name == "gunicorn" else "1.0")
    findings = Noted()
    versions.check(findings)
    ((level, text),) = findings.found
    assert level == "warning"
    assert text.startswith("gunicorn 24.1 is installed, and zdworker is made for ")


# -- the worker class ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("zdworker.UvicornWroker", "zdworker.UvicornWorker"),
        ("UvicornH11Worker", "zdworker.UvicornH11Worker"),
        ("zdworker.threadworker", "zdworker.ThreadWorker"),
        ("gtread", "zdworker.ThreadWorker"),
        ("zdworker.Colour", ""),
        ("mine.Worker", ""),
    ],
)
def test_the_class_that_was_meant(name: str, meant: str) -> None:
    assert worker_class.meant(name) == (f": did you mean {meant}?" if meant else "")


@pytest.mark.parametrize("name", ["sync", "gthread", "gevent", "tornado", "gunicorn.workers.sync.SyncWorker"])
def test_a_class_of_gunicorns_is_told_its_successor(name: str) -> None:
    cfg = Config()
    cfg.set("worker_class", name)
    findings = Noted()
    assert not worker_class.check(cfg, findings)
    ((level, text),) = findings.found
    assert level == "error"
    assert text.rpartition(" ")[2] in worker_class.CLASSES


# -- the configuration ---------------------------------------------------------------------------------------------


def test_names_that_are_nearly_settings() -> None:
    def helper() -> None:
        """A function of the configuration's own."""

    namespace: dict[str, Any] = {
        "timeuot": 3,
        "graceful_timout": 3,
        "on_startin": helper,
        "zdworkerready": helper,
        "workers_helper": helper,
        "bind_host": "127.0.0.1",
        "_timeou": 3,
        "worker": 2,
        "workers": 2,
        "os": configuration,
    }
    assert configuration.slips(Config(), namespace) == {
        "graceful_timout": "graceful_timeout",
        "on_startin": "on_starting",
        "timeuot": "timeout",
        "zdworkerready": "zd_worker_ready",
    }


# -- systemd -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("1min 30s", 90.0),
        ("2min", 120.0),
        ("500ms", 0.5),
        ("1h", 3600.0),
        ("infinity", None),
        ("0", None),
        ("", None),
    ],
)
def test_time_spans_of_systemd(text: str, seconds: float | None) -> None:
    assert systemd_unit.seconds(text) == seconds


def test_a_unit_file_is_read_with_its_drop_ins(tmp_path: Path) -> None:
    file = tmp_path / "app.service"
    file.write_text(
        '[Unit]\nType=oneshot\n[Service]\n# Type=exec\nType=notify\nEnvironment=A=1\nEnvironment="PWD=/a b" B=2\n'
        "ExecStart=/usr/bin/gunicorn \\\n  app:app\nTimeoutStopSec=20\n[Install]\nKillMode=none\n"
    )
    (tmp_path / "app.service.d").mkdir()
    (tmp_path / "app.service.d" / "mode.conf").write_text("[Service]\nKillMode=mixed\nTimeoutStopSec=\n")
    unit = systemd_unit.read(file)
    assert unit.name == "app.service"
    assert unit.environment == {"A": "1", "PWD": "/a b", "B": "2"}
    assert unit.properties["ExecStart"].split() == ["/usr/bin/gunicorn", "app:app"]
    assert (unit.properties["Type"], unit.properties["KillMode"]) == ("notify", "mixed")
    assert unit.properties["TimeoutStopSec"] == "90", "an empty value is the default again"


@pytest.mark.parametrize(
    ("changes", "fatal", "said"),
    [
        ({}, None, ""),
        ({"TimeoutStopSec": "10"}, None, ""),
        ({"Type": "exec"}, False, "with Type=exec"),
        ({"Type": "exec", "NotifyAccess": "main", "TimeoutStopSec": "10"}, False, "with Type=exec"),
        ({"KillMode": "process"}, False, "KillMode=process"),
        ({"KillMode": "none"}, True, "KillMode=none"),
        ({"ExecStart": "/bin/bash -c 'gunicorn app:app'"}, True, "ExecStart is a shell"),
        ({"ExecStart": "-/bin/sh -c 'exec gunicorn app:app'"}, None, ""),
        ({"ExecStart": "/bin/sh -c 'gunicorn app:app'", "NotifyAccess": "all"}, None, ""),
        ({"WorkingDirectory": ""}, False, "there is no WorkingDirectory"),
        ({"WorkingDirectory": "%h/app"}, None, ""),
    ],
)
def test_what_is_wrong_with_a_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], fatal: bool | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    well = {"Type": "notify", "KillMode": "mixed", "WorkingDirectory": str(tmp_path), "ExecStart": "/usr/bin/gunicorn"}
    unit = systemd_unit.Unit("app.service", {**systemd_unit.PROPERTIES, **well, **changes})
    found = list(systemd_unit.problems(unit, 30.0, Settings()))
    if fatal is None:
        assert found == []
    else:
        assert [problem.fatal for problem in found] == [fatal]
        assert found[0].text.startswith(said)


def test_a_stop_has_to_have_the_time_of_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"KillMode": "mixed", "WorkingDirectory": str(tmp_path), "TimeoutStopSec": "1min"}
    unit = systemd_unit.Unit("app.service", {**systemd_unit.PROPERTIES, **own})
    (fatal,) = [each for each in systemd_unit.problems(unit, 50.0, Settings(shutdown_delay=10)) if each.fatal]
    assert "60 s after a stop, and requests may take 61 s" in fatal.text
    assert "TimeoutStopSec=65" in fatal.text
    assert not any(problem.fatal for problem in systemd_unit.problems(unit, 50.0, Settings()))


def test_a_link_without_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "current").symlink_to("releases")
    monkeypatch.chdir(tmp_path / "releases")
    own = {"Type": "notify", "KillMode": "mixed", "WorkingDirectory": f"{tmp_path}/current"}
    unit = systemd_unit.Unit("app.service", {**systemd_unit.PROPERTIES, **own})
    (problem,) = systemd_unit.problems(unit, 30.0, Settings())
    assert problem.text.endswith(f"add Environment=PWD={tmp_path}/current")
    known = systemd_unit.Unit("app.service", {**unit.properties, "Environment": f"PWD={tmp_path}/current"})
    assert list(systemd_unit.problems(known, 30.0, Settings())) == []


def test_the_command_of_a_shell_is_whole_as_systemd_shows_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = (
        "LoadState=loaded\nType=notify\nNotifyAccess=main\nKillMode=mixed\nTimeoutStopUSec=1min 30s\n"
        "ExecStart={ path=/bin/sh ; argv[]=/bin/sh -c cd /srv; exec gunicorn app:app ; ignore_errors=no ; "
        "start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }"
    )
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\ncat <<'EOF'\n{shown}\nEOF\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    noted = Noted()
    noted.about = "systemd"
    systemd_unit.check("app", Config(), Settings(), noted)
    assert "error" not in [found[0] for found in noted.found]
