"""The operations of a soak: each does something to a running fleet, and knows what must be true when it is over.

Rules:

* An operation returns when its consequence is there: a fact, with a deadline.
* What is on disk, what serves and how many workers there should be is kept in :class:`Fleet`; a respawn of code that is
  not preloaded reads the disk, so before a kill the disk holds what serves.
* All chance comes from one generator: the same seed does the same things.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.harness import control_client
from tests.harness.processes import alive, descriptors, lowest_free_descriptor, wait_for
from tests.harness.server import Server
from zdworker.command import client
from zdworker.ipc.messages import Order

SETTLED = 90.0
"""Seconds that any operation may take on a busy machine."""

SLOW_BOOT = "\ntime.sleep({seconds})\n"


@dataclass
class Fleet:
    """What is to be."""

    server: Server
    chance: random.Random
    preload: bool
    serving: str = "v0"
    size: int = 3
    configured: int = 3
    number: int = 0
    kills: list[float] = field(default_factory=list)

    def status(self) -> dict[str, Any]:
        """Ask the master how things are."""
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control,
            contextlib.closing(control.makefile()) as file,
        ):
            control.settimeout(20)
            control.connect(str(self.server.site.directory / "control.sock"))
            control.sendall(b'{"type": "order", "command": "status"}\n')
            status = json.loads(file.readline())["status"]
        assert isinstance(status, dict)
        return status

    def settled(self) -> bool:
        """Whether nothing goes on, and everything is as it has to be."""
        status = self.status()
        workers = status["workers"]
        return (
            status["state"] in ("steady", "failed")
            and status["target_generation"] is None
            and [worker["state"] for worker in workers] == ["ready"] * self.size
            and len(status["fork_servers"]) == 1
        )

    def settle(self) -> None:
        """Wait until it is."""
        wait_for(self.settled, SETTLED, f"the fleet settles with {self.size} workers")

    def reloads(self) -> int:
        """Return how many reloads have begun."""
        return int(self.status()["reloads"])

    def next_version(self) -> str:
        """Return a version that was never there."""
        self.number += 1
        return f"v{self.number}"

    def heal_disk(self) -> None:
        """Deploy the code that is serving, so that the disk has it."""
        self.server.site.deploy(self.serving)

    def reload(self, signum: signal.Signals = signal.SIGUSR2) -> str:
        """Have the master reload, and return how that ended."""
        before = self.reloads()
        self.server.signal(signum)
        return self.await_reload(before)

    def await_reload(self, before: int) -> str:
        """Wait until the last reload is over, and return how it ended.

        :param before: reloads that had begun before.
        """
        # Not by the state alone: that is "degraded" when somebody cannot be replaced meanwhile, whatever goes on.
        wait_for(
            lambda: self.reloads() > before and self.status()["last_reload"]["result"] and not self.is_rolling(),
            SETTLED,
            "the reload is over",
        )
        result = self.status()["last_reload"]["result"]
        if result == "done":
            self.size = self.configured  # what TTIN and TTOU have changed is forgotten, as in Gunicorn
        self.settle()
        assert isinstance(result, str)
        return result

    def is_rolling(self) -> bool:
        """Whether a reload goes on."""
        return bool(self.status()["state"] == "rolling")


Operation = Callable[[Fleet], str]


def good_deploy(fleet: Fleet) -> str:
    """New code."""
    version = fleet.next_version()
    fleet.server.site.deploy(version)
    assert fleet.reload() == "done"
    fleet.serving = version
    return version


def slow_boot(fleet: Fleet) -> str:
    """New code that takes its time."""
    version, seconds = fleet.next_version(), fleet.chance.choice([0.5, 1.5])
    fleet.server.site.deploy(version, extra=SLOW_BOOT.format(seconds=seconds))
    assert fleet.reload() == "done"
    fleet.serving = version
    fleet.heal_disk()  # or each crash without preload would take as long
    return f"{version}, {seconds} s"


def broken_deploy(fleet: Fleet) -> str:
    """New code that does not start, of each kind that the application can be."""
    site = fleet.server.site
    kind = fleet.chance.choice(site.breakable)
    site.break_(kind)
    assert fleet.reload() == "failed"
    assert fleet.status()["state"] == "failed"
    fleet.heal_disk()
    return kind


def hup(fleet: Fleet) -> str:
    """A reload to what is there already."""
    fleet.heal_disk()
    assert fleet.reload(signal.SIGHUP) == "done"
    return ""


def storm(fleet: Fleet) -> str:
    """Many reloads at once, and a newer deploy in the middle of them."""
    before, version = fleet.reloads(), fleet.next_version()
    fleet.heal_disk()
    for _ in range(5):
        fleet.server.signal(signal.SIGUSR2)
        time.sleep(fleet.chance.uniform(0, 0.2))
    fleet.server.site.deploy(version)
    for _ in range(5):
        fleet.server.signal(fleet.chance.choice([signal.SIGUSR2, signal.SIGHUP]))
    assert fleet.await_reload(before) == "done"
    fleet.serving = version
    return version


def one_more(fleet: Fleet) -> str:
    """TTIN."""
    fleet.heal_disk()
    if fleet.size < 5:
        fleet.size += 1
        fleet.server.signal(signal.SIGTTIN)
    fleet.settle()
    return str(fleet.size)


def one_less(fleet: Fleet) -> str:
    """TTOU."""
    if fleet.size > 2:
        fleet.size -= 1
        fleet.server.signal(signal.SIGTTOU)
    fleet.settle()
    return str(fleet.size)


def kill_worker(fleet: Fleet) -> str:
    """A crash."""
    fleet.heal_disk()
    victim = fleet.chance.choice(fleet.status()["workers"])["pid"]
    _kill(fleet, victim)
    wait_for(lambda: victim not in [w["pid"] for w in fleet.status()["workers"]], SETTLED, "its death is known")
    fleet.settle()
    return str(victim)


def kill_fork_server(fleet: Fleet) -> str:
    """The fork server's end: the workers keep serving, a fresh one comes."""
    fleet.heal_disk()
    (server,) = fleet.status()["fork_servers"]
    _kill(fleet, server["pid"])
    wait_for(lambda: [s["pid"] for s in fleet.status()["fork_servers"]] != [server["pid"]], SETTLED, "a fresh one")
    fleet.settle()
    return str(server["pid"])


