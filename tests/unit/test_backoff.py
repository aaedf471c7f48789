"""The backoff: one death is free, then it doubles up to a cap, with jitter below."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdworker.core.backoff import Backoff


def test_one_death_costs_no_wait() -> None:
    assert Backoff().delay(0, 0.0) == 0.0
    assert Backoff().delay(1, 0.0) == 0.0


def test_it_doubles_up_to_the_cap() -> None:
    delays = [Backoff(base=0.5, cap=5.0).delay(failures, 0.0) for failures in range(2, 8)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_jitter_takes_up_to_half() -> None:
    assert Backoff(base=8.0).delay(2, 1.0) == 4.0
    assert Backoff(base=8.0).delay(2, 0.5) == 6.0


@pytest.mark.parametrize("failures", [1_000, 10**9])
def test_a_long_crash_loop_overflows_nothing(failures: int) -> None:
    assert Backoff(cap=30.0).delay(failures, 0.0) == 30.0


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_always_between_nothing_and_the_cap(failures: int, jitter: float) -> None:
    assert 0.0 <= Backoff().delay(failures, jitter) <= Backoff().cap
