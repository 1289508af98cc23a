"""Clients that leave: their work ends, and nothing else does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import ClientDisconnect

from app.http.disconnect import cancel_on_disconnect

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def run(test: Callable[[asyncio.Future[None], asyncio.Future[str]], Coroutine[Any, Any, None]]) -> None:
    """disconnected: set when the client leaves. done: what the work waits for."""

    async def bounded() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            await test(loop.create_future(), loop.create_future())

    asyncio.run(bounded())


def receive_of(disconnected: asyncio.Future[None]) -> Callable[[], Coroutine[Any, Any, dict[str, Any]]]:
    async def receive() -> dict[str, Any]:
        await asyncio.shield(disconnected)
        return {"type": "http.disconnect"}

    return receive


async def result_of(done: asyncio.Future[str]) -> str:
    return await done


def test_the_work_of_a_client_who_leaves_is_cancelled_and_the_request_goes_on_to_its_end() -> None:
    async def test(disconnected: asyncio.Future[None], done: asyncio.Future[str]) -> None:
        asyncio.get_running_loop().call_soon(disconnected.set_result, None)
        with pytest.raises(ClientDisconnect):
            await cancel_on_disconnect(receive_of(disconnected), result_of(done))
        assert done.cancelled()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        # What follows can wait.
        await asyncio.sleep(0)

    run(test)


@pytest.mark.parametrize("turns_between", range(4))
def test_a_result_stands_when_the_client_leaves_in_the_same_moment(turns_between: int) -> None:
    async def test(disconnected: asyncio.Future[None], done: asyncio.Future[str]) -> None:
        async def both() -> None:
            disconnected.set_result(None)
            for _ in range(turns_between):
                await asyncio.sleep(0)
            if not done.cancelled():
                done.set_result("found")

        other = asyncio.create_task(both())
        try:
            found = await cancel_on_disconnect(receive_of(disconnected), result_of(done))
        except ClientDisconnect:
            found = "found"
        # A cancellation that came too late would be raised here.
        for _ in range(5):
            await asyncio.sleep(0)
        assert found == "found"
        await other

    run(test)


@pytest.mark.parametrize("turns_between", range(5))
def test_a_request_that_is_cancelled_is_not_taken_for_a_client_who_left(turns_between: int) -> None:
    async def test(disconnected: asyncio.Future[None], done: asyncio.Future[str]) -> None:
        request = asyncio.create_task(cancel_on_disconnect(receive_of(disconnected), result_of(done)))
        await asyncio.sleep(0)
        disconnected.set_result(None)
        for _ in range(turns_between):
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError if request.cancel() else ClientDisconnect):
            await request
        assert done.cancelled()

    run(test)


def test_a_deadline_within_the_work_stays_a_deadline() -> None:
    async def test(disconnected: asyncio.Future[None], done: asyncio.Future[str]) -> None:
        async def work() -> str:
            async with asyncio.timeout(0):
                return await done

        with pytest.raises(TimeoutError):
            await cancel_on_disconnect(receive_of(disconnected), work())

    run(test)
