"""``zdworker history`` on a real master: who has asked for what, what came of it, and that a restart keeps it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

COLUMNS = 80


@pytest.fixture
def runtime(site: Site) -> Path:
    made = site.directory / "run"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def server(make_server: Start, runtime: Path) -> Server:
    environment = {"XDG_RUNTIME_DIR": str(runtime)}
    return make_server(preload_app=True, zd_version="v1.4.2", environment=environment).start()


def command(server: Server, runtime: Path, *words: str, code: int = 0) -> str:
    """Run the command in the site's directory, and return what it prints on standard output."""
    found = subprocess.run(
        [sys.executable, "-m", "zdworker", *words],
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(runtime), "COLUMNS": str(COLUMNS)},
        cwd=server.site.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == code, f"{found.returncode}\n{found.stdout}\n{found.stderr}"
    return found.stdout


def entries(server: Server, runtime: Path) -> list[dict[str, Any]]:
    found = json.loads(command(server, runtime, "history", "--json"))["history"]
    assert isinstance(found, list)
    return found


def test_it_tells_who_has_asked_and_what_came_of_it(server: Server, site: Site, runtime: Path) -> None:
    assert command(server, runtime, "history") == "no reload, rollback, crash or upgrade is known\n"
    site.deploy("two")
    command(server, runtime, "reload")
    unique = site.break_("raise")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: entries(server, runtime)[-1]["result"] == "failed", BOOT_TIMEOUT_S, "the reload has failed")
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: entries(server, runtime)[-1]["kind"] == "crash", BOOT_TIMEOUT_S, "the crash is known")

    lines = command(server, runtime, "history").splitlines()
    moment, uid = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", os.geteuid()
    expected = [
        r"when \(UTC\)           what      result",
        rf"{moment}  reload    done, generation 2 \(v1\.4\.2\), \d+\.\d s",
        rf"    by .*\(?uid {uid}\)? with python\S* \(pid \d+\)",
        rf"{moment}  reload    failed, generation 3, \d+\.\d s",
        r"    by signal USR2",
        rf"    RuntimeError: broken {unique}",
        rf"{moment}  crash     generation 2 \(v1\.4\.2\), slot [01]",
        r"    worker \d+ was killed by SIGKILL",
    ]
    assert len(lines) == len(expected), "\n".join(lines)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
        assert len(line) <= COLUMNS


def test_a_restart_keeps_it(server: Server, site: Site, runtime: Path) -> None:
    site.deploy("two")
    command(server, runtime, "reload")
    before = entries(server, runtime)
    assert server.stop() == 0
    (path,) = (runtime / "zdworker").glob("history-*.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.start()
    assert server.master != before[0]["master"]
    wait_for(lambda: entries(server, runtime) == before, BOOT_TIMEOUT_S, "the file has been read")
    path.write_text("neither one nor the other\n")
    assert server.stop() == 0
    server.start()
    said = "cannot be read, and a new one is begun"
    wait_for(lambda: said in server.log, BOOT_TIMEOUT_S, "the file could not be read")
    assert entries(server, runtime) == []


def test_a_rollback_is_one(server: Server, site: Site, runtime: Path) -> None:
    server.configure(zd_rollback_window=60)
    for version in ("two", "three"):
        site.deploy(version)
        command(server, runtime, "reload")
    command(server, runtime, "rollback")
    found = entries(server, runtime)
    assert [(entry["kind"], entry["generation"], entry["result"]) for entry in found] == [
        ("reload", 2, "done"),
        ("reload", 3, "done"),
        ("rollback", 2, "done"),
    ]
    site.deploy("four", extra="\ntime.sleep(200)\n")
    command(server, runtime, "reload", "--no-wait")
    wait_for(lambda: entries(server, runtime)[-1]["generation"] == 4, BOOT_TIMEOUT_S, "the reload is under way")
    command(server, runtime, "rollback")
    reload, rollback = entries(server, runtime)[-2:]
    assert (reload["kind"], reload["result"], reload["generation"]) == ("reload", "rolled_back", 4)
    assert (rollback["kind"], rollback["result"], rollback["generation"]) == ("rollback", "done", 2)
    assert [who["uid"] for who in rollback["by"]] == [os.geteuid()]


def test_a_directory_that_takes_no_file_ends_nothing(server: Server, site: Site, runtime: Path) -> None:
    """A directory stands where the file is to be: the rename fails, for root as well."""
    site.deploy("two")
    command(server, runtime, "reload")
    [path] = wait_for(lambda: list((runtime / "zdworker").glob("history-*.jsonl")), BOOT_TIMEOUT_S, "there is a file")
    wait_for(
        lambda: '"done"' in path.read_text(), BOOT_TIMEOUT_S, "the reload's end is in it, the last that is written"
    )
    path.unlink()
    path.mkdir()
    (path / "in the way").write_text("")
    for version in ("three", "four"):
        site.deploy(version)
        command(server, runtime, "reload")
    assert [entry["generation"] for entry in entries(server, runtime)] == [2, 3, 4]
    wait_for(lambda: server.log.count("The history cannot be written") == 1, BOOT_TIMEOUT_S, "that is said")
    assert command(server, runtime, "status", "--check").startswith("steady")
