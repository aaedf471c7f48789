"""``ab`` and ``wrk`` with a thousand connections, reload after reload while they run."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence

import pytest

from .conftest import Start
from .server import Server

BOOT_UNDER_FIRE = 90.0
"""Seconds for a reload while a thousand clients want both cores."""


def run_through_reloads(server: Server, words: Sequence[str], deadline: float) -> tuple[str, int]:
    """Reload ``server`` as long as a load tool runs; return its output and the number of reloads."""
    end = time.monotonic() + deadline
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tool:
        reloads = 0
        try:
            while tool.poll() is None:
                assert time.monotonic() < end, f"{words[0]} has not ended within {deadline} s"
                server.reload(f"v{reloads}", BOOT_UNDER_FIRE)
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


@pytest.mark.skipif(shutil.which("ab") is None, reason="ab is not installed")
@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "ab -k"])
def test_ab_sees_no_failed_request(start: Start, kept: bool) -> None:
    server = start(workers=4)
    url = "http://%s:%s/fixed" % server.address
    words = ["ab", "-q", "-n", "100000", "-c", "1000", "-s", "60", *(["-k"] if kept else []), url]
    output, reloads = run_through_reloads(server, words, 180)
    assert number(r"Complete requests:\s+(\d+)", output) == 100000
    assert number(r"Failed requests:\s+(\d+)", output) == 0, output
    assert number(r"Non-2xx responses:\s+(\d+)", output) == 0, output
    assert reloads >= 2


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sees_no_socket_error(start: Start) -> None:
    server = start(workers=4)
    url = "http://%s:%s/fixed" % server.address
    output, reloads = run_through_reloads(
        server, ["wrk", "-c", "1000", "-t", "2", "-d", "20", "--timeout", "20", url], 120
    )
    assert "Socket errors" not in output, output
    assert "Non-2xx" not in output, output
    assert number(r"(\d+) requests in", output) > 1000
    assert reloads >= 2