def pause_worker(fleet: Fleet) -> str:
    """A worker that stands still for a while."""
    victim = fleet.chance.choice(fleet.status()["workers"])["pid"]
    with _stopped(fleet, victim):
        pass
    fleet.settle()
    return str(victim)


def pause_fork_server(fleet: Fleet) -> str:
    """A fork server that stands still while a worker is ordered from it."""
    fleet.heal_disk()
    (server,) = fleet.status()["fork_servers"]
    victim = fleet.chance.choice(fleet.status()["workers"])["pid"]
    with _stopped(fleet, server["pid"]):
        _kill(fleet, victim)
    fleet.settle()
    return f"{server['pid']}, without {victim}"


def pause_master(fleet: Fleet) -> str:
    """A master that stands still while a worker dies and a reload is asked for."""
    version, before = fleet.next_version(), fleet.reloads()
    fleet.server.site.deploy(version)
    victim = fleet.chance.choice(fleet.status()["workers"])["pid"]
    with _stopped(fleet, fleet.server.master):
        _kill(fleet, victim)
        fleet.server.signal(signal.SIGUSR2)
    assert fleet.await_reload(before) == "done"
    fleet.serving = version
    return f"{version}, without {victim}"


def exhaust_descriptors(fleet: Fleet) -> str:
    """A master without a free descriptor while a worker dies: the worker is replaced once there are some."""
    fleet.heal_disk()
    victim = fleet.chance.choice(fleet.status()["workers"])["pid"]
    master = fleet.server.master
    limits = resource.prlimit(master, resource.RLIMIT_NOFILE)
    resource.prlimit(master, resource.RLIMIT_NOFILE, (lowest_free_descriptor(master), limits[1]))
    try:
        _kill(fleet, victim)
        time.sleep(fleet.chance.uniform(0.2, 1.0))
    finally:
        resource.prlimit(master, resource.RLIMIT_NOFILE, limits)
    fleet.settle()
    return str(victim)


def fill_disk(fleet: Fleet) -> str:
    """A deploy and a rotation while the log is on a full disk: in ``/dev/full`` there is never room (full(4))."""
    log = fleet.server.site.directory / "error.log"
    os.replace(log, log.with_suffix(".1"))
    log.symlink_to("/dev/full")
    fleet.server.signal(signal.SIGUSR1)
    wait_for(lambda: _writes_to(fleet, "/dev/full"), SETTLED, "the log is on the full disk")
    version = good_deploy(fleet)
    fleet.server.signal(signal.SIGUSR1)
    log.unlink()
    fleet.server.signal(signal.SIGUSR1)
    wait_for(lambda: _writes_to(fleet, str(log)), SETTLED, "the log is on a disk with room")
    return version


