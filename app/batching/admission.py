"""Who may come in: bounds on the requests, pixels and bytes in flight, and a forecast of how long they will take.

Nothing waits here and nothing sleeps; the clock is passed in. `Admission` belongs to the event loop alone. Those
who were let in meet in queue.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.problems import ImageTooLarge, NotReady, Problem, QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.batching.queue import Clock

RETRY_AT_LEAST = 1.0  # seconds; the header has whole seconds, and 0 would invite a busy loop
RETRY_AT_MOST = 60.0  # seconds; farther ahead today's rate says little about who will still be waiting
RATE_MEMORY = 10.0  # seconds of device time: many batches of a GPU, yet quick to follow the traffic
# Of its time, a request may be forecast to need so much. At 1 a ResNet-50 on two cores, offered ten times what it can
# do, gave up every eighth that it had let in (504), some of them on the device: the forecast knows neither what passes
# between two forward passes nor that the machine will be slower a minute later.
FORECAST_PART = 0.8


@dataclass(frozen=True, slots=True)
class Ticket:
    """A place in the house, from admission until the answer is written."""

    pixels: int  # of the image as it was sent
    admitted_at: float  # on the clock of deadlines: add the time that the request may take


class Body:
    """The bytes of one request's body, from their arrival until its image is decoded; a context manager."""

    def __init__(self, admission: Admission) -> None:
        self.bytes = 0
        self.admission = admission

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def arrived(self, count: int) -> None:
        """Count bytes that have arrived. Raises QueueFull if there is no room for them."""
        self.admission.take_bytes(count)
        self.bytes += count

    def part(self, count: int) -> int:
        """Give that many of the bytes to another account, which will release them."""
        self.bytes -= count
        return count

    def release(self) -> None:
        """The bytes are gone from memory; more than once is fine."""
        self.admission.bytes -= self.bytes
        self.bytes = 0


class Admission:
    """Bounds what is in flight, in requests, pixels and bytes, and knows how long that will take.

    In flight is everything from admission to answer, so that decoding, waiting, running and encoding together
    have one bound. Pixels are those of the image as it was sent: that is what occupies memory. Bytes are those
    of bodies that arrive or wait to be decoded: what a request occupies before its image's size is known.

    The door starts closed with 503 not-ready; whoever owns the life-cycle opens and closes it.
    """

    def __init__(
        self,
        *,
        max_requests: int,
        max_pixels: int,
        max_bytes: int = 1 << 28,
        clock: Clock = time.monotonic,
    ) -> None:
        self.max_requests = max_requests
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self.requests = 0  # in flight, as are
        self.pixels = 0
        self.bytes = 0
        self.largest = 0  # pixels that were in flight at once since somebody set this to 0
        # By reason: "requests", "pixels", "bytes", "deadline", or the problem's slug.
        self.refused: Counter[str] = Counter()
        self._clock = clock
        self._closed: Callable[[], Problem] | None = lambda: NotReady(
            "The model is still loading.", retry_after=5
        )
        self._served_pixels = 0.0  # exponentially weighted, as are the seconds that they took
        self._served_seconds = 0.0
        self._empty = asyncio.Event()
        self._empty.set()

    def open(self) -> None:
        """Let requests in."""
        self._closed = None

    def close(self, refusal: Callable[[], Problem]) -> None:
        """Refuse every new request with the problem that `refusal` makes. Those already inside stay."""
        self._closed = refusal

    def raise_if_overloaded(self) -> None:
        """Raise at once what `admit` would raise for any image, so that no body is read in vain."""
        if self._closed is not None:
            problem = self._closed()
            self.refused[problem.slug] += 1
            raise problem
        if self.requests >= self.max_requests:
            raise self._full("requests", f"{self.requests} requests are in flight, the limit.")

    def body(self) -> Body:
        """The account of a body that is about to arrive."""
        return Body(self)

    def take_bytes(self, count: int) -> None:
        """Make room for bytes of a body; `Body` gives them back. Raises QueueFull."""
        if self.bytes + count > self.max_bytes:
            raise self._full(
                "bytes", f"{self.bytes} bytes of other uploads are in memory; the limit is {self.max_bytes}."
            )
        self.bytes += count

    @contextmanager
    def admit(self, pixels: int, seconds: float = math.inf) -> Iterator[Ticket]:
        """One request's place for the length of a `with` block, released however the block ends.

        pixels: width × height, as the image's header states them. seconds: that the answer may take.
        Raises at once, nothing ever waits here: QueueFull (429, with Retry-After) also where the answer could
        not be ready in FORECAST_PART of its time at the present rate; NotReady or Draining (503) while the
        door is closed; ImageTooLarge (413) for an image larger than the whole bound. That one could be let in
        whenever the house is empty, but then its answer would depend on the traffic of others, and under
        steady load it would be told to retry for ever.
        """
        self.raise_if_overloaded()
        self._refuse_unless_fits(pixels, seconds)
        self.requests += 1
        self.pixels += pixels
        self.largest = max(self.largest, self.pixels)
        self._empty.clear()
        try:
            yield Ticket(pixels, self._clock())
        finally:
            self.requests -= 1
            self.pixels -= pixels
            if self.requests == 0:
                self._empty.set()

    def _refuse_unless_fits(self, pixels: int, seconds: float) -> None:
        if pixels > self.max_pixels:
            self.refused[ImageTooLarge.slug] += 1
            raise ImageTooLarge(
                f"The image has {pixels} pixels; this service holds at most {self.max_pixels} at a time."
            )
        if self.pixels + pixels > self.max_pixels:
            raise self._full(
                "pixels",
                f"{self.pixels} pixels are in flight, and this image's {pixels} would exceed the limit of "
                f"{self.max_pixels}.",
            )
        # Nobody is refused for the forecast alone: in an empty house it is put to the test instead.
        rate = self.pixels_per_second
        if self.requests and rate is not None and (self.pixels + pixels) / rate > FORECAST_PART * seconds:
            raise self._full(
                "deadline",
                f"At the present rate the answer would take {(self.pixels + pixels) / rate:.1f} seconds; this "
                f"request has {max(seconds, 0):.1f}, and must leave a fifth of that for what cannot be foreseen.",
            )

    def _full(self, reason: str, detail: str) -> QueueFull:
        self.refused[reason] += 1
        return QueueFull(detail, retry_after=self.retry_after())

    async def emptied(self) -> None:
        """Return once nothing is in flight."""
        await self._empty.wait()

    def served(self, pixels: int, seconds: float) -> None:
        """The device answered images of so many pixels in so many seconds; idle time is not to be reported.

        The rate is the ratio of two sums that forget alike, not a mean of ratios: a long batch counts as long
        as it lasted, and failed attempts (seconds without pixels) lower the rate as they should.
        """
        remembered = math.exp(-seconds / RATE_MEMORY)
        self._served_pixels = self._served_pixels * remembered + pixels
        self._served_seconds = self._served_seconds * remembered + seconds

    @property
    def pixels_per_second(self) -> float | None:
        """The measured service rate, or None before the first answer."""
        if self._served_pixels <= 0 or self._served_seconds <= 0:
            return None
        return self._served_pixels / self._served_seconds

    def expected_wait(self) -> float | None:
        """Seconds until all that is in flight now is answered, or None before the first measurement."""
        rate = self.pixels_per_second
        return None if rate is None else self.pixels / rate

    def retry_after(self) -> float:
        """Seconds after which a refused client should find room: the expected wait, within bounds."""
        return min(max(self.expected_wait() or 0.0, RETRY_AT_LEAST), RETRY_AT_MOST)
