"""What the facts mean to systemd, and what is said of them."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zdworker.core.events import Policy
from zdworker.core.fleet import Fleet, Loading, Phase, Purpose, Trouble, Worker, WorkerState
from zdworker.core.history import Kind, Requester
from zdworker.master.systemd import EXTENSION_INTERVAL_S, Notifier, Stage, stage_of, status_of


def fleet(phase: Phase = Phase.STEADY) -> Fleet:
    made = Fleet(Policy(workers=2), 2, phase, current=[7])
    made.workers = {1: Worker(1, 0, 7, WorkerState.READY, None), 2: Worker(2, 1, 7, WorkerState.BOOTING, 1.0)}
    return made


@pytest.mark.parametrize(
    ("phase", "stage"),
    [
        (Phase.NEW, Stage.STARTING),
        (Phase.STARTING, Stage.STARTING),
        (Phase.STEADY, Stage.READY),
        (Phase.ROLLING, Stage.READY),  # a crashed worker is being replaced
        (Phase.STOPPING, Stage.STOPPING),
        (Phase.STOPPED, Stage.STOPPING),
    ],
)
def test_the_phase_tells_the_stage(phase: Phase, stage: Stage) -> None:
    assert stage_of(fleet(phase)) is stage


def test_the_delay_before_the_end_is_part_of_the_end() -> None:
    """Systemd's patience for it is as long as what still has to come."""
    fleet = Fleet(Policy(), 1, Phase.STEADY)
    fleet.stop_at = 5.0
    assert stage_of(fleet) is Stage.STOPPING


def test_a_start_that_serves_in_part_is_ready_and_says_what_is_amiss() -> None:
    started = fleet(Phase.STARTING)
    started.degradation = Trouble("a worker failed to boot")
    assert stage_of(started) is Stage.READY
    assert status_of(started) == "degraded: 1 of 2 workers ready, generation 7; a worker failed to boot"


def test_the_status_of_a_reload_tells_what_is_replaced_and_what_it_waits_for() -> None:
    rolling = fleet(Phase.ROLLING)
    rolling.reloading = 7
    waiting = "waiting for worker 22186 (slot 1): 1 request", 23
    told = "rolling: generation 7, 1 of 2 replaced, 1 of 2 workers ready"
    assert status_of(rolling) == told
    assert status_of(rolling, waiting) == f"{told}; waiting for worker 22186 (slot 1): 1 request, at most 23 s more"
    rolling.loading = Loading(8, Purpose.RELOAD)
    assert status_of(rolling) == "rolling: generation 8, 0 of 2 replaced, 1 of 2 workers ready"
    assert status_of(fleet(), waiting) == "steady: 1 of 2 workers ready, generation 7", "no reload waits"


def test_a_reload_lasts_from_the_request_to_the_last_slot() -> None:
    asked, loading, rolling, restoring = fleet(), fleet(), fleet(Phase.ROLLING), fleet()
    asked.reload_again = True
    loading.loading = Loading(8, Purpose.RELOAD)
    rolling.reloading = 8
    restoring.loading = Loading(8, Purpose.RESTORE)
    assert [stage_of(one) for one in (asked, loading, rolling)] == [Stage.RELOADING] * 3
    assert stage_of(restoring) is Stage.READY


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(tmp_path / "notify"))
    made.setblocking(False)
    yield made
    made.close()


@pytest.fixture
def environ(ear: socket.socket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": ear.getsockname()}


@pytest.fixture
def notifier(environ: dict[str, str]) -> Iterator[Notifier]:
    made = Notifier(environ)
    yield made
    made.close()


def heard(ear: socket.socket) -> list[str]:
    said = []
    while True:
        try:
            said.append(ear.recv(65536).decode())
        except BlockingIOError:
            return said


def test_what_has_not_changed_is_not_said_again(ear: socket.socket, notifier: Notifier) -> None:
    notifier.observe(fleet(), time.monotonic())
    notifier.observe(fleet(), time.monotonic())
    assert heard(ear) == ["READY=1\nSTATUS=steady: 1 of 2 workers ready, generation 7"]


def test_a_reload_is_one_message_with_its_moment(ear: socket.socket, notifier: Notifier) -> None:
    rolling = fleet(Phase.ROLLING)
    rolling.reloading = 8
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.observe(rolling, time.monotonic())
    (message,) = heard(ear)
    lines = message.splitlines()
    assert lines[0] == "RELOADING=1"
    assert before <= int(lines[1].removeprefix("MONOTONIC_USEC=")) <= before + 60_000_000
    notifier.reload_requested(Kind.RELOAD, Requester())
    notifier.observe(rolling, time.monotonic())
    assert heard(ear)[0].startswith("RELOADING=1\nMONOTONIC_USEC=")


def test_time_is_asked_for_while_something_goes_on(
    ear: socket.socket, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    for step in range(3):
        monkeypatch.setattr(time, "monotonic", lambda step=step: now + step * EXTENSION_INTERVAL_S)
        notifier.observe(fleet(Phase.STOPPING), time.monotonic())
    said = heard(ear)
    assert said[0].startswith("STOPPING=1\n")
    assert said[0].endswith("\nEXTEND_TIMEOUT_USEC=15000000"), "before the unit's own time is over"
    assert said[1:] == ["EXTEND_TIMEOUT_USEC=15000000"] * 2


@pytest.mark.parametrize(
    ("pid", "interval", "beats"),
    [(os.getpid(), "2000000", 1), (os.getpid() + 1, "2000000", 0), (os.getpid(), "x", 0)],
    ids=["ours", "of another process", "not a number"],  # the ids are the same in each process of pytest-xdist
)
def test_the_watchdog_is_fed_when_it_is_ours(
    ear: socket.socket, environ: dict[str, str], pid: int, interval: str, beats: int
) -> None:
    notifier = Notifier({**environ, "WATCHDOG_PID": str(pid), "WATCHDOG_USEC": interval})
    with contextlib.closing(notifier):
        notifier.observe(fleet(), time.monotonic())
        notifier.observe(fleet(), time.monotonic())
    assert heard(ear)[1:] == ["WATCHDOG=1"] * beats


def test_a_name_of_its_own_is_understood(tmp_path: Path) -> None:
    name = f"zdworker-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        with contextlib.closing(Notifier({"NOTIFY_SOCKET": "@" + name})) as notifier:
            notifier.observe(fleet(), time.monotonic())
        assert listener.recv(1000).startswith(b"READY=1")


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/no/such/socket"])
def test_where_nobody_listens_nothing_is_said(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.observe(fleet(), time.monotonic())
    assert notifier.due_in() == math.inf
    notifier.close()


def test_who_stops_listening_hurts_nobody(ear: socket.socket, notifier: Notifier) -> None:
    ear.close()
    notifier.observe(fleet(), time.monotonic())


def test_what_finds_no_room_is_sent_later_in_its_order(ear: socket.socket, notifier: Notifier) -> None:
    """A systemd that is stopped reads nothing, and the master waits for nothing."""
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.connect(ear.getsockname())
    filler.setblocking(False)
    with filler, contextlib.suppress(BlockingIOError):
        while True:
            filler.send(b"filler")
    now = time.monotonic()
    rolling = fleet(Phase.ROLLING)
    rolling.reloading = 8
    for facts in (fleet(), rolling, fleet()):
        notifier.observe(facts, now)
    assert time.monotonic() - now < 0.1
    assert not [said for said in heard(ear) if said != "filler"]
    notifier.observe(fleet(), now)
    assert [said.splitlines()[0] for said in heard(ear)] == ["READY=1", "RELOADING=1", "READY=1"]
