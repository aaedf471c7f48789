"""``graceful_timeout`` binds: no request, thread or client holds a worker longer, and its end is orderly."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from tests.harness.application_site import STARLETTE, Site
from tests.harness.clients import Broken, Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, WSGI, WorkerClass, for_each

LIMIT = 3
SLACK = 6
"""Seconds beyond the limit after which a worker's end is noticed. How much time it has itself the master sees to: it
kills the worker, whose end is not in order then."""
LONG = ["/sleep?seconds=120", "/executor?seconds=120", "/plain?seconds=120", "/stream?seconds=120"]
"""Longer than new code takes to load."""


def ask_all(server: Server, paths: list[str]) -> list[Client]:
    """Send a request for each path and wait until the application has them all."""
    before = len(server.site.marks("request"))
    clients = [Client(server.address) for _ in paths]
    for client, path in zip(clients, paths, strict=True):
        client.send(request("GET", path))
    wait_for(
        lambda: len(server.site.marks("request")) == before + len(paths), BOOT_TIMEOUT_S, "the requests are in flight"
    )
    return clients


def assert_cut(client: Client) -> None:
    """The request of ``client`` was ended: without an answer, or with uvicorn's for what was cancelled."""
    with contextlib.suppress(Broken):
        assert client.reply().status == 500


def assert_orderly_end(server: Server, old: list[int]) -> None:
    """Each of ``old`` went through lifespan shutdown and one ``worker_exit``, and none was aborted."""
    site = server.site

    def ended(hook: str) -> list[int]:
        return sorted(event["pid"] for event in site.events(hook) if event["pid"] in old)

    assert ended("worker_exit") == sorted(old)
    wait_for(lambda: ended("child_exit") == sorted(old), BOOT_TIMEOUT_S, "the master has seen each end")
    assert {mark["pid"] for mark in site.marks("shutdown")} >= set(old)
    assert site.events("worker_abort") == []


def test_long_requests_do_not_hold_a_worker(start: Start, site: Site) -> None:
    site.deploy("one", extra=STARLETTE)
    server = start(workers=2, zd_hand_over=False, zd_max_surge=2, graceful_timeout=LIMIT)
    old = server.workers()
    clients = ask_all(server, LONG * 2)
    site.deploy("two")
    told = time.monotonic()
    server.signal(signal.SIGUSR2)
    wait_for(lambda: not set(old) & set(server.accepting()), BOOT_TIMEOUT_S, "the drain has begun")
    wait_for(lambda: not any(alive(pid) for pid in old), LIMIT + SLACK, "the old workers are gone")
    assert time.monotonic() - told >= LIMIT, "the requests were not given their time"
    for client in clients:
        assert_cut(client)
    assert_orderly_end(server, old)
    server.wait_only("two")


def test_term_to_one_worker_is_the_same_drain(start: Start) -> None:
    server = start(workers=1, zd_hand_over=False, graceful_timeout=LIMIT)
    (old,) = server.workers()
    (short, long) = ask_all(server, ["/sleep?seconds=1", "/executor?seconds=120"])
    os.kill(old, signal.SIGTERM)
    assert short.reply().status == 200
    wait_for(lambda: not alive(old), LIMIT + SLACK, "the worker is gone")
    assert_cut(long)
    assert_orderly_end(server, [old])
    assert server.wait_full() != [old]


NOTING_EXITS = """
import os as _os
_waitpid = _os.waitpid

def _noting(*arguments):
    pid, status = _waitpid(*arguments)
    if pid:
        with open("exits", "a") as file:
            file.write(f"{pid} {_os.waitstatus_to_exitcode(status)}\\n")
    return pid, status

_os.waitpid = _noting
"""


@for_each(ALL)
def test_exit_code_of_a_drained_worker_is_0(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """What the kernel tells the master: of idle workers, and of one whose request is cut at the end of its time."""
    server = start_class(worker, workers=2, zd_hand_over=False, graceful_timeout=1, extra=NOTING_EXITS)
    old = server.workers()
    (client,) = ask_all(server, ["/executor?seconds=120"])
    for pid in old:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not any(alive(pid) for pid in old), 1 + SLACK, "the workers are gone")
    new = server.wait_full()
    assert server.stop() == 0
    exits = dict(line.split() for line in (site.directory / "exits").read_text().splitlines())
    assert {pid: exits[str(pid)] for pid in [*old, *new]} == dict.fromkeys([*old, *new], "0")
    client.close()


def test_the_heartbeat_goes_on_during_the_drain(start_class: Start, site: Site) -> None:
    """A drain longer than ``timeout`` is no reason to abort the worker; of the other classes test_deadline.py tells.

    On WSGIWorker a request longer than ``timeout`` is one, as ever: here the drain waits for a silent connection.
    """
    settings = {"timeout": 4, "keepalive": 10, "graceful_timeout": 30, "preload_app": True}
    server = start_class(WSGI, workers=1, zd_hand_over=False, **settings)
    with server.reload_at_the_end("two") as (old,):
        silent = Client(server.address)
        server.wait_taken()
    begun = time.monotonic()
    wait_for(lambda: not alive(old), 25, "the old worker has gone")
    assert time.monotonic() - begun > settings["timeout"]
    assert silent.ended()
    server.wait_only("two")
    assert site.events("worker_abort") == []


def test_a_worker_that_hangs_is_aborted(start: Start, site: Site) -> None:
    """Gunicorn's ``timeout`` works as ever: a blocked event loop ends the worker, and a new one comes."""
    site.deploy("one", extra=BLOCK)
    server = start(workers=1, zd_hand_over=False, timeout=2)
    (old,) = server.workers()
    with Client(server.address) as client:
        client.send(request("GET", "/block"))
        assert_cut(client)
    wait_for(lambda: not alive(old), BOOT_TIMEOUT_S, "it has gone")
    assert server.wait_full() != [old]
    assert [event["pid"] for event in site.events("worker_abort")] in ([], [old])


BLOCK = """

async def block(scope, receive, send, query):
    mark("request", path="/block")
    time.sleep(600)


ENDPOINTS["/block"] = block
"""


LEAVING_AS_IT_BEGINS = """
import os
import signal
import time

from {module} import {name}


class Leaving({name}):
    def zd_refuse_bad_tls(self):
        super().zd_refuse_bad_tls()
        if os.path.exists("leave"):
            os.rename("leave", f"left-{{os.getpid()}}")
            os.kill(self.zd_master_pid, signal.SIGTERM)
            until = time.monotonic() + 60
            while not self.zd_leaving and time.monotonic() < until:
                time.sleep(0.01)
"""


@for_each(ALL)
def test_an_order_to_leave_right_before_a_worker_would_accept_ends_it_in_order(
    start_class: Start, site: Site, worker: WorkerClass
) -> None:
    """Its listeners are closed when the base class sets them up."""
    module, _, name = worker.path.rpartition(".")
    site.write("leaving.py", LEAVING_AS_IT_BEGINS.format(module=module, name=name))
    server = start_class(worker, worker_class="leaving.Leaving", workers=1, extra=NOTING_EXITS)
    (victim,) = server.workers()
    site.write("leave", "")
    os.kill(victim, signal.SIGKILL)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    (left,) = site.directory.glob("left-*")
    exits = dict(line.split() for line in (site.directory / "exits").read_text().splitlines())
    assert exits[left.name.partition("-")[2]] == "0"
    assert "Traceback" not in server.log
