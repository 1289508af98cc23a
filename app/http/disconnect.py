"""Work for a client who may leave before it is done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.types import Receive

T = TypeVar("T")


async def cancel_on_disconnect(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """The work's result. If the client leaves first the work is cancelled, which frees its place.

    receive: of a request whose body was read, so that all it can still bring is the disconnect.
    Raises ClientDisconnect.
    """
    # The work runs in the caller's task: one of its own would take three more turns of the loop.
    task = asyncio.current_task()
    watch = asyncio.ensure_future(wait_for_disconnect(receive))
    left = ended = False

    def cancel(_: object) -> None:
        nonlocal left
        # It may have been called for in the very turn in which the work ended.
        if task is not None and not ended:
            left = True
            task.cancel()

    watch.add_done_callback(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever else has cancelled the task gets what they asked for.
        if left and task is not None and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        ended = True
        watch.cancel()


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
