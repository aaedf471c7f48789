"""The worker class for Tornado: light, because the master imports it.

Rules:

* Neither Tornado nor asyncio is imported before a worker boots (or a fork server preloads): what a generation has of
  them is always new. The server and its drain are in :mod:`zdworker.workers.tornado.server`.
* Not a subclass of Gunicorn's ``TornadoWorker``: of that, all but the line that it adds to the ``Server`` header would
  be replaced (it looks once a second at everything, counts connections for requests, and closes what is kept).
"""

from __future__ import annotations

from typing import Any

from zdworker.errors import GenerationError
from zdworker.workers.event_loop.worker import LoopWorker


class TornadoWorker(LoopWorker):
    """Serves a Tornado application, or a WSGI application on Tornado, and loses no request when it is replaced."""

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import Tornado and what serves.

        :raises GenerationError: Tornado is missing.
        """
        try:
            import gunicorn.workers.gtornado  # noqa: F401  # it looks whether Tornado is there
        except RuntimeError as error:
            raise GenerationError(f"zdworker.TornadoWorker: {error} (pip install 'zdworker[tornado]')") from error
        import zdworker.workers.tornado.server  # noqa: F401

    def init_process(self) -> None:
        """Boot and serve; returns when the drain is over."""
        from zdworker.workers.tornado.server import forget_loop

        forget_loop()
        super().init_process()

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: the warm-up failed (code 3, reported), or the worker was told to end before it was ready
            (code 0).
        """
        from zdworker.workers.tornado.server import run

        run(self)
