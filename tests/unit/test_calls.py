"""Which request a thread or a greenlet answers, by the frames of its calls."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker.workers.wsgi.calls import request_of

REQUEST = SimpleNamespace(method="GET", path="/export")


class Answering:
    """A server whose methods call what a test wants to look at."""

    def handle(self, inside: Callable[[], Any]) -> Any:
        return self.handle_request(REQUEST, inside)

    def handle_request(self, req: Any, inside: Callable[[], Any]) -> Any:
        return inside()

    def wait(self, inside: Callable[[], Any]) -> Any:
        return inside()


ANSWERING = [Answering.handle_request]


def deep(inside: Callable[[], Any], calls: int = 50) -> Any:
    return deep(inside, calls - 1) if calls else inside()


def found() -> tuple[str, str] | None:
    return request_of(sys._getframe(), ANSWERING)  # noqa: SLF001  # it is documented


def test_it_is_found_from_the_depth_of_an_application() -> None:
    assert Answering().handle(lambda: deep(found)) == ("GET", "/export")


def test_nothing_is_found_between_two_requests() -> None:
    assert Answering().wait(found) is None
    assert request_of(None, ANSWERING) is None


def test_a_request_that_is_not_there_yet_has_no_name() -> None:
    assert Answering().handle_request(None, found) is None


def test_another_thread_is_looked_into() -> None:
    begun, ended = threading.Event(), threading.Event()

    def application() -> None:
        begun.set()
        ended.wait(60)

    thread = threading.Thread(target=Answering().handle, args=(application,))
    thread.start()
    try:
        assert begun.wait(60)
        frame = sys._current_frames()[thread.ident or 0]  # noqa: SLF001  # it is documented
        assert request_of(frame, ANSWERING) == ("GET", "/export")
    finally:
        ended.set()
        thread.join()


def test_a_greenlet_that_waits_is_looked_into() -> None:
    greenlet = pytest.importorskip("greenlet")
    answering = greenlet.greenlet(lambda: Answering().handle(greenlet.getcurrent().parent.switch))
    answering.switch()
    assert request_of(answering.gr_frame, ANSWERING) == ("GET", "/export")
    answering.switch()
    assert request_of(answering.gr_frame, ANSWERING) is None
