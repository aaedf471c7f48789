"""More than one machine: HAProxy in front of three instances, each on its own loopback address, and no request is lost.

They are rolled one after the other with ``zdworker reload``. Separately, each is ended with TERM and started again, as
when a machine is replaced: then ``zd_shutdown_delay`` gives HAProxy the time to look away.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load
from tests.harness.processes import wait_for
from tests.harness.proxies import HAProxy, program
from tests.harness.recipes import adapted, commands, environment_of, path_with, run, versions
from tests.harness.server import BOOT_TIMEOUT_S, Server

PAGE = "several-machines.md"
MACHINES = ("app1", "app2", "app3")
INTERVAL = "inter 200ms"
DELAY = 6.0
"""Seconds of zd_shutdown_delay: thirty times the interval of the checks, of which the second that fails is enough."""

SSH = """\
#!/bin/sh
case $1 in
{places}
esac
shift
exec $(echo "$*" | sed "s|/srv/app/current/venv/bin/||; s|/run/app|$place|")
"""
"""The command is run here, with the control socket of the machine that it was for."""

pytestmark = [
    pytest.mark.load,
    pytest.mark.skipif(program("haproxy") is None, reason="haproxy is not installed"),
]


class Balancer(HAProxy):
    """HAProxy with the recipe's file; it may try nothing twice, and its socket tells what it thinks of each machine."""

    def __init__(self, machines: dict[str, Server]) -> None:
        super().__init__(next(iter(machines.values())).address)
        self.machines = machines
        self.socket = str(self.directory / "admin.sock")

    def configuration(self) -> str:
        addresses = {
            f"192.0.2.{number}:8000": "%s:%s" % machine.address
            for number, machine in enumerate(self.machines.values(), 1)
        }
        own = {
            "bind :80": "bind %s:%s" % self.address,
            "maxconn 4096": f"maxconn 4096\n    stats socket {self.socket}",
            "mode http": "mode http\n    retries 0",
            "inter 1s": INTERVAL,
            "pool-purge-delay 500ms": "pool-purge-delay 200ms",  # a tenth of keepalive, as in the recipe
        }
        return adapted("haproxy/haproxy.cfg", {**addresses, **own})

    def state(self, machine: str) -> str:
        """Return "UP", "DOWN", or what is between them."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket)
            connection.sendall(b"show stat\n")
            lines = connection.makefile().read().splitlines()
        names = lines[0].lstrip("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line]
        return next(row["status"] for row in rows if row["pxname"] == "app" and row["svname"] == machine)

    def wait(self, machine: str, state: str) -> None:
        wait_for(lambda: self.state(machine) == state, BOOT_TIMEOUT_S, f"{machine} is {state}")


@pytest.fixture
def machines() -> Iterator[dict[str, Server]]:
    """Three instances of version "one", each with a loopback address, a directory and a control socket of its own."""
    with contextlib.ExitStack() as stack:
        made = {}
        for number, name in enumerate(MACHINES, 2):
            site = Site()
            stack.callback(site.remove)
            site.deploy("one")
            server = stack.enter_context(Server(site, preload_app=True, keepalive=2, graceful_timeout=20))
            server.settings.update(zd_health_path="/healthz", zd_shutdown_delay=DELAY)
            server.address = f"127.0.0.{number}", server.reserved.getsockname()[1]
            server.settings["bind"] = "%s:%s" % server.address
            server.environment.update(environment_of(server, ZD_CONTROL_SOCKET=str(site.directory / "control.sock")))
            made[name] = server.launch()
        for server in made.values():
            server.wait_full()
        yield made


@pytest.fixture
def balancer(machines: dict[str, Server]) -> Iterator[Balancer]:
    balancer = Balancer(machines)
    with balancer:
        for name in MACHINES:
            balancer.wait(name, "UP")
        yield balancer


@contextlib.contextmanager
def under_load(balancer: Balancer) -> Iterator[None]:
    """Hold all machines under load; no request may fail, and the newest version is the last that is seen."""
    styles = {"kept": 8, "new": 6, "slow": 2, "upload": 2}
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(Load(balancer.address, style, clients=clients, pause=0.02))
            for style, clients in styles.items()
        ]
        yield
        for load in loads:
            assert load.stop().failures == [], load.plan.style
    assert versions(balancer.address) == {"two"}


def test_machines_are_reloaded_one_after_the_other(
    machines: dict[str, Server], balancer: Balancer, tmp_path: Path
) -> None:
    """With the loop on the page; ``ssh`` takes the command to the machine's own control socket."""
    places = "\n".join(f"    {name}) place={server.site.directory} ;;" for name, server in machines.items())
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(places=places))
    ssh.chmod(0o755)
    loop = commands(PAGE, "for machine in")
    with under_load(balancer):
        for server in machines.values():
            server.site.deploy("two")
        rolled = run(["sh", "-c", loop], tmp_path, {"PATH": path_with(tmp_path)}, deadline=120)
        assert rolled.returncode == 0, rolled.stdout
        assert rolled.stdout.count("reload done: generation 2 serves") == len(MACHINES)
    # What is broken stops at the first machine.
    for server in machines.values():
        server.site.break_("raise")
    assert (
        run(["sh", "-c", loop], tmp_path, {"PATH": path_with(tmp_path)}).stdout.count("generation 2 is still serving")
        == 1
    )
    assert versions(balancer.address) == {"two"}


def test_machines_are_replaced_one_after_the_other(machines: dict[str, Server], balancer: Balancer) -> None:
    with under_load(balancer):
        for name, server in machines.items():
            server.site.deploy("two")
            server.signal(signal.SIGTERM)
            wait_for(functools.partial(leaves, server), 30, "its health path says that it leaves")
            balancer.wait(name, "DOWN")
            assert server.running, "it accepted until HAProxy had looked away"
            assert server.wait_exit(30) == 0
            server.launch_as_is()
            balancer.wait(name, "UP")


def leaves(server: Server) -> bool:
    with Client(server.address) as client:
        return client.ask("GET", "/healthz").status == 503
