"""The metrics of a master in the OpenMetrics text format, from its status.

Rules: only the command uses this, because it needs ``prometheus_client``, which the master never imports. It
uses only types of metrics that the older Prometheus text format has too, because other programs read this output from
files (node_exporter's textfile collector, for example).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from zdworker.ipc.messages import LATENCY_BOUNDS_S

STATES = ("starting", "steady", "rolling", "failed", "degraded", "stopping")
WORKER_STATES = ("booting", "ready", "draining")
WORKER_LABELS = ("slot", "generation", "pid")
"""The labels of a worker's metrics, which together name one worker."""
DRAINED = (
    ("handed_over", "handed_over_connections", "Connections that went on to the next worker of their slot."),
    ("told_to_close", "told_to_close_connections", "Connections that a response ended because of a drain."),
    ("cut_requests", "cut_requests", "Requests that were cut at graceful_timeout."),
    ("closed_websockets", "closed_websockets", "WebSockets that a drain closed."),
)
"""What drains have cost: the key among the totals, the metric's name, its meaning."""


def exposition(status: dict[str, Any]) -> str:
    """Return the metrics that a master's ``status`` holds."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    generate: Any = generate_latest  # it has no types
    text: bytes = generate(registry)
    return text.decode()


class _Snapshot(Collector):
    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from _of_master(self._status)
        yield from _of_totals(self._status)
        yield from _of_workers(self._status["workers"])
        yield from _of_answers(self._status.get("generations", ()))


def _of_master(status: dict[str, Any]) -> Iterator[Metric]:
    state = GaugeMetricFamily("zdworker_state", "1 for the master's state, 0 for all others.", labels=["state"])
    for name in STATES:
        state.add_metric([name], float(name == status["state"]))
    yield state
    if status["generation"] is not None:
        yield GaugeMetricFamily("zdworker_generation", "The generation that serves.", value=status["generation"])
    info = GaugeMetricFamily(
        "zdworker_generation_info", "1 for each generation, with its version.", labels=["generation", "label"]
    )
    for generation in status.get("generations", ()):
        info.add_metric([str(generation["generation"]), generation.get("label") or ""], 1)
    yield info
    if status["last_reload"] is not None:
        started = datetime.fromisoformat(status["last_reload"]["started_at"]).timestamp()
        yield GaugeMetricFamily(
            "zdworker_last_reload_timestamp_seconds", "When the last reload began.", value=started, unit="seconds"
        )
    workers = GaugeMetricFamily("zdworker_workers", "Workers by state.", labels=["generation", "state"])
    for generation in _generations(status):
        for name in WORKER_STATES:
            found = [w for w in status["workers"] if (w["generation"], w["state"]) == (generation, name)]
            workers.add_metric([str(generation), name], len(found))
    yield workers


def _generations(status: dict[str, Any]) -> list[int]:
    """Return those that have workers or should have some: an alert needs a metric with the value 0."""
    named = {status["generation"], status["target_generation"], *(w["generation"] for w in status["workers"])}
    return sorted(named - {None})


def _of_totals(status: dict[str, Any]) -> Iterator[Metric]:
    totals = status["totals"]
    results = [name.removeprefix("reloads_") for name in totals if name.startswith("reloads_")]
    reloads = CounterMetricFamily("zdworker_reloads", "Reloads that have ended.", labels=["result"])
    for result in results:
        reloads.add_metric([result], totals[f"reloads_{result}"])
    yield reloads
    ended = sum(totals[f"reloads_{result}"] for result in results)
    yield _durations("reload", "How long reloads took.", ended, totals["reload_duration_s"])
    yield CounterMetricFamily("zdworker_boots", "Workers that became ready.", value=totals["boots"])
    yield _durations("boot", "How long workers took to become ready.", totals["boots"], totals["boot_duration_s"])
    yield CounterMetricFamily("zdworker_crashes", "Workers that died while they were ready.", value=status["crashes"])
    for key, name, meaning in DRAINED:
        yield CounterMetricFamily(f"zdworker_{name}", meaning, value=totals.get(key, 0))


def _of_answers(generations: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    """Yield what generations have answered whose workers count that."""
    failed = CounterMetricFamily(
        "zdworker_failed_answers", "Answers of 500 and above, and requests without one.", labels=["generation", "kind"]
    )
    latency = HistogramMetricFamily(
        "zdworker_answer_seconds", "Answers by how long they took.", labels=["generation"], unit="seconds"
    )
    for generation in generations:
        number, known = str(generation["generation"]), generation.get("answers")
        if not known:
            continue
        for kind in ("errors", "exceptions"):
            failed.add_metric([number, kind], known[kind])
        bounds = [*map(str, LATENCY_BOUNDS_S), "+Inf"]
        upto = map(float, itertools.accumulate(known["latency"]))
        latency.add_metric([number], list(zip(bounds, upto, strict=True)), sum_value=known["seconds"])
    yield from (family for family in (failed, latency) if family.samples)


def _durations(what: str, meaning: str, count: int, seconds: float) -> Metric:
    name = f"zdworker_{what}_duration_seconds"
    return SummaryMetricFamily(name, meaning, count_value=count, sum_value=seconds, unit="seconds")


def _of_workers(workers: list[dict[str, Any]]) -> Iterator[Metric]:
    memory = GaugeMetricFamily(
        "zdworker_worker_resident_memory_bytes", "Memory, shared memory included.", labels=WORKER_LABELS, unit="bytes"
    )
    age = GaugeMetricFamily(
        "zdworker_worker_age_seconds", "Time since its start.", labels=WORKER_LABELS, unit="seconds"
    )
    connections = GaugeMetricFamily("zdworker_worker_connections", "Open connections.", labels=WORKER_LABELS)
    requests = CounterMetricFamily("zdworker_worker_requests", "Requests answered.", labels=WORKER_LABELS)
    for worker in (worker for worker in workers if worker["pid"] is not None):
        labels = [str(worker[name]) for name in WORKER_LABELS]
        if worker["rss_bytes"] is not None:
            memory.add_metric(labels, worker["rss_bytes"])
        age.add_metric(labels, worker["age_s"])
        connections.add_metric(labels, worker["connections"])
        requests.add_metric(labels, worker["requests"])
    yield from (memory, age, connections, requests)
