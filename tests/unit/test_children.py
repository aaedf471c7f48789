"""The registry of the master's children, without a fork: what is registered is polled, what is removed is closed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from gunicorn.config import Config

from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import SERVER_REPORT_BYTES, WORKER_REPORT_BYTES, Leave, Ready, Stopping, encode
from zdworker.master.children import Children, ForkServer, WorkerRecord
from zdworker.master.reactor import Reactor

NOBODY = 2**22 + 1
"""A pid that no process can have (the limit of pid_max, proc_sys_kernel(5))."""

log = logging.getLogger("test_children")


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close_in_child()


@pytest.fixture
def children(reactor: Reactor) -> Iterator[Children]:
    made = Children(reactor)
    yield made
    for record in list(made.workers.values()):
        made.remove_worker(record)
    for server in list(made.servers.values()):
        made.remove_server(server)


def worker(worker_id: int, slot: int = 0, generation: int = 1) -> WorkerRecord:
    """A record without a process."""
    return WorkerRecord(worker_id, os.getpid(), [], None, 30, Config(), log, slot=slot, generation=generation)


class Ends:
    """The other ends of a child's descriptors."""

    def __init__(self, children: Children) -> None:
        self.received: list[Any] = []
        self._children = children
        self.shown: list[str] = []
        self._stack = contextlib.ExitStack()

    def add_worker(self, record: WorkerRecord) -> socket.socket:
        """Register a worker; return its end of the channel."""
        channel, theirs = Channel.pair(WORKER_REPORT_BYTES)
        self._stack.enter_context(theirs)
        self._children.add_worker(record, channel, self.received.append)
        return theirs

    def add_server(self, number: int, pid: int = NOBODY) -> tuple[ForkServer, int]:
        """Register a fork server; return it and the writing end of its standard error."""
        channel, theirs = Channel.pair(SERVER_REPORT_BYTES)
        self._stack.enter_context(theirs)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._stack.callback(os.close, writer)
        server = ForkServer(number, pid, channel, reader, log, self.shown.append)
        self._children.add_server(server, self.received.append)
        return server, writer

    def close(self) -> None:
        """Close them."""
        self._stack.close()


@pytest.fixture
def ends(children: Children) -> Iterator[Ends]:
    made = Ends(children)
    yield made
    made.close()


def test_a_registered_worker_is_polled_until_it_is_removed(children: Children, reactor: Reactor, ends: Ends) -> None:
    record = worker(1)
    theirs = ends.add_worker(record)
    theirs.sendall(encode(Ready()))
    reactor.wait(5.0)
    assert ends.received == [record]
    children.remove_worker(record)
    assert children.workers == {}
    assert record.channel is None
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)  # the channel was closed, with a message in it
    reactor.wait(0.0)
    assert ends.received == [record]


def test_a_worker_is_found_by_its_pid_from_the_moment_it_is_known(children: Children, ends: Ends) -> None:
    first, second = worker(1), worker(2)
    ends.add_worker(first)
    ends.add_worker(second)
    assert children.without_pid() == [first, second]
    children.set_pid(second, 4711)
    assert children.workers_by_pid == {4711: second}
    assert (second.pid, second.has_pid, first.has_pid) == (4711, True, False)
    assert children.without_pid() == [first]
    children.remove_worker(second)
    assert children.workers_by_pid == {4711: second}, "it is Gunicorn's until it is reaped"


def test_workers_that_wait_for_their_fork_are_found_by_generation(children: Children, ends: Ends) -> None:
    old, new, forked = worker(1, generation=1), worker(2, generation=2), worker(3, generation=2)
    forked.forked = True
    for record in (old, new, forked):
        ends.add_worker(record)
    assert children.awaiting_fork(2) == [new]


def test_the_end_is_announced_once_and_only_to_booted_workers(children: Children, ends: Ends) -> None:
    booted, booting = worker(1), worker(2)
    booted.booted = True
    to_booted, to_booting = ends.add_worker(booted), ends.add_worker(booting)
    to_booting.setblocking(False)
    children.announce_stop()
    children.announce_stop()
    assert to_booted.recv(1000) == encode(Stopping())
    with pytest.raises(BlockingIOError):
        to_booting.recv(1)
    booted.announce(Leave)
    assert to_booted.recv(1000) == encode(Leave())


def test_a_message_to_a_worker_that_is_gone_is_dropped(children: Children, ends: Ends) -> None:
    record = worker(1)
    ends.add_worker(record).close()
    record.send(Stopping())
    children.close_channel(record)
    children.close_channel(record)
    record.send(Stopping())


def test_hook_attributes_are_those_that_hooks_have_set() -> None:
    record = worker(1)
    assert record.hook_attributes() == {}
    record.colour = "red"
    assert record.hook_attributes() == {"colour": "red"}
    record.close()


def test_a_fork_server_is_polled_and_its_standard_error_kept(children: Children, reactor: Reactor, ends: Ends) -> None:
    server, writer = ends.add_server(7)
    os.write(writer, b"first line\nlast line\n")
    reactor.wait(5.0)
    assert server.printed() == "first line\nlast line"
    assert server.last_line() == "last line"
    assert "".join(ends.shown) == "first line\nlast line\n", "it is passed on"
    assert children.server_of(NOBODY) is server
    children.remove_server(server)
    assert children.servers == {}
    os.write(writer, b"a process that it has started\n")
    reactor.wait(5.0)
    assert ends.shown[-1] == "a process that it has started\n"
    children.close_stderr(server)
    assert server.stderr == -1
    assert not server.read_stderr()


def test_a_standard_error_that_no_process_has_open_any_more_is_closed(
    children: Children, reactor: Reactor, ends: Ends
) -> None:
    server, writer = ends.add_server(7)
    with open(os.devnull, "wb") as other:
        os.dup2(other.fileno(), writer)
    reactor.wait(5.0)
    assert server.stderr == -1
    assert children.servers == {7: server}


def test_the_end_of_a_fork_server_that_was_killed_is_expected_once(
    children: Children, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: killed.append((pid, signum)))
    server, _writer = ends.add_server(7, pid=4712)
    children.signal_servers(signal.SIGUSR1)
    children.end_server(server)
    assert killed == [(4712, signal.SIGUSR1), (4712, signal.SIGKILL)]
    assert children.server_of(4712) is None
    assert children.killed_server(4712) is server
    assert children.killed_server(4712) is None


def test_a_fork_server_that_has_just_ended_is_no_error(children: Children, ends: Ends) -> None:
    ends.add_server(7)
    children.signal_servers(signal.SIGUSR1)


def test_everything_that_is_left_is_killed_at_the_end(
    children: Children, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, unknown = worker(1), worker(2)
    ends.add_worker(known)
    ends.add_worker(unknown)
    children.set_pid(known, 4711)
    ends.add_server(7, pid=4712)
    killed: list[tuple[int, int]] = []
    waited: list[int] = []

    def wait(pid: int, options: int) -> tuple[int, int]:
        waited.append(pid)
        raise ChildProcessError

    monkeypatch.setattr(os, "kill", lambda pid, signum: killed.append((pid, signum)))
    monkeypatch.setattr(os, "waitpid", wait)
    children.end_all(lambda pid, signum: killed.append((pid, signum)))
    assert killed == [(4711, signal.SIGKILL), (4712, signal.SIGKILL)]
    assert sorted(waited) == [4711, 4712]
    assert children.servers == {}