def _writes_to(fleet: Fleet, path: str) -> bool:
    """Whether the master has a file open for writing."""
    return path in descriptors(fleet.server.master).values()


@contextlib.contextmanager
def _stopped(fleet: Fleet, pid: int) -> Iterator[None]:
    """Have a process stand still during the ``with`` block, and for up to a second."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(fleet.chance.uniform(0.2, 1.0))
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def change_configuration(fleet: Fleet) -> str:
    """Other settings, with a reload."""
    fleet.heal_disk()
    fleet.configured = fleet.chance.randint(2, 4)
    changes = {
        "workers": fleet.configured,
        "zd_max_surge": fleet.chance.choice([1, 2, "100%"]),
        "zd_min_ready_seconds": fleet.chance.choice([0, 0.3]),
        "zd_canary_seconds": fleet.chance.choice([0, 0.5]),
        "zd_count_answers": fleet.chance.choice([False, True]),
        "keepalive": fleet.chance.choice([1, 2]),
    }
    fleet.server.configure(**changes)
    assert fleet.reload() == "done"
    return str(changes)


def held_deploy(fleet: Fleet) -> str:
    """A reload that is held at its canary, and then goes on or is given up."""
    version, before = fleet.next_version(), fleet.reloads()
    fleet.server.site.deploy(version)
    _order(fleet, Order("reload", hold_s=SETTLED))
    wait_for(lambda: (fleet.status()["canary"] or {}).get("held"), SETTLED, "the canary is held")
    # Not so many requests: of workers that block, the one that has just answered may take each next one.
    wait_for(lambda: fleet.server.get()["version"] == fleet.serving, SETTLED, "the old workers are still serving")
    command = fleet.chance.choice(["resume", "rollback"])
    _order(fleet, Order(command))
    result = fleet.await_reload(before)
    assert (result == "done") is (command == "resume"), result
    if command == "resume":
        fleet.serving = version
    fleet.heal_disk()
    return f"{version}, {command}"


def take_back(fleet: Fleet) -> str:
    """A deploy, and a rollback behind it; without preloading there is nothing to go back to."""
    if not fleet.preload:
        return good_deploy(fleet)
    version, old = fleet.next_version(), fleet.serving
    fleet.server.configure(zd_rollback_window=SETTLED)
    fleet.server.site.deploy(version)
    assert control_client.order_and_wait(fleet.server, "reload").result == "done"
    assert {fleet.server.get()["version"] for _ in range(5)} == {version}
    assert control_client.order_and_wait(fleet.server, "rollback").result == "done"
    assert {fleet.server.get()["version"] for _ in range(5)} == {old}
    fleet.heal_disk()
    fleet.server.configure(zd_rollback_window=0)
    assert fleet.reload() == "done"
    return version


def upgrade(fleet: Fleet) -> str:
    """The master's program is replaced, and no worker is."""
    fleet.heal_disk()
    workers = {worker["pid"] for worker in fleet.status()["workers"]}
    upgraded = control_client.upgrade(fleet.server)
    assert upgraded.result == "done", upgraded
    fleet.settle()
    assert {worker["pid"] for worker in fleet.status()["workers"]} == workers
    return f"{upgraded.duration_s:.1f} s"


def _order(fleet: Fleet, order: Order) -> None:
    with client.Connection(control_client.control_socket(fleet.server)) as connection:
        connection.order(order)


def rotate_logs(fleet: Fleet) -> str:
    """logrotate: rename, then USR1."""
    log = fleet.server.site.directory / "error.log"
    os.replace(log, log.with_suffix(".1"))
    fleet.server.signal(signal.SIGUSR1)
    wait_for(log.exists, SETTLED, "the log is opened again")
    return ""


def _kill(fleet: Fleet, pid: int) -> None:
    assert pid in {child.pid for child in fleet.server.children()}
    fleet.kills.append(time.monotonic())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), SETTLED, f"{pid} is gone")


OPERATIONS: dict[Operation, int] = {
    good_deploy: 6,
    broken_deploy: 4,
    slow_boot: 2,
    hup: 2,
    storm: 2,
    one_more: 2,
    one_less: 2,
    kill_worker: 3,
    kill_fork_server: 1,
    pause_worker: 1,
    pause_fork_server: 1,
    pause_master: 1,
    exhaust_descriptors: 1,
    fill_disk: 1,
    change_configuration: 2,
    held_deploy: 2,
    take_back: 1,
    upgrade: 2,
    rotate_logs: 1,
}
"""Each with its weight."""
