"""What docs/debugging.md shows is done as it is shown there: a fork server by hand, the lines of the trace.

Rules: the page's script is taken out of the page and run in a directory with an application, as a user would.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import documents
from zdworker.core import events
from zdworker.ipc import messages

PAGE = "docs/debugging.md"
APPLICATION = "async def app(scope, receive, send):\n    pass\n"


def load(directory: Path, *arguments: str) -> str:
    """Run the script of the page and return what it prints."""
    script = next(block for block in documents.blocks(PAGE) if block.title == "load.py")
    (directory / "load.py").write_text(script.text)
    words = [sys.executable, "load.py", *arguments, "-k", "zdworker.UvicornWorker", "app:app"]
    environment = {**os.environ, "PWD": str(directory), "PYTHONPATH": str(documents.ROOT)}
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.linux
def test_a_fork_server_is_started_by_hand(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    assert load(tmp_path, "--preload").startswith(f"Loaded(protocol={messages.PROTOCOL}, preloaded=True, ")


@pytest.mark.linux
def test_a_fork_server_by_hand_reports_why_it_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import nothing_of_this_name\n")
    printed = load(tmp_path, "--preload")
    assert printed.startswith("LoadFailed(reason=\"ModuleNotFoundError: No module named 'nothing_of_this_name'\"")


def test_the_trace_shows_names_that_exist() -> None:
    trace = next(block.text for block in documents.blocks(PAGE) if "zdworker: Reload()" in block.text)
    kinds = {**vars(events), **vars(messages)}
    shown = re.findall(r"\b([A-Z]\w+)\(([^()]*)", trace)
    assert len(shown) > 20
    for name, arguments in shown:
        fields = {field.name for field in dataclasses.fields(kinds[name])}
        assert set(re.findall(r"(\w+)=", arguments)) <= fields, name
