"""Listening sockets with real ones: who keeps which, and where the kernel lets connections go."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.sock import create_sockets

from zdworker.errors import GenerationError
from zdworker.master.listeners import Listeners

LOG = logging.getLogger("test")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="BPF and /proc are Linux's")


def configuration(*addresses: Any, reuse_port: bool = True) -> Any:
    return SimpleNamespace(
        address=list(addresses), reuse_port=reuse_port, backlog=64, is_ssl=False, certfile=None, keyfile=None
    )


ANY = ("127.0.0.1", 0)


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners(LOG)
    yield made
    made.close(unlink=True)


def opened(listeners: Listeners, *, reuse_port: bool = True) -> list[Any]:
    cfg = configuration(ANY, reuse_port=reuse_port)
    first = create_sockets(cfg, LOG)
    listeners.take(first, socket_per_slot=reuse_port)
    return list(first)


def waiting(listeners: Listeners, slots: int, first: list[Any], connections: int = 60) -> Counter[int]:
    """Connect, and return how many connections wait in each slot's socket; they are gone after that."""
    clients = [socket.create_connection(first[0].getsockname()) for _ in range(connections)]
    end = time.monotonic() + 5
    counts: Counter[int] = Counter()
    while sum(counts.values()) < connections and time.monotonic() < end:
        counts = Counter({slot: listeners.waiting(slot) for slot in range(slots)})
    for slot in range(slots):
        for _ in range(counts[slot]):
            listeners.of_slot(slot, first)[0].accept()[0].close()
    for client in clients:
        client.close()
    return counts


def test_without_reuse_port_all_slots_have_the_same_socket(listeners: Listeners) -> None:
    first = opened(listeners, reuse_port=False)
    assert listeners.of_slot(0, first) == listeners.of_slot(3, first) == first
    assert listeners.slots() == set()
    assert listeners.every() == first


def test_no_socket_is_inherited(listeners: Listeners) -> None:
    first = opened(listeners)
    listeners.of_slot(1, first)
    assert not any(os.get_inheritable(listener.fileno()) for listener in listeners.every())


@needs_linux
def test_each_slot_has_its_own_socket_and_keeps_it(listeners: Listeners) -> None:
    first = opened(listeners)
    assert listeners.of_slot(0, first) == first
    second = listeners.of_slot(1, first)
    assert second != first
    assert second[0].getsockname() == first[0].getsockname()
    assert listeners.of_slot(1, first) == second
    assert listeners.slots() == {0, 1}


@needs_linux
def test_connections_go_to_all_slots_alike(listeners: Listeners) -> None:
    first = opened(listeners)
    for slot in range(3):
        listeners.of_slot(slot, first)
    counts = waiting(listeners, 3, first)
    assert all(counts[slot] > 5 for slot in range(3)), counts


@needs_linux
@pytest.mark.parametrize("live", [{0}, {1}, {2}, {0, 2}])
def test_connections_go_to_live_slots_only(listeners: Listeners, live: set[int]) -> None:
    first = opened(listeners)
    for slot in range(3):
        listeners.of_slot(slot, first)
    listeners.steer(live)
    counts = waiting(listeners, 3, first)
    assert {slot for slot in counts if counts[slot]} == live


@needs_linux
def test_a_socket_that_is_closed_in_the_middle_leaves_the_others_right(listeners: Listeners) -> None:
    first = opened(listeners)
    for slot in range(4):
        listeners.of_slot(slot, first)
    listeners.keep_slots({0, 2, 3})
    assert listeners.slots() == {0, 2, 3}
    listeners.steer({3})
    counts = waiting(listeners, 4, first)
    assert {slot for slot in counts if counts[slot]} == {3}
    listeners.steer({2})
    counts = waiting(listeners, 4, first)
    assert {slot for slot in counts if counts[slot]} == {2}


@needs_linux
def test_a_new_slot_gets_nothing_before_it_is_live(listeners: Listeners) -> None:
    first = opened(listeners)
    listeners.steer({0})
    listeners.of_slot(1, first)
    assert waiting(listeners, 2, first, 20) == Counter({0: 20})
    listeners.steer({0, 1})
    assert waiting(listeners, 2, first)[1] > 5


@needs_linux
def test_when_no_slot_is_live_connections_wait_with_all(listeners: Listeners) -> None:
    first = opened(listeners)
    listeners.of_slot(1, first)
    listeners.steer({0})
    listeners.steer(set())
    assert waiting(listeners, 2, first)[1] > 5


def test_known_addresses_keep_their_sockets(listeners: Listeners) -> None:
    first = opened(listeners)
    address = first[0].getsockname()
    found = listeners.open(configuration(address, ("127.0.0.1", 0)), {address: first[0]})
    assert found[0] is first[0]
    assert len(listeners.every()) == 2
    listeners.keep(first)
    assert listeners.every() == first


# Gunicorn leaves the socket that it could not bind to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_address_that_cannot_be_opened_leaves_nothing(listeners: Listeners) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(GenerationError, match="cannot be opened"):
        listeners.open(configuration(ANY, taken.getsockname(), reuse_port=False), {})
    gc.collect()
    assert listeners.every() == []


def test_a_path_is_shared_and_unlinked(listeners: Listeners, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    cfg = configuration(path, reuse_port=False)
    cfg.umask, cfg.uid, cfg.gid = 0, os.geteuid(), os.getegid()
    found = listeners.open(cfg, {})
    assert listeners.of_slot(2, found) == found
    listeners.close(unlink=True)
    assert not os.path.exists(path)
