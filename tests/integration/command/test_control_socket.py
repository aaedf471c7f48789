"""The control socket of a real master: orders and answers, who may, and clients that mean no good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import control_client
from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.ipc.control_directory import directory_of


class Operator:
    """A connection to the control socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(BOOT_TIMEOUT_S)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("r")

    def order(self, command: str, **fields: Any) -> dict[str, Any]:
        """Give an order and return the first answer."""
        self.send(json.dumps({"type": "order", "command": command, **fields}).encode() + b"\n")
        return self.hear()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, "the master has closed the connection"
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def outcome(self, command: str) -> dict[str, Any]:
        """Give an order and wait for its outcome; what is heard on the way is progress."""
        answer = self.order(command, wait=True)
        while answer["type"] == "progress":
            answer = self.hear()
        return answer

    def status(self) -> dict[str, Any]:
        answer = self.order("status")
        assert answer["type"] == "report"
        status = answer["status"]
        assert isinstance(status, dict)
        return status

    def ended(self) -> bool:
        return self._lines.readline() == ""

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


@pytest.fixture
def path(site: Site) -> Path:
    return site.directory / "control.sock"


def steady(server: Server) -> Server:
    """Return a server when its start is done, which is a moment after all workers accept."""
    wait_for(lambda: control_client.status(server)["state"] == "steady", BOOT_TIMEOUT_S, "the start is done")
    return server


@pytest.fixture
def server(start: Start, path: Path) -> Server:
    return steady(start(preload_app=True, zd_control_socket=str(path)))


@pytest.fixture
def keeping(start: Start, path: Path) -> Server:
    """A server that keeps the generation before."""
    return steady(start(preload_app=True, zd_control_socket=str(path), zd_rollback_window=60))


@pytest.fixture
def operator(server: Server, path: Path) -> Iterator[Operator]:
    with contextlib.closing(Operator(path)) as made:
        yield made


def test_status_shows_every_process(server: Server, operator: Operator) -> None:
    status = operator.status()
    assert list(status) == [
        "pid",
        "directory",
        "application",
        "bind",
        "started_at",
        "age_s",
        "state",
        "reason",
        "generation",
        "label",
        "target_generation",
        "workers_wanted",
        "canary",
        "retries",
        "workers",
        "fork_servers",
        "generations",
        "last_reload",
        "reloads",
        "crashes",
        "upgrades",
        "versions",
        "totals",
        "settings",
    ]
    assert (status["pid"], status["state"], status["generation"]) == (server.master, "steady", 1)
    assert (status["directory"], status["application"]) == (str(server.site.directory), "app:app")
    assert status["bind"] == ["http://%s:%s" % server.address]
    assert (status["target_generation"], status["last_reload"]) == (None, None)
    assert [(w["slot"], w["generation"], w["state"]) for w in status["workers"]] == [(0, 1, "ready"), (1, 1, "ready")]
    assert sorted(w["pid"] for w in status["workers"]) == sorted(server.workers())
    assert all(w["rss_bytes"] > 1 << 20 and w["age_s"] > 0 for w in status["workers"])
    fork_server = {"pid": server.fork_servers()[0], "generation": 1, "preloaded": True, "not_preloaded": None}
    assert status["fork_servers"] == [fork_server]
    assert status["settings"]["zd_websocket_drain"] == 5


def test_a_reload_that_is_waited_for_ends_when_all_slots_are_new(
    server: Server, site: Site, operator: Operator
) -> None:
    site.deploy("two")
    outcome = operator.outcome("reload")
    assert (outcome["type"], outcome["result"], outcome["generation"], outcome["serving"]) == ("outcome", "done", 2, 2)
    assert set(server.versions().values()) == {"two"}
    last = operator.status()["last_reload"]
    assert (last["result"], last["generation"], last["error"]) == ("done", 2, None)
    assert last["duration_s"] == pytest.approx(outcome["duration_s"])


def test_a_reload_that_fails_tells_why(server: Server, site: Site, operator: Operator) -> None:
    site.break_("raise")
    outcome = operator.outcome("reload")
    assert (outcome["result"], outcome["serving"]) == ("failed", 1)
    assert "Traceback" in outcome["traceback"]
    assert "app.py" in outcome["traceback"]
    status = operator.status()
    assert status["state"] == "failed"
    assert status["last_reload"]["traceback"] == outcome["traceback"]


def test_a_client_whose_reload_is_overtaken_hears_of_the_newer_one(
    server: Server, site: Site, path: Path, operator: Operator
) -> None:
    gate = site.deploy_gated("two")
    operator.order("reload", wait=True)
    wait_for(lambda: site.marks("waits", "two"), BOOT_TIMEOUT_S, "the first reload's code is being imported")
    site.deploy("three")
    outcomes = []
    with contextlib.closing(Operator(path)) as second:
        assert second.order("reload", wait=True)["type"] == "progress"
        gate.open("wb").close()
        for waiting in (second, operator):
            answer = waiting.hear()
            while answer["type"] == "progress":
                answer = waiting.hear()
            outcomes.append(answer)
    assert [(outcome["result"], outcome["generation"]) for outcome in outcomes] == [("done", 3), ("superseded", 2)]
    assert [outcome["serving"] for outcome in outcomes] == [3, 3]
    assert set(server.versions().values()) == {"three"}


