"""Many workers, slow forks, and hooks that leave much behind: the fork server gets each order, and the time for it.

Rules: that a fork server was given up is seen by the generations. The fresh one in its place has a number of its own.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.harness.application_site import Site
from tests.harness.control_client import ready, status
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

BOOT_S = 240
"""Seconds that hundreds of workers may take to boot on two cores that have other work to do."""

LARGE_ENVIRONMENT = """

def on_starting(server):
    import os
    for number in range({variables}):
        os.environ["SECRET_%s" % number] = "s" * 1024


def pre_fork(server, worker):
    server.lent = "l" * 4096
    worker.lent = "w" * 1024
"""
"""What a configuration's hooks leave behind for the workers."""

REPORTS_ENVIRONMENT = """
mark("secrets", count=sum(len(value) for name, value in os.environ.items() if name.startswith("SECRET_")))
"""

SLOW_FORK = """
import os as _os
import time as _time_of_fork
from zdworker import syscalls as _syscalls

_forked_by = _os.getpid()
_fork = _syscalls.plain_fork


def _slow_fork():
    # The process in between forks, too, and that costs next to nothing: it has hardly touched its memory.
    if _os.getpid() == _forked_by:
        {delay}
    return _fork()


_syscalls.plain_fork = _slow_fork
"""
"""Code for gunicorn.conf.py: each fork takes its time, as one of a large heap does."""


def launch(make_server: Start, site: Site, **options: object) -> Server:
    return make_server(zd_control_socket=str(site.directory / "control.sock"), **options).launch()


def wait_ready(server: Server, workers: int, generation: int = 1, deadline: float = BOOT_S) -> None:
    def all_ready() -> bool:
        time.sleep(0.2)  # an answer about hundreds of workers takes the master some time
        return ready(server, generation) == workers

    wait_for(all_ready, deadline, f"{workers} workers of generation {generation} are ready")


@pytest.mark.load
@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_two_hundred_workers_start_reload_and_stop(make_server: Start, site: Site, preload: bool) -> None:
    server = launch(
        make_server,
        site,
        workers=200,
        preload_app=preload,
        zd_boot_timeout=BOOT_S,
        zd_max_surge=50,
        zd_max_unavailable=50,
        graceful_timeout=60,
        timeout=BOOT_S,
    )
    wait_ready(server, 200)
    (fork_server,) = status(server)["fork_servers"]
    site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_ready(server, 200, generation=2)
    wait_for(lambda: status(server)["last_reload"]["result"] == "done", BOOT_S, "the reload is done")
    found = status(server)
    assert found["state"] == "steady"
    assert found["crashes"] == 0
    assert [server["generation"] for server in found["fork_servers"]] == [2]
    assert fork_server["generation"] == 1
    server.signal(signal.SIGTERM)
    assert server.wait_exit(BOOT_S) == 0
    server.wait_nothing_left(BOOT_TIMEOUT_S)


@pytest.mark.load
def test_sixty_workers_and_a_large_environment(make_server: Start, site: Site) -> None:
    site.deploy("one", extra=REPORTS_ENVIRONMENT + "\ntime.sleep(2)\n")
    server = launch(make_server, site, workers=60, zd_boot_timeout=BOOT_S, extra=LARGE_ENVIRONMENT.format(variables=4))
    wait_ready(server, 60)
    assert [mark["count"] for mark in site.marks("secrets")] == [4 * 1024] * 60
    server.signal(signal.SIGTERM)
    assert server.wait_exit(BOOT_S) == 0


def test_an_environment_that_does_not_fit_into_the_socket(make_server: Start, site: Site) -> None:
    """It waits for room, and the orders wait behind it, each with its descriptors."""
    site.deploy("one", extra=REPORTS_ENVIRONMENT)
    server = launch(make_server, site, workers=3, extra=LARGE_ENVIRONMENT.format(variables=600))
    wait_ready(server, 3)
    assert [mark["count"] for mark in site.marks("secrets")] == [600 * 1024] * 3
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: not alive(victim), BOOT_TIMEOUT_S, "it has died")
    server.wait_full()
    assert status(server)["generation"] == 1
    assert server.get("/")["version"] == "one"
    assert server.stop() == 0


@pytest.mark.load
def test_forty_workers_with_slow_forks(make_server: Start, site: Site) -> None:
    """More of them than the time for one fork allows, and none of them waits longer than that for its own."""
    server = launch(
        make_server, site, workers=40, zd_boot_timeout=BOOT_S, extra=SLOW_FORK.format(delay="_time_of_fork.sleep(0.3)")
    )
    wait_ready(server, 40)
    assert [server["generation"] for server in status(server)["fork_servers"]] == [1]
    assert status(server)["state"] == "steady"
    server.signal(signal.SIGTERM)
    assert server.wait_exit(BOOT_S) == 0


@pytest.mark.load
def test_a_fork_server_that_is_stuck_is_given_up(make_server: Start, site: Site) -> None:
    stuck = 'while _os.path.exists(f"stuck-{_forked_by}"): _time_of_fork.sleep(0.1)'
    server = launch(make_server, site, workers=4, extra=SLOW_FORK.format(delay=stuck))
    wait_ready(server, 4)
    (before,) = server.fork_servers()
    (site.directory / f"stuck-{before}").touch()  # the one in its place is not
    for victim in server.workers()[:2]:
        os.kill(victim, signal.SIGKILL)
    wait_for(lambda: before not in server.fork_servers(), BOOT_TIMEOUT_S, "the stuck fork server is given up")
    server.wait_full()
    assert [server["generation"] for server in status(server)["fork_servers"]] == [2]
    assert status(server)["last_reload"] is None
