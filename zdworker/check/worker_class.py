"""The worker class: whether there is one of that name, whether it is one of zdworker's, and which one was meant."""

from __future__ import annotations

from typing import Any

from gunicorn import util
from gunicorn.workers import SUPPORTED_WORKERS

import zdworker
from zdworker import roles, texts
from zdworker.check.findings import Findings
from zdworker.settings import nearest

INSTEAD_OF = {
    "asgi": "ASGIWorker",
    "gevent": "GeventWorker",
    "gevent_pywsgi": "GeventWorker",
    "gevent_wsgi": "GeventWorker",
    "gthread": "ThreadWorker",
    "sync": "WSGIWorker",
    "tornado": "TornadoWorker",
    "uvicorn.workers.UvicornH11Worker": "UvicornH11Worker",
    "uvicorn.workers.UvicornWorker": "UvicornWorker",
    "uvicorn_worker.UvicornH11Worker": "UvicornH11Worker",
    "uvicorn_worker.UvicornWorker": "UvicornWorker",
}
"""The class of zdworker's that takes the place of each other one, by the name in a configuration."""

CLASSES = [f"zdworker.{name}" for name in zdworker.__all__ if name.endswith("Worker")]

_GUNICORNS = {path: name for name, path in SUPPORTED_WORKERS.items()}


def check(cfg: Any, findings: Findings) -> bool:
    """Check the worker class; return whether a generation can be tried with it.

    :param cfg: Gunicorn's configuration.
    """
    setting = cfg.settings["worker_class"].get()
    name = str(cfg.worker_class_str)
    try:
        found = setting if isinstance(setting, type) else util.load_class(setting)
    except Exception as error:  # noqa: BLE001  # what a module raises when it is imported, or Gunicorn
        findings.error(*_missing(name, error))
        return False
    if not roles.is_zero_downtime(found):
        if name in SUPPORTED_WORKERS or name in INSTEAD_OF or isinstance(found, type):
            findings.error(_foreign(name))
        else:
            findings.error(f"{name} is no class{meant(name)}")
        return False
    findings.ok(name if "." in name else f"{found.__module__}.{found.__qualname__}")
    return True


def _foreign(name: str) -> str:
    instead = INSTEAD_OF.get(_GUNICORNS.get(name, name))
    use = f"zdworker.{instead}" if instead else f"one of {', '.join(CLASSES)}, or a class made with zdworker's mixin"
    return f"{name} is not a class of zdworker's, so nothing of it is at work: set worker_class (-k) to {use}"


def _missing(name: str, error: Exception) -> tuple[str, str, str]:
    """Return the text, what it is about ("" for the same as before) and the details."""
    other = meant(name)
    if other or "." not in name or isinstance(error, AttributeError) or str(error).startswith("module 'zdworker' has"):
        return f"there is no class {name}{other}", "", ""
    details = str(error).partition("[")[2].removesuffix("]").replace("\\n", "\n")
    last = details.strip().rpartition("\n")[2] or texts.reason(error)
    return f"{name} cannot be imported: {last}", "", details


def meant(name: str) -> str:
    """Return a question for the name that was probably meant, "" if none is near."""
    near = nearest(name, [*CLASSES, *INSTEAD_OF]) or ("." not in name and nearest(f"zdworker.{name}", CLASSES))
    if not near or near == name:
        return ""
    return f": did you mean {f'zdworker.{INSTEAD_OF[near]}' if near in INSTEAD_OF else near}?"
