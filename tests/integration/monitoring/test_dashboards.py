"""The Grafana dashboard and the alert rules in docs/dashboards ask for what a master has (``zdworker metrics``)."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.harness.application_site import Site
from tests.harness.documents import ROOT
from tests.harness.recipes import find
from tests.harness.screens import environment, typed
from tests.harness.server import Server, Start, run_once

DASHBOARD = ROOT / "docs" / "dashboards" / "grafana.json"
RULES = ROOT / "docs" / "dashboards" / "prometheus-rules.yml"

OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus adds when it fetches."""

PROMTOOL = find("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: Debian's package prometheus has it, and takes 96 MB"
)


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded = json.loads(DASHBOARD.read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def targets(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield from panel["targets"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    asked = [str(target["expr"]) for target in targets(dashboard)]
    return asked + [str(annotation["expr"]) for annotation in dashboard["annotations"]["list"]]


def legends(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(target["expr"]), str(target["legendFormat"])) for target in targets(dashboard)]


Samples = dict[str, list[dict[str, str]]]
"""The labels of all samples of each name."""


@pytest.fixture
def samples(start: Start, site: Site) -> Samples:
    """What a master has that has reloaded."""
    server = start(workers=2, preload_app=True, environment=environment(site.directory))
    assert typed(server, "reload").code == 0
    return exposed(server)


def exposed(server: Server) -> Samples:
    done = run_once(server.site, "zdworker", "metrics", environment=environment(server.site.directory))
    assert done.returncode == 0, done.stderr
    found: Samples = {}
    for family in text_string_to_metric_families(done.stdout):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


SELECTOR = re.compile(r"\b(zdworker_\w+)(?:{([^}]*)})?")
MATCHER = re.compile(r'(\w+)\s*(=~|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(by|without) \(([^)]*)\)")


def missing(expression: str, samples: Samples, legend: str = "") -> list[str]:
    """Return what an expression asks for that the samples do not have: names, labels, values of labels."""
    found, labels = [], set(OF_PROMETHEUS)
    for name, matchers in SELECTOR.findall(expression):
        if name not in samples:
            found.append(name)
            continue
        labels |= {label for one in samples[name] for label in one}
        for label, operator, value in MATCHER.findall(matchers):
            values = {one.get(label) for one in samples[name]}
            if label not in OF_PROMETHEUS and (operator != "=" or value not in values):
                found.append(f"{name}{{{label}={value}}}")
    named = {word.strip() for _kind, words in GROUPING.findall(expression) for word in words.split(",")}
    named |= set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", legend))
    kept = {word.strip() for kind, words in GROUPING.findall(expression) if kind == "by" for word in words.split(",")}
    shown = set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", legend))
    if kept:
        found += sorted(shown - kept)
    return found + sorted(named - labels)


def test_they_ask_for_what_a_master_has(
    samples: Samples, dashboard: dict[str, Any], rules: list[dict[str, Any]]
) -> None:
    asked = [(expression, "") for expression in expressions(dashboard)] + legends(dashboard)
    asked += [(rule["expr"], " ".join(rule["annotations"].values())) for rule in rules]
    assert len(asked) > 30
    assert {one: lacks for one, legend in asked if (lacks := missing(one, samples, legend))} == {}
    named = {name for expression, _legend in asked for name, _matchers in SELECTOR.findall(expression)}
    left_out = {name for name in samples if not name.endswith("_created")} - named
    assert left_out == {"zdworker_generation", "zdworker_boots_total", "zdworker_worker_age_seconds"}


def test_what_is_not_there_is_noticed() -> None:
    samples: Samples = {"zdworker_state": [{"state": "steady"}]}
    assert missing('zdworker_state{state="steady"}', samples) == []
    assert missing('zdworker_state{state="gone"}', samples) == ["zdworker_state{state=gone}"]
    assert missing("zdworker_states", samples) == ["zdworker_states"]
    assert missing("sum by (slot) (zdworker_state)", samples) == ["slot"]
    assert missing("sum by (state) (zdworker_state)", samples, "{{instance}}") == ["instance"]
    assert missing("zdworker_state", samples, "{{slot}}") == ["slot"]


def test_alerts_say_what_to_do(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_the_page_s_expressions_are_alerts(rules: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text().partition("Worth an alert")[2].partition("\n## ")[0]
    shown = {row.partition("` |")[0].removeprefix("| `") for row in page.splitlines() if row.startswith("| `")}
    assert {one.split("` for ")[0] for one in shown} <= {rule["expr"] for rule in rules}


def test_panels_have_a_place_each_and_one_data_source(dashboard: dict[str, Any]) -> None:
    """What Grafana does not check at an import: it shows such a dashboard in some other way."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = any(
            one[axis] + one[size] <= other[axis] or other[axis] + other[size] <= one[axis]
            for axis, size in (("x", "w"), ("y", "h"))
        )
        assert apart, (one, other)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", DASHBOARD.read_text())) - {"__rate_interval", "__interval", "__all"}
    assert used == variables
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert {target["datasource"]["uid"] for target in targets(dashboard)} == {"${datasource}"}


# -- Prometheus' own checks ------------------------------------------------------------------------------------------


def promtool(*words: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_loads_the_rules(rules: list[dict[str, Any]]) -> None:
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", str(RULES))


@needs_promtool
def test_prometheus_understands_the_dashboard_s_expressions(dashboard: dict[str, Any], tmp_path: Path) -> None:
    """As rules, with a value in the place of each of Grafana's variables."""
    values = {"$__rate_interval": "5m", "$__interval": "1m", "$instance": ".*"}
    records = []
    for number, expression in enumerate(expressions(dashboard)):
        text = expression
        for variable, value in values.items():
            text = text.replace(variable, value)
        assert "$" not in text
        records.append({"record": f"panel:{number}", "expr": text})
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    assert f"SUCCESS: {len(records)} rules found" in promtool("check", "rules", str(path))


FIRING = {
    "ZdworkerNoWorkerReady": ('zdworker_workers{generation="2",state="ready",instance="shop"}', "0x40"),
    "ZdworkerDegraded": ('zdworker_state{state="degraded",instance="shop"}', "1x40"),
    "ZdworkerReloadFailed": ('zdworker_state{state="failed",instance="shop"}', "1x40"),
    "ZdworkerReloadTakesLong": ('zdworker_state{state="rolling",instance="shop"}', "1x40"),
    "ZdworkerWorkersCrash": ('zdworker_crashes_total{instance="shop"}', "0+1x40"),
    "ZdworkerRequestsCut": ('zdworker_cut_requests_total{instance="shop"}', "0+1x40"),
    "ZdworkerMetricsMissing": ('something_else{instance="shop"}', "1x40"),
}
"""A series for each alert, in Prometheus' notation, with which it fires after half an hour."""


@needs_promtool
def test_each_alert_fires_when_it_should(rules: list[dict[str, Any]], tmp_path: Path) -> None:
    assert set(FIRING) == {rule["alert"] for rule in rules}
    tests = []
    for rule in rules:
        series, values = FIRING[rule["alert"]]
        labels = dict(rule["labels"])
        if rule["alert"] != "ZdworkerMetricsMissing":
            labels["instance"] = "shop"
        state = re.search(r'state="(\w+)"', series)
        if state and rule["alert"] != "ZdworkerNoWorkerReady":
            labels["state"] = state[1]
        annotations = {
            name: text.replace("{{ $labels.instance }}", "shop") for name, text in rule["annotations"].items()
        }
        firing = {"exp_labels": labels, "exp_annotations": annotations}
        well = [{"series": series, "values": "0x40" if values.startswith(("0+", "1x")) else "2x40"}]
        if rule["alert"] == "ZdworkerMetricsMissing":
            well = [{"series": 'zdworker_state{state="steady",instance="shop"}', "values": "1x40"}]
        for given, alerts in (([{"series": series, "values": values}], [firing]), (well, [])):
            test = {"eval_time": "30m", "alertname": rule["alert"], "exp_alerts": alerts}
            tests.append({"interval": "1m", "input_series": given, "alert_rule_test": [test]})
    path = tmp_path / "tests.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", str(path))
