"""Standard input, output and error that are closed, by what starts the master, or replaced by the application."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

from tests.harness import control_client
from tests.harness.application_site import Site
from tests.harness.processes import descriptors, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

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
        # Not what libffi holds of itself (its static trampolines): it does so as soon as ctypes is imported, which may
        # be before zdworker is.
        places = {held.get(number) for number in STREAMS if "/libffi.so" not in str(held.get(number))}
        assert places <= allowed, (pid, held)
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


def test_new_code_that_closes_what_is_not_its_own_is_refused_with_the_cause(start: Start, site: Site) -> None:
    server = start(workers=1, preload_app=True)
    site.deploy("two", extra="\nos.closerange(3, 1024)\n")
    last = control_client.reload(server)
    assert last["result"] == "failed"
    assert "the application has closed descriptors that are not its own" in last["traceback"]
    assert server.get()["version"] == "one"


REPLACED = {
    "no flush": "sys.stderr = object()",
    "none": "sys.stderr = None",
    "closed stream": "sys.stderr.close()",
    "closed descriptor": "os.close(2)",
    "raises": "sys.stderr = type('Raises', (), {'flush': lambda self: 1 / 0, 'write': lambda self, text: None})()",
    "full disk": "sys.stderr = open('/dev/full', 'w')\nsys.stderr.write('lost')",
}


@pytest.mark.parametrize("how", sorted(REPLACED))
def test_a_preloaded_application_replaces_standard_error(make_server: Start, site: Site, how: str) -> None:
    """It is forked from all the same, and an error of later code is reported as any other."""
    replaces = f"\nimport sys\n{REPLACED[how]}\n"
    site.deploy("one", extra=replaces)
    server = make_server(workers=1, preload_app=True, errorlog=str(site.directory / "error.log")).launch()
    server.wait_full()
    site.deploy("broken", extra=f"{replaces}\nraise RuntimeError('of the new code')\n")
    server.signal(signal.SIGUSR2)
    log = Path(site.directory / "error.log")
    wait_for(lambda: "RuntimeError: of the new code" in log.read_text(), BOOT_TIMEOUT_S, "the error is in the log")
    server.reload("two")
    assert server.stop() == 0
