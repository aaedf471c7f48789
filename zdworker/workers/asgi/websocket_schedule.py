"""When a worker that leaves closes its WebSockets, and with what code.

Rules:

* All clients come back at once when they are closed, so many WebSockets are closed evenly over ``zd_websocket_drain``
  seconds. A few need no such time and would hold up the reload, so at most :data:`CLOSE_INTERVAL_S` passes from one to
  the next.
* A client's message that crosses the close on its way is never answered. So each WebSocket is closed right behind an
  answer of the application, if one comes soon: a client that asks often has just got its answer then, and has not asked
  again yet.
* One that is accepted during the drain is closed at a random moment, because the clients of another worker that has
  just left may all come back within the same moment.
"""

from __future__ import annotations

import random

SERVICE_RESTART = 1012
"""RFC 6455 7.4.2, registered with IANA."""

CLOSE_INTERVAL_S = 0.05
"""Seconds from one close to the next, at most."""

ANSWER_WAIT_S = 0.3
"""Seconds that an answer is waited for, to close right behind it."""

ACCEPTED_IN_DRAIN_S = 1.0
"""Seconds within which a WebSocket is closed that was accepted during the drain."""


def close_delays(count: int, spread_s: float) -> list[float]:
    """Return for each of ``count`` WebSockets the seconds from now until it is closed, at most ``spread_s``."""
    return [place * min(spread_s / count, CLOSE_INTERVAL_S) for place in range(count)]


def delay_after_accept(spread_s: float) -> float:
    """Return the seconds until a WebSocket is closed that was accepted just now, in the drain; at most ``spread_s``."""
    return random.uniform(0.0, min(ACCEPTED_IN_DRAIN_S, spread_s))  # noqa: S311  # no secret
