"""The worker class for WSGI applications on gevent: light, because the master imports it.

Rules:

* Neither gevent nor Gunicorn's ``ggevent`` is imported before a worker boots or a fork server prepares: the master is
  never monkey-patched. The worker itself is in :mod:`zdworker.workers.gevent.server`.
* The process that imports the application is patched first: the fork server with ``--preload``, each worker without.
* A subclass of this class is a subclass of Gunicorn's ``GeventWorker`` too, as soon as there is an object of it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from gunicorn.workers.base import Worker

from zdworker.errors import GenerationError
from zdworker.workers.requirements import refuse_missing
from zdworker.workers.wsgi.drain import WsgiDrain


class GeventWorker(WsgiDrain, Worker):  # type: ignore[misc]  # Gunicorn has no types
    """Serves a WSGI application with a greenlet per connection, and loses no request when it is replaced."""

    zd_without_effect: ClassVar[dict[str, str]] = {
        "patch": "override zd_prepare(), which patches before the application is imported",
        "setup": "override zd_prepare(), which is called before the application is imported",
    }

    def __new__(cls, *_args: Any, **_kwargs: Any) -> GeventWorker:
        """Make an object of a class that derives from this one and from Gunicorn's, which is imported only now."""
        made: GeventWorker = object.__new__(_full_class(cls))
        return made

    @classmethod
    def zd_prepare(cls, cfg: Any) -> None:
        """Monkey-patch this process, once, and tell gevent's hub that the process was forked.

        :raises GenerationError: gevent is missing or too old.
        """
        _require_gevent()
        from gevent import hub, monkey

        if not monkey.is_module_patched("socket"):
            monkey.patch_all()
        hub.reinit()

    @classmethod
    def zd_preload(cls, cfg: Any) -> None:
        """Import gevent and the server, without patching.

        :raises GenerationError: gevent is missing or too old, or the class asks for another server.
        """
        _require_gevent()
        for name in ("server_class", "wsgi_handler"):
            if getattr(cls, name, None) is not None:
                raise GenerationError(
                    f"{cls.__module__}.{cls.__qualname__}.{name}: gevent's own server (pywsgi) cannot be drained "
                    "without losing requests, so GeventWorker does not serve with it; leave it out, or use Gunicorn's "
                    "own class"
                )
        _full_class(cls)
        super().zd_preload(cfg)


def _require_gevent() -> None:
    try:
        import gunicorn.workers.ggevent  # noqa: F401  # it raises if gevent is missing or too old
    except ImportError as error:
        refuse_missing(error, "zdworker.GeventWorker")
        raise
    except RuntimeError as error:
        raise GenerationError(f"zdworker.GeventWorker: {error} (pip install 'zdworker[gevent]')") from error


def _full_class(light: Any) -> Any:
    """Return the class of which an object of ``light`` is made: ``light`` with the server's class as a base."""
    from zdworker.workers.gevent.server import DrainingGeventWorker

    if "zd_full_class" not in vars(light):
        names = {"__module__": light.__module__, "__doc__": light.__doc__}
        light.zd_full_class = type(light.__name__, (light, DrainingGeventWorker), names)
    return light.zd_full_class
