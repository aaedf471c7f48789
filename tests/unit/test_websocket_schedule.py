"""When WebSockets are closed."""

from __future__ import annotations

import itertools

import pytest

from zdworker.workers.asgi.websocket_schedule import (
    ACCEPTED_IN_DRAIN_S,
    CLOSE_INTERVAL_S,
    close_delays,
    delay_after_accept,
)


def test_many_take_the_whole_time() -> None:
    delays = close_delays(1000, 5.0)
    assert delays[0] == 0.0
    assert delays[-1] == pytest.approx(4.995)
    assert {round(later - earlier, 6) for earlier, later in itertools.pairwise(delays)} == {0.005}


def test_few_do_not_hold_up_the_reload() -> None:
    assert close_delays(3, 5.0) == [0.0, CLOSE_INTERVAL_S, 2 * CLOSE_INTERVAL_S]
    assert close_delays(0, 5.0) == []


def test_without_a_spread_all_are_closed_at_once() -> None:
    assert close_delays(3, 0.0) == [0.0, 0.0, 0.0]
    assert delay_after_accept(0.0) == 0.0


def test_who_comes_late_is_closed_soon() -> None:
    assert all(0.0 <= delay_after_accept(60.0) <= ACCEPTED_IN_DRAIN_S for _ in range(100))
    assert all(0.0 <= delay_after_accept(0.1) <= 0.1 for _ in range(100))
