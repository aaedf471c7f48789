"""A rotation of the log when its disk is full: the very moment in which somebody orders one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

SIZE_BYTES = 256 * 1024
ON_A_SMALL_DISK = 'mount -t tmpfs -o size={size} none "{path}" && exec "$@"'


@pytest.mark.parametrize("capture", [False, True], ids=["", "capture_output"])
@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_a_rotation_on_a_full_disk_changes_nothing(start: Start, site: Site, preload: bool, capture: bool) -> None:
    """In ``/dev/full`` there is never room: each line that is not written stays in Python's buffer."""
    noise = "\nprint('printed', flush=False)\n" if capture else ""
    site.deploy("one", extra=noise)
    server = start(
        errorlog="/dev/full",
        accesslog="/dev/full",
        preload_app=preload,
        capture_output=capture,
        environment={"PYTHONUNBUFFERED": ""},  # else the application's own print() raises
    )
    everyone = {server.master, *server.fork_servers(), *server.workers()}
    with Load(server.address, "new", clients=2) as load:
        for _ in range(3):
            server.signal(signal.SIGUSR1)
            assert {server.get()["version"] for _ in range(10)} == {"one"}
        assert {server.master, *server.fork_servers(), *server.workers()} == everyone
        site.deploy("two", extra=noise)
        server.signal(signal.SIGUSR2)
        server.wait_only("two")
        server.signal(signal.SIGUSR1)
        assert {server.get()["version"] for _ in range(10)} == {"two"}
        assert load.stop().failures == []
    assert server.stop() == 0


class Disk:
    """A small disk of ``server``'s own, seen through the root of its processes."""

    def __init__(self, server: Server, path: Path) -> None:
        self.path = Path(f"/proc/{server.master}/root{path}")

    def fill(self) -> None:
        with (self.path / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(b"x" * 4096)
            except OSError:
                return

    def text(self, name: str) -> str:
        return (self.path / name).read_text()


@pytest.fixture
def small(make_server: Start, site: Site) -> tuple[Server, Disk]:
    """A server whose logs are on a disk of a mount namespace of its own (mount_namespaces(7), tmpfs(5))."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    place = site.directory / "logs"
    place.mkdir()
    shell = ON_A_SMALL_DISK.format(size=SIZE_BYTES, path=place)
    server = make_server(errorlog=str(place / "error.log"), accesslog=str(place / "access.log"))
    server.words = ["unshare", "--mount", "sh", "-c", shell, "sh", *server.words]
    server.launch()
    try:
        server.wait_full()
    except AssertionError:
        if "ermission" in server.log or "not permitted" in server.log:
            pytest.skip("nothing may be mounted here")
        raise
    return server, Disk(server, place)


def test_the_log_goes_on_once_there_is_room(small: tuple[Server, Disk], site: Site) -> None:
    server, disk = small
    everyone = {server.master, *server.fork_servers(), *server.workers()}
    with Load(server.address, "new", clients=2) as load:
        disk.fill()
        for _ in range(200):
            server.get()
        for name in ("error.log", "access.log"):
            (disk.path / name).rename(disk.path / f"{name}.1")
        server.signal(signal.SIGUSR1)
        wait_for((disk.path / "error.log").exists, BOOT_TIMEOUT_S, "the master has opened the new file")
        assert {server.get()["version"] for _ in range(20)} == {"one"}
        site.deploy("two")
        server.signal(signal.SIGUSR2)
        server.wait_only("two")
        for name in ("ballast", "error.log.1", "access.log.1"):
            (disk.path / name).unlink()
        server.signal(signal.SIGUSR1)
        assert {server.get()["version"] for _ in range(20)} == {"two"}
        assert load.stop().failures == []
    assert not everyone & {*server.fork_servers(), *server.workers()}
    server.reload("three")
    wait_for(lambda: "all workers are new" in disk.text("error.log"), BOOT_TIMEOUT_S, "the reload is in the log")
    wait_for(lambda: server.get() and "GET / " in disk.text("access.log"), BOOT_TIMEOUT_S, "requests are logged")
    assert server.stop() == 0
