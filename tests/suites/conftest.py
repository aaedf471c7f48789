"""The fixtures of the integration tests, servers of both kinds, and the comparison of what they answer."""

from __future__ import annotations

import difflib
import resource
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.server import Server, Start
from tests.integration.conftest import make_server, pytest_runtest_makereport, site, start
from tests.suites import applications
from tests.suites.differences import judge
from tests.suites.transcripts import KEEPALIVE_S, Transcript
from tests.suites.variants import Variant

__all__ = ["make_server", "pytest_runtest_makereport", "site", "start"]

SHOWN = 60
"""Differences that a failed test prints in full."""

Run = Callable[..., Server]
"""Starts a server of a variant: ``stock=True`` or ``stock=False``, and settings."""


@pytest.fixture(autouse=True)
def descriptors() -> None:
    """Allow a connection for each case, here and in the servers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))


@pytest.fixture
def run(start: Start, site: Site, variant: Variant) -> Run:
    """Start a server of the variant with the application that shows what it is given."""
    variant.require()
    site.write("served.py", applications.CODE[variant.kind])

    def run(*, stock: bool, **settings: Any) -> Server:
        options = {"keepalive": KEEPALIVE_S, "graceful_timeout": 120, "timeout": 120}
        wanted = {**options, **variant.options(site, stock=stock), **settings}
        return start(application=("served:application",), **wanted)

    return run


def compare(
    variant: Variant, suite: str, state: str, stock: Mapping[str, Transcript], ours: Mapping[str, Transcript]
) -> list[str]:
    """Print the differences; return the complaints."""
    differing = [name for name, found in ours.items() if found != stock[name]]
    unlisted, stale = judge(suite, variant.name, state, differing)
    for name in unlisted[:SHOWN]:
        print(f"==== {variant.name}, {state}: {name}\n{_explained(stock[name], ours[name])}")
    print(f"{suite}, {variant.name}, {state}: {len(ours)} cases, {len(differing)} differ, {len(unlisted)} unlisted")
    return [f"{state}: unlisted: {name}" for name in unlisted] + [f"{state}: no difference: {name}" for name in stale]


def _explained(stock: Transcript, ours: Transcript) -> str:
    return "\n".join(line[:300] for line in difflib.unified_diff(_lines(stock), _lines(ours), "stock", "ours", n=0))


def _lines(transcript: Transcript) -> list[str]:
    return [*map(repr, transcript.received.splitlines()), transcript.end]
