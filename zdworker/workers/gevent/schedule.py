"""When each connection is looked at next, so that those that are idle cost nothing meanwhile.

Rules: a connection is at one place, a bucket of :data:`BUCKET_S` seconds. What ends is taken out at once, because a
server may see thousands of connections a second, and keep them for minutes.
"""

from __future__ import annotations

import math
from typing import Any

BUCKET_S = 0.1
"""Seconds that one bucket spans; a connection is looked at so much later, at most, than was asked for."""


class Schedule:
    """The connections by the time of their next look. Times are those of ``time.monotonic()``."""

    def __init__(self) -> None:
        self._buckets: dict[int, set[Any]] = {}
        self._bucket_of: dict[Any, int] = {}

    def put(self, connection: Any, at: float) -> None:
        """Have a connection looked at when ``at`` has come, and not before; infinite: never."""
        self.discard(connection)
        if at < math.inf:
            number = math.ceil(at / BUCKET_S)
            self._bucket_of[connection] = number
            self._buckets.setdefault(number, set()).add(connection)

    def discard(self, connection: Any) -> None:
        """Forget a connection, which may be unknown."""
        number = self._bucket_of.pop(connection, None)
        if number is not None:
            bucket = self._buckets[number]
            bucket.discard(connection)
            if not bucket:
                del self._buckets[number]

    def due(self, now: float) -> list[Any]:
        """Take out and return the connections whose time has come."""
        numbers = [number for number in self._buckets if number * BUCKET_S <= now]
        found = [connection for number in sorted(numbers) for connection in self._buckets.pop(number)]
        for connection in found:
            del self._bucket_of[connection]
        return found

    def due_in(self, now: float) -> float:
        """Return the seconds until the next look, infinite without one."""
        return max(0.0, min(self._buckets) * BUCKET_S - now) if self._buckets else math.inf
