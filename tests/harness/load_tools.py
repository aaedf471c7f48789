"""Programs that load a server (``ab``, ``wrk``), run while the server is reloaded."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence

from tests.harness.server import Server

RELOAD_TIMEOUT_S = 90.0
"""Seconds for a reload while a thousand clients want both cores."""


def run_through_reloads(server: Server, words: Sequence[str], deadline: float) -> tuple[str, int]:
    """Reload ``server`` as long as a load tool runs; return its output and the number of reloads."""
    end = time.monotonic() + deadline
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tool:
        reloads = 0
        try:
            while tool.poll() is None:
                assert time.monotonic() < end, f"{words[0]} has not ended within {deadline} s"
                server.reload(f"v{reloads}", RELOAD_TIMEOUT_S)
                reloads += 1
        finally:
            tool.kill()
        output, _ = tool.communicate()
    assert tool.returncode == 0, output
    return output, reloads


def number(pattern: str, output: str) -> int:
    """Return the number that ``pattern`` finds; 0 without such a line (the tools leave out what is 0)."""
    found = re.search(pattern, output)
    return int(found.group(1)) if found else 0
