"""The log of a server that is well: a few lines of INFO, which name what they are about, and nothing above."""

from __future__ import annotations

import os
import re
from pathlib import Path

import gunicorn
import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.control_client import last_reload
from tests.harness.processes import wait_for
from tests.harness.screens import begin, end, environment, typed
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, WorkerClass, for_each

LINE = re.compile(r"^\[[^]]+\] \[(\d+)\] \[([A-Z]+)\] (.*)$", re.MULTILINE)


def lines(log: str) -> list[tuple[int, str, str]]:
    """Return pid, level and text of each line."""
    return [(int(pid), level, text) for pid, level, text in LINE.findall(log)]


def loud(log: str) -> list[str]:
    return [text for _pid, level, text in lines(log) if level not in ("DEBUG", "INFO")]


def about(log: str, pid: int) -> list[str]:
    """Return the lines that a worker has written, or the master about it."""
    return [text for by, _level, text in lines(log) if by == pid or f"pid:{pid}," in text]


@for_each(ALL)
def test_a_reload_has_two_lines_for_each_worker(start_class: Start, site: Site, worker: WorkerClass) -> None:
    server = start_class(worker, workers=2, environment=environment(site.directory))
    wait_for(lambda: server.log.count(" is ready, after ") == 2, 30, "the master has said of both that they are ready")
    old, before = server.workers(), len(server.log)
    assert typed(server, "reload").code == 0
    new = server.wait_full()
    wait_for(lambda: server.log.count(" has left, after ") == 2, 30, "the master has said of both that they have left")
    wait_for(lambda: ": all workers are new, " in server.log, 30, "the log is written")
    log = server.log[before:]
    for pid in new:
        booting, ready = about(log, pid)
        slot = re.fullmatch(rf"Booting worker with pid: {pid} \(slot ([01]), generation 2\)", booting)
        assert slot
        wanted = rf"Worker \(pid:{pid}, slot {slot[1]}, generation 2\) is ready, after \d+\.\d s"
        assert re.fullmatch(wanted, ready)
    for pid in old:
        draining, left = about(log, pid)
        assert draining.startswith("Draining: ")
        assert re.match(rf"Worker \(pid:{pid}, slot [01], generation 1\) has left, after \d+\.\d s", left)
    own = [text for pid, _level, text in lines(log) if pid == server.master and text.startswith("Reload")]
    assert own[0] == "Reload: loading generation 2"
    assert re.fullmatch(r"Reload: generation 2( \(.*\))?: all workers are new, \d+\.\d s", own[1])
    assert len(own) == 2
    assert server.stop() == 0
    assert loud(server.log) == []


def test_with_debug_uvicorn_tells_its_steps(start: Start) -> None:
    server = start(workers=1, loglevel="debug")
    assert "Application startup complete" in server.log


def test_a_worker_that_has_left_says_what_became_of_its_connections(start: Start, site: Site) -> None:
    server = start(workers=1, preload_app=True, keepalive=30, environment=environment(site.directory))
    with Client(server.address) as client:
        client.ask("GET", "/")
        assert typed(server, "reload").code == 0
        wait_for(lambda: "s, 1 connection handed over" in server.log, 30, "the log says so")


# -- the control sockets -------------------------------------------------------------------------------------------


def test_the_log_says_where_the_command_finds_the_master(start: Start, site: Site) -> None:
    server = start(workers=1, environment=environment(site.directory))

    def told() -> list[str]:
        return [text for _pid, _level, text in lines(server.log) if text.startswith("The zdworker command reaches")]

    wait_for(told, 30, "the log is written")
    assert len(told()) == 1
    path = Path(told()[0].rpartition(" ")[2])
    assert path.is_socket()
    assert typed(server, "status", "--socket", str(path)).code == 0


@pytest.mark.parametrize("home", ["/dev/null", "/proc"])
def test_without_a_home_directory_nothing_is_wrong(make_server: Start, site: Site, home: str) -> None:
    """Gunicorn's own control socket has its default place there."""
    server = make_server(workers=1)
    server.configure()
    text = (site.directory / "gunicorn.conf.py").read_text()
    own = f"control_socket = {str(site.directory / 'gunicorn.ctl')!r}\n"
    assert own in text
    site.write("gunicorn.conf.py", text.replace(own, ""))
    server.environment = {k: v for k, v in server.environment.items() if k != "XDG_RUNTIME_DIR"}
    server.environment |= {"HOME": home, "TMPDIR": str(site.directory)}
    server.launch_as_is()
    server.wait_full()
    if gunicorn.version_info >= (25, 1):  # the first one with a control socket
        wait_for(lambda: "gunicornc will not reach this master" in server.log, 30, "the log says so")
    assert server.stop() == 0
    assert loud(server.log) == []


# -- rollbacks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(start: Start, site: Site) -> Server:
    """A server that can go back."""
    return start(workers=1, preload_app=True, zd_rollback_window=60, environment=environment(site.directory))


def counted(server: Server) -> dict[str, float]:
    """Return how many reloads have ended with each result, by the metrics."""
    found = re.findall(r'^zdworker_reloads_total{result="(\w+)"} (\S+)$', typed_metrics(server), re.MULTILINE)
    return {result: float(number) for result, number in found if float(number)}


def typed_metrics(server: Server) -> str:
    text, _ = begin(server, "metrics").communicate(timeout=60)
    return text


def test_a_rollback_is_told_as_one(kept: Server, site: Site) -> None:
    site.deploy("two")
    assert typed(kept, "reload").code == 0
    screen = typed(kept, "rollback")
    assert screen.lines[-1].startswith("rollback done: generation 1 serves, after ")
    wait_for(lambda: "serves again" in kept.log, 30, "the log is written")
    said = [text for _pid, _level, text in lines(kept.log) if text.startswith(("Reload", "Rollback"))]
    assert said[2] == "Rollback: to generation 1"
    assert re.fullmatch(r"Rollback: generation 1( \(.*\))? serves again, \d+\.\d s", said[3])
    status = typed(kept, "status").text
    assert "last rollback: done, generation 1" in status
    assert "steady, generation 1" in status
    assert last_reload_of(kept)["rollback"] is True
    assert counted(kept) == {"done": 2}
    assert loud(kept.log) == []


def last_reload_of(server: Server) -> dict[str, object]:
    runtime = server.environment["XDG_RUNTIME_DIR"]
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = runtime
    try:
        return last_reload(server)
    finally:
        os.environ.pop("XDG_RUNTIME_DIR") if before is None else os.environ.update(XDG_RUNTIME_DIR=before)


def test_a_reload_that_a_rollback_undoes_has_not_failed(kept: Server, site: Site) -> None:
    site.deploy_gated("two")
    reload = begin(kept, "reload")
    wait_for(lambda: site.marks("waits", "two"), BOOT_TIMEOUT_S, "the new code is being imported")
    screen = typed(kept, "rollback")
    assert (screen.code, screen.lines[-1][:38]) == (0, "rollback done: generation 1 serves, af"), str(screen)
    undone = end(reload)
    assert undone.code == 1
    assert undone.lines[-2:] == [
        "reload rolled back: called off: a rollback was asked for",
        "generation 1 is still serving",
    ]
    assert typed(kept, "status", "--check").code == 0, "nothing is wrong"
    assert "last reload: rolled back, generation 2" in typed(kept, "status").text
    assert counted(kept) == {"rolled_back": 1}
    wait_for(lambda: "Rollback: the reload to generation 2 is undone" in kept.log, 30, "the log says so")
    assert loud(kept.log) == []
