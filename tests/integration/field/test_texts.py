"""Texts of the application's with everything that a text may hold: lone surrogates, escape sequences, NULs, megabytes.

Rules: whatever an error's text is, the reload has failed, the old code is still serving, the next reload goes through;
what a reader gets (log, systemd, terminal) is printable and bounded, what a program gets is JSON without surrogates.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start, script

HOSTILE = {
    "surrogate": r"'no such file: caf\udce9'",
    "escape": r"'\x1b]0;title\x07\x1b[2J\x9b31m gone'",
    "nul": r"'\0 before and after \0'",
    "megabytes": "'x' * 6_000_000",
    "lines": r"'\n'.join(f'line {n}' for n in range(200_000))",
    "no text": "_Silent()",
}
"""Expressions for what an exception is made with."""

SILENT = """

class _Silent:
    def __str__(self):
        raise ValueError("has no text")

    __repr__ = __str__
"""

BOUND_BYTES = 400_000
"""What one failed reload may write to a log or to a client, whatever the length of the application's texts."""

UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

LIFESPAN = """
async def lifespan(receive, send):
    await receive()
    await send({{"type": "lifespan.startup.failed", "message": {text}}})
"""

WHERE = {
    "import, preload": ("raise RuntimeError({text})", True),
    "import": ("raise RuntimeError({text})", False),
    "exit": ("import sys\nsys.exit({text})", True),
    "lifespan": (LIFESPAN, True),
}
"""Code that fails with a text, and whether it is preloaded."""


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd would listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.setblocking(False)
        yield made


def received(notified: socket.socket) -> str:
    found = b""
    while True:
        try:
            found += notified.recv(1 << 20) + b"\n"
        except BlockingIOError:
            return found.decode()


def ask(server: Server, order: bytes) -> Iterator[bytes]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(2 * BOOT_TIMEOUT_S)
        control.connect(str(server.site.directory / "control.sock"))
        control.sendall(order + b"\n")
        yield from control.makefile("rb")


def answer(server: Server, order: bytes, kind: str) -> tuple[bytes, dict[str, Any]]:
    for line in ask(server, order):
        plain = json.loads(line)
        if plain["type"] == kind:
            return line, plain
    raise AssertionError(f"no {kind}")


def surrogates(line: bytes) -> list[str]:
    """The lone surrogates that the texts of a JSON document hold."""
    return re.findall("[\ud800-\udfff]", json.dumps(json.loads(line), ensure_ascii=False))


def command(server: Server, *words: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "zdworker", *words, "--socket", str(server.site.directory / "control.sock")],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=2 * BOOT_TIMEOUT_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, where) for kind in HOSTILE for where in WHERE if (kind, where) != ("no text", "lifespan")],
)
def test_a_failed_reload_with_any_text(
    make_server: Start, site: Site, notified: socket.socket, kind: str, where: str
) -> None:
    code, preload = WHERE[where]
    log = site.directory / "error.log"
    server = make_server(
        environment={"NOTIFY_SOCKET": notified.getsockname()},
        preload_app=preload,
        errorlog=str(log),
        workers=1,
        zd_control_socket=str(site.directory / "control.sock"),
    ).start()
    before = server.workers()
    received(notified)
    site.deploy("two", extra=SILENT + code.format(text=HOSTILE[kind]) + "\n")

    line, outcome = answer(server, b'{"type": "order", "command": "reload", "wait": true}', "outcome")
    assert outcome["result"] == "failed"
    assert outcome["error"]
    assert surrogates(line) == []
    assert len(line) < BOUND_BYTES
    assert server.running
    wait_for(lambda: server.workers() == before, BOOT_TIMEOUT_S, "the failed worker is gone, the others are there")

    line, report = answer(server, b'{"type": "order", "command": "status"}', "report")
    assert report["status"]["last_reload"]["error"] == outcome["error"]
    assert surrogates(line) == []
    assert len(line) < 2 * BOUND_BYTES

    for words in (["status"], ["status", "--json"]):
        status, text = command(server, *words, environment={"PYTHONIOENCODING": "ascii"})
        assert status == 0, text
        assert UNFIT.findall(text) == []

    said = received(notified)
    assert "STATUS=failed: 1 of 1 worker ready, generation 1" in said
    assert all(len(part) < 1000 for part in said.splitlines())
    for text in (said, log.read_text(), server.log):
        assert UNFIT.findall(text) == []
        assert len(text) < BOUND_BYTES
    assert "Logging error" not in server.log
    server.reload("three")
    assert server.stop() == 0


def test_the_command_prints_no_escape_sequence(start: Start, site: Site) -> None:
    server = start(workers=1, preload_app=True, zd_control_socket=str(site.directory / "control.sock"))
    site.deploy("two", extra=f"raise RuntimeError({HOSTILE['escape']} + {HOSTILE['surrogate']})\n")
    status, text = command(server, "reload")
    assert status == 1
    assert "title" in text
    assert r"caf\udce9" in text
    assert UNFIT.findall(text) == []


def test_what_new_code_prints_while_it_loads_is_printable(start: Start, site: Site) -> None:
    """Colours stay: they harm nothing, and many a log has them."""
    server = start(workers=1, preload_app=True)
    printed = rb"b'\x1b]0;title\x07\x1b[2J caf\xe9 \xc3\xa9 \x1b[31mred\x1b[0m \0 end\n'"
    site.deploy("two", extra=f"os.write(2, {printed.decode()})\n")
    server.signal(signal.SIGUSR2)
    server.wait_only("two")
    wait_for(lambda: "\x1b[0m" in server.log, BOOT_TIMEOUT_S, "the master has written it to the log")
    text = server.log_file.read_bytes().decode()
    assert r"\x1b]0;title\x07\x1b[2J caf\udce9 é " in text
    assert "\x1b[31mred\x1b[0m" in text
    assert UNFIT.findall(text.replace("\x1b[31m", "").replace("\x1b[0m", "")) == []


def test_a_degraded_fleet_with_any_text(make_server: Start, site: Site, notified: socket.socket) -> None:
    """The respawn of a worker fails, and no reload is there to tell it."""
    server = make_server(environment={"NOTIFY_SOCKET": notified.getsockname()}, workers=2).start()
    site.deploy("two", extra=f"raise RuntimeError({HOSTILE['surrogate']} + {HOSTILE['escape']})\n")
    os.kill(server.workers()[0], signal.SIGKILL)
    said = ""

    def degraded() -> bool:
        nonlocal said
        assert server.running, server.log
        said += received(notified)
        # The status may also name the worker that was killed, if the master did not know yet that it was ready.
        return any(line.startswith("STATUS=degraded") and r"caf\udce9" in line for line in said.splitlines())

    wait_for(degraded, BOOT_TIMEOUT_S, "systemd has been told")
    assert UNFIT.findall(said) == []


@pytest.mark.parametrize("name", ["o'brien", 'quo"te', "back\\slash"])
def test_a_script_line_is_read_as_the_kernel_reads_it(make_server: Start, site: Site, name: str) -> None:
    place = site.directory / name
    place.mkdir()
    (place / "python").symlink_to(sys.executable)
    gunicorn = place / "gunicorn"
    gunicorn.write_text(f"#!{place / 'python'}\n" + Path(script("gunicorn")).read_text().partition("\n")[2])
    gunicorn.chmod(0o755)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {"PYTHONPATH": os.pathsep.join((packages, str(Path(__file__).parents[3])))}
    server = make_server(command=[str(gunicorn)], workers=1, environment=environment).start()
    server.reload("two")
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[0] for pid in server.fork_servers()]
    assert len(commands) == 1
    assert server.stop() == 0
