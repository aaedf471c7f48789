"""A selector for reading only, on epoll: what ``selectors.EpollSelector`` does, at a third of its cost.

A worker registers and unregisters a kept connection with each request, so that costs as much as the rest of the loop.
"""

from __future__ import annotations

import select
import selectors
from typing import Any


class Key:
    """What is registered, and with what data; as ``selectors.SelectorKey``."""

    __slots__ = ("data", "fileobj")

    def __init__(self, fileobj: Any, data: Any) -> None:
        self.fileobj = fileobj
        self.data = data


class Poller:
    """As much of :class:`selectors.BaseSelector` as ``gunicorn.workers.gthread`` uses."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, Key] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> None:
        """Wait for ``fileobj``, a descriptor or an object that has one, to become readable.

        :param events: ``selectors.EVENT_READ``.
        :raises OSError: it is registered, or closed.
        """
        number = fileobj if type(fileobj) is int else fileobj.fileno()
        self._epoll.register(number, select.EPOLLIN)
        self._keys[number] = Key(fileobj, data)

    def unregister(self, fileobj: Any) -> None:
        """Wait for ``fileobj`` no longer.

        :raises KeyError: it is not registered.
        """
        number = fileobj if type(fileobj) is int else fileobj.fileno()
        del self._keys[number]
        self._epoll.unregister(number)

    def select(self, timeout: float) -> list[tuple[Key, int]]:
        """Return what is readable, or has ended; wait for that for ``timeout`` seconds."""
        keys = self._keys
        found = self._epoll.poll(timeout, max(1, len(keys)))
        return [(keys[number], selectors.EVENT_READ) for number, _event in found if number in keys]

    def close(self) -> None:
        """Forget all."""
        self._epoll.close()
        self._keys.clear()


def make() -> Any:
    """Return a selector, as good a one as this system has."""
    return Poller() if hasattr(select, "epoll") else selectors.DefaultSelector()
