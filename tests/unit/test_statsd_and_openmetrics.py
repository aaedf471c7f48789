"""What is counted, what a statsd gets, and what ``zdworker metrics`` makes of a status."""

from __future__ import annotations

import ast
import dataclasses
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.instrument.statsd import Statsd
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

import zdworker
from zdworker.command.openmetrics import exposition
from zdworker.core.events import Outcome, Policy
from zdworker.core.fleet import Fleet, Generation, GenerationState, Phase, Slot, Trouble, Worker, WorkerState
from zdworker.ipc.messages import LATENCY_BOUNDS_S, Answers, Drained
from zdworker.master.answers import AnswerBook
from zdworker.master.observers import Crash, Reload
from zdworker.master.reconfiguration import Site
from zdworker.master.statsd import Lossy, Meter, gauges_of
from zdworker.master.status import Journal, waiting
from zdworker.settings import Settings

CRASH = Crash(7, 0, 4711, "was killed by SIGKILL")

PACKAGE = Path(zdworker.__file__).parent


def fleet(**states: WorkerState) -> Fleet:
    """A fleet of workers ``g7a=READY``: generation 7."""
    made = Fleet(Policy(workers=2), 2, Phase.STEADY, current=[7])
    for worker_id, (name, state) in enumerate(states.items(), 1):
        made.workers[worker_id] = Worker(worker_id, worker_id - 1, int(name[1]), state, None)
    return made


