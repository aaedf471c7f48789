"""New code that boots and then answers badly is given up by itself; code that is as good as the old one never is.

Rules:

* The bad code answers every n-th of its requests with status 500. What clients see is counted at the clients: whatever
  failed there has to be one of these.
* The canary serves for a minute in most of the tests, so that nothing but the judgement can have ended it.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.harness import control_client
from tests.harness.application_site import Site
from tests.harness.clients import Load, Results
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, ASGI, THREAD, UVICORN, WorkerClass, for_each

FAILS = {
    "wsgi": """
import itertools
numbers, sound, begun = itertools.count(1), app, time.monotonic()
def app(environ, start_response):
    if FAILS(next(numbers)):
        start_response("500 Internal Server Error", [("Content-Length", "0")])
        return []
    return sound(environ, start_response)
""",
    "asgi": """
import itertools
numbers, sound, begun = itertools.count(1), app, time.monotonic()
async def app(scope, receive, send):
    if scope["type"] == "http" and FAILS(next(numbers)):
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
    else:
        await sound(scope, receive, send)
""",
    "tornado": """
import itertools
numbers, begun = itertools.count(1), time.monotonic()
def prepare(self):
    if FAILS(next(numbers)):
        self.set_status(500)
        self.finish()
Endpoint.prepare = prepare
""",
}
"""Code for the end of an application whose answers fail where ``FAILS`` says so of their numbers."""

HANGS = {
    "wsgi": """
import time
def app(environ, start_response):
    time.sleep(3600)
""",
    "asgi": """
sound = app
async def app(scope, receive, send):
    if scope["type"] != "http":
        return await sound(scope, receive, send)
    await asyncio.sleep(3600)
""",
}
"""Code for the end of an application that never answers; its event loop, or its main thread, goes on."""

GIVEN_UP = r"given up: (\d+) of (\d+) answers of generation (\d+) failed, (\d+) of (\d+) of generation (\d+)"

SILENT = r"given up: \d+ requests wait for generation 2, which answers none; generation 1 has answered \d+ meanwhile"

ENOUGH = 12
"""Failed answers, all of the new code's, after which it is certain that it is worse."""


def failing(kind: str, condition: str) -> str:
    """Code that fails where ``condition``, an expression with ``number``, is true."""
    return f"\nimport time\ndef FAILS(number):\n    return {condition}\n{FAILS[kind]}"


def judged(worker: WorkerClass, **settings: Any) -> dict[str, Any]:
    """Settings of a server that judges its deploys."""
    wanted = {"workers": 4, "zd_canary_seconds": 60, "zd_max_error_rate": 5, "graceful_timeout": 15}
    return {**{name: value for name, value in worker.settings.items() if name != "workers"}, **wanted, **settings}


def load(server: Server) -> Load:
    """Some two hundred requests a second, each on a connection of its own."""
    return Load(server.address, "new", clients=8, pause=0.03, think=0.02)


def statuses(results: Results) -> set[str]:
    return {failure.how for failure in results.failures}


@for_each((UVICORN, ASGI, THREAD))
def test_code_that_answers_nothing_is_given_up(start: Start, site: Site, worker: WorkerClass) -> None:
    server = start(worker_class=worker.path, **judged(worker, graceful_timeout=1, timeout=120))
    before = server.workers()
    with load(server) as running:
        site.deploy("two", extra=HANGS[worker.kind])
        ended = control_client.reload(server)
        assert ended["result"] == "failed"
        assert re.fullmatch(SILENT, ended["error"]) is not None, ended["error"]
        wait_for(lambda: server.workers() == before, BOOT_TIMEOUT_S, "the old workers alone are left")
        running.stop()


@for_each(ALL)
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_code_that_fails_a_fifth_of_its_requests_is_given_up(
    start: Start, site: Site, worker: WorkerClass, preload: bool
) -> None:
    server = start(worker_class=worker.path, **judged(worker, preload_app=preload))
    before = server.workers()
    with load(server) as running:
        site.deploy("two", extra=failing(worker.kind, "number % 5 == 0"))
        ended = control_client.reload(server)
        assert ended["result"] == "failed"
        found = re.fullmatch(GIVEN_UP, ended["error"])
        assert found is not None, ended["error"]
        failed, answers, _new, failed_before, _answers_before, _old = map(int, found.groups())
        assert 0 < failed < answers / 2
        assert failed_before == 0
        assert ended["traceback"].splitlines()[-1] == "GET /: 500"
        wait_for(
            lambda: server.workers() == before,
            BOOT_TIMEOUT_S,
            "the old workers alone are left, and none of them is new",
        )
        site.deploy("three")
        good_since = time.monotonic()
        server.configure(zd_canary_seconds=2)
        ended = control_client.reload(server)
        assert ended["result"] == "done", ended
        # Which worker takes a connection the kernel decides, and it may leave a new one few of them.
        judged_as = r"0 of \d+ answers of generation 3 failed, 0 of \d+ of generation 1|\d+ requests?: too few to judge"
        assert re.fullmatch(judged_as, ended["judgement"]), ended["judgement"]
        results = running.stop()
    assert results.versions() == ["one", "two", "three"]
    assert statuses(results) == {"status 500"}, "nobody has lost a request but what the bad code has answered"
    assert len(results.failures) >= failed
    of_two = [answer.time for answer in results.answers if answer.version == "two"]
    assert max(of_two) - min(of_two) < 30
    assert [failure for failure in results.failures if failure.time > good_since] == []


