"""``tox -e soak``: soaks until the time is over. ``--seed`` replays one."""

from __future__ import annotations

import argparse
import json
import secrets
import time
from dataclasses import asdict

from tests.soak.running import Figures, Soak


def main() -> None:
    """Run soaks of a hundred operations each, with new seeds, or one with a given seed."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="do what this seed did, and no more")
    parser.add_argument("--operations", type=int, default=100, help="of each soak (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="for all together (%(default)s)")
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    done: list[Figures] = []
    while time.monotonic() < end and not (done and options.seed is not None):
        seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
        done.append(Soak(seed, options.operations, end - time.monotonic()).run())
        print(
            json.dumps(
                {
                    **asdict(done[-1]),
                    "memory": done[-1].memory[-1:],
                    "descriptors": done[-1].descriptors[-1:],
                }
            )
        )
    operations, answers = sum(f.operations for f in done), sum(f.answers for f in done)
    print(f"{operations} operations, {answers} answers, no failure unexplained")


if __name__ == "__main__":
    main()
