"""Generators of random numbers: each worker draws its own numbers, as after an import of its own.

Rules: a generator that was made without a seed is seeded again in each worker; one that has got a seed goes on from
there. Python's own generator (``random.random``) is left to Gunicorn. Of numpy's generators only the global one can be
seeded again, and :mod:`zdworker.forkserver.import_checks` finds the others.
"""

from __future__ import annotations

import contextlib
import random
import sys
import weakref
from collections.abc import Iterator
from typing import Any

_without_seed: dict[int, weakref.ref[random.Random]] = {}


@contextlib.contextmanager
def noting_generators() -> Iterator[None]:
    """Note the generators that are made or seeded in the body: ``random.Random.seed`` is replaced for that time."""
    stock = random.Random.seed

    def seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
        stock(generator, a, version)
        if a is None:
            _without_seed[id(generator)] = weakref.ref(generator)
        else:
            _without_seed.pop(id(generator), None)

    random.Random.seed = seed  # type: ignore[method-assign,assignment]  # its first argument has another name
    try:
        yield
    finally:
        random.Random.seed = stock  # type: ignore[method-assign]


def seed_again() -> None:
    """Seed the generators again that need it. A forked process calls this before anything draws."""
    for reference in list(_without_seed.values()):
        generator = reference()
        if generator is not None:
            generator.seed()
    of_numpy = global_generator_of_numpy()
    if of_numpy is not None:
        of_numpy.seed()


def global_generator_of_numpy() -> Any:
    """Return numpy's global generator, if it is imported and has not got a seed from the application.

    What it was seeded with by itself (``SeedSequence``) is there until it gets one.
    """
    generator: Any = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
    seeds = getattr(getattr(generator, "_bit_generator", None), "_seed_seq", None)
    return None if seeds is None else generator
