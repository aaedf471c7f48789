"""A cached file that is not younger than its source is passed over; else Python would run the old code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from zdworker.forkserver.bytecode import is_stale

IMPORT = "import sys; sys.path.insert(0, sys.argv[1]); {rule}import victim; print(victim.VALUE)"
RULE = "from zdworker.forkserver.bytecode import distrust_stale_bytecode; distrust_stale_bytecode({since}); "


def run(directory: Path, rule: str) -> str:
    command = [sys.executable, "-c", IMPORT.format(rule=rule), str(directory)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def edit_unseen(source: Path) -> None:
    """Change the source but neither its size nor its modification time."""
    before = source.stat()
    source.write_text("VALUE = 2\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_edit_that_python_does_not_see_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "victim.py"
    source.write_text("VALUE = 1\n")
    assert run(tmp_path, "") == "1"
    edit_unseen(source)
    assert run(tmp_path, "") == "1"  # what the rule is for
    assert run(tmp_path, RULE.format(since=source.stat().st_ctime_ns + 1)) == "1"  # not changed since
    assert run(tmp_path, RULE.format(since=0)) == "2"


def test_a_good_cache_is_used(tmp_path: Path) -> None:
    source = tmp_path / "victim.py"
    source.write_text("VALUE = 1\n")
    os.utime(source, (0, 0))
    assert run(tmp_path, RULE.format(since=0)) == "1"
    (cached,) = (tmp_path / "__pycache__").iterdir()
    written = cached.stat().st_mtime_ns
    assert not is_stale(str(cached), str(source), 0)
    assert run(tmp_path, RULE.format(since=0)) == "1"
    assert cached.stat().st_mtime_ns == written


def test_what_cannot_be_looked_at_is_not_trusted(tmp_path: Path) -> None:
    assert is_stale(str(tmp_path / "none.pyc"), str(tmp_path / "none.py"), 0)
