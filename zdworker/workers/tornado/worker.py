"""The worker class for Tornado: light, because the master imports it.

Rules:

* Neither Tornado nor asyncio is imported before a worker boots (or a fork server preloads), so that each generation has
  its own of them. The server and its drain are in :mod:`zdworker.workers.tornado.server`.
* This is no subclass of Gunicorn's ``TornadoWorker``, because everything of it would be replaced but the line that it
  adds to the ``Server`` header: it checks everything once a second only, counts connections as requests, and closes
  keep-alive connections.
"""

from __future__ import annotations

from typing import Any, ClassVar

from zdworker.errors import GenerationError
from zdworker.workers.event_loop.worker import LoopWorker
from zdworker.workers.requirements import refuse_missing


class TornadoWorker(LoopWorker):
    """Serves a Tornado application, or a WSGI application on Tornado, and loses no request when it is replaced."""

    zd_serves: ClassVar[frozenset[str]] = frozenset({"wsgi"})  # and Tornado's own, of no kind

    zd_without_effect: ClassVar[dict[str, str]] = {
        "setup": "override zd_prepare(), which is called before the application is imported",
        "handle_request": "override the application's own methods, or log_request of its Application",
        "watchdog": "zdworker watches the master by itself",
        "heartbeat": "override notify(), which is called with each heartbeat",
    }

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import Tornado and the server.

        :raises GenerationError: Tornado is missing.
        """
        try:
            import gunicorn.workers.gtornado  # noqa: F401  # raises if Tornado is missing
        except ImportError as error:
            refuse_missing(error, "zdworker.TornadoWorker")
            raise
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

        :raises SystemExit: TLS or the warm-up failed (code 3, reported), or the worker had to end before it was ready
            (code 0).
        """
        from zdworker.workers.tornado.server import run

        self.zd_refuse_bad_tls()
        run(self)
