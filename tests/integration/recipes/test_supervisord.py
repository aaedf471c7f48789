"""The program of supervisord: it is reloaded, upgraded, stopped and started again by supervisord's own commands."""

from __future__ import annotations

import shlex
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load
from tests.harness.processes import wait_for
from tests.harness.recipes import adapted, commands, environment_of, example_configuration, find, find_master, run
from tests.harness.server import Server, Start

DEADLINE = 30.0

SUPERVISORD = """
[supervisord]
nodaemon=true
logfile={place}/supervisord.log
pidfile={place}/supervisord.pid

[unix_http_server]
file={place}/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{place}/supervisor.sock

"""

pytestmark = pytest.mark.skipif(find("supervisord") is None, reason="supervisord is not installed")


class Supervised:
    """The application below a supervisord, with the recipe's section: ``/srv/app/current`` and ``/run/app`` are in the
    site.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        place = server.site.directory
        section = adapted(
            "supervisord/app.conf",
            {
                "/srv/app/current/venv/bin/": f"{Path(sys.executable).parent}/",
                "/srv/app/current": str(place),
                "/srv/app": str(place),
                "/run/app/": f"{place}/",
                "/var/log/supervisor/": f"{place}/",
                "127.0.0.1:8000": "%s:%s" % server.address,
                "user=app\n": "",  # only root may change the user
            },
        )
        server.site.write("supervisord.conf", SUPERVISORD.format(place=place) + section)
        example_configuration(server)
        server.environment.update(environment_of(server, WEB_CONCURRENCY="2"))
        server.words = [str(find("supervisord")), "-c", "supervisord.conf"]
        server.launch_as_is()
        find_master(server)

    def control(self, *words: str) -> str:
        """Return what supervisorctl prints."""
        ordered = run([str(find("supervisorctl")), "-c", "supervisord.conf", *words], self.server.site.directory)
        return ordered.stdout

    def run(self, line: str) -> None:
        """Run a command with the places of the site.

        :raises AssertionError: it has failed.
        """
        place = str(self.server.site.directory)
        words = shlex.split(line.replace("/srv/app/current/venv/bin/", "").replace("/run/app", place))
        done = run(words, self.server.site.directory, self.server.environment)
        assert done.returncode == 0, done.stdout


@pytest.fixture
def supervised(make_server: Start) -> Supervised:
    return Supervised(make_server())


def test_reloads_below_supervisord(supervised: Supervised, site: Site) -> None:
    """By the command, by supervisord's signal, and an upgrade of the master: all under the same pid."""
    pid = supervised.control("pid", "app").strip()
    server = supervised.server
    assert pid == str(server.master)
    with Load(server.address, "kept", clients=4, pause=0.01) as load:
        site.deploy("two")
        supervised.run(commands("supervisord.md", "/srv/app/current/venv/bin/zdworker reload"))
        assert set(server.versions().values()) == {"two"}
        site.deploy("three")
        supervised.control("signal", "USR2", "app")
        wait_for(lambda: set(server.versions().values()) == {"three"}, DEADLINE, "the third version serves")
        supervised.run("zdworker upgrade")
        assert load.stop().failures == []
    assert supervised.control("pid", "app").strip() == pid
    # It is "STARTING" for startsecs.
    wait_for(lambda: "RUNNING" in supervised.control("status", "app"), DEADLINE, "supervisord takes it for started")


def test_a_stop_waits_for_the_answers(supervised: Supervised) -> None:
    server = supervised.server
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(_slow_request, server) for _ in range(4)]
        wait_for(lambda: len(server.site.marks("request")) == 4, DEADLINE, "the requests have begun")
        assert "stopped" in supervised.control("stop", "app")
        assert [answer.result() for answer in slow] == [200] * 4
    assert server.port_free()
    assert "STOPPED" in supervised.control("status", "app")


def test_a_master_that_was_killed_is_started_again(supervised: Supervised) -> None:
    killed = supervised.server.master
    supervised.server.signal(signal.SIGKILL)
    wait_for(
        lambda: supervised.control("pid", "app").strip() not in {"0", str(killed)}, DEADLINE, "there is another master"
    )
    find_master(supervised.server)
    assert supervised.server.master != killed


def _slow_request(server: Server) -> int:
    with Client(server.address) as client:
        return client.ask("GET", "/sleep?seconds=2").status
