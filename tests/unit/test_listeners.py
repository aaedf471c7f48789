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
from gunicorn import version_info
from gunicorn.sock import create_sockets

from zdworker.errors import GenerationError
from zdworker.master.addresses import Place, places
from zdworker.master.listeners import Listeners

LOG = logging.getLogger("test")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="BPF and /proc are Linux's")


leaves_a_socket = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""Gunicorn leaves a socket that it could not bind, or that it has only looked at, to the garbage collector."""


def configuration(*addresses: Any, reuse_port: bool = True) -> Any:
    return SimpleNamespace(
        address=list(addresses), reuse_port=reuse_port, backlog=64, is_ssl=False, certfile=None, keyfile=None
    )


def addressed(cfg: Any) -> list[Place]:
    return places(cfg, os.getcwd())


ANY = ("127.0.0.1", 0)


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners(LOG)
    yield made
    made.close(unlink=True)


def opened(listeners: Listeners, *, reuse_port: bool = True) -> list[Any]:
    cfg = configuration(ANY, reuse_port=reuse_port)
    first = create_sockets(cfg, LOG)
    listeners.take(first, addressed(cfg), socket_per_slot=reuse_port)
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
    host, port = first[0].getsockname()
    cfg = configuration(("localhost", port), ANY, ANY)
    found = listeners.open(cfg, addressed(cfg))
    assert found[0] is first[0], "by its other name, and by the port that the kernel has chosen"
    assert len(found) == 3, "each of the two gets a port of its own; the first one is in use"
    again = configuration(ANY, (host, port), ANY)
    assert set(listeners.open(again, addressed(again))) <= set(found)
    listeners.keep(first)
    assert listeners.every() == first


@leaves_a_socket
def test_a_descriptor_s_number_is_the_name_of_its_socket(listeners: Listeners) -> None:
    with socket.create_server(ANY) as handed_over:
        address, number = handed_over.getsockname(), os.dup(handed_over.fileno())
        cfg = configuration(number, reuse_port=False)
        first = create_sockets(cfg, LOG)
        listeners.take(first, addressed(cfg), socket_per_slot=False)
        for same in (configuration(number), configuration(address), configuration(address, number)):
            assert listeners.open(same, addressed(same)) == first
        unknown = configuration(address, number + 1)
        with pytest.raises(GenerationError, match=f"fd://{number + 1}"):
            listeners.open(unknown, addressed(unknown))
        listeners.keep([])
        gone = configuration(number)
        with pytest.raises(GenerationError, match="restart"):
            listeners.open(gone, addressed(gone))


@leaves_a_socket
def test_a_socket_that_was_handed_over_stays_until_bind_has_named_it(listeners: Listeners) -> None:
    with socket.create_server(ANY) as handed_over:
        cfg = configuration(reuse_port=False)
        first = create_sockets(cfg, LOG, [os.dup(handed_over.fileno())])
        listeners.take(first, [None], socket_per_slot=False)
        other = configuration(ANY)
        assert first[0] in listeners.open(other, addressed(other))
        own = configuration(handed_over.getsockname())
        assert listeners.open(own, addressed(own)) == first
        assert first[0] not in listeners.open(other, addressed(other))


def test_an_address_that_is_closed_is_not_listened_on(listeners: Listeners) -> None:
    first = opened(listeners)
    (place,) = addressed(configuration(first[0].getsockname()))
    assert listeners.listens(place)
    first[0].shutdown(socket.SHUT_RDWR)
    assert not listeners.listens(place)
    first[0].close()
    assert not listeners.listens(place)
    listeners.keep([])
    assert not listeners.listens(place)


@leaves_a_socket
def test_an_address_that_cannot_be_opened_leaves_nothing(listeners: Listeners) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cfg = configuration(ANY, taken.getsockname(), reuse_port=False)
        with pytest.raises(GenerationError, match="cannot be opened"):
            listeners.open(cfg, addressed(cfg))
    too_large = configuration(("127.0.0.1", 65536))
    with pytest.raises(GenerationError, match=r"cannot be opened: .*0-65535"):
        listeners.open(too_large, addressed(too_large))
    gc.collect()
    assert listeners.every() == []


def of_paths(*paths: str) -> Any:
    cfg = configuration(*paths, reuse_port=False)
    cfg.umask, cfg.uid, cfg.gid = 0, os.geteuid(), os.getegid()
    return cfg


def test_a_path_is_shared_and_unlinked(listeners: Listeners, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    found = listeners.open(of_paths(path), addressed(of_paths(path)))
    assert listeners.of_slot(2, found) == found
    listeners.close(unlink=True)
    assert not os.path.exists(path)


@leaves_a_socket
def test_a_path_that_cannot_be_bound_leaves_the_umask(listeners: Listeners, tmp_path: Any) -> None:
    cfg = of_paths(str(tmp_path / "missing" / "socket"))
    before = os.umask(0o027)
    try:
        with pytest.raises(GenerationError, match="missing/socket cannot be opened"):
            listeners.open(cfg, addressed(cfg))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    gc.collect()


def test_a_path_leads_to_the_socket_that_made_it(listeners: Listeners, tmp_path: Any) -> None:
    """One whose file is gone is opened once more; what another server has put there is left alone."""
    path, link = str(tmp_path / "socket"), tmp_path / "link"
    link.symlink_to(tmp_path)
    cfg = of_paths(path)
    (first,) = listeners.open(cfg, addressed(cfg))
    by_link = of_paths(f"{link}/socket")
    assert listeners.open(by_link, addressed(by_link)) == [first]
    (place,) = addressed(cfg)
    os.unlink(path)
    assert not listeners.listens(place)
    (second,) = listeners.open(cfg, [place])
    assert second is not first
    listeners.keep([second])
    assert listeners.listens(place)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(path)
        with pytest.raises(GenerationError, match="another server"):
            listeners.open(cfg, [place])
        listeners.close(unlink=True)
        assert os.path.exists(path)


@pytest.mark.skipif(version_info < (27,), reason="this Gunicorn looks for a file of that name")
def test_an_abstract_name_has_no_file(listeners: Listeners) -> None:
    cfg = of_paths(f"\0zdworker-{os.getpid()}")
    (first,) = listeners.open(cfg, addressed(cfg))
    assert listeners.open(cfg, addressed(cfg)) == [first]
