"""Situations at two in the morning, through the real command: the cause and what to do stand on one screen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import documents
from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.processes import wait_for
from tests.harness.screens import Screen, begin, end, environment, typed
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

DONE, FAILED, MISUSE, NO_INSTANCE = range(4)


@pytest.fixture
def server(start: Start, site: Site) -> Server:
    return start(workers=1, preload_app=True, environment=environment(site.directory))


@pytest.fixture
def other(site: Site) -> Iterator[Server]:
    """A second master of the same user, elsewhere."""
    elsewhere = Site()
    elsewhere.deploy("one")
    with Server(elsewhere, workers=1, environment=environment(site.directory)) as made:
        yield made.start()
    elsewhere.remove()


def where(server: Server) -> str:
    """Return how the command names a master's site, as far as that does not change."""
    return f"in {server.site.directory}, app:app, at http://{server.address[0]}:{server.address[1]}"


# -- which master ----------------------------------------------------------------------------------------------------


def test_in_the_wrong_directory_with_one_master(server: Server, tmp_path: Path) -> None:
    screen = typed(server, "reload", directory=tmp_path)
    assert screen.code == DONE
    assert screen.lines[0].startswith(f"no master was started in {tmp_path}; this is the one of pid {server.master}")
    assert where(server) in screen.lines[0]
    assert screen.lines[-1].startswith("reload done: generation 2 serves")


def test_in_the_wrong_directory_with_two_masters(server: Server, other: Server, tmp_path: Path) -> None:
    screen = typed(server, "reload", directory=tmp_path)
    assert screen.code == MISUSE
    assert "several masters run, name one with --pid or --socket" in screen.text
    for one in (server, other):
        assert f"pid {one.master} ({where(one)}" in screen.text
    assert typed(server, "list", directory=tmp_path).text.count("app:app") == 2
    named = typed(server, "reload", "--pid", str(other.master), directory=tmp_path)
    assert named.lines[-1].startswith("reload done: generation 2 serves")
    assert typed(server, "status").text.startswith(f"master {server.master}: steady, generation 1")


def test_in_the_right_one_of_two_directories(server: Server, other: Server) -> None:
    below = server.site.directory / "below"
    below.mkdir()
    for one, directory in ((server, below), (other, other.site.directory)):
        assert typed(server, "status", directory=directory).text.startswith(f"master {one.master}: steady")


def test_without_a_master(server: Server) -> None:
    assert server.stop() == 0
    screen = typed(server, "reload")
    assert screen.code == NO_INSTANCE
    assert screen.text == (
        "Error: no running master was found: start one, or name it with --pid, --pidfile or --socket\n"
    )


# -- boots that hang -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ({"preload_app": True}, "reload failed: not loaded within 8 s (zd_boot_timeout)"),
        ({"zd_preload": "never"}, "reload failed: the first new worker failed: not ready within 8 s (zd_boot_timeout)"),
    ],
    ids=["preload", "no preload"],
)
def test_an_import_that_hangs(start: Start, site: Site, mode: dict[str, object], words: str) -> None:
    server = start(workers=1, environment=environment(site.directory), **mode)
    server.configure(zd_boot_timeout=8)
    assert typed(server, "reload").code == DONE, "the limit is in force from here on"
    site.break_("hang")
    screen = typed(server, "reload")
    assert screen.code == FAILED
    assert words in screen.text, str(screen)
    assert "fix that, and reload again" in screen.text
    assert screen.lines[-1] == "generation 2 is still serving"
    assert "zd_boot_timeout" in typed(server, "status").text


# -- what is wrong, and what it has cost ------------------------------------------------------------------------------


