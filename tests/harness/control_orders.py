"""A stand-in for the supervisor behind the control socket: it takes every order, and leaves its end to the test."""

from __future__ import annotations

import socket
from typing import Any

from zdworker.core.events import Policy
from zdworker.core.fleet import Fleet, Phase
from zdworker.core.history import Requester
from zdworker.errors import GenerationError


class Orders:
    """Notes who has asked for a reload, a rollback or an upgrade."""

    fleet = Fleet(Policy(workers=1), 1, Phase.STEADY, current=[1], last_generation=1)

    def __init__(self) -> None:
        self.asked: list[Requester] = []

    def status(self) -> dict[str, Any]:
        return {"state": "steady"}

    def resume(self) -> None:
        """Resume nothing."""

    def history(self) -> list[dict[str, Any]]:
        return [{"kind": "reload"}]

    def probe(self) -> tuple[int, socket.socket]:
        raise GenerationError("no canary is held")

    def reload(self, who: Requester, hold: float | None = None) -> None:
        self.asked.append(who)

    def roll_back(self, who: Requester) -> None:
        self.asked.append(who)

    def waiting(self) -> None:
        return None

    def scale(self, workers: int) -> None:
        self.fleet.size = workers

    def upgrade(self, who: Requester) -> None:
        self.asked.append(who)
