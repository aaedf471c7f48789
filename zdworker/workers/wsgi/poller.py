"""A selector for reading only, on epoll: it does what ``selectors.EpollSelector`` does, at a third of the cost.

A worker registers and unregisters a keep-alive connection with each request, so that this costs as much as the rest of
the loop.
"""

from __future__ import annotations

import select
import selectors
from typing import Any


class Key:
    """What is registered, and its data; with the names of ``selectors.SelectorKey``."""

    __slots__ = ("data", "fileobj")

    def __init__(self, fileobj: Any, data: Any) -> None:
        self.fileobj = fileobj
        self.data = data


class Poller:
    """The part of :class:`selectors.BaseSelector` that Gunicorn's thread worker and parked connections use."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, Key] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> None:
        """Watch ``fileobj``, a descriptor or an object that has one, until it is unregistered.

        :param events: ``selectors.EVENT_READ``.
        :raises OSError: it is registered, or closed.
        """
        number = fileobj if type(fileobj) is int else fileobj.fileno()
        self._epoll.register(number, select.EPOLLIN)
        self._keys[number] = Key(fileobj, data)

    def unregister(self, fileobj: Any) -> None:
        """Watch ``fileobj`` no longer.

        :raises KeyError: it is not registered.
        """
        number = fileobj if type(fileobj) is int else fileobj.fileno()
        del self._keys[number]
        self._epoll.unregister(number)

    def select(self, timeout: float) -> list[tuple[Key, int]]:
        """Return what is readable, or has ended, after at most ``timeout`` seconds."""
        keys = self._keys
        found = self._epoll.poll(timeout, max(1, len(keys)))
        return [(keys[number], selectors.EVENT_READ) for number, _event in found if number in keys]

    def close(self) -> None:
        """Watch nothing any more."""
        self._epoll.close()
        self._keys.clear()


def make() -> Any:
    """Return a selector: on epoll if the system has that, else the standard library's."""
    return Poller() if hasattr(select, "epoll") else selectors.DefaultSelector()
