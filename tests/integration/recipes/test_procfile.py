"""The Procfile, run by honcho as by Heroku and its like: a release phase, a deploy in place, and the end of a dyno."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, Load
from tests.harness.processes import wait_for
from tests.harness.recipes import DEPLOY, commands, environment_of, example_configuration, find, find_master, run
from tests.harness.server import Server, Start

PAGE = "procfile.md"
PATIENCE = 30.0
"""Seconds that Heroku waits between TERM and KILL."""

pytestmark = pytest.mark.skipif(find("honcho") is None, reason="honcho is not installed")


@pytest.fixture
def dyno(make_server: Start, site: Site) -> Server:
    """The application with the recipe's Procfile and the example's configuration; not yet started."""
    server: Server = make_server(preload_app=True)
    site.write("Procfile", (DEPLOY / "procfile" / "Procfile").read_text())
    example_configuration(server)
    arguments = "--bind %s:%s" % server.address
    further = {"WEB_CONCURRENCY": "2", "GUNICORN_CMD_ARGS": arguments, "HOME": str(site.directory)}
    server.environment.update(environment_of(server, **further))
    server.words = shlex.split(commands(PAGE, "honcho start web"))
    return server


def test_honcho_understands_the_procfile(dyno: Server) -> None:
    checked = run(["honcho", "check"], dyno.site.directory)
    assert checked.returncode == 0, checked.stdout
    assert "(release, web)" in checked.stdout


def test_the_release_phase_refuses_code_that_does_not_start(dyno: Server, site: Site) -> None:
    release = shlex.split(commands(PAGE, "honcho start release"))
    good = run(release, site.directory, dyno.environment)
    assert good.returncode == 0, good.stdout
    unique = site.break_("raise")
    broken = run(release, site.directory, dyno.environment)
    assert broken.returncode != 0
    assert f"RuntimeError: broken {unique}" in broken.stdout


def test_a_deploy_in_place_with_a_procfile(dyno: Server, site: Site) -> None:
    dyno.launch_as_is()
    find_master(dyno)
    with Load(dyno.address, "kept", clients=4, pause=0.01) as load:
        site.deploy("two")
        reloaded = run(shlex.split(commands(PAGE, "zdworker reload")), site.directory, dyno.environment)
        assert reloaded.returncode == 0, reloaded.stdout
        assert load.stop().failures == []
    assert set(dyno.versions().values()) == {"two"}


def test_term_to_all_processes_of_the_dyno_at_once(dyno: Server) -> None:
    """What they have accepted is answered, nobody is there any more after that, and it takes less than 30 s."""
    dyno.launch_as_is()
    find_master(dyno)
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(_slow_request, dyno) for _ in range(4)]
        wait_for(lambda: len(dyno.site.marks("request")) == 4, PATIENCE, "the requests have begun")
        began = time.monotonic()
        for pid in dyno.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        assert [answer.result() for answer in slow] == [200] * 4
    dyno.wait_nothing_left(PATIENCE)
    assert time.monotonic() - began < PATIENCE
    assert dyno.port_free()


def _slow_request(server: Server) -> int:
    with Client(server.address) as client:
        return client.ask("GET", "/sleep?seconds=2").status
