"""The one poll of the master, under Gunicorn's loop.

Rules: all callbacks run on the main thread, when their descriptor is readable or their time has come, and the master
waits nowhere else. What a callback raises is logged and ends nothing. Signals and other threads end the poll by a byte
in a pipe, so that a signal that arrives after the check of Gunicorn's queue and before the poll is not delayed (the
self-pipe trick; ``signal.set_wakeup_fd``).
"""

from __future__ import annotations

import collections
import contextlib
import errno
import heapq
import itertools
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

_LOG = logging.getLogger("gunicorn.error")

SINGLE_POLL_INTERVAL_S = 0.02
"""Seconds between two rounds in which each descriptor is polled by itself."""


class Reactor:
    """A poll over a wake-up pipe and any number of descriptors.

    :param log: the master's logger, for what callbacks raise.
    """

    def __init__(self, log: Any = _LOG) -> None:
        self._log = log
        # poll(2) and not epoll, whose descriptor would be shared with each process that is forked from the master.
        self._selector = selectors.PollSelector()
        self._paused: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._from_threads: collections.deque[Callable[[], None]] = collections.deque()
        self._numbers = itertools.count()
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self.add(self._reader, self._drain_wakeups)

    def wake_on_signals(self) -> None:
        """Have signals end the poll. Call this after their handlers are set."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def add(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``descriptor`` is readable or at its end of file."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def when_writable(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, when ``descriptor`` takes more or its other end is gone; only while it is added."""
        if descriptor in self._selector.get_map():
            self._writers[descriptor] = callback
            self._poll_for(descriptor, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _poll_for(self, descriptor: int, events: int) -> None:
        self._selector.modify(descriptor, events, self._selector.get_key(descriptor).data)

    def remove(self, descriptor: int) -> None:
        """Stop polling ``descriptor``, which need not be polled."""
        self._writers.pop(descriptor, None)
        self._paused.pop(descriptor, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def pause(self, descriptor: int) -> None:
        """Do not poll ``descriptor`` until :meth:`resume`, although it may be readable."""
        self._paused[descriptor] = self._selector.unregister(descriptor).data

    def resume(self, descriptor: int) -> None:
        """Poll ``descriptor`` again, unless it was removed after :meth:`pause`."""
        callback = self._paused.pop(descriptor, None)
        if callback is not None:
            self.add(descriptor, callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, ``seconds`` from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), callback))

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, soon, on the main thread; for other threads."""
        self._from_threads.append(callback)
        self.wake()

    def wait(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds, then run the callbacks of what is readable and of timers that are due."""
        if self._timers:
            timeout = min(timeout, self._timers[0][0] - time.monotonic())
        self._poll(timeout)
        while self._from_threads:
            self._call(self._from_threads.popleft())
        now = time.monotonic()  # once: a callback that asks to be called in the next turn must not hold up this one
        while self._timers and self._timers[0][0] <= now:
            self._call(heapq.heappop(self._timers)[2])

    def _poll(self, timeout: float) -> None:
        for key, events in self._select(max(0.0, timeout)):
            # A callback may have removed another one's descriptor, or its own.
            if events & selectors.EVENT_READ and self._is_registered(key):
                self._call(key.data)
            if events & selectors.EVENT_WRITE and self._is_registered(key) and key.fd in self._writers:
                self._poll_for(key.fd, selectors.EVENT_READ)
                self._call(self._writers.pop(key.fd))

    def _select(self, timeout: float) -> list[tuple[selectors.SelectorKey, int]]:
        try:
            return self._selector.select(timeout)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # RLIMIT_NOFILE has been lowered below the number of polled descriptors (poll(2)), so each is polled by itself.
        # With a limit of 0 none can be, until the limit is raised again.
        time.sleep(min(timeout, SINGLE_POLL_INTERVAL_S))
        found: list[tuple[selectors.SelectorKey, int]] = []
        for key in self._selector.get_map().values():
            with selectors.PollSelector() as single, contextlib.suppress(OSError):
                single.register(key.fd, key.events)
                found += [(key, events) for _, events in single.select(0)]
        return found

    def _is_registered(self, key: selectors.SelectorKey) -> bool:
        now = self._selector.get_map().get(key.fd)
        return now is not None and now.data is key.data

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except BaseException:  # noqa: BLE001  # an exit, too: it would end the master
            self._log.exception("zdworker: what came in could not be handled; everything else goes on")

    def wake(self) -> None:
        """End a wait, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def close_in_child(self) -> None:
        """Close the master's polled descriptors in a forked child; a second call, in a child of that, does nothing."""
        if self._writer < 0:
            return
        signal.set_wakeup_fd(-1)
        for descriptor in [*(key.fd for key in self._selector.get_map().values()), *self._paused]:
            self.remove(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)
        os.close(self._writer)
        self._writer = -1

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass
