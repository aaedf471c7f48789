"""Metrics of a real master: what a statsd hears, what ``zdworker metrics`` prints; prometheus_client in the workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.harness import documents
from tests.harness.application_site import Site
from tests.harness.clients import Client
from tests.harness.processes import read_process, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

DONE, FAILED, MISUSE, NO_INSTANCE = range(4)


class Statistics:
    """A statsd, as far as it listens."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.address = "%s:%s" % self.socket.getsockname()
        self._counters: dict[str, int] = {}
        self._gauges: dict[str, int] = {}
        self._timers: dict[str, list[int]] = {}

    def _listen(self) -> None:
        while True:
            try:
                name, _, rest = self.socket.recv(4096).decode().partition(":")
            except BlockingIOError:
                return
            value, kind = rest.split("|")[:2]
            if kind == "c":
                self._counters[name] = self._counters.get(name, 0) + int(value)
            elif kind == "g":
                self._gauges[name] = int(value)
            else:
                self._timers.setdefault(name, []).append(int(value))

    def counter(self, name: str) -> int:
        self._listen()
        return self._counters.get(f"shop.zdworker.{name}", 0)

    def gauge(self, name: str) -> int | None:
        self._listen()
        return self._gauges.get(f"shop.{name}")

    def timer(self, name: str) -> list[int]:
        self._listen()
        return self._timers.get(f"shop.zdworker.{name}", [])


@pytest.fixture
def statistics() -> Iterator[Statistics]:
    made = Statistics()
    yield made
    made.socket.close()


def test_a_statsd_hears_of_reloads_boots_and_crashes(start: Start, site: Site, statistics: Statistics) -> None:
    server = start(preload_app=True, statsd_host=statistics.address, statsd_prefix="shop")
    wait_for(lambda: statistics.gauge("zdworker.generation.1.ready") == 2, BOOT_TIMEOUT_S, "two workers are ready")

    def boots() -> tuple[int, int]:
        return statistics.counter("boots"), len(statistics.timer("boot_duration"))

    wait_for(lambda: boots() == (2, 2), 30, "both boots are counted")
    site.break_("raise")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: statistics.counter("failed_reloads") == 1, BOOT_TIMEOUT_S, "the reload has failed")
    server.reload("two")
    wait_for(lambda: statistics.gauge("zdworker.generation.3.ready") == 2, 30, "the newest generation is ready")
    wait_for(lambda: len(statistics.timer("reload_duration")) == 2, 30, "two reloads have ended")
    wait_for(lambda: statistics.counter("reloads") == 2, 30, "and are counted")
    assert statistics.counter("failed_reloads") == 1
    old = ("zdworker.generation.1.ready", "zdworker.generation.1.draining")
    wait_for(lambda: [statistics.gauge(name) for name in old] == [0, 0], 30, "the first one is gone")
    assert 50 < min(statistics.timer("reload_duration")) < 1000 * BOOT_TIMEOUT_S
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: statistics.counter("crashes") == 1, 30, "a crash")
    wait_for(lambda: statistics.counter("boots") == 5, BOOT_TIMEOUT_S, "its replacement")
    wait_for(lambda: statistics.gauge("gunicorn.workers") == statistics.gauge("zdworker.workers.ready") == 2, 30, "two")


def fill(path: Path) -> None:
    """Send to a socket until it takes no more, from anybody."""
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.connect(str(path))
                sender.send(b"full")
            except BlockingIOError:
                return


@pytest.mark.parametrize("listens", [True, False], ids=["nobody reads", "nobody listens"])
def test_a_statsd_that_does_not_work_changes_nothing(start: Start, site: Site, listens: bool) -> None:
    path = site.directory / "statsd"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        fill(path)
        server = start(statsd_host=f"unix://{path}")
        if not listens:
            deaf.close()
        for version in ("two", "three"):
            server.reload(version)
        assert server.stop() == 0
    assert "Error sending" not in server.log


# -- the command ---------------------------------------------------------------------------------------------------


