"""A reload that changes the worker class: from each to the next, under load, and none of it in the master."""

from __future__ import annotations

from tests.harness.application_site import Site
from tests.harness.clients import Load
from tests.harness.server import Server, Start
from tests.harness.worker_classes import ALL

START, *OTHERS = ALL


def test_every_class_gives_way_to_the_next(start: Start, site: Site) -> None:
    """Preloaded, so that each generation has read its own application before the next one is written."""
    server = start(worker_class=START.path, preload_app=True)
    master = server.master
    with Load(server.address, "new", clients=3) as new, Load(server.address, "kept", clients=2, pause=0.05) as kept:
        for number, worker in enumerate([*OTHERS, START]):
            change_to(server, site, worker.path, f"v{number}")
        results = [load.stop() for load in (new, kept)]
    assert [result.failures for result in results] == [[], []]
    assert results[0].versions() == ["one", *(f"v{number}" for number in range(len(ALL)))]
    assert server.master == master
    assert server.stop() == 0


def change_to(server: Server, site: Site, path: str, version: str) -> None:
    worker = next(known for known in ALL if known.path == path)
    site.serve(worker.kind)
    server.polls = worker.polls
    server.configure(worker_class=path, threads=worker.settings.get("threads", 1))
    server.reload(version)
