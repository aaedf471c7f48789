"""What is posted on a channel arrives in its order, each message with its descriptors, however little room there is."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import HookData, Message, Spawn

LARGE = HookData(environment={"LARGE": "x" * 1_000_000})


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """The master's end, which does not block, and the other one."""
    ours, theirs = Channel.pair({Spawn: 4096})
    other = Channel(theirs, takes_descriptors=True)
    yield ours, other
    ours.close()
    other.close()


def order(number: int, descriptors: int) -> Spawn:
    return Spawn(number, 0, 1, ["report"] * descriptors)


def inodes(descriptors: list[int]) -> list[int]:
    return [os.fstat(descriptor).st_ino for descriptor in descriptors]


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_each_order_has_its_own_descriptors(ends: tuple[Channel, Channel]) -> None:
    """Those that wait are copies: the sender may close its own, and give their numbers to other files."""
    ours, theirs = ends
    ours.post(LARGE, [])
    expected: dict[int, list[int]] = {}
    for number in range(1, 30):
        pipe = [*os.pipe()][: number % 3]
        expected[number] = inodes(pipe)
        ours.post(order(number, len(pipe)), pipe)
        for descriptor in pipe:
            os.close(descriptor)
    assert not ours.flush()
    messages: list[Message] = []
    found: dict[int, list[int]] = {}
    while len(messages) < 30:
        ours.flush()
        for message, _sender in theirs.receive().messages:
            messages.append(message)
            if isinstance(message, Spawn):
                descriptors = theirs.take(message.descriptors).get("report", [])
                found[message.worker_id] = inodes(descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
    assert messages == [LARGE, *(order(number, number % 3) for number in range(1, 30))]
    assert found == expected
    assert ours.flush()


def test_an_end_that_is_closed_keeps_no_copies() -> None:
    before = open_descriptors()
    ours, theirs = Channel.pair({Spawn: 4096})
    ours.post(LARGE, [])
    for number in range(5):
        ours.post(order(number, 1), [0])
    ours.close()
    theirs.close()
    assert open_descriptors() == before


def test_an_end_that_nobody_reads_any_more(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.post(LARGE, [])
    theirs.close()
    with pytest.raises(BrokenPipeError):
        ours.flush()


def test_without_descriptors_for_copies_nothing_is_sent(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.post(LARGE, [])
    before = open_descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            ours.post(order(1, 20), [0] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert open_descriptors() == before
    ours.post(order(2, 1), [0])
    messages: list[Message] = []
    while len(messages) < 2:
        ours.flush()
        messages += [message for message, _sender in theirs.receive().messages]
    assert messages == [LARGE, order(2, 1)]
