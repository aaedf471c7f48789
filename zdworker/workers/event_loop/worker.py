"""The light half of the worker classes that serve on an event loop: what the master imports of them.

Rules:

* Nothing of asyncio is imported here: what a generation has of it, and of the servers on it, is always new. The heavy
  half is :mod:`zdworker.workers.event_loop.serving`.
* Signals have plain handlers (:mod:`zdworker.workers.base`), which wake the loop: a loop's own would be lost before it
  runs, and with them the rules for a worker that still boots.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from gunicorn.workers.base import Worker

from zdworker.workers.base import ZeroDowntime

if TYPE_CHECKING:
    from zdworker.workers.event_loop.serving import Serving


class LoopWorker(ZeroDowntime, Worker):  # type: ignore[misc]  # Gunicorn has no types
    """A worker whose server is a :class:`zdworker.workers.event_loop.serving.Serving`."""

    zd_ready_at_first_beat: ClassVar[bool] = False
    zd_answers_health: ClassVar[bool] = True

    zd_serving: Serving | None = None
    """The server, from its making in ``run()`` on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zd_born = time.monotonic()

    def init_signals(self) -> None:
        """Gunicorn's signals without its wake-up pipe, which nobody would read here and signals would fill."""
        super().init_signals()
        signal.set_wakeup_fd(-1)

    def zd_on_leave(self) -> None:
        """Have the server drain, or stop booting."""
        if self.zd_serving is not None:
            self.zd_serving.wake()

    def zd_load(self) -> tuple[int, int]:
        """Return the open connections and the requests answered since birth."""
        return super().zd_load() if self.zd_serving is None else self.zd_serving.load()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT and SIGQUIT: cut what is there and end, after the hook ``worker_int``.

        Not as the base does it, by an exit from wherever the loop is: lifespan shutdown has its moment here too.
        """
        if not self.booted:
            super().handle_quit(sig, frame)
        first = self.zd_deadline > time.monotonic()
        self.zd_look_for_parent()
        self.zd_leave(0.0)
        if first and self.zd_serving is not None and self.zd_serving.is_open:
            try:
                self.cfg.worker_int(self)
            except Exception:
                self.log.exception("The hook worker_int raised")
