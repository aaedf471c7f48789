"""WebSocket frames of all kinds, at each implementation: byte by byte as with stock."""

from __future__ import annotations

from tests.suites.conftest import Run, compare
from tests.suites.transcripts import of_corpus
from tests.suites.variants import WEBSOCKETS, Variant, for_each
from tests.suites.websocket_cases import CASES

AT_ONCE = 40
"""Clients at a time: an echo must not take longer than a client waits before it closes."""


@for_each(WEBSOCKETS)
def test_frames_are_answered_as_by_stock(run: Run, variant: Variant) -> None:
    server = run(stock=True)
    stock = of_corpus(server.reserved.getsockname(), CASES, AT_ONCE)
    server.end()
    server = run(stock=False)
    assert (
        compare(variant, "WebSocket", "steady", stock, of_corpus(server.reserved.getsockname(), CASES, AT_ONCE)) == []
    )


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 300
