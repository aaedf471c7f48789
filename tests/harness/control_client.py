"""What a master says of itself on its control socket.

Rules: a fleet of hundreds is asked for here and not looked for in /proc, which would take the processors from it.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import Any

from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server
from zdworker.command import client, finder
from zdworker.ipc import messages

ANSWER_TIMEOUT_S = 10.0
"""Seconds that a master may take to answer."""


def control_socket(server: Server) -> str:
    """Return where the control socket of ``server`` is, if its settings name none."""
    return str(server.settings.get("zd_control_socket") or server.site.directory / "control.sock")


def status(server: Server) -> dict[str, Any]:
    """Return what ``zdworker status --json`` would show.

    :raises OSError: no master answers.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(ANSWER_TIMEOUT_S)
        _connect(control, control_socket(server))
        control.sendall(b'{"type": "order", "command": "status"}\n')
        found = json.loads(control.makefile().readline())["status"]
    assert isinstance(found, dict)
    return found


def _connect(control: socket.socket, path: str) -> None:
    """Connect when the master's queue has room: with a timeout, a full one is an error at once (connect(2), EAGAIN)."""
    end = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            control.connect(path)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def ready(server: Server, generation: int) -> int:
    """Return how many workers of a generation are ready; 0 while no master answers.

    :raises AssertionError: the master has ended.
    """
    assert server.running, f"the master has ended\n{server.log[-20000:]}"
    try:
        found = status(server)
    except OSError:
        return 0
    return sum(worker["generation"] == generation and worker["state"] == "ready" for worker in found["workers"])


def reload_error(server: Server) -> str | None:
    """Order a reload by signal, wait for its end, and return its error; None if it is done."""
    before = status(server)["reloads"]
    server.signal(server.reload_signal)

    def ended() -> bool:
        found = status(server)
        return bool(found["reloads"] > before and found["last_reload"]["result"])

    wait_for(ended, BOOT_TIMEOUT_S, "the reload has ended")
    error: str | None = status(server)["last_reload"]["error"]
    return error


# -- of a master that is found by its pid, because its settings name no control socket ---------------------------


def last_reload(server: Server) -> dict[str, Any]:
    """Return the last reload as ``status`` shows it; empty before the first one."""
    return client.status(finder.find(pid=server.master).path)["last_reload"] or {}


def worker_rows(server: Server) -> list[dict[str, Any]]:
    """Return the workers as the master has them: ``pid``, ``slot``, ``state`` and so on of each."""
    rows: list[dict[str, Any]] = client.status(finder.find(pid=server.master).path)["workers"]
    return rows


def worker_states(server: Server) -> list[str]:
    """Return the states of the workers as the master has them."""
    return [worker["state"] for worker in worker_rows(server)]


def reload(server: Server) -> dict[str, Any]:
    """Order a reload and return how it ended."""
    before = last_reload(server).get("generation")
    server.signal(signal.SIGUSR2)

    def ended() -> dict[str, Any]:
        last = last_reload(server)
        return last if last.get("generation") != before and last.get("result") is not None else {}

    return wait_for(ended, BOOT_TIMEOUT_S, "the reload has ended")


# -- orders ------------------------------------------------------------------------------------------------------


def begin_upgrade(server: Server) -> client.Connection:
    """Order an upgrade as soon as nothing else is under way, and return the connection on which its end is reported."""
    busy = ("starting", "rolling")
    wait_for(lambda: status(server)["state"] not in busy, BOOT_TIMEOUT_S, "nothing else is under way")
    connection = client.Connection(control_socket(server))
    try:
        first = connection.order(messages.Order("upgrade", wait=True))
        assert isinstance(first, messages.UpgradeStep), first
    except BaseException:
        connection.close()
        raise
    return connection


def upgrade_ended(connection: client.Connection, deadline: float = BOOT_TIMEOUT_S) -> messages.Upgraded:
    """Return how an upgrade has ended; see :func:`begin_upgrade`."""
    end = time.monotonic() + deadline
    with connection:
        answer: messages.Message = messages.UpgradeStep("")
        while isinstance(answer, messages.UpgradeStep):
            answer = connection.receive(end)
    assert isinstance(answer, messages.Upgraded), answer
    return answer


def upgrade(server: Server) -> messages.Upgraded:
    """Order an upgrade and return how it has ended."""
    return upgrade_ended(begin_upgrade(server))


def order_and_wait(server: Server, command: str) -> messages.Outcome:
    """Order a reload or a rollback and return how it has ended."""
    with client.Connection(control_socket(server)) as connection:
        answer = connection.order(messages.Order(command, wait=True))
        while isinstance(answer, messages.Progress):
            answer = connection.receive(time.monotonic() + BOOT_TIMEOUT_S)
    assert isinstance(answer, messages.Outcome), answer
    return answer
