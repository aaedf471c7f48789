"""The worker class for ASGI applications on Gunicorn's own stack: light, because the master imports it.

Rules:

* Nothing of ``gunicorn.asgi``, ``gunicorn.workers.gasgi`` or asyncio is imported before a worker boots (or a fork
  server preloads). The server and its drain are in :mod:`zdworker.workers.gunicorn_asgi.server`.
* This class replaces ``gunicorn.workers.gasgi.ASGIWorker``, with the same settings, and has by the same names what that
  class has for its connections and for hooks to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zdworker.workers.event_loop.worker import LoopWorker

if TYPE_CHECKING:
    import asyncio


class ASGIWorker(LoopWorker):
    """Serves an ASGI application with Gunicorn's own parsers, and loses no request when it is replaced."""

    zd_serves: ClassVar[frozenset[str]] = frozenset({"asgi"})

    zd_without_effect: ClassVar[dict[str, str]] = {
        "_setup_event_loop": "set asgi_loop, or override init_process()",
        "_make_error_app": "it is Gunicorn's own page",
        "_get_ssl_context": "use the hook ssl_context",
        "handle_exit_signal": "override handle_exit()",
        "handle_quit_signal": "override handle_quit()",
    }

    asgi: Any
    loop: asyncio.AbstractEventLoop

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worker_connections = self.cfg.worker_connections
        self.nr_conns = 0
        self.state: dict[str, Any] = {}
        """The state that lifespan startup has filled, for the scope of each request."""

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Warn if ``threads`` is above 1, which has no effect. The master calls it at its start."""
        if cfg.threads > 1:
            log.warning("ASGIWorker makes no use of threads: its connections share one event loop")

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import event loop, parsers, protocols and the server."""
        from zdworker.workers.gunicorn_asgi.server import preload

        preload(cfg)

    def init_process(self) -> None:
        """Boot and serve; returns when the drain is over."""
        from zdworker.workers.gunicorn_asgi.server import set_up_loop

        set_up_loop(self)  # before the application is imported, which may ask for the loop
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the application, as Gunicorn's class does: with ``reload`` a syntax error becomes a page."""
        from zdworker.workers.gunicorn_asgi.server import load

        load(self)
        self.zd_take_signals_back()

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: TLS, lifespan startup or warm-up failed (code 3, reported), or the worker had to end
            before it was ready (code 0).
        """
        from zdworker.workers.gunicorn_asgi.server import run

        self.zd_refuse_bad_tls()
        run(self)
