"""What is special to GeventWorker: monkey patching, greenlets that do not want to end, and what Gunicorn's class is."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import GEVENT

PATCHED = """

import gevent.monkey

PATCHED_AT_IMPORT = gevent.monkey.is_module_patched("socket")


def patched(environ, start_response, query):
    sleeps = time.sleep.__module__.partition(".")[0]
    return answer(start_response, at_import=PATCHED_AT_IMPORT, sleeps=sleeps)


ENDPOINTS["/patched"] = patched
"""

STUBBORN = """

def stubborn(environ, start_response, query):
    mark("request", path="/stubborn")
    while True:
        try:
            time.sleep(60)
        except BaseException as error:
            mark("told", kind=type(error).__name__)


ENDPOINTS["/stubborn"] = stubborn
"""

PATCHING = "\nfrom gevent import monkey\nmonkey.patch_all()\n"

MANY = 1000
"""Requests that one client sends at once."""

SPINNING = """

def spin(environ, start_response, query):
    mark("spin")
    end = time.monotonic() + 0.02
    while time.monotonic() < end:
        pass
    return answer(start_response)


ENDPOINTS["/spin"] = spin
"""
"""Answers without a pause in which another greenlet would have its turn."""

OWN_CLASS = """
from zdworker import GeventWorker


class Own(GeventWorker):
    def handle_request(self, listener_name, req, sock, addr):
        import gunicorn.workers.ggevent

        self.log.info("Own class, one of Gunicorn's: %s", isinstance(self, gunicorn.workers.ggevent.GeventWorker))
        return super().handle_request(listener_name, req, sock, addr)
"""


def gevent_in(pid: int) -> bool:
    """Whether a process has loaded gevent: its extension modules are mapped into it (proc_pid_maps(5))."""
    return "/gevent/" in Path(f"/proc/{pid}/maps").read_text()


def serve(start: Start, **settings: Any) -> Server:
    return start(**{"worker_class": GEVENT.path, "workers": 1, "zd_max_surge": 1, "zd_hand_over": False, **settings})


@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_the_application_is_imported_patched_and_the_master_knows_nothing(
    start: Start, site: Site, preload: bool
) -> None:
    site.deploy("one", extra=PATCHED)
    server = serve(start, preload_app=preload)
    for version in ("one", "two"):
        answer = server.get("/patched")
        assert (answer["version"], answer["at_import"], answer["sleeps"]) == (version, True, "gevent")
        assert not gevent_in(server.master)
        assert all(gevent_in(pid) for pid in server.workers())
        if version == "one":
            site.deploy("two", extra=PATCHED)
            server.signal(signal.SIGUSR2)
            server.wait_only("two")


def test_a_killed_worker_comes_back_from_a_patched_fork_server(start: Start) -> None:
    """The fork server's own sockets, forks and waits go on as they are, however often it is asked."""
    server = serve(start, preload_app=True)
    (fork_server,) = server.fork_servers()
    for _ in range(5):
        (pid,) = server.workers()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not alive(pid) and server.accepting(), BOOT_TIMEOUT_S, "another one accepts")  # type: ignore[misc]
        assert server.get("/")["version"] == "one"
    assert server.fork_servers() == [fork_server]
    wait_for(lambda: not server.zombies(), BOOT_TIMEOUT_S, "no zombie is left")


def test_without_gevent_the_start_says_what_to_install(make_server: Start, site: Site) -> None:
    site.write("gevent.py", "raise ImportError('as if it were not there')")
    server = make_server(worker_class=GEVENT.path).launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) != 0
    assert "pip install 'zdworker[gevent]'" in server.log


def test_gevent_worker_warms_up(make_server: Start, site: Site) -> None:
    """Answered in the worker before it accepts, patched as any request; or it does not start."""
    server = make_server(worker_class=GEVENT.path, workers=1, zd_warmup=["/sleep?seconds=0.1"]).start()
    assert [mark["pid"] for mark in site.marks("request")] == server.workers()
    assert server.stop() == 0
    failing = make_server(worker_class=GEVENT.path, workers=1, zd_warmup=["/nowhere"]).launch()
    assert failing.wait_exit(BOOT_TIMEOUT_S) == 3
    assert "/nowhere was answered with 404" in failing.log


