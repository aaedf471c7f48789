"""The light half of the worker classes that serve on an event loop: what the master imports of them.

Rules:

* Nothing of asyncio is imported here, so that each generation has its own of it and of the servers on it. The heavy
  half is :mod:`zdworker.workers.event_loop.serving`.
* Signals have plain handlers (:mod:`zdworker.workers.base`), which wake the loop. Handlers of the loop's own would not
  work before it runs, and the rules for a worker that still boots would not apply.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from gunicorn.workers.base import Worker

from zdworker.ipc.hand_over import Connection
from zdworker.workers.answers import AnswerCounter
from zdworker.workers.base import ZeroDowntime

if TYPE_CHECKING:
    from zdworker.workers.event_loop.serving import Serving


class LoopWorker(ZeroDowntime, Worker):  # type: ignore[misc]  # Gunicorn has no types
    """A worker whose server is a :class:`zdworker.workers.event_loop.serving.Serving`."""

    zd_ready_at_first_beat: ClassVar[bool] = False
    zd_answers_health: ClassVar[bool] = True
    zd_counts_answers: ClassVar[bool] = True

    zd_serving: Serving | None = None
    """The server; ``run()`` makes it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zd_boot_started_at = time.monotonic()

    def init_signals(self) -> None:
        """Set the signal handlers. Gunicorn's wake-up pipe is taken out again: nothing reads it here, and signals would
        fill it.
        """
        super().init_signals()
        signal.set_wakeup_fd(-1)

    @property
    def should_exit(self) -> bool:
        """Whether the worker drains, by uvicorn's name for it: libraries that hold a response open look for that."""
        return self.zd_leaving

    def zd_on_leave(self) -> None:
        """Have the server drain, or stop booting."""
        if self.zd_serving is not None:
            self.zd_serving.wake()

    def zd_load(self) -> tuple[int, int]:
        """Return the open connections and the requests answered since boot."""
        return super().zd_load() if self.zd_serving is None else self.zd_serving.load()

    def zd_install_counter(self, counter: AnswerCounter) -> None:
        """Have the server count."""
        if self.zd_serving is not None:
            self.zd_serving.count(counter)

    def zd_under_way(self) -> tuple[int, int]:
        """Return the requests that are being answered, and the WebSockets."""
        if self.zd_serving is None:
            return super().zd_under_way()
        under_way = self.zd_serving.zd_in_flight()
        return under_way.requests, under_way.websockets

    def zd_take(self, connection: Connection) -> None:
        """Have the server serve a connection that another worker has handed over."""
        if self.zd_serving is not None:
            self.zd_serving.zd_take(connection)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGQUIT: cut what is under way and end, after the hook ``worker_int``.

        The base would raise an exit wherever the loop is. Here lifespan shutdown gets its moment, too.
        """
        if not self.booted:
            super().handle_quit(sig, frame)
        first = self.zd_deadline > time.monotonic()
        self.zd_check_parent()
        self.zd_leave(0.0)
        if first and self.zd_serving is not None and self.zd_serving.is_open:
            try:
                self.cfg.worker_int(self)
            except Exception:
                self.log.exception("The hook worker_int raised")
