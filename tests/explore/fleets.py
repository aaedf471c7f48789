"""Fleets to explore: policies, numbers of workers that are asked for, the most disturbances (None: any number)."""

from __future__ import annotations

from zdworker.core.events import Policy

Fleet = tuple[tuple[Policy, ...], tuple[int, ...], int | None]

FLEETS: dict[str, Fleet] = {
    "1 worker": ((Policy(workers=1),), (), None),
    "1 worker, stop-first": ((Policy(workers=1, surge=0, unavailable=1),), (), None),
    "1 worker, a rollback window": ((Policy(workers=1, rollback_window=100.0),), (), None),
    "1 worker, min_ready": ((Policy(workers=1, min_ready=5.0),), (), None),
    "1 worker, a delayed end": ((Policy(workers=1, shutdown_delay=5.0),), (), None),
    "1 worker, exit on a crash": ((Policy(workers=1, exit_on_crash=True),), (), None),
    "1 worker, development": ((Policy(workers=1, development=True),), (), None),
    "1 worker, a canary": ((Policy(workers=1, canary=60.0),), (), 4),
    "1 worker, stop-first, a canary": ((Policy(workers=1, surge=0, unavailable=1, canary=60.0),), (), 4),
    "2 workers, a canary": ((Policy(workers=2, canary=60.0),), (), 2),
    "0 to 1 worker, percentages": ((Policy(workers=0, surge=25, surge_is_percentage=True),), (0, 1), None),
    "0 to 2 workers, scaled": ((Policy(workers=1),), (0, 1, 2), 2),
    "1 or 2 workers, as the configuration says": ((Policy(workers=1), Policy(workers=2)), (), 2),
    "2 workers, stop-first": ((Policy(workers=2, surge=0, unavailable=1),), (), None),
    "2 workers": ((Policy(workers=2),), (), 3),
    "2 workers, surge 2, unavailable 1": ((Policy(workers=2, surge=2, unavailable=1),), (), 2),
    "3 workers": ((Policy(workers=3),), (), 2),
    "3 workers, stop-first": ((Policy(workers=3, surge=0, unavailable=1),), (), 3),
}
