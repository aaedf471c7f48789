"""``tox -e explore``: searches through all states of the core, for several fleets.

``--fleet NAME`` explores one fleet of the list, ``--list`` shows them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.explore.exploration import Found, Limits, explore
from tests.explore.fleets import FLEETS


def main() -> int:
    """Explore the fleets; 1 when a failure was found, or when one was not explored to its end."""
    parser = argparse.ArgumentParser(prog="explore", description=__doc__)
    parser.add_argument("--fleet", choices=sorted(FLEETS), action="append", help="only this one; may be repeated")
    parser.add_argument("--list", action="store_true", help="show the fleets")
    parser.add_argument("--minutes", type=float, default=60, help="at the most, for each fleet (%(default)s)")
    parser.add_argument("--disturbances", help='on one way, at the most: a number, or "any" (as the list says)')
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="fleets at a time (%(default)s)")
    options = parser.parse_args()
    names = options.fleet or list(FLEETS)
    if options.list:
        print(*names, sep="\n")
        return 0
    limits = [_limits(name, options.disturbances, options.minutes) for name in names]
    good = True
    with ProcessPoolExecutor(options.jobs) as pool:
        for name, (found, seconds) in zip(names, pool.map(_explored, limits), strict=True):
            how = "any number of" if found.disturbances is None else f"up to {found.disturbances}"
            how += " disturbances" if found.complete else " disturbances (ENDED EARLY)"
            print(f"{name}: {found.states:,} states, {found.events:,} events, {how}, {seconds:.0f} s", flush=True)
            print(f"  by disturbances: {', '.join(f'{n:,}' for n in found.levels)}", flush=True)
            for failure in found.failures:
                print(f"  {failure}", flush=True)
            good &= found.complete
    return 0 if good else 1


def _limits(name: str, disturbances: str | None, minutes: float) -> Limits:
    policies, sizes, most = FLEETS[name]
    if disturbances is not None:
        most = None if disturbances == "any" else int(disturbances)
    return Limits(policies, sizes, most, seconds=minutes * 60)


def _explored(limits: Limits) -> tuple[Found, float]:
    begin = time.monotonic()
    return explore(limits), time.monotonic() - begin


if __name__ == "__main__":
    sys.exit(main())
