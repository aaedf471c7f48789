"""The fleets that are explored: policies, the most generations at a time, and numbers of workers that are asked for."""

from __future__ import annotations

from zdworker.core.events import Policy

Fleet = tuple[tuple[Policy, ...], int, tuple[int, ...]]

FLEETS: dict[str, Fleet] = {
    "1 worker": ((Policy(workers=1),), 2, ()),
    "1 worker, stop-first": ((Policy(workers=1, surge=0, unavailable=1),), 2, ()),
    "1 worker, 3 generations": ((Policy(workers=1),), 3, ()),
    "1 worker, a rollback window": ((Policy(workers=1, rollback_window=100.0),), 2, ()),
    "1 worker, min_ready": ((Policy(workers=1, min_ready=5.0),), 2, ()),
    "1 worker, a delayed end": ((Policy(workers=1, shutdown_delay=5.0),), 2, ()),
    "1 worker, scaled": ((Policy(workers=1),), 2, (0, 1, 2)),
    "no worker, percentages": ((Policy(workers=0, surge=25, surge_is_percentage=True),), 2, (0, 1)),
    "1 or 2 workers": ((Policy(workers=1), Policy(workers=2)), 2, ()),
    "2 workers": ((Policy(workers=2),), 2, ()),
    "2 workers, stop-first": ((Policy(workers=2, surge=0, unavailable=1),), 2, ()),
    "2 workers, surge 2, unavailable 1": ((Policy(workers=2, surge=2, unavailable=1),), 2, ()),
    "3 workers": ((Policy(workers=3),), 2, ()),
}