def test_a_slot_that_waits_for_its_next_attempt(start: Start, site: Site) -> None:
    """Code that was broken on disk without a reload, which a crash brings up."""
    server = start(workers=2, zd_preload="never", environment=environment(site.directory))
    unique = site.break_("raise")
    os.kill(server.workers()[0], signal.SIGKILL)
    waits = re.compile(r"^slot [01] has failed [1-9]\d* times?, next try in \d+ s", re.MULTILINE)

    def waiting() -> Screen | None:
        seen = typed(server, "status")
        return seen if waits.search(seen.text) else None

    screen = wait_for(waiting, 60, "a status in which a slot waits")
    assert screen is not None
    assert screen.lines[0].startswith(f"master {server.master}: degraded, generation 1")
    assert f"degraded: a worker failed to boot: RuntimeError: broken {unique}" in " ".join(screen.text.split())
    checked = typed(server, "status", "--check")
    assert checked.code == FAILED
    assert "degraded" in checked.text
    site.deploy("two")
    assert typed(server, "reload").code == DONE
    assert typed(server, "status", "--check").code == DONE


def test_a_request_that_was_cut(start: Start, site: Site) -> None:
    server = start(workers=1, preload_app=True, graceful_timeout=3, environment=environment(site.directory))
    with Client(server.address) as client:
        client.send(b"GET /sleep?seconds=120 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the request has begun")
        site.deploy("two")
        screen = typed(server, "reload")
    assert screen.code == DONE
    assert screen.lines[-1].startswith("reload done: generation 2 serves")
    assert "1 request cut at graceful_timeout (GET /sleep)" in screen.text, screen
    assert re.search(r"waiting for worker \d+ \(slot 0\): 1 request, at most \d+ s more", screen.text), screen


# -- reloads that meet -----------------------------------------------------------------------------------------------


def test_a_reload_that_a_newer_one_has_overtaken(server: Server, site: Site) -> None:
    gate = site.deploy_gated("two")
    first = begin(server, "reload")
    wait_for(lambda: site.marks("waits", "two"), BOOT_TIMEOUT_S, "the first one's code is being imported")
    site.deploy("three")
    assert typed(server, "reload", "--no-wait").text == "reload ordered\n"
    with gate.open("wb"):
        screen = end(first)
    assert screen.code == DONE
    assert screen.lines[-1] == "reload superseded: a newer reload took its place: its generation 3 serves"
    assert "last reload: done, generation 3" in typed(server, "status").text
    wait_for(lambda: "Reload: generation 2: superseded by a newer one" in server.log, 30, "the log is written")


# -- scripts of old --------------------------------------------------------------------------------------------------


SCRIPT = """\
set -e
old=$(cat gunicorn.pid)
kill -USR2 $old
until grep -q 'all workers are new' log.txt; do sleep 0.1; done
kill -WINCH $old
kill -QUIT $old
"""
"""The upgrade as Gunicorn has it: USR2, and when the new master serves, WINCH and QUIT to the old one."""


def test_the_script_for_stock_gunicorn_ends_the_site_and_is_told_why(start: Start, site: Site) -> None:
    server = start(workers=1, preload_app=True, pidfile="gunicorn.pid", environment=environment(site.directory))
    subprocess.run(["sh"], cwd=site.directory, input=SCRIPT, text=True, check=True, timeout=2 * BOOT_TIMEOUT_S)
    assert server.wait_exit(30) == 0
    told = [line for line in server.log.splitlines() if "after USR2" in line]
    assert {line.partition(" after USR2")[0].rpartition(" ")[2] for line in told} == {"WINCH", "QUIT"}
    for line in told:
        assert "[WARNING]" in line
        assert "starts no second master" in line
        assert "has to end with USR2 (docs: migration)" in line


def test_migration_warns_in_bold() -> None:
    page = documents.text("docs/migration.md")
    assert "**Take the rest out of the script: there is one master only, and `TERM` or `QUIT` ends the site.**" in page


def test_a_script_that_only_sends_usr2_is_told_nothing(server: Server) -> None:
    server.reload("two")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(30) == 0
    assert "after USR2" not in server.log
