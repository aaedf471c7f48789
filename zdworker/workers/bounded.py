"""Waiting on an event loop for a bounded time, with nothing of asyncio but timers and futures.

Rules: zdworker uses neither ``asyncio.wait_for`` nor ``asyncio.wait``. Instrumentations replace them in the
application's process (ddtrace does), and one that breaks them would end each worker's main loop, while uvicorn's own
loop, which sleeps, goes on. ``wait_for`` has a second fault: it waits without a bound for what it has cancelled.
"""

from __future__ import annotations

import asyncio
from typing import Any


async def done_within(future: asyncio.Future[Any], timeout_s: float) -> bool:
    """Wait until ``future`` is done, at most ``timeout_s`` seconds, and return whether it is.

    It is not cancelled, and what it has raised is not raised here.
    """
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(_future: asyncio.Future[Any] | None = None) -> None:
        if not over.done():
            over.set_result(None)

    timer = asyncio.get_running_loop().call_later(max(0.0, timeout_s), end)
    future.add_done_callback(end)
    try:
        await over
    finally:
        timer.cancel()
        future.remove_done_callback(end)
    return future.done()
