"""How each contender learns that there is new code on disk.

Rules:

* What its documentation says, and no more; who deploys waits only where the documentation tells him to.
* A function here returns when the one who deploys has nothing left to do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.benchmarks.deploys.servers import until

if TYPE_CHECKING:
    from tests.benchmarks.deploys.servers import Server

ARRIVAL_S = 120.0
"""Seconds that a second master has for its workers."""

Deploy = Callable[["Server", str], None]


def send(number: signal.Signals) -> Deploy:
    """A signal to the main process."""

    def deploy(server: Server, _: str) -> None:
        os.kill(server.main, number)

    return deploy


def second_master(server: Server, version: str) -> None:
    """USR2, wait for the second master's workers, TERM to the first (gunicorn.org, "Upgrading to a new binary").

    It does not tell that they are ready; who deploys has to ask. Here that is asked of the application, and the first
    master is ended when all of them have answered.

    :raises Lost: they did not.
    """
    fresh = server.directory / "gunicorn.pid.2"
    until(lambda: not fresh.exists(), 10, "the upgrade before is over")  # until then USR2 would be ignored
    os.kill(server.main, signal.SIGUSR2)
    until(fresh.exists, 10, "the second master's pid file")
    second = int(fresh.read_text(encoding="ascii"))
    server.arrived(version, ARRIVAL_S)
    os.kill(server.main, signal.SIGTERM)
    server.main = second


def chain(server: Server, _: str) -> None:
    """uWSGI: ``c`` into the master's FIFO (uwsgi-docs, "The Master FIFO")."""
    fifo = os.open(server.directory / "fifo", os.O_WRONLY | os.O_NONBLOCK)  # with nobody to read it: an error, no wait
    try:
        os.write(fifo, b"c")
    finally:
        os.close(fifo)


def pm2(server: Server, _: str) -> None:
    """PM2: ``pm2 reload``; nothing waits for its end, which may not come about when the code is broken."""
    server.say("pm2", "reload", "ecosystem.config.js")
