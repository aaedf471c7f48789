"""Gunicorn's own control command (25.1 and later) sees the workers as they are."""

from __future__ import annotations

import json

import gunicorn
import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, run_once

pytestmark = pytest.mark.skipif(gunicorn.version_info < (25, 1), reason="the control socket came with gunicorn 25.1")


def command(server: Server, words: str) -> dict[str, object]:
    done = run_once(
        server.site,
        "gunicorn.ctl.cli",
        "-s",
        str(server.site.directory / "gunicorn.ctl"),
        "-j",
        "-c",
        words,
        deadline=BOOT_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def wait_shown(server: Server) -> None:
    """Wait until the workers are shown that there are, which may be a moment after the kernel has them."""

    def shown() -> bool:
        found = command(server, "show workers")["workers"]
        assert isinstance(found, list)
        return sorted(worker["pid"] for worker in found) == server.workers() and all(one["booted"] for one in found)

    wait_for(shown, BOOT_TIMEOUT_S, "the booted workers are shown, and no other")


def test_gunicornc_shows_workers(start: Start, site: Site) -> None:
    server = start(workers=2)
    wait_shown(server)
    server.reload("two")
    wait_shown(server)


def test_gunicornc_reloads_and_scales(start: Start, site: Site) -> None:
    server = start(workers=2)
    site.deploy("two")
    command(server, "reload")
    server.wait_only("two")
    command(server, "worker add 1")
    server.settings["workers"] = 3
    server.wait_full()
    command(server, "worker remove 1")
    server.settings["workers"] = 2
    server.wait_full()


def test_gunicornc_kills_one_worker(start: Start, site: Site) -> None:
    server = start(workers=2)
    old = server.workers()
    command(server, f"worker kill {old[0]}")

    wait_for(lambda: len(site.marks("startup")) == 3, BOOT_TIMEOUT_S, "the replacement has started")
    assert old[0] not in server.wait_full()


def test_a_control_server_that_cannot_be_imported_does_not_end_the_master(start: Start, site: Site) -> None:
    """Gunicorn imports it when the workers are ordered, and by then a deploy may have led the path elsewhere."""
    server = start(workers=1, extra="\n_sys.modules['gunicorn.ctl.server'] = None\n")
    wait_for(lambda: "control server cannot be started" in server.log, BOOT_TIMEOUT_S, "the log says so")
    server.reload("two")
    assert server.stop() == 0
