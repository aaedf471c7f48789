"""The demonstration of the README, as it is run there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.harness.documents import ROOT


@pytest.mark.load
def test_the_demo_loses_no_request() -> None:
    words = [sys.executable, "example_app/demo.py"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().endswith("No other request failed.")
