"""Gunicorn's dirty arbiter, which it forks from the master, works beside our workers.

Rules: the dirty arbiter and its worker are known by their own hooks and by what they answer. Gunicorn keeps a file of
its pid in the directory for temporary files, so each server has a directory of its own for these.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import gunicorn
import pytest

from tests.harness import processes
from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

pytestmark = pytest.mark.skipif(gunicorn.version_info < (25, 0, 3), reason="this Gunicorn has no dirty arbiter")
keeps_its_socket = pytest.mark.skipif(
    gunicorn.version_info < (25, 1), reason="a dirty worker of this Gunicorn that ends removes its arbiter's socket"
)

DIRTY_APP = """
import os

from gunicorn.dirty.app import DirtyApp

CODE = "one"


class Own(DirtyApp):
    def who(self):
        return {"worker": os.getpid(), "arbiter": os.getppid()}
"""

ASK = """

async def dirty(scope, receive, send, query):
    from gunicorn.dirty.client import DirtyClient

    client = DirtyClient(os.environ["GUNICORN_DIRTY_SOCKET"], timeout=60)
    try:
        await answer(send, **await client.execute_async("dirty_app:Own", "who"))
    except Exception as error:
        await answer(send, 503, error=repr(error))
    finally:
        await client.close_async()


ENDPOINTS["/dirty"] = dirty
"""

HOOKS = """

def on_dirty_starting(arbiter):
    _note("on_dirty_starting")


def dirty_worker_init(worker):
    _note("dirty_worker_init", code=_sys.modules["dirty_app"].CODE)
"""


@pytest.fixture
def server(make_server: Start, site: Site, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Two workers, a dirty arbiter and a dirty worker that has started."""
    site.write("dirty_app.py", DIRTY_APP)
    site.deploy("one", extra=ASK)
    server = make_server(
        dirty_apps=["dirty_app:Own"],
        dirty_workers=1,
        dirty_graceful_timeout=3,
        extra=HOOKS,
        environment={"TMPDIR": str(site.directory)},
    )
    every = server.workers

    def workers() -> list[int]:
        arbiters = {event["by"] for event in site.events("on_dirty_starting")}
        return [pid for pid in every() if pid not in arbiters]

    monkeypatch.setattr(server, "workers", workers)  # to the kernel, the dirty arbiter is a forked child as they are
    server.start()
    wait_initialized(site, 1)
    return server


def wait_initialized(site: Site, count: int) -> int:
    """Wait until ``count`` dirty workers have started; return the pid of the last one."""
    found = wait_for(
        lambda: site.events("dirty_worker_init")[count - 1 :], BOOT_TIMEOUT_S, f"{count} dirty workers have started"
    )
    return int(found[-1]["by"])


def ask(server: Server) -> dict[str, Any]:
    """Return the pids that the dirty worker answers."""
    answer = server.get("/dirty")
    assert "error" not in answer
    return answer


def ask_after_reload(server: Server) -> dict[str, Any]:
    """Return the same as soon as the dirty arbiter routes to a worker that answers.

    Until Gunicorn's arbiter has sorted out which of its two workers ends, an order may be lost with a connection of its
    own; none of zdworker's processes has a part in that.
    """

    def answered() -> dict[str, Any]:
        answer = server.get("/dirty")
        return {} if "error" in answer else answer

    return wait_for(answered, BOOT_TIMEOUT_S, "the dirty worker answers")


def deploy_and_reload(server: Server, version: str) -> None:
    server.site.deploy(version, extra=ASK)
    server.signal(signal.SIGUSR2)
    server.wait_only(version)


@keeps_its_socket
def test_reload_and_stop_beside_a_dirty_arbiter(server: Server, site: Site) -> None:
    """At HUP the dirty arbiter starts a new worker and ends one of the two (Gunicorn 27 ends the new one)."""
    before = ask(server)
    deploy_and_reload(server, "two")
    wait_initialized(site, 2)
    wait_for(lambda: len(dirty_workers(site)) == 1, BOOT_TIMEOUT_S, "one dirty worker is left")
    answer = ask_after_reload(server)
    assert (answer["version"], answer["arbiter"]) == ("two", before["arbiter"])
    assert server.stop() == 0
    server.wait_nothing_left(BOOT_TIMEOUT_S)
    assert len(site.events("on_dirty_starting")) == 1


def test_a_reload_says_that_dirty_workers_keep_their_code(server: Server, site: Site) -> None:
    site.write("dirty_app.py", DIRTY_APP.replace('CODE = "one"', 'CODE = "two"'))
    deploy_and_reload(server, "two")
    wait_initialized(site, 2)
    code = [event["code"] for event in site.events("dirty_worker_init")]
    assert code == ["one", "one"], "Gunicorn brings new code now: the warning is not true any more"
    said = "dirty workers run the code of the master's start (dirty_app:Own)"
    wait_for(lambda: said in server.log, BOOT_TIMEOUT_S, "the log says so")


@keeps_its_socket
def test_kill_9_of_the_dirty_arbiter(server: Server, site: Site) -> None:
    """Workers learn of the new one's socket when they boot, as in stock Gunicorn: a reload makes it known to all."""
    before = ask(server)
    os.kill(before["arbiter"], signal.SIGKILL)
    wait_initialized(site, 2)
    os.kill(before["worker"], signal.SIGKILL)  # Gunicorn leaves it running without an arbiter
    deploy_and_reload(server, "two")
    wait_initialized(site, 3)
    wait_for(lambda: len(dirty_workers(site)) == 1, BOOT_TIMEOUT_S, "one dirty worker is left")
    answer = ask_after_reload(server)
    assert answer["arbiter"] in [event["by"] for event in site.events("on_dirty_starting")]
    assert answer["arbiter"] != before["arbiter"]
    os.kill(answer["worker"], signal.SIGKILL)
    assert wait_initialized(site, 4) == ask(server)["worker"], "what the new arbiter forks works too"
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")
    assert server.stop() == 0
    server.wait_nothing_left(BOOT_TIMEOUT_S)


def dirty_workers(site: Site) -> list[int]:
    """Return the dirty workers that have not been reaped: until then the dirty arbiter takes them for alive."""
    return [event["by"] for event in site.events("dirty_worker_init") if processes.read_process(event["by"])]
