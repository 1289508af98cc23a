"""A bound on the time that a block may take for its client."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from app.problems import DeadlineExceeded

if TYPE_CHECKING:
    from types import TracebackType


class Deadline:
    """Raises DeadlineExceeded if a block takes longer; an asynchronous context manager."""

    def __init__(self, seconds: float, what: str, at_most: float = math.inf) -> None:
        """Start no timer yet.

        Args:
            seconds: that the block may take.
            what: begins the sentence that the client reads.
            at_most: seconds after which the block ends by itself; a longer deadline needs no timer.
        """
        self._seconds = seconds
        self._what = what
        self._timer = asyncio.timeout(seconds if seconds < at_most else None)

    async def __aenter__(self) -> None:
        await self._timer.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timer.__aexit__(kind, error, traceback)
        except TimeoutError as late:
            error = late
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded(f"{self._what} within {max(self._seconds, 0):.3g} seconds.") from None
