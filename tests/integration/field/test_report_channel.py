"""A worker that has dropped its privileges, and writes what it likes into its report channel, takes no one down.

The worker goes on serving until its replacement is ready.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import hostile_worker, processes
from tests.harness.clients import Load
from tests.harness.heartbeats import ANSWER_S, Heartbeats, status
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

FLOOD = """
while left({seconds}):
    channel.sendall({lines})
"""

DESCRIPTORS = """
import array, socket
numbers = array.array("i", [os.open("/dev/null", os.O_RDONLY)] * 250)
while left({seconds}):
    channel.sendmsg([b'{{"type": "counts", "connections": 1, "requests": 1}}\\n'],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
"""

CHILD = """
pid = os.fork()
if pid == 0:
    try:
        channel.sendall(b'{"type": "hello", "worker_id": %d}\\n' % worker.age)
        channel.sendall(b'{"type": "draining"}\\n{"type": "failed", "reason": "a child"}\\n')
    finally:
        os._exit(0)
os.waitpid(pid, 0)
"""

LINES = {
    "ready": """b'{"type": "ready"}\\n' * 1000""",
    "hello": """b'{"type": "hello", "worker_id": %d}\\n' % worker.age * 1000""",
    "counts": """b'{"type": "counts", "connections": 1, "requests": 1}\\n' * 1000""",
    "large counts": """b'{"type": "counts", "connections": 1, "requests": 1, "x": "%s"}\\n' % (b"x" * 2000)""",
    "negative counts": """b'{"type": "counts", "connections": -1, "requests": 1}\\n'""",
    "replacement": """b'{"type": "replacementrequested", "reason": "more"}\\n' * 1000""",
    "failed after ready": """b'{"type": "failed", "reason": "%s"}\\n' % (b"x" * 100000)""",
    "garbage": """b'garbage\\n' * 10000""",
    "endless line": """b'x' * 100000""",
    "another's message": """b'{"type": "forked", "worker_id": 1}\\n'""",
    "an order": """b'{"type": "order", "command": "reload"}\\n'""",
}


@pytest.fixture
def server(start: Start) -> Server:
    control = "/tmp/zd-field-%d.sock" % os.getpid()  # noqa: S108  # short, and of this test alone
    site_user = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    server = start(
        extra=hostile_worker.HOOK,
        preload_app=True,
        zd_control_socket=control,
        **site_user,
    )
    wait_for(lambda: status(Path(control))["state"] == "steady", BOOT_TIMEOUT_S, "the master has both reports of ready")
    return server


@pytest.fixture
def path(server: Server) -> Path:
    return Path(str(server.settings["zd_control_socket"]))


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
def test_a_flood_of_reports(server: Server, path: Path, lines: str) -> None:
    before, memory = server.workers(), processes.memory(server.master)
    with Load(server.address, "new", clients=1) as load, Heartbeats(server.master, path) as heartbeats:
        hostile_worker.attack(server, before[0], FLOOD.format(lines=lines, seconds=BOOT_TIMEOUT_S))
        hostile_worker.wait_attacked(server, before[0], 2 * BOOT_TIMEOUT_S)
        assert load.stop().failures == []
    assert heartbeats.errors == []
    assert heartbeats.longest_s < ANSWER_S
    assert processes.memory(server.master) < memory + (8 << 20)
    assert server.log_file.stat().st_size < 1 << 20
    assert status(path)["last_reload"] is None, "no report is an order"
    assert server.site.events("attacked")[0]["error"], "the master has closed the channel"
    server.reload("two")
    assert server.stop() == 0


def test_descriptors_come_along(server: Server, path: Path) -> None:
    """The hostile worker serves until its replacement is ready, and only it is replaced."""

    def sent() -> int:
        return [*server.descriptors().values()].count("/dev/null")

    before, held = server.workers(), sent()
    most = held
    hostile_worker.attack(server, before[0], DESCRIPTORS.format(seconds=BOOT_TIMEOUT_S))

    def over() -> bool:
        nonlocal most
        most = max(most, sent())
        return any(event["pid"] == before[0] for event in server.site.events("attacked"))

    wait_for(over, 2 * BOOT_TIMEOUT_S, "the attack is over")
    assert most == held, "what leads to /dev/null is what was sent"
    with Load(server.address, "new", clients=2) as load:
        wait_for(lambda: before[0] not in server.workers(), BOOT_TIMEOUT_S, "the hostile worker is replaced")
        assert before[1] in server.wait_full()
        assert load.stop().failures == []


def test_a_child_of_the_application_says_hello(server: Server, path: Path) -> None:
    """It is not the worker: nothing follows."""
    before = server.workers()
    hostile_worker.attack(server, before[0], CHILD)
    hostile_worker.wait_attacked(server, before[0], BOOT_TIMEOUT_S)
    wait_for(lambda: status(path)["workers"][0]["state"] == "ready", BOOT_TIMEOUT_S, "the worker serves as before")
    assert "was not expected" not in server.log
    assert server.workers() == before
    server.reload("two")
    assert server.stop() == 0
