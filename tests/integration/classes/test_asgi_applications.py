"""What ASGI applications do beyond an answer, at a drain: background tasks, endless streams, threads, lifespan.

The servers have one worker, which a reload ends. A test waits for that: it goes on once the old worker
no longer accepts.
"""

from __future__ import annotations

import contextlib
import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Broken, Client, request
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ASGI, UVICORN, UVICORN_H11, WorkerClass, for_each

CLASSES = (UVICORN, UVICORN_H11, ASGI)
LIMIT = 6
SLACK = 20.0
"""Seconds beyond the limit for the worker's own end (lifespan, hooks), on a machine with other work to do."""

BACKGROUND = """

async def background(scope, receive, send, query):
    if query["held"] == "answer":
        await endpoints.wait_async("/hold", query)
        await answer(send)
        mark("answered")
        await asyncio.sleep(4)
    else:
        await answer(send)
        await endpoints.wait_async("/hold", query)
    mark("background done")


ENDPOINTS["/background"] = background
"""

EVENTS = """

async def events(scope, receive, send, query):
    mark("request", path="/events")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})

    async def until_disconnect():
        while (await receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(until_disconnect())
    try:
        while not gone.done():
            await send({"type": "http.response.body", "body": b"data: tick\\n\\n", "more_body": True})
            await asyncio.wait({gone}, timeout=0.1)
        if "last" in query:
            await send({"type": "http.response.body", "body": b"data: last\\n\\n"})
    finally:
        mark("events ended")


ENDPOINTS["/events"] = events
"""

SLOW_SHUTDOWN = """

async def lifespan(receive, send):
    await receive()
    mark("startup")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.sleep(2)
    mark("shutdown")
    await send({"type": "lifespan.shutdown.complete"})
"""

STATE = """

async def lifespan(receive, send):
    await receive()
    STATE["made"] = "in lifespan startup"
    mark("startup")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    mark("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def warm(scope, receive, send, query):
    mark("warm", state=dict(scope["state"]), scheme=scope["scheme"], host=dict(scope["headers"])[b"host"].decode())
    await answer(send, int(query.get("status", 200)))


STATE = {}
ENDPOINTS["/warm"] = warm
_inner = app


async def app(scope, receive, send):
    global STATE
    if scope["type"] == "lifespan":
        STATE = scope["state"]
    await _inner(scope, receive, send)
"""


def ask(server: Server, path: str, client: Client | None = None) -> Client:
    """Send a request, and wait until the application has it."""
    before = len(server.site.marks("request"))
    client = client or Client(server.address)
    client.send(request("GET", path))
    wait_for(lambda: len(server.site.marks("request")) > before, BOOT_TIMEOUT_S, "the application has the request")
    return client


@for_each(CLASSES)
def test_background_tasks_finish(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """The client has gone, as it should: that is no reason to cancel what the application does after its answer."""
    site.deploy("one", extra=BACKGROUND)
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=12)
    client = ask(server, "/background?held=answer")
    (old,) = server.begin_reload("two")
    site.answer_held()
    reply = client.reply()
    assert reply.last
    client.close()
    wait_for(lambda: not alive(old), BOOT_TIMEOUT_S, "the old worker is gone")
    answered = site.marks("answered")[0]["time"]
    assert site.marks("background done")[0]["time"] - answered >= 3.9
    assert site.marks("shutdown")[0]["time"] >= site.marks("background done")[0]["time"]


@for_each(CLASSES)
def test_background_tasks_of_a_client_that_left_before(start_class: Start, site: Site, worker: WorkerClass) -> None:
    site.deploy("one", extra=BACKGROUND)
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=12)
    client = ask(server, "/background?held=end")
    assert client.reply().status == 200
    client.close()
    (old,) = server.begin_reload("two")
    assert alive(old)
    site.answer_held()
    wait_for(lambda: not alive(old), 8, "the old worker is gone")
    assert len(site.marks("background done")) == 1


@for_each(CLASSES)
def test_endless_events_run_to_the_deadline(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """They come until then; the application sees the end, may say a last word, and its lifespan is shut down."""
    site.deploy("one", extra=EVENTS)
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=LIMIT)
    polite, endless = ask(server, "/events?last"), ask(server, "/events")
    (old,) = server.begin_reload("two")
    wait_for(lambda: not alive(old), LIMIT + SLACK, "the old worker is gone")
    (begun,), (ended,) = site.marks("startup", "two"), site.marks("shutdown")
    assert ended["time"] - begun["time"] >= LIMIT - 1.5, "they were not given their time"
    assert len(site.marks("events ended")) == 2
    assert [mark["pid"] for mark in site.marks("shutdown")] == [old]
    assert [event["pid"] for event in site.events("worker_exit")] == [old]
    for client in (polite, endless):
        with contextlib.suppress(Broken):  # cut in the middle: that is what an endless body comes to
            client.reply()
    server.wait_only("two")


