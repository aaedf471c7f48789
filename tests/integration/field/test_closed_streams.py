"""Started without standard input, output and error, as some supervisors and a careless ``&-`` do."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import descriptors
from tests.harness.server import Server, Start

STREAMS = {0: "<&-", 1: ">&-", 2: "2>&-"}
CLOSED = [numbers for length in (1, 2, 3) for numbers in itertools.combinations(STREAMS, length)]


def closed(server: Server, numbers: tuple[int, ...]) -> Server:
    redirections = " ".join(STREAMS[number] for number in numbers)
    server.words = ["sh", "-c", f'exec "$@" {redirections}', "sh", *server.words]
    return server


@pytest.mark.parametrize("numbers", CLOSED, ids=str)
def test_no_process_has_anything_else_in_their_place(make_server: Start, site: Site, numbers: tuple[int, ...]) -> None:
    server = closed(make_server(errorlog=str(site.directory / "error.log"), workers=1, preload_app=True), numbers)
    server.launch()
    server.wait_full()
    server.reload("two")
    allowed = {"/dev/null", str(server.log_file), str(site.directory / "error.log")}
    for pid in [server.master, *server.fork_servers(), *server.workers()]:
        held = descriptors(pid)
        assert {held.get(number) for number in STREAMS} <= allowed, (pid, held)
    assert server.stop() == 0


def test_a_worker_that_prints_wakes_nobody(make_server: Start, site: Site) -> None:
    """Its standard error was the pipe that wakes the master's loop."""
    site.deploy("one", extra="\nimport sys\nos.write(2, b'x' * 100)\n")
    server = closed(make_server(errorlog=str(site.directory / "error.log"), workers=1), (0, 1, 2))
    server.launch()
    server.wait_full()
    assert {server.get()["version"] for _ in range(5)} == {"one"}
    assert "was not expected" not in Path(site.directory / "error.log").read_text()
    assert server.stop() == 0
