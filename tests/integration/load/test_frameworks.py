"""Django, Flask, FastAPI and Starlette, reloaded under load with the classes that fit, and with ``--preload``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.application_site import APPLICATIONS, Site
from tests.harness.clients import Load
from tests.harness.server import Start


@dataclass(frozen=True)
class Framework:
    """A framework with a worker class; ``application`` is what stands on Gunicorn's command line."""

    name: str
    worker_class: str
    application: str = "app:app"

    def __str__(self) -> str:
        return f"{self.name}-{self.application.partition(':')[2]}-{self.worker_class}"


FRAMEWORKS = (
    Framework("django", "ThreadWorker", "app:application"),
    Framework("django", "UvicornWorker"),
    Framework("flask", "ThreadWorker"),
    Framework("flask", "GeventWorker"),
    Framework("flask", "WSGIWorker"),
    Framework("fastapi", "UvicornWorker"),
    Framework("starlette", "ASGIWorker"),
)


class FrameworkSite(Site):
    """A site whose application is a framework's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def template(self) -> Path:
        return APPLICATIONS / f"{self._name}_app.py"


@pytest.fixture(params=FRAMEWORKS, ids=str)
def framework(request: pytest.FixtureRequest) -> Framework:
    found = request.param
    assert isinstance(found, Framework)
    if importlib.util.find_spec(found.name) is None:
        pytest.skip(f"{found.name} is not installed")
    return found


@pytest.fixture
def site(framework: Framework) -> Iterator[Site]:
    made = FrameworkSite(framework.name)
    made.deploy("one")
    yield made
    made.remove()


def test_reloads_of_frameworks_under_load(start: Start, framework: Framework) -> None:
    """One to code that each worker imports, the next to code that is preloaded."""
    server = start(
        worker_class=f"zdworker.{framework.worker_class}",
        application=[framework.application],
        threads=4 if framework.worker_class == "ThreadWorker" else 1,
        workers=4 if framework.worker_class == "WSGIWorker" else 2,
        zd_max_surge="100%",
        zd_warmup=["http://localhost/"],
    )
    with (
        Load(server.address, "new", clients=2, pause=0.01) as new,
        Load(server.address, "kept", clients=2, pause=0.01) as kept,
        Load(server.address, "slow", clients=1) as slow,
    ):
        server.reload("two")
        server.configure(preload_app=True)
        server.reload("three")
    for load in (new, kept, slow):
        assert load.stop().failures == []
        assert load.stop().versions() == ["one", "two", "three"]
    assert len(server.site.marks("import", "three")) == 1
    assert server.stop() == 0
    assert "Traceback" not in server.log
    assert " at import" not in server.log  # there is nothing to warn of
