"""The poll of the thread and sync workers does what a selector of the standard library does, as far as it is used."""

from __future__ import annotations

import select
import selectors
import socket

import pytest

from zdworker.workers.wsgi import poller

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll")


def test_it_does_what_a_selector_does() -> None:
    ours, stock = poller.make(), selectors.DefaultSelector()
    client, worker = socket.socketpair()
    with client, worker:
        for selector in (ours, stock):
            selector.register(worker, selectors.EVENT_READ, "data")
            assert selector.select(0) == []
        client.sendall(b"x")
        for selector in (ours, stock):
            [(key, events)] = selector.select(0)
            assert (key.fileobj, key.data, events) == (worker, "data", selectors.EVENT_READ)
            selector.unregister(worker)
            assert selector.select(0) == []
            selector.register(worker.fileno(), selectors.EVENT_READ, "again")
            [(key, _)] = selector.select(0)
            assert (key.fileobj, key.data) == (worker.fileno(), "again")
        for selector in (ours, stock):
            selector.close()


def test_what_is_unregistered_within_a_turn_is_not_reported_later() -> None:
    selector = poller.make()
    client, worker = socket.socketpair()
    with client, worker:
        selector.register(worker, selectors.EVENT_READ)
        client.close()
        assert len(selector.select(0)) == 1  # an end is readable
        selector.unregister(worker)
        with pytest.raises(KeyError):
            selector.unregister(worker)
    selector.close()


def test_without_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    selector = poller.make()
    assert isinstance(selector, selectors.BaseSelector)
    selector.close()
