"""Signal handlers of the application: the worker's are in place beside them, and both are called.

Rules: each test sends a signal while a request is under way, which waits for the test; the request is answered, the
worker drains long before its ``graceful_timeout`` and the application's own handler has run.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.control_client import worker_states
from tests.harness.processes import alive, descriptors, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, ASGI, GEVENT, TORNADO, UVICORN, UVICORN_H11, WSGI, WorkerClass, for_each

GRACEFUL_TIMEOUT_S = 120
DRAINED_S = 30.0
"""Seconds within which a worker has drained, on a machine with other work to do; :data:`GRACEFUL_TIMEOUT_S` is more."""

HANDLERS = """

import signal as _signal


def _own(name, then=lambda: None):
    def handle(signum, frame):
        mark("own", name=name, signal=signum)
        then()
    return handle


def _exit():
    raise SystemExit(0)


def _fail():
    raise ValueError("of the application's own handler")

"""

DIES = """
def _die(signum, frame):
    mark("own", signal=signum)
    _signal.signal(signum, _signal.SIG_DFL)
    os.kill(os.getpid(), signum)


_signal.signal(_signal.SIGTERM, _die)
"""
"""What Python's own documentation and many programs do: clean up, and die of the same signal."""

AT_IMPORT = {
    "plain": '_signal.signal(_signal.SIGTERM, _own("plain"))',
    "exits": '_signal.signal(_signal.SIGTERM, _own("exits", _exit))',
    "raises": '_signal.signal(_signal.SIGTERM, _own("raises", _fail))',
    "chains": """
_before = _signal.getsignal(_signal.SIGTERM)
_signal.signal(_signal.SIGTERM, _own("chains", lambda: _before(_signal.SIGTERM, None)))
""",
}


def wait_ready(server: Server) -> list[int]:
    """Wait until the master knows that all workers are ready: by then each has taken its signals back."""
    wait_for(lambda: set(worker_states(server)) == {"ready"}, BOOT_TIMEOUT_S, "all workers are ready")
    return server.wait_full()


def one_drains_on_term(server: Server, site: Site, printed: Path | None = None) -> None:
    """Send TERM to one worker with a request under way: it is answered, the worker ends, the site goes on.

    :param printed: the file that a handler in C writes into; it leaves no mark.
    """
    (worker,) = wait_ready(server)

    def own() -> list[int]:
        return [mark["signal"] for mark in site.marks("own") if mark["pid"] == worker]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.get, "/hold")
        try:
            wait_for(lambda: site.marks("request"), DRAINED_S, "the request is under way")
            os.kill(worker, signal.SIGTERM)
            wait_for(
                lambda: printed.read_text() if printed else own(), DRAINED_S, "the application's handler is called"
            )
        finally:
            site.answer_held()
        wait_for(lambda: not alive(worker), DRAINED_S, "the worker has ended")
        assert answer.result()["pid"] == worker
    assert own() == [signal.SIGTERM] * (printed is None)
    wait_ready(server)


@pytest.mark.parametrize("how", sorted(AT_IMPORT))
@for_each(ALL)
def test_handler_set_at_import(start_class: Start, site: Site, worker: WorkerClass, how: str) -> None:
    site.deploy("one", extra=HANDLERS + AT_IMPORT[how])
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    one_drains_on_term(server, site)
    assert server.stop() == 0
    assert "killed" not in server.log


@for_each((UVICORN, UVICORN_H11, ASGI))
def test_handler_set_in_lifespan_startup(start_class: Start, site: Site, worker: WorkerClass) -> None:
    extra = """
_started = endpoints.started
endpoints.started = lambda: (_signal.signal(_signal.SIGTERM, _own("x")), _started())
"""
    site.deploy("one", extra=HANDLERS + extra)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    one_drains_on_term(server, site)
    assert server.stop() == 0


