"""``ab`` and ``wrk`` with a thousand connections, reload after reload while they run.

``tox -e load`` runs them as long as they are promised to hold, CI a part of that.
"""

from __future__ import annotations

import shutil

import pytest

from tests.harness.load_tools import ENDLESS, PART, PROMISED, number, run_through_reloads
from tests.harness.server import Server, Start
from tests.harness.worker_classes import ALL, WorkerClass, for_each

KEEP = 5
"""Seconds of ``keepalive``: more than these tools, busy with a thousand connections, leave an answer unread. With less
the server ends connections of which the tool believes that they are kept, reload or not."""


@pytest.mark.load
@pytest.mark.skipif(shutil.which("ab") is None, reason="ab is not installed")
@for_each(ALL)
def test_ab_sees_no_failed_request(start_class: Start, worker: WorkerClass, full: bool) -> None:
    ab(start_class(worker), full)


@pytest.mark.load
@pytest.mark.skipif(shutil.which("ab") is None, reason="ab is not installed")
@for_each(ALL)
def test_ab_with_kept_connections_sees_no_failed_request(start_class: Start, worker: WorkerClass, full: bool) -> None:
    """``ab`` speaks HTTP/1.0, so a class that keeps none of its connections sees new ones once more.

    ASGIWorker does not say that it keeps such a connection, but ends it only after ``keepalive`` seconds, as the stock
    class does: ``ab`` waits for that each time.
    """
    if not (full or worker.keeps_http10):
        pytest.skip("the same as without -k")
    ab(start_class(worker, keepalive=KEEP if worker.keeps_http10 else 1), full, "-k")


def ab(server: Server, full: bool, *options: str) -> None:
    """Run ``ab`` through ten reloads and half a minute; in CI through two and 5 s."""
    url = "http://%s:%s/fixed" % server.address
    words = ["ab", "-q", "-n", str(ENDLESS), "-c", "1000", "-s", "60", *options, url]
    output = run_through_reloads(server, words, *(PROMISED if full else PART))
    assert number(r"Complete requests:\s+(\d+)", output) > 1000, output
    assert number(r"Failed requests:\s+(\d+)", output) == 0, output
    assert number(r"Non-2xx responses:\s+(\d+)", output) == 0, output


@pytest.mark.load
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@for_each(ALL)
def test_wrk_sees_no_socket_error(start_class: Start, worker: WorkerClass, full: bool) -> None:
    """A thousand keep-alive connections; WSGIWorker closes each after its answer."""
    server = start_class(worker, keepalive=KEEP)
    url = "http://%s:%s/fixed" % server.address
    words = ["wrk", "-c", "1000", "-t", "2", "-d", str(ENDLESS), "--timeout", "20", url]
    output = run_through_reloads(server, words, *(PROMISED if full else PART))
    assert "Socket errors" not in output, output
    assert "Non-2xx" not in output, output
    assert number(r"(\d+) requests in", output) > 1000, output
