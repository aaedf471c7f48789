"""A boot that hangs: where it does stands in the log, and where that can be known in the reload's error, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ASGI, THREAD, UVICORN, WorkerClass, for_each

LIMIT_S = 8
"""Seconds of ``zd_boot_timeout``: more than a boot takes that does not hang."""
COLUMNS, LINES = 80, 24
"""One screen of a terminal."""

HANGS = "while not os.path.exists('go on'):\n        time.sleep(0.05)\n"

APPLICATION = f"""
import threading

def connect_to_the_database():
    {HANGS}
threading.Thread(target=threading.Event().wait, name="another", daemon=True).start()
connect_to_the_database()
"""

CONFIGURATION = f"""
import os, time

def read_secrets():
    {HANGS}
if os.path.exists("hang") and open("hang").read() == os.environ.get("ZD_GENERATION"):
    read_secrets()
"""
"""Hangs in the generation that a file names; in the master that is 0."""


@for_each((UVICORN, ASGI, THREAD))
def test_a_worker_that_hangs_at_import_writes_its_stack(start_class: Start, site: Site, worker: WorkerClass) -> None:
    server = start_class(worker, workers=1, zd_preload="never", zd_boot_timeout=LIMIT_S)
    site.break_("hang")
    server.signal(server.reload_signal)
    wait_for(lambda: "it writes its stack, and is killed" in server.log, BOOT_TIMEOUT_S, "the worker has had its time")

    def stack() -> str:
        return server.log.partition("most recent call first")[2]

    wait_for(lambda: "gunicorn" in stack(), 30, "its stack is in the log, frame by frame")
    assert "app.py" in stack().partition("gunicorn")[0], "the application's frames are on top"
    wait_for(lambda: set(server.versions().values()) == {"one"}, 30, "the old code serves")


def failed_reload(server: Server) -> list[str]:
    """Reload by the command, and return what a person reads, in one screen."""
    server.log_file.write_text("")
    ended = subprocess.run(
        [sys.executable, "-m", "zdworker", "reload", "--quiet", "--pid", str(server.master)],
        env={**os.environ, "COLUMNS": str(COLUMNS)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * BOOT_TIMEOUT_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    lines = ended.stderr.splitlines()
    assert sum(-(-len(line) // COLUMNS) for line in lines) <= LINES, ended.stderr
    return lines


def check(server: Server, file: str, function: str) -> None:
    """Reload to code that hangs, and find out by what a person reads where."""
    path = os.path.realpath(Path(server.site.directory) / file)
    lines = failed_reload(server)
    number = next(at for at, line in enumerate(Path(path).read_text().splitlines(), 1) if "time.sleep(0.05)" in line)
    frame = f'  File "{path}", line '
    assert lines[0] == "Stack (most recent call first):"
    assert lines[1] in {f"{frame}{number} in {function}", f"{frame}{number - 1} in {function}"}
    assert lines[-1] == "generation 1 is still serving"
    assert lines[-2].startswith("fix that, and reload again")
    reason = f"not loaded within {LIMIT_S} s (zd_boot_timeout): it hangs at {path}, line "
    assert lines[-3].startswith(f"reload failed: {reason}")
    assert lines[-3].endswith(f", in {function}")
    # As a line of the process, without a prefix.
    wait_for(lambda: lines[1] in server.log.splitlines(), 30, "the stack is in the log")
    assert server.get()["version"] == "one"


def test_an_import_that_hangs_in_the_fork_server(start: Start, site: Site) -> None:
    server = start(workers=1, preload_app=True, zd_boot_timeout=LIMIT_S)
    site.deploy("two", extra=APPLICATION)
    check(server, "app.py", "connect_to_the_database")
    wait_for(lambda: server.log.count("(most recent call first):") == 2, 30, "the stacks of all threads are in the log")
    (site.directory / "go on").write_text("")
    server.reload("two")


def test_a_configuration_that_hangs_in_the_fork_server(start: Start, site: Site) -> None:
    server = start(workers=1, extra=CONFIGURATION, zd_boot_timeout=LIMIT_S)
    (site.directory / "hang").write_text("2")
    check(server, "gunicorn.conf.py", "read_secrets")


def test_a_configuration_that_hangs_in_the_master(start: Start, site: Site) -> None:
    server = start(workers=1, extra=CONFIGURATION, zd_boot_timeout=LIMIT_S)
    (site.directory / "hang").write_text("0")
    check(server, "gunicorn.conf.py", "read_secrets")
    (site.directory / "hang").unlink()
    server.reload("two")


@pytest.mark.parametrize("file", ["app.py", "gunicorn.conf.py"])
def test_the_first_start(make_server: Start, site: Site, file: str) -> None:
    extra = ""
    if file == "app.py":
        site.deploy("one", extra=APPLICATION)
    else:
        extra = CONFIGURATION
        (site.directory / "hang").write_text("1")
    server = make_server(workers=1, preload_app=True, zd_boot_timeout=LIMIT_S, extra=extra).launch()
    assert server.wait_exit(2 * BOOT_TIMEOUT_S) == 3
    path = os.path.realpath(Path(site.directory) / file)
    assert f"not loaded within {LIMIT_S} s (zd_boot_timeout): it hangs at {path}, line " in server.log
