"""A process that SIGKILL does not end: it waits in the kernel for what does not come."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def server(start: Start) -> Server:
    return start(graceful_timeout=1, workers=2)


@pytest.fixture
def frozen(server: Server) -> Iterator[int]:
    """A worker in a frozen group of version 1 (cgroup-v1/freezer-subsystem), where a process cannot be killed."""
    group = FREEZER / f"zdworker-{server.master}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no process can be frozen here")
    victim = server.workers()[0]
    (group / "cgroup.procs").write_text(str(victim))
    (group / "freezer.state").write_text("FROZEN")
    try:
        wait_for(
            lambda: (group / "freezer.state").read_text().strip() == "FROZEN", BOOT_TIMEOUT_S, "the worker is frozen"
        )
        yield victim
    finally:
        (group / "freezer.state").write_text("THAWED")
        server.end()
        wait_for(lambda: not (group / "cgroup.procs").read_text(), BOOT_TIMEOUT_S, "the group is empty")
        group.rmdir()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_the_master_ends_without_it(server: Server, frozen: int, signum: signal.Signals) -> None:
    server.signal(signum)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    assert os.path.exists(f"/proc/{frozen}"), "it could be killed: this test shows nothing"