class Statistics:
    """A statsd that hears what a logger says."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        cfg = Config()
        cfg.set("statsd_host", f"unix://{path}")
        cfg.set("statsd_prefix", "shop")
        cfg.set("dogstatsd_tags", "env:test")
        self.logger = Statsd(cfg)
        self.book = AnswerBook()
        self.meter = Meter(self.logger, self.book)

    def heard(self) -> dict[str, str]:
        """Return what was said since the last time, by name."""
        found: dict[str, str] = {}
        while True:
            try:
                name, _, value = self.socket.recv(4096).decode().partition(":")
            except BlockingIOError:
                return found
            assert value.endswith("|#env:test")
            found[name] = value.removesuffix("|#env:test")

    def close(self) -> None:
        self.socket.close()
        if self.logger.sock is not None:
            vars(self.logger.sock).get("_datagrams", self.logger.sock).close()


def ended(result: Outcome, seconds: float) -> Reload:
    """A reload that took so many seconds."""
    return dataclasses.replace(Reload.begin(2), result=result, duration=seconds)


@pytest.fixture
def statistics(tmp_path: Path) -> Iterator[Statistics]:
    made = Statistics(tmp_path / "statsd")
    yield made
    made.close()


def test_what_happens_is_told(statistics: Statistics) -> None:
    meter = statistics.meter
    meter.reload_started(ended(Outcome.FAILED, 1.5))
    meter.worker_ready(0.25)
    meter.reload_finished(ended(Outcome.FAILED, 1.5), fleet())
    assert statistics.heard() == {
        "shop.zdworker.reloads": "1|c|@1.0",
        "shop.zdworker.boots": "1|c|@1.0",
        "shop.zdworker.boot_duration": "250|ms",
        "shop.zdworker.failed_reloads": "1|c|@1.0",
        "shop.zdworker.reload_duration": "1500|ms",
    }
    meter.reload_finished(ended(Outcome.DONE, 2.25), fleet())
    meter.worker_crashed(CRASH)
    assert set(statistics.heard()) == {"shop.zdworker.reload_duration", "shop.zdworker.crashes"}


def test_the_last_answers_of_a_generation_are_counted(statistics: Statistics) -> None:
    """Those of code that was given up after a few seconds above all."""
    meter, book = statistics.meter, statistics.book
    serving = fleet(g7a=WorkerState.READY)
    serving.generations = {
        7: Generation(7, GenerationState.LOADED, None),
        8: Generation(8, GenerationState.LOADED, None),
    }
    meter.observe(serving, 0.0)
    statistics.heard()
    book.worker_answered(2, 8, Answers(5, exceptions=2, latency=[5, *[0] * len(LATENCY_BOUNDS_S)]))
    del serving.generations[8]
    for moment in (1.0, 2.0):
        book.observe(serving, moment)
        meter.observe(serving, moment)
    counted = {name: value for name, value in statistics.heard().items() if "generation.8" in name}
    assert counted == {
        "shop.zdworker.generation.8.answers": "5|c|@1.0",
        "shop.zdworker.generation.8.failed_answers": "2|c|@1.0",
    }


def test_workers_by_state_and_generation() -> None:
    known = fleet(g6a=WorkerState.DRAINING, g7a=WorkerState.READY, g7b=WorkerState.READY, g7c=WorkerState.FORKING)
    assert gauges_of(known) == {
        "zdworker.workers.booting": 1,
        "zdworker.workers.ready": 2,
        "zdworker.workers.draining": 1,
        "zdworker.generation.6.draining": 1,
        "zdworker.generation.7.ready": 2,
        "zdworker.generation.7.booting": 1,
        "gunicorn.workers": 4,
    }


def test_gauges_are_told_when_they_change_and_are_taken_back(statistics: Statistics) -> None:
    statistics.meter.observe(fleet(g6a=WorkerState.READY), 100.0)
    assert len(statistics.heard()) == 5
    statistics.meter.observe(fleet(g6a=WorkerState.READY), 100.0)
    assert statistics.heard() == {}
    statistics.meter.observe(fleet(g7a=WorkerState.READY), 100.0)
    assert statistics.heard() == {
        "shop.zdworker.generation.6.ready": "0|g",
        "shop.zdworker.generation.7.ready": "1|g",
    }


def test_gauges_are_repeated_and_old_generations_forgotten(statistics: Statistics) -> None:
    statistics.meter.observe(fleet(g6a=WorkerState.READY), 100.0)
    statistics.meter.observe(fleet(g7a=WorkerState.READY), 100.1)
    statistics.heard()
    # Once more that nobody of generation 6 is left, in case that was lost; then no more of it.
    for now, told in ((109.0, 0), (110.1, 6), (110.2, 0), (120.2, 5)):
        statistics.meter.observe(fleet(g7a=WorkerState.READY), now)
        assert len(statistics.heard()) == told


def test_a_statsd_that_does_not_read_holds_nobody(statistics: Statistics) -> None:
    begin = time.monotonic()
    for _ in range(5000):
        statistics.meter.worker_crashed(CRASH)
    statistics.logger.error("counted, too")  # Gunicorn's own metric, through the same socket
    assert time.monotonic() - begin < 5
    assert statistics.heard() == {"shop.zdworker.crashes": "1|c|@1.0"}


def test_a_statsd_that_is_gone_is_nothing_to_speak_of(
    statistics: Statistics, capfd: pytest.CaptureFixture[str]
) -> None:
    statistics.socket.close()
    statistics.meter.worker_crashed(CRASH)
    assert isinstance(statistics.logger.sock, Lossy)
    assert capfd.readouterr() == ("", "")


def test_without_a_statsd_nothing_is_told() -> None:
    meter = Meter(None, AnswerBook())
    meter.observe(fleet(g7a=WorkerState.READY), 100.0)
    meter.worker_ready(1.0)


def test_a_logger_that_raises_is_let_be(statistics: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics.logger, "increment", None)
    statistics.meter.worker_crashed(CRASH)


def test_a_reload_that_a_newer_one_overtakes_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    journal = Journal(AnswerBook())
    first = Reload.begin(2)
    journal.reload_started(first)
    now = 120.0
    second = Reload.begin(3)
    journal.reload_started(second)
    now = 121.0
    assert first.duration_s() == 21.0
    journal.reload_finished(dataclasses.replace(first, result=Outcome.SUPERSEDED, duration=21.0), fleet())
    assert journal.last is second
    assert second.result is None
    assert second.duration_s() == 1.0
    assert journal.totals()["reload_duration_s"] == 21.0


def test_the_status_says_why_and_which_slots_wait() -> None:
    now, degraded = time.monotonic(), fleet()
    degraded.size = 3
    degraded.degradation = Trouble("a worker failed to boot: no database")
    degraded.slots = {1: Slot(), 2: Slot(failures=4, retry_at=now + 30), 5: Slot(failures=1)}
    shown = Journal(AnswerBook()).status(degraded, {}, {}, Settings(), Site("/srv", "app:app", []))
    assert (shown["state"], shown["workers_wanted"]) == ("degraded", 3)
    assert shown["reason"] == "a worker failed to boot: no database"
    (waiting,) = shown["retries"]
    assert (waiting["slot"], waiting["failures"]) == (2, 4)
    assert 25 < waiting["next_try_in_s"] <= 30


def test_what_a_reload_waits_for() -> None:
    rolling = fleet(g7a=WorkerState.DRAINING, g7b=WorkerState.DRAINING, g8a=WorkerState.READY)
    first, second, _new = rolling.workers.values()
    first.slot, first.deadline, second.slot, second.deadline = 1, 130.0, 0, 112.4
    records: dict[int, Any] = {
        worker.worker_id: SimpleNamespace(pid=4711 + worker.slot, in_flight=0, websockets=0)
        for worker in rolling.workers.values()
    }
    assert waiting(rolling, records, 100.0) is None
    records[first.worker_id].in_flight = 1
    assert waiting(rolling, records, 100.0) == ("waiting for worker 4712 (slot 1): 1 request", 30)
    records[second.worker_id].in_flight, records[second.worker_id].websockets = 2, 1
    line = "waiting for worker 4711 (slot 0): 2 requests, 1 WebSocket (and for 1 more worker)"
    assert waiting(rolling, records, 100.0) == (line, 12)
    rolling.phase = Phase.STOPPING
    assert waiting(rolling, records, 100.0) is None


def test_the_journal_counts() -> None:
    journal = Journal(AnswerBook())
    journal.worker_ready(0.25)
    journal.worker_ready(0.5)
    reload = ended(Outcome.FAILED, 0.5)
    journal.reload_started(reload)
    journal.reload_finished(reload, fleet())
    journal.worker_drained(Drained(handed_over=5, cut_paths=["GET /export"]))
    assert reload.cost == Drained(), "it has ended before"
    totals = journal.status(fleet(), {}, {}, Settings(), Site("/srv", "app:app", []))["totals"]
    assert totals.pop("reload_duration_s") == 0.5
    assert totals == {
        "boots": 2,
        "boot_duration_s": 0.75,
        "handed_over": 5,
        "told_to_close": 0,
        "cut_requests": 0,
        "closed_websockets": 0,
        "reloads_done": 0,
        "reloads_failed": 1,
        "reloads_superseded": 0,
        "reloads_rolled_back": 0,
    }


# -- OpenMetrics ---------------------------------------------------------------------------------------------------

STATUS: dict[str, Any] = {
    "pid": 10,
    "state": "rolling",
    "generation": 1,
    "target_generation": 2,
    "workers": [
        {
            "pid": 11,
            "slot": 0,
            "generation": 1,
            "state": "draining",
            "age_s": 61.5,
            "rss_bytes": 1000,
            "connections": 3,
            "requests": 5,
        },
        {
            "pid": None,
            "slot": 1,
            "generation": 2,
            "state": "booting",
            "age_s": 0.1,
            "rss_bytes": None,
            "connections": 0,
            "requests": 0,
        },
    ],
    "last_reload": {"started_at": "2026-01-02T03:04:05.500+00:00"},
    "crashes": 4,
    "totals": {
        "boots": 9,
        "boot_duration_s": 2.5,
        "reloads_done": 2,
        "reloads_failed": 1,
        "reloads_superseded": 0,
        "reloads_rolled_back": 0,
        "reload_duration_s": 8.0,
        "handed_over": 7,
        "told_to_close": 6,
        "cut_requests": 5,
        "closed_websockets": 4,
    },
}


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return the samples: name and labels' values, in the order of the labels' names."""
    return {
        (sample.name, *(value for _name, value in sorted(sample.labels.items()))): sample.value
        for family in openmetrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def test_a_status_as_openmetrics() -> None:
    found = samples(exposition(STATUS))
    assert found["zdworker_state", "rolling"] == 1
    assert found["zdworker_state", "steady"] == 0
    assert found["zdworker_generation",] == 1
    assert found["zdworker_last_reload_timestamp_seconds",] == 1767323045.5
    assert found["zdworker_workers", "1", "draining"] == 1
    assert found["zdworker_workers", "1", "ready"] == 0
    assert found["zdworker_workers", "2", "booting"] == 1
    assert found["zdworker_reloads_total", "failed"] == 1
    assert found["zdworker_reload_duration_seconds_sum",] == 8
    assert found["zdworker_reload_duration_seconds_count",] == 3
    assert found["zdworker_boots_total",] == 9
    assert found["zdworker_boot_duration_seconds_sum",] == 2.5
    assert found["zdworker_crashes_total",] == 4
    assert found["zdworker_handed_over_connections_total",] == 7
    assert found["zdworker_told_to_close_connections_total",] == 6
    assert found["zdworker_cut_requests_total",] == 5
    assert found["zdworker_closed_websockets_total",] == 4
    assert found["zdworker_worker_resident_memory_bytes", "1", "11", "0"] == 1000
    assert found["zdworker_worker_requests_total", "1", "11", "0"] == 5
    assert not [key for key in found if "None" in key]


def test_before_the_first_generation_serves() -> None:
    found = samples(exposition({**STATUS, "generation": None, "target_generation": None, "last_reload": None}))
    assert ("zdworker_generation",) not in found
    assert ("zdworker_last_reload_timestamp_seconds",) not in found


def answered() -> dict[str, Any]:
    """The status of a master whose generation counts its answers."""
    book = AnswerBook()
    book.worker_answered(1, 2, Answers(120, 2, 1, 1.5, [100, 19, *[0] * 9, 1], ["GET /: 500"]))
    return {**STATUS, "generations": [{"generation": 2, "label": None, "answers": book.plain(2)}]}


def test_answers_are_a_histogram_with_their_failures() -> None:
    lines = exposition(answered()).splitlines()
    for line in (
        'zdworker_failed_answers_total{generation="2",kind="errors"} 2.0',
        'zdworker_failed_answers_total{generation="2",kind="exceptions"} 1.0',
        'zdworker_answer_seconds_bucket{generation="2",le="0.005"} 100.0',
        'zdworker_answer_seconds_bucket{generation="2",le="10.0"} 119.0',
        'zdworker_answer_seconds_bucket{generation="2",le="+Inf"} 120.0',
        'zdworker_answer_seconds_count{generation="2"} 120.0',
        'zdworker_answer_seconds_sum{generation="2"} 1.5',
    ):
        assert line in lines
    assert "answer_seconds" not in exposition(STATUS), "whoever does not count has no such metric"


def test_readers_of_the_older_format_understand_it() -> None:
    text = exposition(answered())
    assert set(re.findall(r"^# TYPE \S+ (\S+)$", text, re.MULTILINE)) <= {"counter", "gauge", "summary", "histogram"}
    older = {s.name for f in parser.text_string_to_metric_families(text) for s in f.samples}
    assert {"zdworker_reloads_total", "zdworker_workers"} <= older


def test_only_the_command_needs_prometheus_client() -> None:
    users = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "prometheus_client" in ast.unparse(node)
    }
    assert users == {"openmetrics.py"}
    code = "import sys, zdworker.master.arbiter, zdworker.command.cli; print('prometheus_client' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_settings_that_are_not_set_have_one_form() -> None:
    site = Site("/srv", "app:app", [])
    shown = Journal(AnswerBook()).status(fleet(), {}, {}, Settings(), site)["settings"]
    unset = {name for name, value in shown.items() if value is None}
    assert unset == {
        "zd_warmup",
        "zd_max_rss",
        "zd_health_path",
        "zd_control_socket",
        "zd_version",
        "zd_max_error_rate",
    }
    assert not [name for name, value in shown.items() if value in ("", (), [])]
    given = Settings(warmup=("/",), health_path="/health", version="v1")
    shown = Journal(AnswerBook()).status(fleet(), {}, {}, given, site)["settings"]
    assert (shown["zd_warmup"], shown["zd_health_path"], shown["zd_version"]) == (("/",), "/health", "v1")
