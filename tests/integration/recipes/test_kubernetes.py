"""The manifests: of the types that the Kubernetes API has, and with times that fit together.

The types are generated from the API's own description (by lightkube, whose models have the versions of Kubernetes);
what a cluster does with them no test here can see.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

import pytest
import yaml

from tests.harness.recipes import DEPLOY, EXAMPLE


def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "app.yaml").read_text())
    return {document["kind"]: document for document in documents}


def container() -> dict[str, Any]:
    found: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    return found


def as_the_api_reads_it(document: dict[str, Any]) -> dict[str, Any]:
    """Return what is left of a manifest when it is read as what its apiVersion and kind say: what is unknown is lost.

    :raises msgspec.ValidationError: something has another type, or is missing.
    """
    group, _, version = document["apiVersion"].rpartition("/")
    module = importlib.import_module(f"lightkube.models.{group or 'core'}_{version}")
    read: dict[str, Any] = getattr(module, document["kind"]).from_dict(document).to_dict()
    return read


needs_types = pytest.mark.skipif(importlib.util.find_spec("lightkube") is None, reason="lightkube is not installed")


@needs_types
def test_manifests_are_of_the_types_of_the_api() -> None:
    for document in manifests().values():
        assert as_the_api_reads_it(document) == document


@needs_types
def test_a_slip_in_a_manifest_would_be_noticed() -> None:
    probe: dict[str, Any] = {"httpGet": {"path": "/", "port": 80}}
    for slip in ({"name": "app", "readinesProbe": probe}, {"name": "app", "ports": [{"port": 80}]}, {"image": "app"}):
        deployment = manifests()["Deployment"]
        deployment["spec"]["template"]["spec"]["containers"] = [slip]
        try:
            assert as_the_api_reads_it(deployment) != deployment
        except ValueError as error:
            assert "containers[0]" in str(error)  # noqa: PT017  # either way


def test_the_manifest_s_parts_name_each_other() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert [port["targetPort"] for port in found["Service"]["spec"]["ports"]] == ["http"] == list(ports)
    assert container()["readinessProbe"]["httpGet"]["port"] == "http"
    assert re.findall(r"PORT=(\d+)", (DEPLOY / "docker" / "Dockerfile").read_text()) == [str(ports["http"])]
    volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert [volume["name"] for volume in volumes] == [mount["name"] for mount in container()["volumeMounts"]]


def test_the_manifest_s_times_fit_together() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    environment = {entry["name"]: entry["value"] for entry in container()["env"]}
    probe = container()["readinessProbe"]
    assert probe["httpGet"]["path"] == environment["ZD_HEALTH_PATH"]
    delay = float(environment["ZD_SHUTDOWN_DELAY"])
    notices = probe["periodSeconds"] * probe["failureThreshold"]
    assert delay > notices
    assert manifests()["Deployment"]["spec"]["minReadySeconds"] > notices
    configuration: dict[str, Any] = {}
    exec((EXAMPLE / "gunicorn.conf.py").read_text(), configuration)  # noqa: S102  # our own file
    assert pod["terminationGracePeriodSeconds"] > delay + configuration["graceful_timeout"]
    assert "lifecycle" not in container(), "no preStop"
    strategy = manifests()["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert (strategy["maxSurge"], strategy["maxUnavailable"]) == (1, 0)
