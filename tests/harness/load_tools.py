"""Programs that load a server (``ab``, ``wrk``), run while the server is reloaded."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Sequence

from tests.harness.server import Server

RELOAD_TIMEOUT_S = 90.0
"""Seconds for a reload while a thousand clients want both cores."""

PROMISED = 10, 30.0
"""Reloads and seconds, at least, that a server is promised to hold."""

PART = 2, 5.0
"""Likewise, in CI."""

ENDLESS = 5_000_000
"""Requests, or seconds, that are not reached: the tool is interrupted."""

END_S = 60.0
"""Seconds that a tool may take for its end."""


def run_through_reloads(server: Server, words: Sequence[str], reloads: int, seconds: float) -> str:
    """Have a load tool run that does not end by itself, reload ``server`` meanwhile, and interrupt the tool.

    :param reloads: how many reloads there are, at least.
    :param seconds: how long the tool runs, at least.
    :return: what the tool prints then.
    """
    end = time.monotonic() + seconds
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tool:
        try:
            done = 0
            while tool.poll() is None and (done < reloads or time.monotonic() < end):
                server.reload(f"v{done}", RELOAD_TIMEOUT_S)
                done += 1
            gave_up = tool.poll() is not None
            tool.send_signal(signal.SIGINT)
            output, _ = tool.communicate(timeout=END_S)
        finally:
            tool.kill()
    assert not gave_up, output
    return output


def number(pattern: str, output: str) -> int:
    """Return the number that ``pattern`` finds; 0 without such a line (the tools leave out what is 0)."""
    found = re.search(pattern, output)
    return int(found.group(1)) if found else 0
