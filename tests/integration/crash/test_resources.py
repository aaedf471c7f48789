"""When the machine has nothing left: the workers keep serving, the reload says why it failed, later ones succeed."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import alive, lowest_free_descriptor, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

CGROUPS = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]


@pytest.fixture
def server(start: Start, site: Site) -> Server:
    return start(zd_control_socket=str(site.directory / "control.sock"))


@contextlib.contextmanager
def limited(pid: int, kind: int, limit: int) -> Iterator[None]:
    """Limit what a running process may have."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)


@pytest.fixture
def processes_of(server: Server) -> Iterator[Path]:
    """A control group of ``server``'s own (cgroups(7), "pids"): the number of root's processes has no other limit."""
    group = next(
        (parent / f"zdworker-{server.master}" for parent in CGROUPS if (parent / "cgroup.procs").exists()), None
    )
    try:
        assert group is not None
        group.mkdir()
        (group / "pids.max").write_text("max")
    except (AssertionError, OSError):
        pytest.skip("no control group may be made here")
    for pid in [server.master, *server.fork_servers(), *server.workers()]:
        (group / "cgroup.procs").write_text(str(pid))
    yield group
    server.stop()
    wait_for(lambda: not (group / "cgroup.procs").read_text(), BOOT_TIMEOUT_S, "the group is empty")
    group.rmdir()


def no_more(group: Path) -> None:
    """Refuse ``group`` each further process."""
    (group / "pids.max").write_text((group / "pids.current").read_text())


def status(server: Server) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(BOOT_TIMEOUT_S)
        control.connect(str(server.site.directory / "control.sock"))
        control.sendall(b'{"type": "order", "command": "status"}\n')
        found = json.loads(control.makefile().readline())["status"]
    assert isinstance(found, dict)
    return found


def last_reload(server: Server) -> dict[str, Any]:
    found = status(server)["last_reload"]
    assert isinstance(found, dict)
    return found


def fails(server: Server) -> str:
    """Tell the master to reload and wait until that has failed; return the reason."""
    before = server.workers()
    with Load(server.address, "new", clients=2) as load:
        server.signal(signal.SIGUSR2)
        wait_for(
            lambda: "failed, the code that was running is still serving" in server.log,
            BOOT_TIMEOUT_S,
            "the reload has failed",
        )
        assert load.stop().failures == []
    assert server.workers() == before
    return server.log


def succeeds(server: Server) -> None:
    server.reload("later")
    wait_for(lambda: last_reload(server)["result"] == "done", BOOT_TIMEOUT_S, "the reload is done")


def test_the_master_is_out_of_descriptors(server: Server, site: Site) -> None:
    site.deploy("two")
    with limited(server.master, resource.RLIMIT_NOFILE, lowest_free_descriptor(server.master)):
        log = fails(server)
    assert "Too many open files" in log
    succeeds(server)
    assert "Too many open files" not in str(last_reload(server)["error"])


def test_descriptors_run_out_in_the_middle_of_a_reload(start: Start, site: Site) -> None:
    """The fork server stands, but no worker can be ordered: no descriptor is left for a heartbeat file or a channel."""
    server = start(preload_app=True, zd_control_socket=str(site.directory / "control.sock"))
    before = server.workers()
    gate = site.deploy_gated("two")
    with Load(server.address, "new", clients=2) as load:
        server.signal(signal.SIGUSR2)
        wait_for(lambda: site.marks("waits", "two"), BOOT_TIMEOUT_S, "the new generation loads")
        with limited(server.master, resource.RLIMIT_NOFILE, lowest_free_descriptor(server.master)):
            gate.open("wb").close()
            wait_for(
                lambda: "failed, the code that was running is still serving" in server.log,
                BOOT_TIMEOUT_S,
                "the reload has failed",
            )
        assert load.stop().failures == []
    assert "Too many open files" in server.log
    assert server.workers() == before
    succeeds(server)


def test_there_are_no_descriptors_for_a_channel(start: Start) -> None:
    """That is not for the fork server to pay for: preloaded code would be lost with it."""
    server = start(preload_app=True)
    before = server.fork_servers()
    with limited(server.master, resource.RLIMIT_NOFILE, lowest_free_descriptor(server.master)):
        os.kill(server.workers()[0], signal.SIGKILL)
        wait_for(lambda: "got no" in server.log, BOOT_TIMEOUT_S, "no replacement can be asked for")
    server.wait_full()
    assert server.fork_servers() == before


def test_the_new_code_gets_no_memory(server: Server, site: Site) -> None:
    site.deploy("two")
    with limited(server.master, resource.RLIMIT_AS, 64 << 20):
        fails(server)
    succeeds(server)


def test_the_new_code_gets_no_process(server: Server, site: Site, processes_of: Path) -> None:
    site.deploy("two")
    no_more(processes_of)
    assert "no fork server can be started" in fails(server)
    (processes_of / "pids.max").write_text("max")
    succeeds(server)


def test_a_dead_worker_s_replacement_gets_no_process(server: Server, processes_of: Path) -> None:
    """It is tried again until there is one; the others serve."""
    victim, *others = server.workers()
    no_more(processes_of)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: not alive(victim), BOOT_TIMEOUT_S, "it is gone")
    with Load(server.address, "new", clients=2) as load:
        wait_for(lambda: status(server)["state"] == "degraded", BOOT_TIMEOUT_S, "the kernel has refused")
        assert server.workers() == others
        (processes_of / "pids.max").write_text("max")
        server.wait_full()
        assert load.stop().failures == []
    succeeds(server)


def test_the_log_is_on_a_full_disk(start: Start, site: Site) -> None:
    server = start(errorlog="/dev/full", accesslog="/dev/full", zd_control_socket=str(site.directory / "control.sock"))
    with Load(server.address, "new", clients=2) as load:
        succeeds(server)
        victim = server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        server.wait_full()
        failures = load.stop().failures
    assert [failure for failure in failures if failure.how not in ("reset", "cut", "closed")] == []
    assert server.stop() == 0


def test_there_is_no_place_for_a_heartbeat_file(start: Start, site: Site) -> None:
    place = site.directory / "beats"
    place.mkdir()
    server = start(worker_tmp_dir=str(place), zd_control_socket=str(site.directory / "control.sock"))
    shutil.rmtree(place)
    site.deploy("two")
    fails(server)
    Path(place).mkdir()
    succeeds(server)
