"""A worker that writes what it likes into its report channel, when a test tells it to.

Rules: the application's own code does it, in a thread, after the worker has dropped its privileges. It is Python in a
file named ``attack-<pid>.py``; ``channel`` is the worker's end, and ``left(seconds)`` says whether there is time left.
"""

from __future__ import annotations

from tests.harness.processes import wait_for
from tests.harness.server import Server

HOOK = """
import threading as _threading

_before_attack = post_worker_init


def post_worker_init(worker):
    _before_attack(worker)
    _threading.Thread(target=_attack, args=(worker,), daemon=True).start()


def _attack(worker):
    name = f"attack-{_os.getpid()}.py"
    while not _os.path.exists(name):
        _time.sleep(0.02)
    began = _time.monotonic()

    def left(seconds):
        return _time.monotonic() < began + seconds

    try:
        with open(name) as file:
            exec(file.read(), {"channel": worker.zd_reporter._channel, "worker": worker, "left": left, "os": _os})
    except OSError as error:
        _note("attacked", pid=worker.pid, error=str(error))
    else:
        _note("attacked", pid=worker.pid, error="")
"""
"""For the end of gunicorn.conf.py."""


def attack(server: Server, pid: int, code: str) -> None:
    """Have a worker run ``code``."""
    server.site.write(f"attack-{pid}.py", code)


def wait_attacked(server: Server, pid: int, deadline: float) -> None:
    """Wait until the code has run, or its channel was closed, or the worker has ended."""
    wait_for(
        lambda: pid not in server.workers() or any(event["pid"] == pid for event in server.site.events("attacked")),
        deadline,
        "the attack is over",
    )
