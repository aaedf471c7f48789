"""Log files: each line once, in the right file; new settings with a reload; rotations at any moment."""

from __future__ import annotations

import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import descriptors, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start


@pytest.fixture
def error_log(site: Site) -> Path:
    return site.directory / "error.log"


@pytest.fixture
def access_log(site: Site) -> Path:
    return site.directory / "access.log"


@pytest.fixture
def server(make_server: Start, error_log: Path, access_log: Path) -> Server:
    return make_server(errorlog=str(error_log), accesslog=str(access_log))


def lines(path: Path, pattern: str) -> list[str]:
    return [line for line in path.read_text().splitlines() if re.search(pattern, line)] if path.exists() else []


def holders(server: Server, path: Path) -> list[int]:
    """Return the processes of a server that have a file open, by its present name."""
    return [pid for pid in server.left() if str(path) in descriptors(pid).values()]


def no_holders(server: Server, path: Path) -> bool:
    return not holders(server, path)


def test_each_line_is_written_once_through_reloads(server: Server, error_log: Path, access_log: Path) -> None:
    server.start()
    for number in range(3):
        server.reload(f"v{number}")
        server.get("/environment?name=HOME")
    assert len(lines(error_log, "Listening at")) == 1
    booted = lines(error_log, "Booting worker with pid")
    assert len(booted) == len(set(booted)) == 2 * 4
    wait_for(lambda: len(lines(error_log, "all workers are new")) >= 3, 30, "the log is written")
    assert server.stop() == 0
    assert len(lines(error_log, "all workers are new")) == 3
    assert len(lines(access_log, "GET /environment")) == 3


def test_descriptors_do_not_grow_with_reloads(server: Server) -> None:
    server.start()
    server.reload("v0")
    before = server.descriptors()
    for number in range(1, 4):
        server.reload(f"v{number}")
    wait_for(lambda: len(server.descriptors()) <= len(before), 30, f"there are as many descriptors as in {before}")


def test_new_files_and_levels_come_with_a_reload(server: Server, site: Site, error_log: Path) -> None:
    server.start()
    other = site.directory / "other.log"
    server.configure(errorlog=str(other), loglevel="debug")
    server.reload("two")
    before = error_log.read_text()
    server.get()
    assert server.stop() == 0
    assert error_log.read_text() == before, "somebody went on writing to the old file"
    assert lines(other, r"\[DEBUG\]")
    assert lines(other, "Shutting down: Master")


def test_a_log_configuration_comes_with_a_reload(server: Server, site: Site) -> None:
    """For the workers and for the master."""
    server.start()
    path = site.directory / "configured.log"
    server.configure(
        logconfig_dict={
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"plain": {"format": "configured: %(message)s"}},
            "handlers": {"file": {"class": "logging.FileHandler", "filename": str(path), "formatter": "plain"}},
            "root": {"handlers": []},
            "loggers": {"gunicorn.error": {"level": "INFO", "handlers": ["file"], "propagate": False}},
        }
    )
    server.reload("two")
    wait_for(lambda: lines(path, "configured: Reload: .* all workers are new"), 30, "the master writes there")
    assert len(lines(path, "configured: Booting worker")) == server.expected


def test_a_failed_reload_leaves_the_files(server: Server, site: Site, error_log: Path) -> None:
    server.start()
    site.break_("raise")
    other = site.directory / "other.log"
    server.configure(errorlog=str(other), loglevel="debug")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: lines(error_log, "the code that was running is still serving"), BOOT_TIMEOUT_S, "it has failed")
    assert not lines(error_log, r"\[DEBUG\]")
    wait_for(lambda: not holders(server, other), 30, "the new code's interpreter is gone")


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_rotation_in_the_middle_of_a_reload(
    make_server: Start, site: Site, error_log: Path, access_log: Path, preload: bool
) -> None:
    """Old workers, one that boots, one that is ready, the fork servers, the master: nobody keeps the old files."""
    server = make_server(errorlog=str(error_log), accesslog=str(access_log), preload_app=preload).start()
    site.deploy("two", extra="" if preload else "\ntime.sleep(1)\n")
    server.configure(zd_min_ready_seconds=1)
    rotated = error_log.with_suffix(".1"), access_log.with_suffix(".1")
    with Load(server.address, "new", clients=2) as load:
        server.signal(signal.SIGUSR2)
        wait_for(lambda: len(server.workers()) == 3, BOOT_TIMEOUT_S, "a new worker boots")
        for path, old in zip((error_log, access_log), rotated, strict=True):
            os.rename(path, old)
        server.signal(signal.SIGUSR1)
        wait_for(
            lambda: not [*holders(server, rotated[0]), *holders(server, rotated[1])], 30, "nobody has the old files"
        )
        server.wait_only("two")
        assert load.stop().failures == []
    assert not [*holders(server, rotated[0]), *holders(server, rotated[1])]
    wait_for(lambda: lines(error_log, "all workers are new"), 30, "the log is written")
    booted = [line for path in (error_log, rotated[0]) for line in lines(path, "Booting worker")]
    assert len(booted) == len(site.events("post_fork")), "each line once, in one of the files"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_a_rotation_where_only_the_master_can_create_files(make_server: Start, site: Site) -> None:
    """``/var/log`` of a master that was started as root; logrotate moves the files and creates none."""
    place = site.directory / "logs"
    place.mkdir()
    files = [place / "error.log", place / "access.log"]
    logs: dict[str, str] = {"errorlog": str(files[0]), "accesslog": str(files[1])}
    server = make_server(user="nobody", group="nogroup", preload_app=True, **logs).start()
    for number in range(3):
        moved = [path.rename(f"{path}.{number}") for path in files]
        server.signal(signal.SIGUSR1)
        for path in moved:
            wait_for(partial(no_holders, server, path), 30, f"no process has {path.name} open")
        assert [path.owner() for path in files] == ["nobody", "nobody"]
    server.get("/environment?name=HOME")
    wait_for(lambda: lines(files[1], "GET /environment"), 30, "a worker has written to the new file")


def test_a_rotation_into_a_directory_that_is_gone(make_server: Start, tmp_path: Path) -> None:
    """A process that cannot open the new file goes on with the old one: no log is worth the site."""
    place = tmp_path / "logs"
    place.mkdir()
    server = make_server(errorlog=str(place / "error.log"), preload_app=True, workers=2).start()
    everyone = {server.master, *server.fork_servers(), *server.workers()}
    with Load(server.address, "new", clients=2) as load:
        shutil.rmtree(place)
        server.signal(signal.SIGUSR1)
        assert {server.get()["version"] for _ in range(20)} == {"one"}
        place.mkdir()
        server.signal(signal.SIGUSR1)
        wait_for((place / "error.log").exists, 30, "the file is there")
        assert {server.master, *server.fork_servers(), *server.workers()} == everyone
        server.reload("two")
        assert load.stop().failures == []
    wait_for(lambda: lines(place / "error.log", "all workers are new"), 30, "the log is written")


def test_a_crash_loop_leaves_the_log_readable(start: Start, site: Site, error_log: Path) -> None:
    """Backoff bounds it: not a traceback for each of hundreds of attempts."""
    server = start(errorlog=str(error_log))
    site.break_("raise")
    size = error_log.stat().st_size
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(
        lambda: len(lines(error_log, "Exception in worker process")) >= 4, BOOT_TIMEOUT_S, "it was tried four times"
    )
    assert error_log.stat().st_size - size < 4 * 8192
    assert len(server.accepting()) == 1
