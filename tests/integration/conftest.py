"""Fixtures: a site, and servers that end with their test, with a report of everything when it failed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.server import Server, Start
from tests.harness.worker_classes import WorkerClass

FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="loads as long and as large as promised, not as CI has time for"
    )
    parser.addoption("--stock", action="store_true", help="Gunicorn's own worker classes: the tests must notice")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test failed, for the fixtures that end after it."""
    report = yield
    if report.when == "call" or report.failed:
        item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave these tests out where there is no /proc: they ask the kernel, not the product."""
    if not sys.platform.startswith("linux"):
        for item in items:
            item.add_marker(pytest.mark.skip(reason="the integration tests read /proc"))


@pytest.fixture
def site() -> Iterator[Site]:
    """A directory with version "one" of the application."""
    made = Site()
    made.deploy("one")
    yield made
    made.remove()


@pytest.fixture
def make_server(site: Site, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Make servers of ``site``, not yet started. Nothing of them is left after the test."""
    made: list[Server] = []

    def make(*arguments: str, **options: Any) -> Server:
        made.append(Server(site, *arguments, **options))
        return made[-1]

    yield make
    for server in made:
        if request.node.stash.get(FAILED, False):
            print(server.report())
        left = server.end()
        assert not left, f"could not be killed: {left}"


@pytest.fixture
def start(make_server: Start) -> Start:
    """Start a server of ``site`` and wait until all its workers accept."""
    return lambda *arguments, **options: make_server(*arguments, **options).start()


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether loads have the size that is promised; in CI they are smaller."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def class_settings(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """Make the settings of a server with a worker class: what the test wants, else what the class needs."""

    def settings(worker: WorkerClass, **wanted: Any) -> dict[str, Any]:
        path = worker.stock if request.config.getoption("--stock") else worker.path
        return {"worker_class": path, **worker.settings, **wanted}

    return settings


@pytest.fixture
def start_class(start: Start, class_settings: Callable[..., dict[str, Any]]) -> Start:
    """Start a server with a :class:`WorkerClass`."""
    return lambda worker, **settings: start(**class_settings(worker, **settings))
