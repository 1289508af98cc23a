"""The memory that the decoder processes may take together, and how long a job has its turn."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Processor time that a job may take. The slowest formats need 1 s for 24 million pixels, and for 40 MB (Zen 4).
MIN_SECONDS = 1.0
PIXELS_PER_SECOND = 8e6
DECODED_BYTES_PER_SECOND = 2e6
INSPECTED_BYTES_PER_SECOND = 4e6
# How long a process may take to start.
START_SECONDS = 30.0
# The pause after one that did not; it doubles from failure to failure, up to the same.
RETRY_SECONDS = 0.5
# The length of turns is forgotten after about so many seconds of them.
RATE_MEMORY = 10.0


def inspection_seconds(size: int, pixels: int) -> float:
    """Processor time for a look at a file of so many bytes, and for decoding so many pixels at once."""
    return MIN_SECONDS + size / INSPECTED_BYTES_PER_SECOND + pixels / PIXELS_PER_SECOND


def decoding_seconds(size: int, pixels: int) -> float:
    """Processor time for decoding a file of so many bytes to so many pixels."""
    return MIN_SECONDS + size / DECODED_BYTES_PER_SECOND + pixels / PIXELS_PER_SECOND


def restart_pause(failures: int) -> float:
    """Seconds until another process is started, after so many that did not start and one more."""
    return min(RETRY_SECONDS * 2.0 ** min(failures, 10), START_SECONDS)


class MemoryBudget:
    """Bytes that jobs take, within a limit. A job that does not fit waits; smaller ones pass meanwhile."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def fits(self, size: int) -> bool:
        """Whether so many bytes would be had without waiting."""
        return self.used + size <= self.limit

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold so many bytes, at most the limit, for the length of the block."""
        await self._take(size)
        try:
            yield
        finally:
            self._give_back(size)

    async def _take(self, size: int) -> None:
        if self.used + size <= self.limit:
            self.used += size
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._give_back(size)
            raise

    def _give_back(self, size: int) -> None:
        self.used -= size
        left: deque[tuple[int, asyncio.Future[None]]] = deque()
        for wanted, waiter in self._waiting:
            if waiter.done():
                continue
            if self.used + wanted <= self.limit:
                self.used += wanted
                waiter.set_result(None)
            else:
                left.append((wanted, waiter))
        self._waiting = left


class TurnTimes:
    """Seconds that a job has its turn for, measured, and the jobs that wait for one or have it."""

    def __init__(self) -> None:
        self.pending = 0
        # Both are weighted exponentially, so that they forget alike.
        self._jobs = 0.0
        self._seconds = 0.0

    @contextmanager
    def count_pending(self) -> Iterator[None]:
        """Count a job as pending for the length of the block."""
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    def add(self, seconds: float) -> None:
        """A turn took so many seconds."""
        remembered = math.exp(-seconds / RATE_MEMORY)
        self._jobs = self._jobs * remembered + 1
        self._seconds = self._seconds * remembered + seconds

    def expected_seconds(self) -> float:
        """Seconds that all pending jobs will take, one after the other; 0 before the first measurement."""
        return self.pending * self._seconds / self._jobs if self._jobs else 0.0
