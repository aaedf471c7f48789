"""The worker classes, and what the tests have to know about each: what its protocol allows, and what it needs.

Rules:

* A test that is for all classes is parametrized with one of the lists below; its id is the class's name.
* Where a class cannot do what the others do, that is a fact with a name here, and a test says what happens instead.
* With ``--stock`` the tests run Gunicorn's own class in the place of zdworker's. They must fail then, which shows that
  they notice a lost request.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import gunicorn
import pytest
from gunicorn.config import Config

from tests.harness.application_site import Kind


@dataclass(frozen=True)
class WorkerClass:
    """One worker class.

    :param name: in the package ``zdworker``.
    :param kind: of the application that it serves.
    :param stock: the class that it takes the place of.
    :param settings: what a server with several clients needs.
    """

    name: str
    kind: Kind
    stock: str
    settings: dict[str, Any] = field(default_factory=dict)
    keeps: bool = True
    """A connection is kept after an answer. Only then can there be more than one on it."""
    keeps_http10: bool = True
    """Likewise for HTTP/1.0 with ``Connection: keep-alive``, which is what ``ab -k`` sends."""
    continues: bool = True
    """It says "100 Continue" to ``Expect: 100-continue``; else a client sends its body after having waited in vain."""
    pipelines: bool = True
    """It answers requests that were sent without waiting for the answer before."""
    websockets: bool = False
    concurrent: bool = True
    """A client that is slow takes nothing away from the others: no thread, no process."""
    hands_over: bool = True
    """Its idle connections go on to the next worker of the slot."""
    ends_idle: bool = True
    """It ends an idle connection when its keep-alive time is over, also while it serves."""
    decodes: bool = True
    """The path that the application gets is the one that was percent-encoded."""
    polls: bool = True
    """It waits for connections with epoll, where the kernel tells what a process waits for."""

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> str:
        return f"zdworker.{self.name}"


PARSERS = ["python"] + ["fast"] * bool("http_parser" in Config().settings and importlib.util.find_spec("gunicorn_h1c"))
"""What ``http_parser`` may name here: Gunicorn before 26 has no such setting."""


def uvicorn_has(module: str) -> bool:
    """Return whether uvicorn has a module of its zttp protocols, which can be used where there is a zttp.

    :param module: ``zttp_impl`` or ``zttp_h2_impl``.
    """
    return sys.version_info >= (3, 11) and importlib.util.find_spec(f"uvicorn.protocols.http.{module}") is not None


def _of(*, keeps_http10: bool = False, websockets: bool = True, **facts: Any) -> dict[str, Any]:
    return {"kind": "asgi", "keeps_http10": keeps_http10, "websockets": websockets, **facts}


UVICORN = WorkerClass("UvicornWorker", stock="uvicorn_worker.UvicornWorker", **_of())
UVICORN_H11 = WorkerClass("UvicornH11Worker", stock="uvicorn_worker.UvicornH11Worker", **_of())
UVICORN_ZTTP = replace(UVICORN, name="UvicornWorker on zttp")
"""With uvicorn's third implementation of HTTP/1.1, which a subclass has to choose."""
ASGI = WorkerClass(
    "ASGIWorker",
    stock="asgi",
    # Known defects of stock; and before 25.2 it reads with a stream reader, from which no connection can be taken.
    **_of(
        continues=gunicorn.version_info[0] >= 27,
        pipelines=gunicorn.version_info[0] != 26,
        hands_over=gunicorn.version_info >= (25, 2),
        ends_idle=gunicorn.version_info >= (27,),  # before, the timer is cancelled as soon as it is set
        decodes=gunicorn.version_info >= (25, 2),
    ),
)
TORNADO = WorkerClass("TornadoWorker", "tornado", "tornado", websockets=True, ends_idle=False)  # but in an hour
GEVENT = WorkerClass("GeventWorker", "wsgi", "gevent", {"worker_connections": 4000})
THREAD = WorkerClass("ThreadWorker", "wsgi", "gthread", {"threads": 8, "worker_connections": 4000}, concurrent=False)
WSGI = WorkerClass(
    "WSGIWorker",
    "wsgi",
    "sync",
    {"workers": 8},
    keeps=False,
    keeps_http10=False,
    pipelines=False,
    concurrent=False,
    hands_over=False,
    polls=False,
)

ALL = (UVICORN, UVICORN_H11, ASGI, THREAD, GEVENT, TORNADO, WSGI)
CONCURRENT = tuple(known for known in ALL if known.concurrent)
KEEPING = tuple(known for known in ALL if known.keeps)
HANDING_OVER = tuple(known for known in ALL if known.hands_over)
WEBSOCKETS = tuple(known for known in ALL if known.websockets)


def of_path(path: str) -> WorkerClass | None:
    """Return the class of which ``path`` is the name in gunicorn.conf.py, ours or the stock one; None: another's."""
    return next((known for known in ALL if path in (known.path, known.stock)), None)


def for_each(classes: tuple[WorkerClass, ...]) -> pytest.MarkDecorator:
    """Run a test with each of ``classes`` as ``worker``."""
    return pytest.mark.parametrize("worker", classes, ids=str)
