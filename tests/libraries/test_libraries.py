"""Each stand-in with ``zd_preload`` "auto" and "never": the same answers, and no complaint of a missing service."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.control_client import status
from tests.harness.server import Server, Start
from tests.libraries.conftest import Services
from tests.libraries.stand_ins import STAND_INS, THREAD, StandIn

REQUESTS = 30
WORKERS = 2
DIFFER_S = 10.0
"""Seconds within which both workers have answered."""

NO_HOOKS = "\n\ndel on_reload, pre_fork, post_fork\n"


def application(stand_in: StandIn, services: Services) -> str:
    addresses = f"HTTP, REDIS, GRPC = {services.http!r}, {services.redis!r}, {services.grpc!r}\n"
    return addresses + stand_in.code + stand_in.server


def answers(server: Server) -> list[str]:
    """Return the answers to some requests, several at a time, each on a connection of its own."""

    def ask(number: int) -> str:
        with Client(server.address, timeout=20) as client:
            answer = client.ask("GET", f"/{number}")
            return f"{answer.status} {answer.body.decode()}"

    with ThreadPoolExecutor(8) as clients:
        return list(clients.map(ask, range(REQUESTS)))


def of_each_worker(server: Server) -> set[str]:
    """Return all answers, as soon as each worker has given its own."""
    found: set[str] = set()
    until = time.monotonic() + DIFFER_S
    while len(found) < WORKERS and time.monotonic() < until:
        found |= set(answers(server))
    return found


@pytest.mark.parametrize("stand_in", STAND_INS, ids=lambda stand_in: stand_in.library)
def test_it_behaves_as_without_preloading(start: Start, site: Site, services: Services, stand_in: StandIn) -> None:
    site.write("stand_in.py", application(stand_in, services))
    seen = []
    for word in ("never", "auto"):
        path = str(site.directory / f"{word}.sock")
        server = start(
            worker_class=stand_in.worker_class,
            workers=WORKERS,
            threads=4 if stand_in.worker_class == THREAD else 1,
            extra=NO_HOOKS,
            application=("stand_in:app",),
            zd_preload=word,
            zd_control_socket=path,
        )
        if stand_in.private:
            found = of_each_worker(server)
            assert len(found) == WORKERS
            seen.append([answer[:4] for answer in found])
        else:
            seen.append(answers(server))
        (fork_server,) = status(server)["fork_servers"]
        reason = fork_server["not_preloaded"] or ""
        print(stand_in.library, word, fork_server, "\n", server.log)
        assert server.stop() == 0
        if word == "auto":
            assert fork_server["preloaded"] is not bool(stand_in.found)
            assert stand_in.found in reason
            assert bool(reason) is bool(stand_in.found)
        else:
            assert not fork_server["preloaded"]
        log = server.log.lower()
        assert "warning" not in log
        assert "[error]" not in log
        server.log_file.unlink()
    assert seen[0] == seen[1]
    if not stand_in.private:
        assert all(answer.startswith("200 ") for answer in seen[0])
