"""Clients at the control socket cannot hold up the master, whatever it runs out of."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import time
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.heartbeats import ANSWER_S, STATUS, Heartbeats, processor_time_s, status
from tests.harness.processes import lowest_free_descriptor, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start


@pytest.fixture
def path(site: Site) -> Path:
    return site.directory / "control.sock"


@pytest.fixture
def server(start: Start, path: Path) -> Server:
    return start(zd_control_socket=str(path))


def memory(pid: int) -> int:
    """Return the bytes that a process alone has taken: what it shares changes with the processes beside it."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        made.connect(str(path))
    return made


def test_clients_wait_while_no_descriptor_is_free(server: Server, path: Path) -> None:
    """The master uses no processor for them, serves the site, and accepts them when it can."""
    limits = resource.prlimit(server.master, resource.RLIMIT_NOFILE)
    resource.prlimit(server.master, resource.RLIMIT_NOFILE, (lowest_free_descriptor(server.master), limits[1]))
    with contextlib.closing(connected(path)) as waiting, Load(server.address, "new", clients=1) as load:
        waiting.sendall(STATUS)
        used, began = processor_time_s(server.master), time.monotonic()
        wait_for(lambda: time.monotonic() > began + 3, 10, "three seconds have passed")
        used = (processor_time_s(server.master) - used) / (time.monotonic() - began)
        resource.prlimit(server.master, resource.RLIMIT_NOFILE, limits)
        assert load.stop().failures == []
        waiting.settimeout(BOOT_TIMEOUT_S)
        assert b'"report"' in waiting.recv(1 << 20)
    assert used < 0.1, f"the master has used {used:.0%} of a processor"
    wait_for(lambda: status(path)["state"] == "steady", BOOT_TIMEOUT_S, "the fleet is steady")


def test_the_listener_changes_while_no_descriptor_is_free(server: Server, path: Path, site: Site) -> None:
    limits = resource.prlimit(server.master, resource.RLIMIT_NOFILE)
    resource.prlimit(server.master, resource.RLIMIT_NOFILE, (lowest_free_descriptor(server.master), limits[1]))
    with contextlib.closing(connected(path)):
        began = time.monotonic()
        wait_for(lambda: time.monotonic() > began + 1, 10, "the master has failed to accept")
        resource.prlimit(server.master, resource.RLIMIT_NOFILE, limits)
        server.configure(zd_control_socket=str(site.directory / "other.sock"))
        server.reload("two")
    assert status(site.directory / "other.sock")["state"] == "steady"


def test_orders_in_thousands(server: Server, path: Path) -> None:
    """Each is answered, and other clients get their turn between two of them."""
    orders = 20_000
    with Heartbeats(server.master, path) as heartbeats, contextlib.closing(connected(path)) as crowd:
        rest, answers = STATUS * orders, 0
        end = time.monotonic() + 120
        while answers < orders:
            assert time.monotonic() < end, f"{answers} answers"
            # Not in a circle of tries, which would keep the observer's thread from running.
            select.select([crowd], [crowd] if rest else [], [], 10)
            with contextlib.suppress(BlockingIOError):
                rest = rest[crowd.send(rest) :] if rest else rest
            with contextlib.suppress(BlockingIOError):
                data = crowd.recv(1 << 20)
                assert data, "the master has closed the connection"
                answers += data.count(b"\n")
    assert heartbeats.errors == []
    assert heartbeats.longest_s < ANSWER_S


def test_orders_in_thousands_of_many_clients(server: Server, path: Path) -> None:
    """Reloads among them, and orders of clients that wait for one: a turn answers one order, of one client."""
    orders = 400
    reload = b'{"type": "order", "command": "reload", "wait": true}\n'
    with Heartbeats(server.master, path) as heartbeats, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(40)]
        answered, parts = dict.fromkeys(crowd, 0), dict.fromkeys(crowd, b"")
        for client in crowd:
            client.connect(str(path))
            client.sendall((STATUS + reload) * (orders // 2))
            client.setblocking(False)
        end = time.monotonic() + 120
        while min(answered.values()) < orders:
            assert time.monotonic() < end, sorted(answered.values())
            for client in select.select(crowd, [], [], 10)[0]:
                data = client.recv(1 << 20)
                assert data, "the master has closed the connection"
                *lines, parts[client] = (parts[client] + data).split(b"\n")
                answered[client] += sum(json.loads(line)["type"] != "progress" for line in lines)
    assert heartbeats.errors == []
    assert heartbeats.longest_s < ANSWER_S


def test_clients_that_come_and_go_leave_nothing(server: Server, path: Path) -> None:
    wait_for(lambda: status(path)["state"] == "steady", BOOT_TIMEOUT_S, "the start is over")
    server.wait_control_server()
    held, took = len(server.descriptors()), memory(server.master)
    for _ in range(5000):
        connected(path).close()
    wait_for(lambda: len(server.descriptors()) <= held, BOOT_TIMEOUT_S, "all of them are gone")
    assert memory(server.master) < took + (4 << 20)
    assert status(path)["state"] == "steady"


def test_an_order_behind_a_bad_line_is_not_carried_out(server: Server, path: Path) -> None:
    with contextlib.closing(connected(path)) as client:
        client.sendall(STATUS + b'garbage\n{"type": "order", "command": "reload"}\n')
        client.settimeout(BOOT_TIMEOUT_S)
        with client.makefile() as lines:
            answers = list(lines)
    assert ['"report"' in answers[0], '"refused"' in answers[1], len(answers)] == [True, True, 2]
    assert status(path)["last_reload"] is None
