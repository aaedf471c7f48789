"""Zero-downtime deploys for Gunicorn: ``gunicorn -k zdworker.UvicornWorker app:app``, then ``kill -USR2``.

The names below are imported on first use: the master must not load what only a worker needs.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zdworker.workers.base import ZeroDowntime
    from zdworker.workers.gevent.worker import GeventWorker
    from zdworker.workers.gunicorn_asgi.worker import ASGIWorker
    from zdworker.workers.thread.worker import ThreadWorker
    from zdworker.workers.tornado.worker import TornadoWorker
    from zdworker.workers.uvicorn.worker import UvicornH11Worker, UvicornWorker
    from zdworker.workers.wsgi.sync import WSGIWorker

__version__ = "0.2.0"
__all__ = [
    "ASGIWorker",
    "GeventWorker",
    "ThreadWorker",
    "TornadoWorker",
    "UvicornH11Worker",
    "UvicornWorker",
    "WSGIWorker",
    "ZeroDowntime",
    "__version__",
]

_HOMES = {
    "ASGIWorker": "zdworker.workers.gunicorn_asgi.worker",
    "GeventWorker": "zdworker.workers.gevent.worker",
    "ThreadWorker": "zdworker.workers.thread.worker",
    "TornadoWorker": "zdworker.workers.tornado.worker",
    "UvicornH11Worker": "zdworker.workers.uvicorn.worker",
    "UvicornWorker": "zdworker.workers.uvicorn.worker",
    "WSGIWorker": "zdworker.workers.wsgi.sync",
    "ZeroDowntime": "zdworker.workers.base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        reason = f"module 'zdworker' has no attribute {name!r}; it has {', '.join(sorted(__all__))}"
        # Gunicorn asks for a worker class inside a property, where an AttributeError is lost: the class's name would be
        # called as if it were the class. A RuntimeError it shows as one line.
        frame = inspect.currentframe()
        if frame is not None and frame.f_back is not None and frame.f_back.f_globals["__name__"] == "gunicorn.util":
            raise RuntimeError(reason)
        raise AttributeError(reason)
    # Kept, because Gunicorn asks for a worker class by this name again and again.
    globals()[name] = found = getattr(importlib.import_module(_HOMES[name]), name)
    return found
