"""When an HTTP/2 connection ends in a drain, and with which frame: the decisions that all servers share."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker.workers.http2 import GOAWAY_NOTICE, goaway_at, name_last_stream, notice_is_due


class Times:
    """The times of a drain that began at 100."""

    keepalive_s = 2.0
    begun_at = 100.0
    unused_until = 105.0
    notice_at = 115.0


TIMES = Times()


@pytest.mark.parametrize(
    ("idle_since", "used", "answered", "expected"),
    [
        (90.0, False, False, 105.0),  # never used
        (90.0, True, False, 102.0),  # idle since before the drain: the keep-alive time from its beginning
        (100.5, True, False, 102.5),
        (101.0, True, True, 101.2),  # between two requests
    ],
)
def test_when_a_connection_without_streams_gets_goaway(
    idle_since: float, used: bool, answered: bool, expected: float
) -> None:
    due = goaway_at(TIMES, idle_since=idle_since, used=used, answered_in_drain=answered)
    assert due == pytest.approx(expected)


def test_a_goaway_in_one_piece_with_the_answer_needs_no_pause() -> None:
    assert goaway_at(TIMES, idle_since=101.0, used=True, answered_in_drain=True, delay_s=0.0) == 101.0


def test_only_streams_that_overlap_for_long_get_the_notice() -> None:
    assert not notice_is_due(TIMES, 114.9, 2)
    assert notice_is_due(TIMES, 115.0, 2)
    assert not notice_is_due(TIMES, 115.0, 0)


def test_the_notice_is_a_goaway_frame_that_refuses_nothing() -> None:
    assert bytes.fromhex("000008 07 00 00000000 7fffffff 00000000") == GOAWAY_NOTICE


def test_gunicorn_s_goaway_names_the_last_stream() -> None:
    said: list[tuple[int, int]] = []
    connection: Any = SimpleNamespace(
        close=lambda error_code, last: said.append((error_code, last)),
        h2_conn=SimpleNamespace(highest_inbound_stream_id=7),
    )
    name_last_stream(connection)
    connection.close()
    connection.close(2, 3)
    assert said == [(0, 7), (2, 3)]


def test_the_asynchronous_one_still_returns_its_coroutine() -> None:
    said: list[int] = []

    async def close(error_code: int, last: int) -> None:
        said.append(last)

    connection: Any = SimpleNamespace(close=close, h2_conn=SimpleNamespace(highest_inbound_stream_id=7))
    name_last_stream(connection)
    asyncio.run(connection.close(last_stream_id=0))
    assert said == [7]
