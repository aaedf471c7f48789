"""Every signal of the master in every state it can be in: to it alone, to the whole group, once and ten times."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from signal import Signals

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Broken, Client, Load
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

SLOW = "GET /sleep?seconds=%s HTTP/1.1\r\nHost: x\r\n\r\n"
HARMLESS = (signal.SIGUSR1, signal.SIGWINCH, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR2)
"""WINCH means something with ``--daemon`` only."""

State = Callable[[Server, contextlib.ExitStack], None]


def steady(server: Server, stack: contextlib.ExitStack) -> None:
    """Nothing goes on."""


def loading(server: Server, stack: contextlib.ExitStack) -> None:
    server.site.deploy("two", extra="\ntime.sleep(1)\n")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: len(server.fork_servers()) == 2, BOOT_TIMEOUT_S, "the new generation loads")


def rolling(server: Server, stack: contextlib.ExitStack) -> None:
    server.site.deploy("two")
    server.configure(zd_min_ready_seconds=1)
    server.signal(signal.SIGUSR2)
    server.wait_started("two")


def draining(server: Server, stack: contextlib.ExitStack) -> None:
    keep_busy(server, stack)
    server.site.deploy("two")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: server.site.marks("startup", "two"), BOOT_TIMEOUT_S, "the first new worker is there")


def failed(server: Server, stack: contextlib.ExitStack) -> None:
    server.site.break_("raise")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: "that was running is still serving" in server.log, BOOT_TIMEOUT_S, "the reload has failed")
    server.site.deploy("two")


def keep_busy(server: Server, stack: contextlib.ExitStack) -> None:
    wanted = len(server.site.marks("request")) + 2 * server.expected
    for _ in range(2 * server.expected):
        stack.enter_context(Client(server.address)).send((SLOW % 1.5).encode())
    wait_for(lambda: len(server.site.marks("request")) == wanted, BOOT_TIMEOUT_S, "the requests have begun")


STATES: tuple[State, ...] = (steady, loading, rolling, draining, failed)
for_each_state = pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


@for_each_state
@pytest.mark.parametrize(("whom", "times"), [("master", 1), ("group", 10)])
def test_what_is_no_order_to_end_ends_nothing(
    start: Start, site: Site, stack: contextlib.ExitStack, state: State, whom: str, times: int
) -> None:
    server = start(preload_app=True)
    master = server.master
    with Load(server.address, "new", clients=2) as new, Load(server.address, "kept", clients=2) as kept:
        state(server, stack)
        send = server.signal if whom == "master" else server.signal_group
        for signum in HARMLESS:
            for _ in range(times):
                send(signum)
        expected = "one" if state is steady else "two"
        wait_for(
            lambda: not server.site.marks("startup", expected) or idle(server), BOOT_TIMEOUT_S, "all reloads are over"
        )
        server.wait_only(expected)
        results = [load.stop() for load in (new, kept)]
    assert [result.failures for result in results] == [[], []]
    assert server.master == master
    assert site.events("worker_int") == site.events("worker_abort") == []
    assert server.stop() == 0


def idle(server: Server) -> bool:
    """Whether no reload is under way: as many have ended as have begun."""
    log = server.log
    ended = sum(log.count(text) for text in ("all workers are new", "superseded by", "is still serving:"))
    return log.count("Reload: loading") == ended


@for_each_state
@pytest.mark.parametrize(
    ("signum", "times"), [(signal.SIGTERM, 1), (signal.SIGTERM, 10), (signal.SIGINT, 1), (signal.SIGQUIT, 10)]
)
def test_an_order_to_end_is_obeyed(
    start: Start, stack: contextlib.ExitStack, state: State, signum: Signals, times: int
) -> None:
    server = start(preload_app=True, graceful_timeout=20)
    client = stack.enter_context(Client(server.address))
    client.send((SLOW % 0.5).encode())
    wait_for(lambda: server.site.marks("request"), BOOT_TIMEOUT_S, "the request has begun")
    state(server, stack)
    for _ in range(times):
        server.signal(signum)
    assert server.wait_exit(40) == 0
    server.wait_nothing_left(10)
    assert server.port_free()
    if signum is signal.SIGTERM:
        assert client.reply().status == 200
    else:
        with contextlib.suppress(Broken):
            client.reply()


@pytest.mark.parametrize("whom", ["master", "group"])
def test_what_comes_while_it_ends_changes_nothing(start: Start, stack: contextlib.ExitStack, whom: str) -> None:
    server = start()
    keep_busy(server, stack)
    server.signal(signal.SIGTERM)
    send = server.signal if whom == "master" else server.signal_group
    for signum in (*HARMLESS, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTERM):
        for _ in range(10):
            send(signum)
    assert server.wait_exit(40) == 0
    server.wait_nothing_left(10)
    assert len(server.site.marks("startup")) == 2


def test_a_second_less_patient_order_overtakes(start: Start, stack: contextlib.ExitStack) -> None:
    server = start(graceful_timeout=120)
    client = stack.enter_context(Client(server.address))
    client.send((SLOW % 100).encode())
    wait_for(lambda: server.site.marks("request"), BOOT_TIMEOUT_S, "the request has begun")
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGINT)
    assert server.wait_exit(BOOT_TIMEOUT_S) == 0