@for_each(ALL)
def test_handler_set_in_a_request(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """The worker looks about once a second. In ThreadWorker a request has a thread of its own, which may set none."""
    if worker.name == "ThreadWorker":
        pytest.skip("Python sets handlers in the main thread only")
    extra = """
endpoints.at_once["/set"] = lambda query: {"before": str(_signal.signal(_signal.SIGTERM, _own("x")))}
endpoints.at_once["/own"] = lambda query: {"own": type(_signal.getsignal(_signal.SIGTERM)).__name__ == "function"}
if "Shared" in globals():  # Tornado's routes are fixed when the application is made
    app.add_handlers(".*", [(path, Shared) for path in endpoints.at_once])
"""
    site.deploy("one", extra=HANDLERS + extra)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    server.get("/set")
    wait_for(lambda: not server.get("/own")["own"], DRAINED_S, "the worker's handler is in place")
    one_drains_on_term(server, site)


@pytest.mark.parametrize("then", ["mark('loop')", "_loop.stop()"], ids=["plain", "stops the loop"])
@for_each((UVICORN, UVICORN_H11, ASGI))
def test_handler_of_the_event_loop(start_class: Start, site: Site, worker: WorkerClass, then: str) -> None:
    extra = f"""
_started = endpoints.started


def _start():
    _loop = asyncio.get_running_loop()
    _loop.add_signal_handler(_signal.SIGTERM, lambda: (mark("own", signal=15), {then}))
    _started()


endpoints.started = _start
"""
    site.deploy("one", extra=HANDLERS + extra)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    one_drains_on_term(server, site)
    assert server.stop() == 0


@for_each((TORNADO,))
def test_handler_that_stops_tornados_loop(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """As Tornado's own examples do it."""
    extra = """
from tornado.ioloop import IOLoop as _IOLoop
_loop = _IOLoop.current()
_signal.signal(_signal.SIGTERM, _own("stops", lambda: _loop.add_callback_from_signal(_loop.stop)))
"""
    site.deploy("one", extra=HANDLERS + extra)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    one_drains_on_term(server, site)
    assert server.stop() == 0


@for_each(ALL)
def test_wakeup_descriptor_set_at_import(start_class: Start, site: Site, worker: WorkerClass) -> None:
    extra = """
_reader, _writer = os.pipe()
os.set_blocking(_writer, False)
_signal.set_wakeup_fd(_writer, warn_on_full_buffer=False)
_signal.signal(_signal.SIGTERM, _own("x"))
"""
    site.deploy("one", extra=HANDLERS + extra)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    one_drains_on_term(server, site)
    (idle,) = wait_ready(server)
    os.kill(idle, signal.SIGTERM)
    wait_for(lambda: not alive(idle), DRAINED_S, "the idle worker has ended")


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT"])
@for_each(ALL)
def test_handler_of_a_quick_end(start_class: Start, site: Site, worker: WorkerClass, name: str) -> None:
    site.deploy("one", extra=HANDLERS + f'_signal.signal(_signal.{name}, _own("quick"))')
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    (pid,) = wait_ready(server)
    os.kill(pid, signal.Signals[name])
    wait_for(lambda: not alive(pid), DRAINED_S, "the worker has ended")
    assert [mark["signal"] for mark in site.marks("own")] == [signal.Signals[name]]
    assert len([event for event in site.events("worker_int") if event["pid"] == pid]) == 1
    server.wait_full()


@for_each(ALL)
def test_handlers_of_a_rotation_and_of_children(start_class: Start, site: Site, worker: WorkerClass) -> None:
    extra = '_signal.signal(_signal.SIGUSR1, _own("x"))\n_signal.signal(_signal.SIGCHLD, _own("x"))\n'
    site.deploy("one", extra=HANDLERS + extra)
    log = site.directory / "error.log"
    server = start_class(worker, workers=1, errorlog=str(log))
    (pid,) = wait_ready(server)
    log.rename(site.directory / "error.log.1")
    server.signal(signal.SIGUSR1)

    def writes_to_the_new_log() -> bool:
        targets = descriptors(pid).values()
        return str(log) in targets and not any(target.endswith("error.log.1") for target in targets)

    wait_for(writes_to_the_new_log, DRAINED_S, "the worker has reopened the log")
    server.get("/abandon?code=0")
    wait_for(
        lambda: {mark["signal"] for mark in site.marks("own")} == {signal.SIGUSR1, signal.SIGCHLD},
        DRAINED_S,
        "both were called",
    )
    with Client(server.address) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.reply().status == 200
    assert server.stop() == 0


@for_each((UVICORN, ASGI, TORNADO, WSGI))
def test_handler_that_dies_of_its_signal(start_class: Start, site: Site, worker: WorkerClass) -> None:
    site.deploy("one", extra=HANDLERS + DIES)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    one_drains_on_term(server, site)
    assert server.stop() == 0


def test_handler_of_gevent_s_own(start_class: Start, site: Site) -> None:
    """The library libev sets it, and Python does not know of it."""
    extra = """
import gevent as _gevent
_gevent.signal_handler(_signal.SIGTERM, lambda: mark("own", signal=15))
"""
    site.deploy("one", extra=HANDLERS + extra)
    server = start_class(GEVENT, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    one_drains_on_term(server, site)
    assert server.stop() == 0


@pytest.mark.parametrize("chain", [False, True], ids=["", "chain"])
@for_each((UVICORN, WSGI))
def test_faulthandler_s_handler(start_class: Start, site: Site, worker: WorkerClass, chain: bool) -> None:
    """It is written in C: it prints where each thread is, and the worker drains."""
    extra = f"""
import faulthandler as _faulthandler
_faulthandler.register(_signal.SIGTERM, file=open("traces", "a"), chain={chain})
"""
    site.deploy("one", extra=HANDLERS + extra)
    server = start_class(worker, workers=1, graceful_timeout=GRACEFUL_TIMEOUT_S)
    one_drains_on_term(server, site, site.directory / "traces")
    assert "most recent call first" in (site.directory / "traces").read_text()
    assert server.stop() == 0


@for_each((UVICORN, UVICORN_H11, ASGI))
def test_handler_that_cancels_all_tasks(start_class: Start, site: Site, worker: WorkerClass) -> None:
    """Requests are tasks, too: those under way end as the application wants it, and the worker leaves in time."""
    extra = """
_started = endpoints.started


def _cancel_all():
    mark("own", signal=15)
    for task in asyncio.all_tasks():
        task.cancel()


def _start():
    asyncio.get_running_loop().add_signal_handler(_signal.SIGTERM, _cancel_all)
    _started()


endpoints.started = _start
"""
    site.deploy("one", extra=HANDLERS + extra)
    server = start_class(worker, workers=2, graceful_timeout=GRACEFUL_TIMEOUT_S)
    victim, other = wait_ready(server)
    os.kill(victim, signal.SIGTERM)
    wait_for(lambda: not alive(victim), DRAINED_S, "the worker has ended")
    assert other in wait_ready(server)
    server.reload("two")
    assert server.stop() == 0
    assert "killed" not in server.log