def metrics(site: Site, *words: str, code: int = DONE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command; it sees no masters but those of this site."""
    done = subprocess.run(
        [sys.executable, "-m", "zdworker", "metrics", *words],
        env={**os.environ, "XDG_RUNTIME_DIR": str(site.directory), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done
    return done


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def test_the_command_prints_what_the_master_has_counted(start: Start, site: Site) -> None:
    server = start(preload_app=True, environment={"XDG_RUNTIME_DIR": str(site.directory)})
    server.reload("two")
    site.break_("raise")
    server.signal(signal.SIGUSR2)

    def failed() -> dict[tuple[str, ...], float]:
        found = samples(metrics(site).stdout)
        return found if found["zdworker_state", "failed"] else {}

    found = wait_for(failed, BOOT_TIMEOUT_S, "the second reload has failed")
    assert found["zdworker_reloads_total", "done"] == found["zdworker_reloads_total", "failed"] == 1
    assert found["zdworker_workers", "2", "ready"] == 2
    assert found["zdworker_boots_total",] == 4
    assert {key[2] for key in found if key[0] == "zdworker_worker_age_seconds"} == set(map(str, server.workers()))


def test_metrics_command_without_a_master(site: Site) -> None:
    assert metrics(site, code=NO_INSTANCE).stderr.startswith("Error: no running master was found")
    assert "Usage: zdworker metrics" in metrics(site, "--pid", "x", code=MISUSE).stderr


def test_metrics_command_without_prometheus_client(site: Site) -> None:
    (site.directory / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'prometheus_client'\", name='prometheus_client')\n"
    )
    missing = metrics(site, code=MISUSE, PYTHONPATH=str(site.directory))
    assert missing.stderr == "Error: prometheus_client is not installed: pip install 'zdworker[metrics]'\n"


# -- prometheus_client in the application --------------------------------------------------------------------------

APPLICATION = """

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.multiprocess import MultiProcessCollector

counted = Counter("counted", "Requests.")
working = Gauge("working", "Workers.", multiprocess_mode="livesum")


async def count(scope, receive, send, query):
    counted.inc()
    working.set(1)
    await answer(send)


async def metrics(scope, receive, send, query):
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    await answer(send, counted=registry.get_sample_value("counted_total"), working=registry.get_sample_value("working"))


ENDPOINTS["/count"] = count
ENDPOINTS["/metrics"] = metrics
"""

MARK_DEAD = """

def child_exit(server, worker):
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)
"""

AT_IMPORT = """
from prometheus_client import Gauge

Gauge("build", "This build is there.", multiprocess_mode="livesum").set(1)
"""


class Counting:
    """A client that makes requests all the time and counts the answers.

    While the application is asked how many it counted it makes none: prometheus_client cannot read the file of a worker
    that is just making it (prometheus/client_python#1199).
    """

    def __init__(self, server: Server) -> None:
        self.counted = 0
        self._server = server
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> Counting:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self, path: str) -> dict[str, object]:
        with Client(self._server.address) as client:
            reply = client.ask("GET", path, headers="Connection: close\r\n")
            assert reply.status == 200, reply
            return reply.json()

    def _count(self) -> None:
        while not self._over.is_set():
            with self._turn:
                self._ask("/count")
                self.counted += 1
            self._over.wait(0.001)  # it is not a lock's way to give everybody a turn

    def compare(self) -> tuple[int, object, object]:
        """Return the answers that there were, those that the application says, and the workers that it says."""
        with self._turn:
            said = self._ask("/metrics")
            return self.counted, said["counted"], said["working"]


def test_prometheus_clients_multiprocess_mode_over_twenty_reloads(
    make_server: Start, site: Site, tmp_path: Path
) -> None:
    site.deploy("0", extra=APPLICATION)
    options = {"workers": 2, "preload_app": True, "zd_max_surge": 2, "extra": MARK_DEAD}
    server = make_server(environment={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, **options).start()
    with Counting(server) as counting:
        for version in map(str, range(1, 21)):
            before = counting.counted
            site.deploy(version, extra=APPLICATION)
            server.signal(signal.SIGUSR2)
            server.wait_only(version)
            counted, said, working = counting.compare()
            assert counted == said
            assert counted > before
            assert working in (None, 1, 2)  # what the dead have set is taken back, by the hook
    assert counting.counted > 100


def replace_fork_server(server: Server) -> None:
    (before,) = server.fork_servers()
    server.signal(signal.SIGUSR2)
    # Not a zombie any more, either: the application looks whether there is such a process.
    wait_for(lambda: read_process(before) is None, BOOT_TIMEOUT_S, "the fork server before has ended")


def test_live_gauges_of_fork_servers_that_have_ended(make_server: Start, site: Site, tmp_path: Path) -> None:
    """What is set at import with --preload is the fork server's; each reload ends one, and has a new one."""
    *_, application = [block.text for block in documents.blocks("docs/metrics.md") if block.title == "app.py"]
    site.write("app.py", application + AT_IMPORT)
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    server = make_server(environment=environment, workers=1, preload_app=True).start()
    for _ in range(2):
        replace_fork_server(server)
    with Client(server.address) as client:
        assert b"\nbuild 1.0\n" in client.ask("GET", "/metrics/").body
