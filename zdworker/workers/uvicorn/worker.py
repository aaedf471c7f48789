"""The worker classes for ASGI applications on uvicorn: light, because the master imports them.

Rules:

* Neither uvicorn nor asyncio is imported before a worker boots (or a fork server preloads), so that each generation has
  its own of them. The server and its drain are in :mod:`zdworker.workers.uvicorn.server`.
* Gunicorn's settings have the same effect as with ``uvicorn_worker.UvicornWorker``, which this class replaces, and
  ``CONFIG_KWARGS`` of a subclass wins over them.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any, ClassVar

from zdworker.workers import tls
from zdworker.workers.event_loop.worker import LoopWorker

if TYPE_CHECKING:
    from uvicorn import Config


OWN_LIMITS = ("limit_max_requests", "limit_max_requests_jitter", "timeout_graceful_shutdown")
"""Keyword arguments of :class:`uvicorn.Config` that the worker heeds by itself, or not at all."""


STEPS = (
    "Started server process",
    "Waiting for application startup",
    "Application startup complete",
    "ASGI 'lifespan' protocol appears unsupported",
    "Waiting for application shutdown",
    "Application shutdown complete",
    "Shutting down",
    "Finished server process",
)
"""How lines begin in which uvicorn tells the steps of a boot and of an end. They are for ``--log-level debug``: the log
has a line when a worker boots, when it is ready, when it drains, and when it has left."""


def _without_steps(record: logging.LogRecord) -> bool:
    told = record.name == "uvicorn.error" and record.levelno == logging.INFO
    return not (told and str(record.msg).startswith(STEPS))


class UvicornWorker(LoopWorker):
    """Serves an ASGI application with uvicorn, and loses no request when it is replaced."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "auto", "http": "auto"}
    """Keyword arguments of :class:`uvicorn.Config`; subclasses put their own here."""

    zd_serves: ClassVar[frozenset[str]] = frozenset({"asgi"})

    zd_without_effect: ClassVar[dict[str, str]] = {
        "_serve": "override run(), or wrap the application",
        "_install_sigquit_handler": "SIGQUIT ends the worker at once, as with Gunicorn's own classes",
        "callback_notify": "override notify(), which is called with each heartbeat",
    }

    _config: Config | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limit = self.CONFIG_KWARGS.get("limit_max_requests")
        if limit is not None:
            # uvicorn would end the worker; this way it asks for a replacement first.
            jitter = random.randint(0, self.CONFIG_KWARGS.get("limit_max_requests_jitter", 0))  # noqa: S311  # no secret
            self.max_requests = limit + jitter

    @classmethod
    def zd_warnings(cls, cfg: Any) -> list[str]:
        """Add what of ``CONFIG_KWARGS`` has no effect."""
        found = super().zd_warnings(cfg)
        if "timeout_graceful_shutdown" in cls.CONFIG_KWARGS:
            found.append(
                f"{cls.__module__}.{cls.__qualname__}.CONFIG_KWARGS: timeout_graceful_shutdown has no effect: "
                "graceful_timeout counts"
            )
        return found

    def zd_mismatch(self) -> str:
        """Return why uvicorn can hardly serve the application: what ``CONFIG_KWARGS`` may have it adapt, it can."""
        adapts = self.CONFIG_KWARGS.get("interface", "auto") != "auto" or self.CONFIG_KWARGS.get("factory", False)
        return "" if adapts else super().zd_mismatch()

    @property
    def config(self) -> Config:
        """The configuration of uvicorn; made on first access, which is in the worker and not in the master."""
        if self._config is None:
            from uvicorn import Config

            self._config = Config(**self._config_kwargs())
        return self._config

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import event loop, protocols, lifespan and the server, without TLS files or sockets.

        :raises SystemExit: a name in ``CONFIG_KWARGS`` cannot be imported (uvicorn has logged which).
        """
        from zdworker.workers.uvicorn.server import preload

        preload(cls.CONFIG_KWARGS)

    @classmethod
    def zd_check_tls(cls, cfg: Any) -> None:
        """Load TLS as uvicorn does, which knows nothing of Gunicorn's hook ``ssl_context``.

        :raises TlsError: that fails.
        """
        kwargs = {**cls._tls_kwargs(cfg), **cls.CONFIG_KWARGS}
        own_context = kwargs.get("ssl_context_factory")  # in CONFIG_KWARGS, and for uvicorn itself to call at boot
        if own_context or not (kwargs.get("ssl_keyfile") or kwargs.get("ssl_certfile")):
            return
        settings = tls.TlsSettings(
            certfile=kwargs.get("ssl_certfile"),
            keyfile=kwargs.get("ssl_keyfile"),
            ca_certs=kwargs.get("ssl_ca_certs"),
            cert_reqs=kwargs.get("ssl_cert_reqs", 0),
            ciphers=kwargs.get("ssl_ciphers"),
            password=kwargs.get("ssl_keyfile_password"),
        )
        tls.check_settings(settings)

    def init_process(self) -> None:
        """Boot and serve; returns when the drain is over."""
        self._share_log()
        super().init_process()

    def run(self) -> None:
        """Serve until the drain is over.

        :raises SystemExit: TLS, lifespan startup or warm-up failed (code 3, reported), or the worker had to end
            before it was ready (code 0).
        """
        from zdworker.workers.uvicorn.server import run

        self.zd_refuse_bad_tls()
        run(self)

    def _share_log(self) -> None:
        """Let uvicorn log through Gunicorn's handlers and filters."""
        for name, gunicorns in (("uvicorn.error", self.log.error_log), ("uvicorn.access", self.log.access_log)):
            logger = logging.getLogger(name)
            logger.handlers = gunicorns.handlers
            logger.filters = gunicorns.filters
            logger.setLevel(gunicorns.level)
            logger.propagate = False
        if not self.log.error_log.isEnabledFor(logging.DEBUG):
            self.log.error_log.addFilter(_without_steps)  # which uvicorn's logger has by now, too

    def _config_kwargs(self) -> dict[str, Any]:
        # Without limit_max_requests: a worker that reaches max_requests asks for a replacement, and serves until that
        # is ready. Without callback_notify: uvicorn would call it every `timeout` seconds, the very time after which
        # Gunicorn kills.
        kwargs: dict[str, Any] = {
            "app": None,
            "log_config": None,
            "timeout_keep_alive": self.cfg.keepalive,
            "forwarded_allow_ips": self.cfg.forwarded_allow_ips,
        }
        kwargs.update(self._tls_kwargs(self.cfg))
        if self.cfg.backlog:
            kwargs["backlog"] = self.cfg.backlog
        own = {name: value for name, value in self.CONFIG_KWARGS.items() if name not in OWN_LIMITS}
        return {**kwargs, **own}

    @staticmethod
    def _tls_kwargs(cfg: Any) -> dict[str, Any]:
        if not cfg.is_ssl:
            return {}
        names = ("keyfile", "certfile", "ssl_version", "cert_reqs", "ca_certs", "ciphers")
        options = cfg.ssl_options
        kwargs = {f"ssl_{name.removeprefix('ssl_')}": options.get(name) for name in names}
        return {**kwargs, "ssl_keyfile_password": options.get("password")}


class UvicornH11Worker(UvicornWorker):
    """Serves an ASGI application with uvicorn on its pure Python parts: asyncio's loop and h11."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "asyncio", "http": "h11"}
