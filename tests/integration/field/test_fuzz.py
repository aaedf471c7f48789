"""Random and mutated messages at the ends that an unprivileged worker, or a client, can write to.

With ``--full`` 100,000 messages at each end, else a tenth. The seed is the test's parameter.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import random
import resource
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from tests.harness import hostile_worker, mutations, processes
from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.heartbeats import ANSWER_S, LOOP_TURN_S, Heartbeats, status
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.core import events
from zdworker.core.rollout import Rollout, rollout
from zdworker.ipc.channel import Channel
from zdworker.ipc.messages import MESSAGE_TYPES, WORKER_REPORT_BYTES, Hello, Message, Order, encode
from zdworker.master import receiver
from zdworker.master.children import Children, WorkerRecord
from zdworker.master.leftovers import LeftoverProcesses
from zdworker.master.observers import Observers
from zdworker.master.parts import Parts
from zdworker.master.queues import Queues
from zdworker.master.reactor import Reactor
from zdworker.master.receiver import Receiver
from zdworker.syscalls import resident_memory

FULL_MESSAGES = 100_000

REPORTS: list[type[Message]] = list(WORKER_REPORT_BYTES)
SUBJECT = 2
"""The id of the worker that sends; worker 1 is ready."""


@pytest.fixture
def number(full: bool) -> int:
    return FULL_MESSAGES if full else FULL_MESSAGES // 10


class Master:
    """The master's side of report channels, with the real core; no process is started and none is killed."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.log = logging.Logger("nothing")  # noqa: LOG001  # its lines go nowhere
        self.cfg = Config()
        self.pid = os.getpid()
        self.longest_turn_s = 0.0

    def zd_hook(self, name: str, *arguments: Any) -> None:
        """Hooks are another test's."""

    def kill_worker(self, pid: int, sig: int) -> None:
        """It is this process."""

    def publish(self, core: Rollout, event: events.Event) -> None:
        core.handle(event, time.monotonic())

    def turn(self) -> None:
        """One turn of the loop; the processor's time counts, because the machine may be busy otherwise."""
        began = time.thread_time()
        self.reactor.wait(0)
        self.longest_turn_s = max(self.longest_turn_s, time.thread_time() - began)

    def core(self) -> Rollout:
        """Return a core with one worker that is ready and one that is being forked."""
        core = rollout(events.Policy(workers=2), lambda: 0.0)
        for event in (
            events.Start(),
            events.GenerationLoaded(1, preloaded=False),
            events.WorkerForked(1),
            events.WorkerReady(1),
        ):
            core.handle(event, time.monotonic())
        assert SUBJECT in core.fleet.workers
        return core

    @contextlib.contextmanager
    def worker(self) -> Iterator[tuple[WorkerRecord, socket.socket]]:
        """A worker's record and its end of the channel. An event that is illegal for the core ends the test."""
        core = self.core()
        children = Children(self.reactor)
        gunicorn: Any = self
        publish = partial(self.publish, core)
        parts = Parts(gunicorn, core.fleet, self.reactor, children, Observers(self.log, []), Queues(self.log), publish)
        reads = Receiver(parts, LeftoverProcesses(self.log, self.reactor, children))
        record = WorkerRecord(SUBJECT, self.pid, [], None, 30, self.cfg, self.log, slot=1, generation=1)
        channel, theirs = Channel.pair(WORKER_REPORT_BYTES)
        children.add_worker(record, channel, reads.receive_from_worker)
        theirs.setblocking(False)
        with theirs:
            yield record, theirs
        if record.has_pid:
            children.workers_by_pid.setdefault(record.pid, record)
            began = time.thread_time()
            reads.reaped(record.pid, -9)
            self.longest_turn_s = max(self.longest_turn_s, time.thread_time() - began)
        else:
            reads.boot_failed(record, "has ended")
        self.turn()  # what a broken channel leads to
        assert SUBJECT not in core.fleet.workers
        assert core.fleet.workers[1].state == "ready"


