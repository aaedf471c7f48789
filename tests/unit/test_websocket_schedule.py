"""When WebSockets are closed."""

from __future__ import annotations

import itertools

import pytest

from zdworker.workers.asgi.websocket_schedule import LATE, PACE, late, moments


def test_many_take_the_whole_time() -> None:
    delays = moments(1000, 5.0)
    assert delays[0] == 0.0
    assert delays[-1] == pytest.approx(4.995)
    assert {round(later - earlier, 6) for earlier, later in itertools.pairwise(delays)} == {0.005}


def test_few_do_not_hold_up_the_reload() -> None:
    assert moments(3, 5.0) == [0.0, PACE, 2 * PACE]
    assert moments(0, 5.0) == []


def test_without_a_spread_all_are_closed_at_once() -> None:
    assert moments(3, 0.0) == [0.0, 0.0, 0.0]
    assert late(0.0) == 0.0


def test_who_comes_late_is_closed_soon() -> None:
    assert all(0.0 <= late(60.0) <= LATE for _ in range(100))
    assert all(0.0 <= late(0.1) <= 0.1 for _ in range(100))
