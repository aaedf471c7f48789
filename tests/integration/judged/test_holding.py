"""A reload that is held: the canary serves beside all old workers until somebody has looked at it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.harness import control_client
from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, UVICORN, WorkerClass, for_each
from zdworker.command import client, finder


def command(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command for a server, and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "zdworker", *words, "--pid", str(server.master)],
        env=os.environ,
        cwd=server.site.directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * BOOT_TIMEOUT_S,
    )


def status(server: Server) -> dict[str, Any]:
    return client.status(finder.find(pid=server.master).path)


def answers(server: Server, generation: int) -> int:
    """What a generation has answered, as far as that is known."""
    known = [g["answers"] for g in status(server)["generations"] if g["generation"] == generation and g["answers"]]
    return sum(figures["answers"] for figures in known)


def hold(server: Server, *words: str) -> None:
    held = command(server, "reload", "--hold", *words)
    assert held.returncode == 0, held.stderr
    assert held.stdout == (
        "reload held: the canary of generation 2 serves beside all workers of generation 1; "
        'go on with "zdworker resume", end it with "zdworker rollback"\n'
    )


@for_each(ALL)
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_both_generations_answer_while_a_reload_is_held(
    start: Start, site: Site, worker: WorkerClass, preload: bool
) -> None:
    """Nothing counts before: the hold has the old workers begin to."""
    settings = {name: value for name, value in worker.settings.items() if name != "workers"}
    server = start(worker_class=worker.path, workers=3, preload_app=preload, graceful_timeout=15, **settings)
    before = server.workers()
    with Load(server.address, "new", clients=6, pause=0.02) as running:
        site.deploy("two")
        ordered = time.monotonic()
        hold(server)
        wait_for(
            lambda: min(answers(server, 1), answers(server, 2)) > 50, BOOT_TIMEOUT_S, "both generations have answered"
        )
        shown = status(server)
        assert shown["canary"]["held"]
        assert 599 - (time.monotonic() - ordered) < shown["canary"]["left_s"] <= 600
        assert set(before) < set(server.workers())
        table = command(server, "status").stdout
        probed = command(server, "probe", "/", "--header", "X-Probe: yes")
        assert probed.returncode == 0, probed.stderr
        assert "HTTP/1.1 200 OK" in probed.stderr
        assert (json.loads(probed.stdout)["version"], json.loads(probed.stdout)["pid"]) == (
            "two",
            shown["canary"]["pid"],
        )
        resumed = command(server, "resume")
        results = running.stop()
    assert "until it is resumed" in table
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith("resume done: generation 2")
    assert results.failures == []
    assert set(server.versions().values()) == {"two"}


def test_rollback_ends_a_hold(start: Start, site: Site) -> None:
    server = start(worker_class=UVICORN.path)
    before = server.workers()
    site.deploy("two")
    hold(server)
    ended = command(server, "rollback")
    assert ended.returncode == 0, ended.stderr
    wait_for(lambda: server.workers() == before, BOOT_TIMEOUT_S, "the old workers alone are left")
    assert control_client.last_reload(server)["result"] == "rolled_back"


def test_a_hold_ends_by_itself(start: Start, site: Site) -> None:
    server = start(worker_class=UVICORN.path)
    before = server.workers()
    site.deploy("two")
    hold(server, "1")
    wait_for(lambda: control_client.last_reload(server)["result"], BOOT_TIMEOUT_S, "it has ended")
    assert control_client.last_reload(server)["error"] == ("given up: it was not resumed within 1 s (zdworker resume)")
    wait_for(lambda: server.workers() == before, BOOT_TIMEOUT_S, "the old workers alone are left")


def test_a_second_reload_takes_the_place_of_one_that_is_held(start: Start, site: Site) -> None:
    server = start(worker_class=UVICORN.path)
    site.deploy("two")
    hold(server)
    site.deploy("three")
    done = command(server, "reload")
    assert done.returncode == 0, done.stderr
    assert set(server.versions().values()) == {"three"}


@pytest.mark.parametrize("order", ["rollback", "resume"])
def test_the_old_code_s_fork_server_dies_during_a_hold(start: Start, site: Site, order: str) -> None:
    """Its workers serve. A slot that loses its worker then stays empty: nothing but old code may serve there."""
    server = start(worker_class=UVICORN.path, workers=3, preload_app=True)
    (old_fork_server,) = server.fork_servers()
    site.deploy("two")
    hold(server)
    os.kill(old_fork_server, signal.SIGKILL)
    wait_for(lambda: old_fork_server not in server.fork_servers(), BOOT_TIMEOUT_S, "the old fork server is gone")
    lost = [worker["pid"] for worker in status(server)["workers"] if worker["generation"] == 1][-1]
    os.kill(lost, signal.SIGKILL)
    wait_for(lambda: status(server)["state"] == "degraded", BOOT_TIMEOUT_S, "a slot is empty, and the master says so")
    assert "the fork server of generation 1 is gone" in status(server)["reason"]
    site.deploy("one")
    ended = command(server, order)
    assert ended.returncode == 0, ended.stderr
    wait_for(lambda: status(server)["state"] == "steady", BOOT_TIMEOUT_S, "the master is steady")
    server.wait_only("one" if order == "rollback" else "two")


def test_what_cannot_be_held_or_resumed_says_why(start: Start, site: Site) -> None:
    server = start(worker_class=UVICORN.path)
    assert "no canary is held" in command(server, "probe", "/").stderr
    assert command(server, "probe", "no-path").returncode == 2
    refused = command(server, "resume")
    assert refused.returncode == 1
    assert "there can be no resume: no canary is held" in refused.stderr
    assert command(server, "reload", "--hold=0").returncode == 2
    site.break_("raise")
    failed = command(server, "reload", "--hold")
    assert failed.returncode == 1
    assert "reload failed" in failed.stderr


def test_a_held_reload_as_json(start: Start, site: Site) -> None:
    server = start(worker_class=UVICORN.path)
    site.deploy("two")
    held = json.loads(command(server, "reload", "--hold", "--json").stdout)
    assert (held["result"], held["generation"], held["serving"]) == ("held", 2, 1)
    done = json.loads(command(server, "resume", "--json").stdout)
    assert (done["result"], done["generation"], done["serving"]) == ("done", 2, 2)
