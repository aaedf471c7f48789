"""The workflow for GitHub Actions: its steps are shell, and the last one is a push that the Git recipe answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.recipes import DEPLOY, changed, commands, find, run

WORKFLOW = DEPLOY / "github" / "deploy.yml"

pytestmark = pytest.mark.skipif(find("git") is None, reason="git is not installed")


def steps() -> dict[str, dict[str, Any]]:
    jobs: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    return {step.get("name", step.get("uses")): step for step in jobs["deploy"]["steps"]}


@pytest.mark.skipif(find("check-jsonschema") is None, reason="check-jsonschema is not installed")
@pytest.mark.parametrize(
    ("schema", "file"), [("github-workflows", "github/deploy.yml"), ("compose-spec", "docker/compose.yaml")]
)
def test_the_workflow_is_of_the_published_schema(schema: str, file: str) -> None:
    checked = run(["check-jsonschema", "--builtin-schema", f"vendor.{schema}", str(DEPLOY / file)], DEPLOY)
    assert checked.returncode == 0, checked.stdout


def test_the_key_is_readable_for_nobody_else(tmp_path: Path) -> None:
    step = steps()["Make the key known"]
    secrets = {"DEPLOY_KEY": "the key", "DEPLOY_HOST_KEY": "app.example.org ssh-ed25519 AAAA"}
    assert set(step["env"]) == set(secrets)
    done = run(["bash", "-ec", step["run"]], tmp_path, {**secrets, "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stdout
    key = tmp_path / ".ssh" / "id_ed25519"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("the key\n", 0o600)
    assert "app.example.org" in (tmp_path / ".ssh" / "known_hosts").read_text()


@pytest.mark.skipif(find("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_the_key_may_be_made_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    script = changed(commands("github-actions.md", "ssh-keygen"), {"~app/": f"{tmp_path}/"})
    done = run(["sh", "-ec", script], tmp_path)
    assert done.returncode == 0, done.stdout
    public = (tmp_path / "deploy_key.pub").read_text()
    assert (tmp_path / ".ssh" / "authorized_keys").read_text() == f"restrict {public}"


def test_a_refused_push_fails_the_job_and_shows_why(tmp_path: Path) -> None:
    """The hook's answer is played here; that the real one refuses, and how, is tested with the Git recipe."""
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    commit = "git -c user.name=test -c user.email=test commit -q --allow-empty -m x"
    made = run(["sh", "-ec", f"git init -q . && {commit} && git init -q --bare far"], tmp_path, quiet)
    assert made.returncode == 0, made.stdout
    far, push = tmp_path / "far", ["bash", "-ec", steps()["Deploy"]["run"]]
    hook = far / "hooks" / "update"
    hook.write_text("#!/bin/sh\necho RuntimeError: broken\nexit 1\n")
    hook.chmod(0o755)
    refused = run(push, tmp_path, {**quiet, "DEPLOY_TO": str(far)})
    assert refused.returncode != 0
    assert "remote: RuntimeError: broken" in refused.stdout
    hook.write_text("#!/bin/sh\nexit 0\n")
    assert run(push, tmp_path, {**quiet, "DEPLOY_TO": str(far)}).returncode == 0
    assert run(["git", "-C", "far", "rev-parse", "main"], tmp_path, quiet).returncode == 0