@for_each(CLASSES)
def test_a_thread_does_not_hold_the_worker(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """``run_in_executor`` cannot be interrupted, and is not waited for beyond the deadline."""
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=2)
    client = ask(server, "/executor?seconds=120")
    (old,) = server.begin_reload("two")
    wait_for(lambda: not alive(old), 2 + SLACK, "the old worker is gone")
    assert [mark["pid"] for mark in site.marks("shutdown")] == [old]
    assert [event["pid"] for event in site.events("worker_exit")] == [old]
    client.close()


@for_each(CLASSES)
def test_lifespan_shutdown_has_what_is_left_of_the_time(start_class: Start, site: Site, worker: WorkerClass) -> None:
    site.deploy("one", extra=SLOW_SHUTDOWN)
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=LIMIT)
    (old,) = server.workers()
    server.reload("two")
    assert [mark["pid"] for mark in site.marks("shutdown", "one")] == [old]


@for_each(CLASSES)
def test_int_ends_a_worker_at_once_with_lifespan_shutdown(start_class: Start, site: Site, worker: WorkerClass) -> None:
    server = start_class(worker, workers=1, zd_hand_over=False, graceful_timeout=90)
    client = ask(server, "/sleep?seconds=85")
    (old,) = server.workers()
    server.signal(signal.SIGINT)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    assert [mark["pid"] for mark in site.marks("shutdown")] == [old]
    assert [event["pid"] for event in site.events("worker_int")] == [old]
    client.close()


@for_each(CLASSES)
def test_warm_up_has_the_lifespan_s_state(start_class: Start, site: Site, worker: WorkerClass) -> None:
    site.deploy("one", extra=STATE)
    server = start_class(worker, workers=1, zd_hand_over=False, zd_warmup=["/warm", "https://example.org/warm"])
    (pid,) = server.workers()
    seen = [(mark["pid"], mark["state"], mark["scheme"], mark["host"]) for mark in site.marks("warm")]
    state = {"made": "in lifespan startup"}
    assert seen == [(pid, state, "http", "localhost"), (pid, state, "https", "example.org")]
    site.deploy("two", extra=STATE)
    server.configure(zd_warmup=["/warm?status=503"])
    server.signal(signal.SIGUSR2)
    wait_for(lambda: site.marks("warm", "two"), BOOT_TIMEOUT_S, "the new code was tried")
    wait_for(
        lambda: [child.pid for child in server.children() if child.forked] == [pid],
        BOOT_TIMEOUT_S,
        "the old code is still serving",
    )
    assert server.get("/")["version"] == "one"


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_lifespan_that_fails_is_a_failed_reload(start: Start, site: Site, mode: str) -> None:
    """Gunicorn before 27 serves such an application all the same, or not at all."""
    server = start(worker_class="zdworker.ASGIWorker", asgi_lifespan=mode)
    old = server.workers()
    unique = site.break_("lifespan")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: unique in server.log, BOOT_TIMEOUT_S, "the reason is in the log")
    wait_for(
        lambda: [child.pid for child in server.children() if child.forked] == old,
        BOOT_TIMEOUT_S,
        "the old code is still serving",
    )
    assert server.get("/")["version"] == "one"


STOPS_IN_A_TURN = """

import gc as _gc

_lifespan = lifespan


def _stop_in_turn(worker, number):
    number += worker.zd_leaving
    if number < {turn}:
        asyncio.get_running_loop().call_soon(_stop_in_turn, worker, number)
        return
    open("stopped", "w").close()
    while not os.path.exists("connected"):
        time.sleep(0.001)


async def lifespan(receive, send):
    worker = next(found for found in _gc.get_objects() if type(found).__name__ == {name!r})
    asyncio.get_running_loop().call_soon(_stop_in_turn, worker, 0)
    await _lifespan(receive, send)
"""


@pytest.mark.parametrize("turn", [1, 2])
@for_each((UVICORN, ASGI))
def test_a_connection_accepted_in_the_turn_of_the_order_to_leave(
    start: Start, site: Site, worker: WorkerClass, turn: int
) -> None:
    """The loop takes it up in its next turns, when the listeners are closed and there is no other connection."""
    site.deploy("one", extra=STOPS_IN_A_TURN.format(turn=turn, name=worker.name))
    server = start(worker_class=worker.path, workers=1)
    server.signal(signal.SIGTERM)
    wait_for((site.directory / "stopped").exists, BOOT_TIMEOUT_S, "the loop stands still in that turn")
    with Client(server.address) as client:
        client.send(request("GET", "/sleep?seconds=0.5"))
        (site.directory / "connected").touch()
        assert client.reply().status == 200
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
