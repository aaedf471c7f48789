"""An upgrade replaces the master's program: PID, workers, connections and everything else stay."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import gunicorn
import pytest
from websockets.sync.client import connect

from tests.harness import control_client, processes
from tests.harness.application_site import Site
from tests.harness.clients import Client, Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.command import cli

GROWTH_BYTES = 2 << 20
"""Bytes by which the master's memory may differ: it has answered for longer."""

PAUSE = 0.02
"""Seconds between a client's requests: the new program needs a share of two cores."""


@pytest.fixture
def server(start: Start, site: Site) -> Server:
    return start(keepalive=30)


def started_at(pid: int) -> str:
    """Return when a process was started, in the kernel's ticks: ``execve`` does not change it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def own_memory(pid: int) -> int:
    """Return the bytes of a process that no file backs: its share of the others depends on who else has them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (kilobytes,) = (line.split()[1] for line in text.splitlines() if line.startswith("Anonymous:"))
    return int(kilobytes) * 1024


def program(pid: int) -> str:
    """Return the words of the command line that say which module is run."""
    return " ".join(processes.command(pid).split()[1:3])


def test_the_program_is_another_and_everything_else_stays(server: Server) -> None:
    workers, servers, began = server.workers(), server.fork_servers(), started_at(server.master)
    outcome = control_client.upgrade(server)
    assert (outcome.result, outcome.error) == ("done", "")
    assert outcome.before == outcome.after
    assert program(server.master) == "-m zdworker.upgraded"
    assert started_at(server.master) == began
    assert (server.workers(), server.fork_servers()) == (workers, servers)
    assert server.get()["pid"] in workers
    found = control_client.status(server)
    assert (found["pid"], found["state"], found["generation"]) == (server.master, "steady", 1)
    assert [worker["pid"] for worker in found["workers"]] == workers


def test_a_reload_a_crash_and_the_end_work_afterwards(server: Server) -> None:
    control_client.upgrade(server)
    server.reload("two")
    killed = server.workers()[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: killed not in server.workers(), 30, "the worker is gone")
    server.wait_full()
    assert control_client.status(server)["crashes"] == 1
    control_client.upgrade(server)
    assert control_client.status(server)["crashes"] == 1
    assert server.stop() == 0
    server.wait_nothing_left(30)


def test_many_upgrades_lose_no_request_and_no_connection(start: Start, full: bool) -> None:
    server = start(workers=4, keepalive=30)
    workers, began = server.workers(), started_at(server.master)
    with (
        Load(server.address, "new", clients=4, pause=PAUSE) as new,
        Load(server.address, "kept", clients=4, pause=PAUSE) as kept,
        Load(server.address, "slow", clients=4) as slow,
        contextlib.closing(Client(server.address)) as idle,
        connect("ws://%s:%s/websocket" % server.address, proxy=None) as websocket,
    ):
        assert control_client.upgrade(server).result == "done"
        server.wait_control_server()
        descriptors, memory = len(server.descriptors()), own_memory(server.master)
        for number in range(19 if full else 3):
            assert control_client.upgrade(server).result == "done"
            websocket.send(f"{number}")
            assert websocket.recv(30) == f"{number}"
        wait_for(lambda: len(server.descriptors()) <= descriptors, 30, f"there are {descriptors} descriptors at most")
        assert own_memory(server.master) < memory + GROWTH_BYTES
        assert (server.workers(), started_at(server.master)) == (workers, began)
        assert idle.ask("GET", "/").status == 200
    for load in (new, kept, slow):
        results = load.stop()
        assert results.failures == []
        assert (results.reopened, results.told_to_close) == (0, 0)
        assert {answer.pid for answer in results.answers} <= set(workers)
    server.reload("two")
    killed = server.workers()[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: killed not in server.workers(), 30, "the worker is gone")
    server.wait_full()
    assert server.stop() == 0


def test_the_command_prints_versions(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    name = ["--socket", control_client.control_socket(server)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["upgrade", *name])
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert f"gunicorn {gunicorn.__version__}" in printed.out
    assert printed.err.splitlines() == ["upgrade: rehearsing", "upgrade: replacing"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["upgrade", "--json", *name])
    assert ended.value.code == 0
    outcome = json.loads(capsys.readouterr().out)
    assert list(outcome) == ["result", "duration_s", "before", "after", "error", "traceback"]
    assert outcome["result"] == "done"
    with pytest.raises(SystemExit):
        cli.main(["upgrade", "--no-wait", *name])
    assert capsys.readouterr().out == "upgrade ordered\n"
    wait_for(lambda: _upgrades(server) == 3, BOOT_TIMEOUT_S, "the master is upgraded")


def _upgrades(server: Server) -> int:
    with contextlib.suppress(OSError):
        return int(control_client.status(server)["upgrades"])
    return 0
