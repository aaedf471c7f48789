"""Zero-downtime deploys for Gunicorn: ``gunicorn -k zdworker.UvicornWorker app:app``, then ``kill -USR2``.

The names below are imported on first use: the master must not load what only a worker needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zdworker.workers.asgi import ASGIWorker
    from zdworker.workers.base import ZeroDowntime
    from zdworker.workers.gevent import GeventWorker
    from zdworker.workers.sync import WSGIWorker
    from zdworker.workers.thread import ThreadWorker
    from zdworker.workers.tornado import TornadoWorker
    from zdworker.workers.uvicorn import UvicornH11Worker, UvicornWorker

__version__ = "0.1.0"
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
    "ASGIWorker": "zdworker.workers.asgi",
    "GeventWorker": "zdworker.workers.gevent",
    "ThreadWorker": "zdworker.workers.thread",
    "TornadoWorker": "zdworker.workers.tornado",
    "UvicornH11Worker": "zdworker.workers.uvicorn",
    "UvicornWorker": "zdworker.workers.uvicorn",
    "WSGIWorker": "zdworker.workers.sync",
    "ZeroDowntime": "zdworker.workers.base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zdworker' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(importlib.import_module(_HOMES[name]), name)
