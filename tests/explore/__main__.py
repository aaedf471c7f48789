"""``tox -e explore``: searches through all states of the core, for several fleets.

``--small`` is what the unit tests do; ``--fleet N`` explores one fleet of the list, ``--list`` shows them.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.explore.exploration import Limits, explore
from tests.explore.fleets import FLEETS


def main() -> int:
    """Explore the fleets; 1 when a failure was found."""
    parser = argparse.ArgumentParser(prog="explore", description=__doc__)
    parser.add_argument("--fleet", choices=sorted(FLEETS), action="append", help="only this one; may be repeated")
    parser.add_argument("--list", action="store_true", help="show the fleets")
    parser.add_argument("--states", type=int, default=2_000_000, help="at the most, for each fleet (%(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="at the most, for each fleet (%(default)s)")
    options = parser.parse_args()
    status = 0
    for name in options.fleet or FLEETS:
        policies, generations, scales = FLEETS[name]
        if options.list:
            print(name)
            continue
        begin = time.monotonic()
        found = explore(Limits(policies, generations, scales, options.states, options.minutes * 60))
        how = "complete" if found.complete else "NOT complete"
        seconds = time.monotonic() - begin
        print(f"{name}: {found.states} states, {found.events} events, {how}, {seconds:.0f} s", flush=True)
        for failure in found.failures:
            print(f"  {failure}", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
