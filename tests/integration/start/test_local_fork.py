"""A system without subreaper and credentials (any but Linux): workers are forked from the master, all else holds.

The configuration takes both away before Gunicorn's arbiter runs.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

ELSEWHERE = """
import socket as _socket

import zdworker.syscalls as _system

_system.become_subreaper = lambda: False
vars(_socket).pop("SO_PASSCRED", None)
_note("evaluated")
"""


@pytest.fixture
def server(start: Start) -> Server:
    """Two workers without a fork server."""
    server = start(workers=2, extra=ELSEWHERE)
    assert server.fork_servers() == []
    return server


def test_reload_and_stop_without_a_fork_server(server: Server) -> None:
    with (
        Load(server.address, "new", clients=3, pause=0.01) as new,
        Load(server.address, "kept", clients=3, pause=0.01) as kept,
    ):
        server.reload("two")
    for load in (new, kept):
        results = load.stop()
        assert results.failures == []
        assert results.versions()[0] == "one"
    assert server.get()["version"] == "two"
    assert server.fork_servers() == []
    assert server.stop() == 0
    server.wait_nothing_left(10)


def test_a_killed_worker_is_replaced_without_a_fork_server(server: Server, site: Site) -> None:
    victim, other = server.workers()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(site.marks("startup")) == 3, BOOT_TIMEOUT_S, "the replacement has started")
    workers = server.wait_full()
    assert other in workers
    assert victim not in workers
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")


def test_broken_deploy_without_a_fork_server(server: Server, site: Site) -> None:
    workers = server.workers()
    unique = site.break_("raise")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: unique in server.log, BOOT_TIMEOUT_S, "the new worker has failed")
    assert server.wait_full() == workers
    server.reload("two")
    assert server.stop() == 0


def test_worker_class_of_another_kind_without_a_fork_server(server: Server, site: Site) -> None:
    """Nobody but the master evaluates the configuration here: it has to look itself."""
    old, evaluated = server.workers(), len(site.events("evaluated"))
    with Load(server.address, "new", clients=3, pause=0.01) as load:
        server.configure(worker_class="sync")
        server.signal(signal.SIGUSR2)
        wait_for(
            lambda: len(site.events("evaluated")) > evaluated, BOOT_TIMEOUT_S, "the master has read the configuration"
        )
        server.configure(worker_class="zdworker.UvicornWorker")
        server.reload("two")
    assert load.stop().failures == []
    assert {event["pid"] for event in site.events("post_fork")} == {*old, *server.workers()}
