"""When a worker that leaves closes its WebSockets, and with what code.

Rules:

* Their clients come back at once, all of them: many are closed over ``zd_websocket_drain`` seconds, evenly. A few need
  no such time, and would hold up the reload for it: nobody waits longer than :data:`PACE` for the next one.
* A message that crosses the close on its way is never answered. So each is closed right behind an answer of the
  application's, if one comes soon: those who ask often have just been answered then, and not asked again yet.
* One that is accepted during the drain is closed at a random moment: all the clients of a worker that closed before may
  come back within the same one.
"""

from __future__ import annotations

import random

SERVICE_RESTART = 1012
"""RFC 6455 7.4.2, registered with IANA."""

PACE = 0.05
"""Seconds from one close to the next, at most."""

SOON = 0.3
"""Seconds that an answer is waited for, to close right behind it."""

LATE = 1.0
"""Seconds within which one is closed that was accepted during the drain."""


def moments(count: int, spread: float) -> list[float]:
    """Return for each of ``count`` WebSockets the seconds from now until it is closed, at most ``spread``."""
    return [place * min(spread / count, PACE) for place in range(count)]


def late(spread: float) -> float:
    """Return the seconds until one is closed that was accepted just now."""
    return random.uniform(0.0, min(LATE, spread))  # noqa: S311  # no secret