@pytest.mark.parametrize("seed", [12, 2026])
def test_reports(seed: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a worker sends, and whenever its channel is closed for it: each event is legal for the core."""
    monkeypatch.setattr(receiver, "BROKEN_CHANNEL_REPLACEMENT_S", 0.0)
    chance, master, sent = random.Random(seed), Master(), 0
    gc.collect()  # what other tests have left
    held = len(os.listdir("/dev/fd"))
    memory = resident_memory() or 0
    while sent < number // 2:
        with master.worker() as (record, theirs):
            if chance.random() < 0.9:
                record.forked = True
                theirs.sendall(encode(Hello(SUBJECT)))
                master.turn()
            if chance.random() < 0.1:
                record.pid = 1  # what comes from now on is another process's
            wrong = chance.choice([0.0, 0.1, 0.5])
            for line in itertools.islice(mutations.messages(chance, REPORTS, wrong), chance.choice([3, 30, 1500])):
                try:
                    theirs.sendall(line)
                except BlockingIOError:
                    pass  # a part of it has been sent: that is a mutation, too
                except OSError:
                    break  # the channel is closed
                finally:
                    sent += 1
                if chance.random() < 0.5:
                    master.turn()
    assert master.longest_turn_s < LOOP_TURN_S
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= held
    assert (resident_memory() or 0) < memory + (32 << 20)
    master.reactor.close_in_child()


def test_hostile_workers_of_a_real_master(start: Start, site: Site, full: bool) -> None:
    """Generation after generation writes what it likes; the site is served and the master is as before.

    The exception is ``draining``: a worker that says so and does not end is killed in time, with what it serves.
    """
    workers, rounds = 4, 25 if full else 3
    path = site.directory / "control.sock"
    privileges = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    extra = hostile_worker.HOOK
    server = start(workers=workers, extra=extra, preload_app=True, zd_control_socket=str(path), **privileges)
    chance = random.Random(12)
    wait_steady(path)
    server.wait_control_server()
    held, memory = len(server.descriptors()), processes.memory(server.master)
    with Heartbeats(server.master, path) as heartbeats, Load(server.address, "new", clients=1) as load:
        for number in range(rounds):
            for pid in server.workers():
                lines = mutations.messages(chance, REPORTS, chance.choice([0.02, 0.3]))
                data = b"".join(line for line in itertools.islice(lines, 1000) if b"draining" not in line)
                name = f"messages-{number}-{pid}"
                (site.directory / name).write_bytes(data)
                hostile_worker.attack(server, pid, f"channel.sendall(open({name!r}, 'rb').read())")
                hostile_worker.wait_attacked(server, pid, BOOT_TIMEOUT_S)
            server.reload(f"version {number}")
        assert load.stop().failures == []
    assert heartbeats.errors == []
    assert heartbeats.longest_s < ANSWER_S
    healthy(server, path, held, memory)


def test_orders(start: Start, site: Site, number: int) -> None:
    """Eight clients at a time; what is an order of a reload or a rollback is carried out."""
    path = site.directory / "control.sock"
    server = start(workers=1, zd_control_socket=str(path))
    chance, sent = random.Random(12), 0
    wait_steady(path)
    server.wait_control_server()
    held, memory = len(server.descriptors()), processes.memory(server.master)
    lines = mutations.messages(chance, [Order, *MESSAGE_TYPES.values()], 0.5)
    clients: list[socket.socket] = []
    with contextlib.ExitStack() as stack, Heartbeats(server.master, path) as heartbeats:
        end = time.monotonic() + number / 50
        while sent < number:
            assert time.monotonic() < end, f"{sent} messages were taken"
            while len(clients) < 8:
                clients.append(stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
                clients[-1].connect(str(path))
                clients[-1].setblocking(False)
            client = chance.choice(clients)
            line = next(lines)
            if b"reload" in line and chance.random() > 0.01:
                continue  # a few of them are enough
            sent += 1
            try:
                with contextlib.suppress(BlockingIOError):
                    client.sendall(line)
                if chance.random() < 0.9:
                    with contextlib.suppress(BlockingIOError):
                        while client.recv(1 << 20):
                            pass
                if chance.random() < 0.05:
                    raise ConnectionError
            except OSError:
                clients.remove(client)
                client.close()
    assert heartbeats.errors == []
    assert heartbeats.longest_s < ANSWER_S
    healthy(server, path, held, memory)


def wait_steady(path: Path) -> None:
    """Wait until the master knows that all workers are ready."""
    processes.wait_for(lambda: status(path)["state"] == "steady", BOOT_TIMEOUT_S, "the fleet is steady")


def healthy(server: Server, path: Path, held: int, memory: int) -> None:
    """Check that the master has what it had before, and obeys orders."""
    server.site.deploy("after")
    server.reload("after")
    wait_steady(path)
    processes.wait_for(lambda: len(server.descriptors()) <= held + 1, BOOT_TIMEOUT_S, "nothing is left open")
    assert processes.memory(server.master) < memory + (16 << 20)
    assert server.log_file.stat().st_size < 10 << 20
    assert resource.prlimit(server.master, resource.RLIMIT_NOFILE)
    assert server.stop() == 0
