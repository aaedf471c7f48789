"""The one poll of the master, under Gunicorn's loop.

Rules: everything happens on the main thread; a callback runs when its descriptor is readable or its time has come, and
nothing else is ever waited for. Signals and other threads wake the poll through a pipe, so that nothing that happens
between a look at the queue and the poll is slept over (the self-pipe trick; ``signal.set_wakeup_fd``).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import time
from collections.abc import Callable


class Reactor:
    """A poll over a wake-up pipe and any number of descriptors."""

    def __init__(self) -> None:
        # poll(2), not epoll: an epoll descriptor would be shared with every process that is ever forked from here.
        self._selector = selectors.PollSelector()
        self._paused: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self.add(self._reader, self._woken)

    def take_signals(self) -> None:
        """Have signals wake the poll; call it when their handlers are in place."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def add(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``descriptor`` is readable or at its end."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def remove(self, descriptor: int) -> None:
        """Forget ``descriptor``; it may be unknown."""
        self._paused.pop(descriptor, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def pause(self, descriptor: int) -> None:
        """Do not poll ``descriptor`` for a while: it stays readable, and its turn has not come."""
        self._paused[descriptor] = self._selector.unregister(descriptor).data

    def resume(self, descriptor: int) -> None:
        """Poll ``descriptor`` again; it may have been removed meanwhile."""
        callback = self._paused.pop(descriptor, None)
        if callback is not None:
            self.add(descriptor, callback)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, ``seconds`` from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), callback))

    def wait(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds, then run the callbacks of what is readable and of timers that are due."""
        if self._timers:
            timeout = min(timeout, self._timers[0][0] - time.monotonic())
        self._poll(timeout)
        now = time.monotonic()  # once: a callback that asks to be called in the next turn must not hold up this one
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _poll(self, timeout: float) -> None:
        for key, _events in self._selector.select(max(0.0, timeout)):
            # A callback may have removed another one's descriptor.
            if self._selector.get_map().get(key.fd) is key:
                key.data()

    def wake(self) -> None:
        """End a wait, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def leave_to_child(self) -> None:
        """In a forked child: let go of what is the master's. Nothing is left for a second call, in a child of that."""
        if self._writer < 0:
            return
        signal.set_wakeup_fd(-1)
        for descriptor in [*(key.fd for key in self._selector.get_map().values()), *self._paused]:
            self.remove(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)
        os.close(self._writer)
        self._writer = -1

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass
