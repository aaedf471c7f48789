"""The servers that the suites compare: a worker class, what it is set to, and the class that it takes the place of."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.harness import worker_classes
from tests.harness.application_site import Kind, Site
from tests.harness.worker_classes import PARSERS, WorkerClass

SUBCLASS = """
from {module} import {name}


class Worker({name}):
    CONFIG_KWARGS = {{**{name}.CONFIG_KWARGS, **{kwargs!r}}}
"""


@dataclass(frozen=True)
class Variant:
    """One way to run a worker class.

    :param kwargs: of uvicorn's configuration, which a subclass sets.
    :param at_once: clients that it can answer at a time although some of them say nothing.
    :param needs: libraries that have to be there.
    """

    name: str
    worker: WorkerClass
    kind: Kind
    settings: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    at_once: int = 100
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def options(self, site: Site, *, stock: bool) -> dict[str, Any]:
        """Return the settings for ours or for stock; write the subclass, if there is one, into ``site``."""
        path = self.worker.stock if stock else self.worker.path
        if self.kwargs:
            module, _, name = path.rpartition(".")
            file = "stock_worker" if stock else "our_worker"
            site.write(f"{file}.py", SUBCLASS.format(module=module, name=name, kwargs=self.kwargs))
            path = f"{file}.Worker"
        return {"workers": 1, "worker_class": path, **self.settings}

    def require(self) -> None:
        """Skip the test if a library is missing."""
        for library in self.needs:
            if importlib.util.find_spec(library) is None:
                pytest.skip(f"{library} is not installed, which {self.name} needs")


def _of(worker: WorkerClass, kind: Kind, *, at_once: int = 100, **settings: Any) -> list[Variant]:
    """Return the variants of one of Gunicorn's own classes: with each parser."""
    return [
        Variant(
            worker.name if parser == "python" else f"{worker.name}, {parser} parser",
            worker,
            kind,
            {**settings, **({"http_parser": parser} if len(PARSERS) > 1 else {})},
            at_once=at_once,
        )
        for parser in PARSERS
    ]


_UVICORN = ("uvicorn_worker",)

VARIANTS: tuple[Variant, ...] = (
    Variant("UvicornWorker", worker_classes.UVICORN, "asgi", needs=_UVICORN),
    Variant("UvicornH11Worker", worker_classes.UVICORN_H11, "asgi", needs=_UVICORN),
    Variant("UvicornWorker, zttp", worker_classes.UVICORN, "asgi", kwargs={"http": "zttp"}, needs=(*_UVICORN, "zttp")),
    *_of(worker_classes.ASGI, "asgi"),
    *_of(worker_classes.THREAD, "wsgi", threads=32, worker_connections=4000, at_once=24),
    *_of(worker_classes.GEVENT, "wsgi", worker_connections=4000),
    *_of(worker_classes.WSGI, "wsgi", workers=8, at_once=4, zd_max_surge=8),
    Variant("TornadoWorker", worker_classes.TORNADO, "tornado"),
    Variant("TornadoWorker, WSGI", worker_classes.TORNADO, "wsgi"),
)

WEBSOCKETS: tuple[Variant, ...] = (
    *(
        Variant(f"UvicornWorker, {ws}", worker_classes.UVICORN, "asgi", kwargs={"ws": ws}, needs=(*_UVICORN, library))
        for ws, library in (("websockets", "websockets"), ("websockets-sansio", "websockets"), ("wsproto", "wsproto"))
    ),
    *_of(worker_classes.ASGI, "asgi"),
    Variant("TornadoWorker", worker_classes.TORNADO, "tornado"),
)
"""Each implementation of WebSockets."""


def for_each(variants: tuple[Variant, ...]) -> pytest.MarkDecorator:
    """Run a test with each of ``variants``."""
    return pytest.mark.parametrize("variant", variants, ids=str)
