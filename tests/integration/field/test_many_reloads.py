"""Reload after reload: the master stays as it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import processes
from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from zdworker.core.history import ENTRIES_MAX

SETTLED_AFTER = ENTRIES_MAX + 5
"""Reloads after which the master has made everything that it makes once, and its history is full."""

MEMORY_SLACK_BYTES = 512 * 1024
"""Bytes by which the allocator's own state may differ."""

COLLECTS = """

import gc as _gc

import ballast as _ballast
import prometheus_client as _prometheus_client

_noted = on_reload


def on_reload(server):
    _noted(server)
    _gc.collect()
"""
"""Code for gunicorn.conf.py: the master counts with what it holds, and not with what is waiting for the collector. It
imports a module of the site, and an installed package."""

BALLAST = "LINES = [str(number) for number in range(20_000)]\n"
"""A module that takes more than a megabyte of memory."""


@dataclass(frozen=True)
class Size:
    """What a master holds, its memory aside."""

    descriptors: int
    children: int
    threads: int

    def is_within(self, other: Size) -> bool:
        """Return whether none of it is more than in ``other``: that may have been measured while a thread worked."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return all(own <= theirs for own, theirs in pairs)


def size(server: Server) -> Size:
    master = server.master
    return Size(len(server.descriptors()), len(processes.children(master)), processes.threads(master))


def memory(server: Server) -> int:
    """The bytes that the master alone holds: which pages of files it shares changes with the processes beside it."""
    lines = Path(f"/proc/{server.master}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


@pytest.mark.load
@pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])
def test_a_master_does_not_grow_by_its_reloads(start: Start, site: Site, full: bool, preload: bool) -> None:
    site.write("ballast.py", BALLAST)
    server = start(workers=2, preload_app=preload, zd_max_surge=2, extra=COLLECTS)
    for number in range(1, SETTLED_AFTER + 1):
        server.reload(f"version {number}")
    three = "two workers and a fork server, and the one before is reaped"
    wait_for(lambda: size(server).children == 3, BOOT_TIMEOUT_S, three)
    settled, held = size(server), memory(server)
    for number in range(SETTLED_AFTER + 1, (200 if full else SETTLED_AFTER + 20) + 1):
        server.reload(f"version {number}")
        wait_for(lambda: size(server).is_within(settled), BOOT_TIMEOUT_S, f"it is as when it had settled, {settled}")
    assert memory(server) - held < MEMORY_SLACK_BYTES
    assert server.stop() == 0