def test_a_rollback_brings_the_code_and_its_configuration_back_without_a_loss(
    keeping: Server, site: Site, path: Path
) -> None:
    server = keeping
    with contextlib.closing(Operator(path)) as operator:
        site.deploy("two")
        server.configure(workers=3)
        assert operator.outcome("reload")["result"] == "done"
        assert list(server.versions().values()) == ["two"] * 3
        site.break_("raise")  # what is on disk does not matter
        with Load(server.address, "new", clients=4) as new, Load(server.address, "kept", clients=4) as kept:
            outcome = operator.outcome("rollback")
            results = [load.stop() for load in (new, kept)]
        assert [result.failures for result in results] == [[], []]
        assert (outcome["result"], outcome["generation"]) == ("done", 1)
        assert list(server.versions().values()) == ["one"] * 2
        assert [entry["generation"] for entry in operator.status()["fork_servers"]] == [1, 2]


def test_a_kept_generation_ends_with_its_rollback_window(start: Start, site: Site, path: Path) -> None:
    server = start(preload_app=True, zd_control_socket=str(path), zd_rollback_window=8)
    with contextlib.closing(Operator(path)) as operator:
        site.deploy("two")
        assert operator.outcome("reload")["result"] == "done"
        assert len(server.fork_servers()) == 2
        wait_for(lambda: len(server.fork_servers()) == 1, BOOT_TIMEOUT_S, "the first generation's fork server is gone")
        assert operator.order("rollback")["type"] == "refused"


def test_a_reload_that_rolls_is_called_off(server: Server, site: Site, path: Path, operator: Operator) -> None:
    site.deploy("two")
    server.configure(zd_min_ready_seconds=30)
    operator.order("reload", wait=True)
    server.wait_started("two")
    with contextlib.closing(Operator(path)) as second:
        assert second.outcome("rollback")["serving"] == 1
    server.configure(workers=2)
    server.wait_only("one")


def test_a_rollback_that_cannot_be_says_why(server: Server, operator: Operator) -> None:
    refused = operator.order("rollback", wait=True)
    assert refused["type"] == "refused"
    assert refused["reason"] == "there can be no rollback: no generation is kept: zd_rollback_window is 0"


@pytest.mark.parametrize(
    "line",
    [b"garbage", b"{}", b'{"type": "order"}', b'{"type": "ready"}', b"[" * 5000],
    ids=["garbage", "empty object", "order of nothing", "another type", "deeply nested"],
)
def test_what_is_no_order_is_answered_and_nothing_comes_of_it(
    server: Server, operator: Operator, path: Path, line: bytes
) -> None:
    operator.send(line + b"\n")
    refused = operator.hear()
    assert refused["type"] == "refused"
    assert '"command": "reload"' in refused["reason"]
    with contextlib.closing(Operator(path)) as another:
        assert another.status()["state"] == "steady"


def test_unknown_orders_name_the_known_ones(operator: Operator) -> None:
    refused = operator.order("restart")
    assert all(f'"command": "{known}"' in refused["reason"] for known in ("status", "reload", "rollback"))
    assert operator.status()["state"] == "steady"


def test_a_crowd_an_endless_line_and_half_an_order_hurt_nobody(server: Server, path: Path) -> None:
    server.wait_control_server()
    before = len(server.descriptors())
    with contextlib.ExitStack() as stack, Load(server.address, "new", clients=2) as load:
        crowd: list[socket.socket] = []
        for _ in range(1000):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
                with contextlib.suppress(OSError):
                    client.send(b'{"type": "order", ')
            crowd.append(client)
        server.reload("two")
        wait_for(lambda: len(server.descriptors()) <= before + 70, BOOT_TIMEOUT_S, "the crowd is bounded")
        assert load.stop().failures == []
    wait_for(lambda: _answered(path), BOOT_TIMEOUT_S, "an order is taken again")


def _answered(path: Path) -> bool:
    with contextlib.suppress(OSError, AssertionError), contextlib.closing(Operator(path)) as operator:
        return bool(operator.status()["state"] == "steady")
    return False


def test_a_client_that_never_reads_is_disconnected(server: Server, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.settimeout(30)
        deaf.connect(str(path))
        order = b'{"type": "order", "command": "status"}\n'
        end = time.monotonic() + BOOT_TIMEOUT_S
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                deaf.sendall(order * 100)
        assert time.monotonic() < end, "the master has kept everything for it"
    server.get()


def test_only_this_user_can_use_the_control_socket(server: Server, path: Path) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_the_default_control_socket_is_in_this_users_own_directory(start: Start) -> None:
    server = start()
    path = directory_of(os.geteuid()) / f"{server.master}.sock"
    with contextlib.closing(Operator(path)) as operator:
        assert operator.status()["pid"] == server.master
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
    server.stop()
    assert not path.exists()


def test_control_socket_none_makes_no_socket(start: Start) -> None:
    server = start(zd_control_socket="none")
    assert not (directory_of(os.geteuid()) / f"{server.master}.sock").exists()


def test_a_socket_that_a_killed_master_has_left_is_no_obstacle(server: Server, path: Path, make_server: Start) -> None:
    os.kill(server.master, signal.SIGKILL)
    server.wait_exit(BOOT_TIMEOUT_S)
    server.wait_nothing_left(BOOT_TIMEOUT_S)
    assert path.exists()
    again = make_server(zd_control_socket=str(path)).start()
    with contextlib.closing(Operator(path)) as operator:
        assert operator.status()["pid"] == again.master


def test_the_control_socket_s_path_can_change_with_a_reload(server: Server, site: Site, path: Path) -> None:
    other = site.directory / "other.sock"
    server.configure(zd_control_socket=str(other))
    server.reload("two")
    assert not path.exists()
    wait_for(lambda: _answered(other), BOOT_TIMEOUT_S, "the reload is over, and orders are taken there")
