"""What WSGI applications do at their edges, in each class that serves them: heads sent late, work behind the answer,
warm-up, exits, and a master that dies.
"""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest

from tests.harness.application_site import FEW_DESCRIPTORS, Site
from tests.harness.clients import Broken, Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start
from tests.harness.worker_classes import GEVENT, THREAD, WSGI, WorkerClass, for_each

WSGI_CLASSES = (THREAD, GEVENT, WSGI)

FURTHER = """

def late(environ, start_response, query):
    start_response("200 OK", [*head(), ("Content-Length", "5")])

    def pieces():
        mark("request", path="/late")
        endpoints.wait_for_release()
        yield b"late\\n"

    return pieces()


class Work:
    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        return iter([b"done\\n"])

    def close(self):
        mark("work begins")
        time.sleep(self.seconds)
        mark("work is done")


def work(environ, start_response, query):
    start_response("200 OK", [*head(), ("Content-Length", "5")])
    return Work(float(query["seconds"]))


def warm(environ, start_response, query):
    facts = {name: environ[name] for name in ("HTTP_HOST", "wsgi.url_scheme", "REQUEST_METHOD", "SERVER_NAME")}
    mark("warm", query=query, **facts)
    if query.get("raise"):
        raise RuntimeError("cold")
    return answer(start_response, query.get("status", "204 No Content"))


def stubborn(environ, start_response, query):
    mark("request", path="/stubborn")
    while True:
        try:
            time.sleep(60)
        except BaseException as error:
            mark("interrupted", by=type(error).__name__)


ENDPOINTS.update({"/late": late, "/work": work, "/warm": warm, "/stubborn": stubborn})
"""


@pytest.fixture
def site(site: Site) -> Site:
    site.serve("wsgi")
    site.deploy("one", extra=FURTHER)
    return site


@for_each((THREAD, GEVENT))
def test_head_that_is_sent_in_the_drain_ends_the_connection(
    start_class: Start, site: Site, worker: WorkerClass
) -> None:
    """The application called ``start_response`` long before; what counts is when the head leaves."""
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=60)
    client = Client(server.address)
    client.send(request("GET", "/late"))
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "start_response was called")
    server.begin_reload("two")
    site.answer_held()
    reply = client.reply()
    assert reply.body == b"late\n"
    assert reply.last
    client.wait_end()


@for_each(WSGI_CLASSES)
def test_work_behind_the_answer_is_finished(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """``close()`` of what the application returned is where WSGI frameworks do their background work."""
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=10)
    client = Client(server.address)
    assert client.ask("GET", "/work?seconds=1.5").body == b"done\n"
    wait_for(lambda: site.marks("work begins"), BOOT_TIMEOUT_S, "the work has begun")
    server.begin_reload("two")
    wait_for(lambda: site.marks("work is done"), BOOT_TIMEOUT_S, "the work is done")


@for_each(WSGI_CLASSES)
def test_wsgi_classes_warm_up(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """Each worker answers the paths itself before it accepts; a later generation that cannot is given up."""
    server = start_class(worker, workers=1, zd_hand_over=False, zd_warmup=["/warm?a=1", "https://example.org/warm"])
    wait_for(lambda: len(site.marks("warm")) == 2, BOOT_TIMEOUT_S, "both paths are answered")
    plain, url = site.marks("warm")
    assert plain["pid"] == url["pid"] == server.workers()[0]
    assert plain["query"] == {"a": "1"}
    assert (plain["HTTP_HOST"], plain["wsgi.url_scheme"]) == ("localhost", "http")
    assert (url["HTTP_HOST"], url["wsgi.url_scheme"], url["SERVER_NAME"]) == ("example.org", "https", "example.org")
    for bad in ("/warm?status=503 No", "/warm?raise=1"):
        server.configure(zd_warmup=[bad.replace(" ", "%20")])
        before, serving = len(site.events("child_exit")), server.workers()
        server.signal(signal.SIGUSR2)
        wait_for(lambda: len(site.events("child_exit")) > before, BOOT_TIMEOUT_S, "the new worker is gone")  # noqa: B023  # at once
        assert server.workers() == serving
        assert server.get()["pid"] == serving[0]
    wait_for(lambda: "RuntimeError: cold" in server.log, BOOT_TIMEOUT_S, "the reason is in the log")


@for_each((THREAD, WSGI))
def test_application_that_cannot_be_interrupted(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """It catches everything, and holds no process: the drain ends at its bound."""
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=2)
    client = Client(server.address)
    client.send(request("GET", "/stubborn"))
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the request")
    [old] = server.begin_reload("two")
    wait_for(lambda: not alive(old), BOOT_TIMEOUT_S, "the old worker is gone")
    with pytest.raises(Broken):
        client.reply()
    assert {mark["by"] for mark in site.marks("interrupted")} == ({"DeadlineReached"} if worker is WSGI else set())
    server.wait_only("two")


@for_each((THREAD, WSGI))
def test_a_worker_that_was_out_of_descriptors_accepts_again(start_class: Start, worker: WorkerClass) -> None:
    """As many as before, once there are some; the connections that it had stay."""
    few = FEW_DESCRIPTORS.replace("(60, 60)", "(60, 4096)")
    server = start_class(worker, workers=1, keepalive=60, zd_hand_over=False, extra=few)
    [pid] = server.workers()
    crowd = [Client(server.address) for _ in range(100)]
    wait_for(lambda: "Out of file descriptors" in server.log, BOOT_TIMEOUT_S, "it has run out of descriptors")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (4096, 4096))
    last = Client(server.address)
    assert last.ask("GET", "/").json()["pid"] == pid
    for client in crowd:
        client.send(request("GET", "/"))
    assert {client.reply().json()["pid"] for client in crowd} == {pid}


@for_each((THREAD, WSGI))
def test_worker_whose_master_dies_ends_soon(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """A short request is answered, and a long one cut: within two seconds nothing is left."""
    server = start_class(worker, workers=2, zd_hand_over=False)
    long = Client(server.address)
    long.send(request("GET", "/sleep?seconds=60"))
    wait_for(lambda: len(site.marks("request")) == 1, BOOT_TIMEOUT_S, "the application has the long one")
    short = Client(server.address)  # not before: the worker that accepts it may be the one that gets the long request
    short.send(request("GET", "/sleep?seconds=0.5"))
    wait_for(lambda: len(site.marks("request")) == 2, BOOT_TIMEOUT_S, "the application has both")
    workers = server.workers()
    os.kill(server.master, signal.SIGKILL)
    assert short.reply().status == 200
    wait_for(lambda: not any(alive(pid) for pid in workers), 15, "the workers are gone")
    with pytest.raises(Broken):
        long.reply()


def test_heartbeat_goes_on_while_applications_finish(start_class: Start, site: Site) -> None:
    """Of threads: a request may take longer than ``timeout`` in a drain too."""
    server = start_class(THREAD, workers=1, zd_hand_over=False, timeout=4, graceful_timeout=60)
    client = Client(server.address)
    client.send(request("GET", "/hold"))
    wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the request")
    server.begin_reload("two")
    time.sleep(7)  # longer than `timeout`
    site.answer_held()
    reply = client.reply()
    assert (reply.status, reply.headers["x-version"], reply.last) == (200, "one", True)
    assert site.events("worker_abort") == []
