"""The master's one poll: descriptors and timers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from zdworker.master.reactor import Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close_in_child()


def test_a_readable_descriptor_is_called_back(reactor: Reactor) -> None:
    reader, writer = os.pipe()
    called: list[bytes] = []
    reactor.add(reader, lambda: called.append(os.read(reader, 10)))
    os.write(writer, b"x")
    reactor.wait(5)
    assert called == [b"x"]
    reactor.remove(reader)
    os.close(reader)
    os.close(writer)


def test_a_wake_ends_a_wait(reactor: Reactor) -> None:
    start = time.monotonic()
    reactor.wake()
    reactor.wait(5)
    assert time.monotonic() - start < 1


def test_timers_are_called_once_in_their_order_and_not_before(reactor: Reactor) -> None:
    start = time.monotonic()
    called: list[tuple[str, float]] = []
    reactor.call_later(0.04, lambda: called.append(("second", time.monotonic())))
    reactor.call_later(0.02, lambda: called.append(("first", time.monotonic())))
    while len(called) < 2:
        reactor.wait(5)
    assert [name for name, _moment in called] == ["first", "second"]
    assert called[0][1] - start >= 0.02
    assert called[1][1] - start >= 0.04
    reactor.wait(0)
    assert len(called) == 2
