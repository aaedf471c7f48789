"""The master's one poll: descriptors and timers."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import socket
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


def test_a_timer_that_is_set_by_a_timer_waits_for_the_next_turn(reactor: Reactor) -> None:
    called: list[int] = []

    def again() -> None:
        called.append(1)
        reactor.call_later(0.0, again)

    reactor.call_later(0.0, again)
    for turn in range(1, 4):
        reactor.wait(5)
        assert len(called) == turn


def test_a_paused_descriptor_is_not_polled_until_it_is_resumed(reactor: Reactor) -> None:
    reader, writer = os.pipe()
    called: list[int] = []
    reactor.add(reader, lambda: called.append(1))
    os.write(writer, b"x")
    reactor.pause(reader)
    reactor.wait(0)
    assert called == []
    reactor.resume(reader)
    reactor.resume(reader)
    reactor.wait(0)
    assert called == [1]
    reactor.pause(reader)
    reactor.remove(reader)
    reactor.resume(reader)
    reactor.wait(0)
    assert called == [1]
    os.close(reader)
    os.close(writer)


def test_a_child_closes_what_is_paused(reactor: Reactor) -> None:
    reader, writer = os.pipe()
    reactor.add(reader, lambda: None)
    reactor.pause(reader)
    reactor.close_in_child()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
    os.close(writer)


def test_a_full_socket_is_called_back_once_when_it_takes_more(reactor: Reactor) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    called: list[str] = []
    reactor.add(ours.fileno(), lambda: called.append("read"))
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(b"x" * 65536)
    reactor.when_writable(ours.fileno(), lambda: called.append("room"))
    reactor.wait(0)
    assert called == []
    while len(theirs.recv(1 << 20)) == 1 << 20:
        pass
    reactor.wait(5)
    reactor.wait(0)
    assert called == ["room"]
    theirs.send(b"x")
    reactor.wait(5)
    assert called == ["room", "read"]
    reactor.remove(ours.fileno())
    ours.close()
    theirs.close()


def test_a_reader_may_remove_its_own_descriptor_before_it_is_written_to(reactor: Reactor) -> None:
    ours, theirs = socket.socketpair()
    called: list[str] = []
    reactor.add(ours.fileno(), lambda: reactor.remove(ours.fileno()))
    reactor.when_writable(ours.fileno(), lambda: called.append("room"))
    theirs.close()
    reactor.wait(5)
    reactor.when_writable(ours.fileno(), lambda: called.append("room"))
    reactor.wait(0)
    assert called == []
    ours.close()


@pytest.mark.parametrize("limit", [5, 0])
def test_fewer_descriptors_are_allowed_than_are_polled(reactor: Reactor, limit: int) -> None:
    """poll(2) refuses that, and it must not end the master."""
    pipes = [os.pipe() for _ in range(10)]
    called: list[bytes] = []

    def receive(reader: int) -> None:
        called.append(os.read(reader, 10))

    for reader, _ in pipes:
        reactor.add(reader, functools.partial(receive, reader))
    os.write(pipes[-1][1], b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        reactor.wait(5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert called == ([b"x"] if limit else [])
    reactor.wait(0)
    assert called == [b"x"]
    for reader, writer in pipes:
        reactor.remove(reader)
        os.close(reader)
        os.close(writer)