@for_each((UVICORN, THREAD))
def test_code_that_fails_always_is_given_up_within_two_seconds(start: Start, site: Site, worker: WorkerClass) -> None:
    server = start(worker_class=worker.path, **judged(worker))
    with load(server) as running:
        site.deploy("two", extra=failing(worker.kind, "True"))
        ended = control_client.reload(server)
        assert ended["result"] == "failed"
        wait_for(lambda: len(server.workers()) == 4, BOOT_TIMEOUT_S, "the canary is gone")
        results = running.stop()
    assert statuses(results) == {"status 500"}
    times = sorted(failure.time for failure in results.failures)
    stalled = results.longest_gap(min(times), max(times))  # nobody was answered: that is the machine
    # How soon the canary has answered that often the kernel decides, which distributes the connections.
    assert max(times) - times[:ENOUGH][-1] < 2.0 + 4 * stalled
    total = len([a for a in results.answers if min(times) <= a.time <= max(times)]) + len(times)
    assert len(times) < total / 2, "the canary has its share and no more"


@for_each((UVICORN, THREAD))
def test_code_with_as_many_errors_as_before_goes_through(start: Start, site: Site, worker: WorkerClass) -> None:
    """Above the rate that is allowed, in both generations: the new code is not to blame."""
    site.serve(worker.kind)
    site.deploy("one", extra=failing(worker.kind, "number % 10 == 0"))
    server = start(worker_class=worker.path, **judged(worker, zd_canary_seconds=8))
    with load(server):
        site.deploy("two", extra=failing(worker.kind, "number % 10 == 0"))
        ended = control_client.reload(server)
    assert ended["result"] == "done", ended
    found = re.fullmatch(
        r"(\d+) of (\d+) answers of generation 2 failed, (\d+) of (\d+) of generation 1", ended["judgement"]
    )
    assert found is not None, ended["judgement"]
    assert all(int(number) > 0 for number in found.groups())


@pytest.mark.load
def test_equal_code_is_deployed_again_and_again(start: Start, site: Site, full: bool) -> None:
    """Two of a hundred answers fail, in each version, and none of these deploys is given up."""
    extra = failing("asgi", "number % 50 == 0")
    site.deploy("one", extra=extra)
    server = start(**judged(UVICORN, zd_canary_seconds=3, zd_max_error_rate=1))
    with load(server):
        for number in range(20 if full else 3):
            site.deploy(f"again {number}", extra=extra)
            ended = control_client.reload(server)
            assert ended["result"] == "done", ended


def test_too_few_requests_say_so(start: Start, site: Site) -> None:
    server = start(**judged(UVICORN, zd_canary_seconds=1))
    for _ in range(3):
        server.get()
    site.deploy("two", extra=failing("asgi", "True"))
    ended = control_client.reload(server)
    assert ended["result"] == "done"
    assert ended["judgement"] == "0 requests: too few to judge"


def test_a_canary_that_crashes_is_given_up(start: Start, site: Site) -> None:
    server = start(**judged(THREAD, worker_class=THREAD.path))
    before = server.workers()
    with load(server) as running:
        site.deploy("two", extra=failing("wsgi", "number > 20 and os._exit(7)"))
        ended = control_client.reload(server)
        wait_for(lambda: server.workers() == before, BOOT_TIMEOUT_S, "the old workers alone are left")
        running.stop()
    assert ended["result"] == "failed"
    assert ended["error"] == "the first new worker failed: exited with code 7 as the canary"


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_code_that_fails_later_is_given_up_later(start: Start, site: Site, preload: bool) -> None:
    """It begins to fail when its canary is over, and the rollout has gone on."""
    settings = judged(UVICORN, zd_canary_seconds=1, zd_min_ready_seconds=4, preload_app=preload)
    server = start(**settings)
    with load(server) as running:
        site.deploy("two", extra=failing("asgi", "number % 2 and os.path.exists('fail')"))
        server.signal(server.reload_signal)
        wait_for(
            lambda: list(server.versions().values()).count("two") >= 2, BOOT_TIMEOUT_S, "a second new worker has booted"
        )
        (site.directory / "fail").touch()
        wait_for(lambda: control_client.last_reload(server).get("result"), BOOT_TIMEOUT_S, "the reload has ended")
        ended = control_client.last_reload(server)
        assert ended["result"] == "failed"
        assert re.match(GIVEN_UP, ended["error"]), ended["error"]
        stays = re.search(
            r"; (\d) of 4 workers are of it and stay, since the generation before is not preloaded", ended["error"]
        )
        assert (stays is None) == preload, ended["error"]
        if preload:
            server.wait_only("one")
        else:
            assert stays is not None
            new = int(stays[1])
            left = ["one"] * (4 - new) + ["two"] * new
            wait_for(lambda: sorted(map(str, server.versions().values())) == left, BOOT_TIMEOUT_S, f"{left} are left")
        results = running.stop()
    assert statuses(results) == {"status 500"}


def test_hooks_learn_of_the_canary_and_may_give_it_up(start: Start, site: Site) -> None:
    extra = """
def zd_canary_ready(server, worker):
    open("canary", "w").write(str(worker.pid))
def zd_judge(server, report):
    return "orders are down" if report["canary"] and report["answers"] > 20 else None
"""
    server = start(extra=extra, **judged(UVICORN, zd_max_error_rate=None, zd_count_answers=True))
    before = server.workers()
    with load(server) as running:
        site.deploy("two")
        ended = control_client.reload(server)
        results = running.stop()
    assert ended["result"] == "failed"
    assert ended["error"] == "given up: zd_judge: orders are down"
    assert results.failures == []
    assert int((site.directory / "canary").read_text()) not in before
