"""The way back from a program that cannot be the master's next one, and a rehearsal's answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zdworker import boot

PROGRAM = """
import os, signal, sys
from zdworker import boot

current = boot.begin(int(sys.argv[1]), int(sys.argv[2]))
try:
    current.prepare()
    current.refuse_other_formats()
    {body}
except BaseException as error:
    if current.is_adopted:
        raise
    current.fail(error)
"""

BEFORE = """
import json, os, signal, sys

state = json.loads(os.pread(int(sys.argv[3]), 1 << 20, 0))
for number in state["descriptors"].values():
    os.fstat(number)
print(json.dumps({
    "words": sys.argv[1:], "pid": os.getpid(), "failure": state["failure"], "signals": state["signals"],
    "blocked": signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []), "directory": os.getcwd(),
    "variable": os.environ.get("BEFORE"),
}))
"""


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    """The state of a master whose program before is one that prints what it has got."""
    before = tmp_path / "before.py"
    before.write_text(BEFORE)
    return {
        "number": boot.NUMBER,
        "timeout": 30.0,
        "master": os.getpid(),
        "signals": [int(signal.SIGHUP)],
        "descriptors": {"standard input": 0},
        "back": {
            "words": [sys.executable, str(before)],
            "file": str(before),
            "target": ["-m", "gunicorn", "app:app"],
            "environment": {"BEFORE": "yes"},
            "directory": str(tmp_path),
        },
    }


def run(state: dict[str, Any], body: str, *, rehearses: bool = False) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Run a next program; return how it ended, and the answer of a rehearsal or what the program before has got."""
    memory = os.memfd_create("state")
    os.write(memory, json.dumps(state).encode())
    reading, writing = os.pipe()
    try:
        words = [sys.executable, "-c", PROGRAM.format(body=body), str(memory), str(writing if rehearses else -1)]
        ended = subprocess.run(
            words, pass_fds=(memory, writing), capture_output=True, text=True, check=False, timeout=60
        )
        os.close(writing)
        answer = os.read(reading, 1 << 20).decode() if rehearses else ended.stdout
        return ended, json.loads(answer) if answer else None
    finally:
        os.close(memory)
        os.close(reading)


def test_a_failure_leads_back(state: dict[str, Any], tmp_path: Path) -> None:
    ended, before = run(state, "raise ValueError('no such thing')")
    assert ended.returncode == 0, ended.stderr
    assert before["failure"] == "ValueError: no such thing"
    assert before["words"][:2] == ["-m", "zdworker.upgraded"]
    assert before["words"][3:] == ["-1", "--", "-m", "gunicorn", "app:app"]
    assert (before["directory"], before["variable"], before["blocked"]) == (str(tmp_path), "yes", True)
    assert "no such thing" in ended.stderr


@pytest.mark.parametrize("body", ["sys.exit('no')", "raise KeyboardInterrupt"])
def test_an_exit_leads_back_too(state: dict[str, Any], body: str) -> None:
    _ended, before = run(state, body)
    assert before["failure"]


def test_signals_are_kept_for_the_program_before(state: dict[str, Any]) -> None:
    _ended, before = run(state, "os.kill(os.getpid(), signal.SIGTERM); raise ValueError")
    assert before["signals"] == [signal.SIGHUP, signal.SIGTERM]


def test_what_hangs_leads_back(state: dict[str, Any]) -> None:
    _ended, before = run({**state, "timeout": 0.2}, "signal.pause()")
    assert "within 0.2 s" in before["failure"]


def test_another_format_leads_back(state: dict[str, Any]) -> None:
    _ended, before = run({**state, "number": boot.NUMBER + 1}, "pass")
    assert f"format {boot.NUMBER + 1}" in before["failure"]


def test_the_program_before_that_fails_too_ends(state: dict[str, Any]) -> None:
    ended, before = run({**state, "failure": "ValueError"}, "raise KeyError('neither')")
    assert (ended.returncode, before) == (1, None)
    assert "neither" in ended.stderr


@pytest.mark.parametrize("missing", ["words", "file"])
def test_there_may_be_no_way_back(state: dict[str, Any], missing: str) -> None:
    state["back"][missing] = ["/not/there"] if missing == "words" else "/not/there"
    ended, before = run(state, "raise KeyError('no way')")
    assert (ended.returncode, before) == (1, None)
    assert "no way" in ended.stderr


def test_once_adopted_there_is_no_way_back(state: dict[str, Any]) -> None:
    ended, before = run({**state, "timeout": 0.2}, "current.adopted({}); import time; time.sleep(0.4); sys.exit(7)")
    assert (ended.returncode, before) == (7, None)


def test_a_rehearsal_answers(state: dict[str, Any]) -> None:
    ended, answer = run(state, "current.adopted({'versions': {}})", rehearses=True)
    assert (ended.returncode, answer) == (0, {"can": True, "places": {}, "versions": {}})


def test_a_rehearsal_that_fails_says_why_and_does_not_go_back(state: dict[str, Any]) -> None:
    ended, answer = run(state, "raise ValueError('no such thing')", rehearses=True)
    assert ended.returncode == 1
    assert (answer["can"], answer["reason"]) == (False, "ValueError: no such thing")
    assert "Traceback" in answer["traceback"]


def test_the_descriptors_are_not_inherited(state: dict[str, Any]) -> None:
    body = "assert not any(os.get_inheritable(number) for number in current._descriptors); current.adopted({})"
    _ended, answer = run(state, body, rehearses=True)
    assert answer["can"]
