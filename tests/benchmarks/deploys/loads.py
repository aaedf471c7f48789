"""The loads, the same for every contender.

Rules:

* Clients rest between requests: a deploy is to be seen, not a machine that has nothing left.
* Each load runs in a process of its own and is seen whole: nothing is tried again, nothing left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field

from tests.benchmarks.deploys import sockets
from tests.benchmarks.deploys.contenders import Style
from tests.harness.clients import Answer, Failure, Load, Results
from tests.harness.crowd import Crowd

TITLES: dict[Style, str] = {
    "new": "a connection for each request",
    "kept": "keep-alive connections, POST of 2 kB, think time",
    "crowd": "a thousand keep-alive connections",
    "slow": "requests of 1 s",
    "websocket": "WebSockets",
}
CROWD: dict[str, float] = {"clients": 1000, "least_s": 0.1, "most_s": 10.0, "bytes": 2000}
"""Each client rests from a tenth of a second to ten seconds between two requests."""
PLANS: dict[Style, dict[str, float]] = {
    "new": {"clients": 8, "pause": 0.03, "think": 0.02},
    "kept": {"clients": 16, "pause": 0.01, "think": 0.2},
    "slow": {"clients": 8, "pause": 0.05, "think": 0.1},
}
SOCKETS = 20
PATIENCE = 60.0


@dataclass
class Seen:
    """What a load saw; ``closed`` counts the WebSockets that the server closed, by code, ``reconnects`` has when the
    clients of a crowd made further connections.
    """

    answers: list[Answer]
    failures: list[Failure]
    closed: dict[str, int] = field(default_factory=dict)
    reconnects: list[float] | None = None


class Traffic:
    """One load on one server, from making it to :meth:`stop`."""

    def __init__(self, style: Style, port: int) -> None:
        self._load: Load | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._crowd: Crowd | None = None
        if style == "crowd":
            self._crowd = Crowd(("127.0.0.1", port), **CROWD)
            self._crowd.__enter__()
            return
        if style != "websocket":
            self._load = Load(("127.0.0.1", port), style, **PLANS[style])
            self._load.__enter__()
            return
        command = [sys.executable, sockets.__file__, f"ws://127.0.0.1:{port}/ws", str(SOCKETS)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def stop(self) -> Seen:
        """End the load and return what it saw."""
        if self._crowd is not None:
            crowd = self._crowd.stop()
            return Seen(crowd.answers, crowd.failures, reconnects=crowd.reconnects)
        if self._load is not None:
            results: Results = self._load.stop()
            return Seen(results.answers, results.failures)
        assert self._process is not None
        output, _ = self._process.communicate(timeout=PATIENCE)
        plain = json.loads(output)
        answers = [Answer(*answer) for answer in plain["answers"]]
        return Seen(answers, [Failure(*failure) for failure in plain["failures"]], plain["closed"])