def test_a_configuration_that_patches_the_master_is_refused(make_server: Start) -> None:
    server = make_server(worker_class=GEVENT.path, extra=PATCHING).launch()
    assert server.wait_exit(BOOT_TIMEOUT_S) == 1
    server.wait_nothing_left(10)


def test_a_reload_to_a_configuration_that_patches_is_refused_before_the_master_sees_it(
    start: Start, site: Site
) -> None:
    server = serve(start, preload_app=True)
    before, (generation,) = server.workers(), server.fork_servers()
    server.extra = PATCHING
    server.configure()
    server.signal(signal.SIGUSR2)
    wait_for(lambda: "gevent.monkey" in server.log, BOOT_TIMEOUT_S, "the reload has failed")
    assert not gevent_in(server.master)
    assert server.workers() == before
    assert server.get("/")["version"] == "one"
    server.extra = ""
    server.configure()
    server.reload("two")
    assert generation not in server.fork_servers()


def test_greenlets_that_swallow_their_end_do_not_hold_the_worker(start: Start, site: Site) -> None:
    site.deploy("one", extra=STUBBORN)
    server = serve(start, graceful_timeout=1)
    (old,) = server.workers()
    with Client(server.address) as client:
        client.send(request("GET", "/stubborn"))
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the request")
        os.kill(old, signal.SIGTERM)
        wait_for(lambda: not alive(old), BOOT_TIMEOUT_S, "the worker has ended")
    assert [mark["kind"] for mark in site.marks("told")] == ["GreenletExit"]
    assert [event["pid"] for event in site.events("worker_exit")] == [old]


def test_a_class_of_ones_own_is_one_of_gunicorns(start: Start, site: Site) -> None:
    site.write("own.py", OWN_CLASS)
    site.serve("wsgi")
    server = start(worker_class="own.Own", workers=1)
    assert server.get("/")["version"] == "one"
    assert "Own class, one of Gunicorn's: True" in server.log
    assert not gevent_in(server.master)


def test_a_connection_never_used_is_kept_five_seconds_also_in_service(start: Start) -> None:
    """Gunicorn gives it, and a head, its keep-alive time: a drain that begins a moment later cannot bring it back."""
    server = serve(start, keepalive=1, timeout=6)
    opened = time.monotonic()
    with Client(server.address) as silent, Client(server.address) as half, Client(server.address) as kept:
        kept.ask("GET", "/")
        half.send(request("GET", "/")[:10])
        kept.wait_end()
        assert not silent.ended()
        silent.wait_end()
        half.wait_end()
        assert time.monotonic() - opened > 4.9


def test_without_keep_alive_a_drain_ends_silent_connections_all_the_same(start: Start) -> None:
    server = serve(start, preload_app=True, keepalive=0, graceful_timeout=30)
    with contextlib.ExitStack() as stack:
        with server.reload_at_the_end("two") as [old]:
            silent = stack.enter_context(Client(server.address))
            asking = stack.enter_context(Client(server.address))
            server.wait_taken()
            told = time.monotonic()
        assert asking.ask("GET", "/").last
        silent.wait_end()
        assert time.monotonic() - told > 4.9
    wait_for(lambda: not alive(old), 15, "nothing holds the worker")


def test_a_client_that_never_rests_leaves_room_for_others(start: Start, site: Site) -> None:
    """Its next request has always arrived already; another client is answered meanwhile, and does not wait for all."""
    site.deploy("one", extra=SPINNING)
    server = serve(start)
    with Client(server.address) as busy:
        busy.send(request("GET", "/spin") * MANY)
        wait_for(lambda: site.marks("spin"), BOOT_TIMEOUT_S, "the first of them is being answered")
        assert server.get()["version"] == "one"
        assert len(site.marks("spin")) < MANY
