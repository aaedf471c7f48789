"""Waiting for a bounded time: what is done, what is not, and that nothing is cancelled or raised."""

from __future__ import annotations

import asyncio

import pytest

from zdworker.workers.bounded import done_within


def test_done_within_returns_as_soon_as_it_is_done() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        loop.call_soon(future.set_result, None)
        assert await done_within(future, 60.0)

    asyncio.run(scenario())


def test_done_within_is_true_of_what_was_done_before() -> None:
    async def scenario() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        assert await done_within(future, 0.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("timeout_s", [0.01, 0.0, -1.0])
def test_done_within_gives_up_and_cancels_nothing(timeout_s: float) -> None:
    async def scenario() -> None:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0.05))
        assert not await done_within(task, timeout_s)
        await task  # it has not been cancelled

    asyncio.run(scenario())


def test_done_within_does_not_raise_what_the_task_raises() -> None:
    async def fail() -> None:
        raise ValueError("the application's own")

    async def scenario() -> None:
        task = asyncio.get_running_loop().create_task(fail())
        assert await done_within(task, 60.0)
        with pytest.raises(ValueError, match="the application's own"):
            task.result()

    asyncio.run(scenario())


def test_done_within_can_be_cancelled_and_leaves_no_callback() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        task = loop.create_task(done_within(future, 60.0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        future.set_result(None)

    asyncio.run(scenario())
