"""An event loop in a thread of its own, for calls from other threads."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from maskserve.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")


class LoopThread:
    """Runs calls, from the first one on until `stop`. The thread is a daemon, so that any program can end."""

    def __init__(self, connection: AbstractAsyncContextManager[Any]) -> None:
        """connection: what the calls use; it is entered and left on the loop."""
        self._connection = connection
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = asyncio.Event()
        # Only the loop touches it.
        self._calls: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def start(self, call: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Begin a call. Raises UnreachableError once stopped."""
        with self._lock:
            if self._stopped:
                raise UnreachableError("the client is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=[self._loop], name="maskserve-client", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(self._track(call), self._loop)

    def stop(self) -> None:
        """End all calls, also those whose future Ctrl-C lost, with an UnreachableError; close the connection."""
        with self._lock:
            self._stopped = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        # RuntimeError: another thread has stopped it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._stopping.set)
        if thread is not threading.current_thread():
            thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with self._connection:
            await self._stopping.wait()
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)

    async def _track(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = cast("asyncio.Task[T]", asyncio.current_task())
        self._calls.add(task)
        try:
            return await call()
        except asyncio.CancelledError:
            if self._stopping.is_set():
                raise UnreachableError("the client was closed") from None
            raise
        finally:
            self._calls.discard(task)
