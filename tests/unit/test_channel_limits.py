"""A channel's end: bounded pieces, and descriptors only where they are taken."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import pytest

from zdworker.ipc.channel import RECEIVE_READS_MAX, Channel
from zdworker.ipc.messages import WORKER_REPORT_BYTES, Counts, Draining, Order, Ready, encode


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    channel, theirs = Channel.pair(WORKER_REPORT_BYTES)
    with theirs:
        yield channel, theirs
    channel.close()


def send_descriptors(theirs: socket.socket, data: bytes, count: int) -> None:
    numbers = array.array("i", [theirs.fileno()] * count)
    theirs.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])


@pytest.mark.parametrize("count", [1, 4, 250])
@pytest.mark.parametrize("credentials", [True, False])
def test_descriptors_are_refused(count: int, credentials: bool) -> None:
    if credentials:
        channel, theirs = Channel.pair(WORKER_REPORT_BYTES)
    else:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        channel = Channel(ours, WORKER_REPORT_BYTES)
    with theirs:
        before = len(os.listdir("/dev/fd"))
        send_descriptors(theirs, encode(Ready()), count)
        received = channel.receive()
        assert len(os.listdir("/dev/fd")) == before
        channel.close()
    assert "takes none" in received.error
    assert received.messages == []
    assert channel.descriptors == []


def test_descriptors_are_taken_where_they_are_wanted() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, takes_descriptors=True)
    with theirs:
        send_descriptors(theirs, encode(Ready()), 2)
        assert [message for message, _sender in channel.receive().messages] == [Ready()]
    taken = channel.take(["a", "a"])
    assert len(set(taken["a"])) == 2
    for number in taken["a"]:
        os.close(number)
    channel.close()


def test_the_sender_is_named(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(encode(Ready()))
    assert channel.receive().messages == [(Ready(), os.getpid())]


def test_a_turn_is_bounded_in_bytes(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    line = encode(Counts(1, 1))
    theirs.sendall(line * 1000)
    first = channel.receive(8192)
    assert first.size == 8192
    assert len(first.messages) == 8192 // len(line)
    assert len(channel.receive().messages) == 1000 - len(first.messages)
    assert channel.receive().size == 0


def test_a_turn_is_bounded_in_reads(pair: tuple[Channel, socket.socket]) -> None:
    """A read ends where the next message of another sender begins; here, where descriptors begin."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    channel = Channel(ours, takes_descriptors=True)
    with theirs:
        for _ in range(RECEIVE_READS_MAX + 1):
            send_descriptors(theirs, encode(Ready()), 1)
        assert len(channel.receive().messages) == RECEIVE_READS_MAX
    channel.close()


def test_nothing_is_read_after_an_error(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(encode(Ready()) + encode(Order("reload")) + encode(Draining()))
    received = channel.receive()
    assert [message for message, _sender in received.messages] == [Ready()]
    assert received.error == "Order is not for this end of a channel"


def test_the_end_is_seen(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(encode(Ready()))
    theirs.close()
    received = channel.receive()
    assert (len(received.messages), received.closed) == (1, True)
