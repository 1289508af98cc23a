"""Admission control: bounds on the requests, pixels and bytes in flight, and a forecast of how long they will take.

Nothing here waits or sleeps, and the clock is passed in. `Admission` belongs to the event loop alone. Admitted requests
wait for the device in queue.py.
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

# Bounds of Retry-After, whole seconds: 0 would make clients spin, and the load in more than a minute is unknown.
MIN_RETRY_AFTER = 1.0
MAX_RETRY_AFTER = 60.0
# Seconds of device time over which the measured rate forgets: many batches of a GPU, yet fast to follow the traffic.
RATE_TIME_CONSTANT = 10.0
# How much of a request's time its forecast may take. With 1, a ResNet-50 on two cores that was offered ten times its
# capacity missed the deadline of every eighth request that it had admitted (504), some of them on the device: the
# forecast knows neither the time between two forward passes nor that the machine may be slower a minute later.
MAX_FORECAST_SHARE = 0.8


@dataclass(slots=True)
class Permit:
    """The admission of one request, until its answer is written."""

    # Pixels of the image as it was sent.
    pixels: int
    # Time of the admission, on the clock of the deadlines.
    admitted_at: float
    # Pixels of its network inputs that the device has yet to run.
    input_pixels: int = 0


class BodyBytes:
    """Counts the bytes of one request body from their arrival until the image is decoded; a context manager."""

    def __init__(self, admission: Admission) -> None:
        self.bytes = 0
        self.admission = admission
        # The body has been read, and its image is not admitted yet.
        self.accepted = False

    def __enter__(self) -> BodyBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def add(self, count: int) -> None:
        """Count bytes that have arrived. Raises QueueFull if there is no room for them."""
        self.admission.reserve_bytes(count)
        self.bytes += count

    def hand_over(self, count: int) -> int:
        """Leave it to another BodyBytes to release this many of the bytes."""
        self.bytes -= count
        return count

    def accept(self) -> None:
        """The body has been read: its image is answered even if the service begins to drain."""
        if not self.accepted:
            self.accepted = True
            self.admission.count_accepted(1)

    def release(self) -> None:
        """Count the bytes no longer; calling it again does nothing."""
        self.admission.bytes -= self.bytes
        self.bytes = 0
        if self.accepted:
            self.accepted = False
            self.admission.count_accepted(-1)


class Admission:
    """Bounds what is in flight, in requests, pixels and bytes, and measures how fast it is answered.

    In flight is everything from admission to answer, so one bound covers decoding, waiting, running and encoding.
    Pixels are those of the image as it was sent: they determine the memory that a request needs. Bytes are those of
    bodies that arrive or wait to be decoded: the memory that a request needs before the size of its image is known.

    It starts closed, with 503 not-ready; the owner of the life cycle opens and closes it.
    """

    def __init__(
        self,
        *,
        max_requests: int,
        max_pixels: int,
        max_bytes: int = 1 << 28,
        clock: Clock = time.monotonic,
    ) -> None:
        """Start closed.

        Args:
            max_requests: in flight.
            max_pixels: of the images of these requests, as they were sent.
            max_bytes: of bodies that arrive or wait to be decoded.
            clock: of the deadlines.
        """
        self.max_requests = max_requests
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        # What is in flight now.
        self.requests = 0
        self.pixels = 0
        self.bytes = 0
        # Pixels of what the network will be given: the work that the device has with the images.
        self.input_pixels = 0
        # Bodies that have been read and whose images are not admitted yet.
        self.accepted = 0
        # Most pixels in flight at the same time since this was last set to 0.
        self.peak_pixels = 0
        # Most bytes of bodies, likewise.
        self.peak_bytes = 0
        # Refused requests by reason: "requests", "pixels", "bytes", "deadline", or the problem's slug.
        self.refused: Counter[str] = Counter()
        self._clock = clock
        self._refusal: Callable[[], Problem] | None = lambda: NotReady(
            "The model is still loading.", retry_after=5
        )
        self._accepted_pass = False
        # Both decay exponentially with device time.
        self._served_pixels = 0.0
        self._served_seconds = 0.0
        self._empty = asyncio.Event()
        self._empty.set()

    def open(self) -> None:
        """Admit requests from now on."""
        self._refusal = None

    def close(self, refusal: Callable[[], Problem], *, accepted_pass: bool = False) -> None:
        """Refuse every new request with the problem that `refusal` makes. Requests in flight are not affected.

        accepted_pass: images of bodies that were read before are still admitted.
        """
        self._refusal = refusal
        self._accepted_pass = accepted_pass

    def count_accepted(self, change: int) -> None:
        """Bodies were read, or their images admitted or dropped."""
        self.accepted += change
        self._update_empty()

    def _update_empty(self) -> None:
        if self.requests or self.accepted:
            self._empty.clear()
        else:
            self._empty.set()

    def raise_if_overloaded(self, *, accepted: bool = False) -> None:
        """Raise what `admit` would raise for any image, so that no body is read in vain."""
        if self._refusal is not None and not (accepted and self._accepted_pass):
            problem = self._refusal()
            self.refused[problem.slug] += 1
            raise problem
        if self.requests >= self.max_requests:
            raise self._queue_full("requests", f"{self.requests} requests are in flight, the limit.")

    def has_room(self, pixels: int, seconds: float) -> bool:
        """Whether an image of so many pixels will surely be admitted; False where the forecast leaves doubt.

        seconds: until the answer has to be ready.
        """
        if (
            self._refusal is not None
            or self.requests >= self.max_requests
            or self.pixels + pixels > self.max_pixels
        ):
            return False
        usual = self.input_pixels / self.requests if self.requests else 0.0
        return self._seconds_for(self.input_pixels + usual) <= MAX_FORECAST_SHARE / 2 * seconds

    def count_body(self) -> BodyBytes:
        """A counter for a body that is about to arrive."""
        return BodyBytes(self)

    def reserve_bytes(self, count: int) -> None:
        """Reserve memory for bytes of a body, which `BodyBytes` releases. Raises QueueFull."""
        if self.bytes + count > self.max_bytes:
            raise self._queue_full(
                "bytes", f"{self.bytes} bytes of other uploads are in memory; the limit is {self.max_bytes}."
            )
        self.bytes += count
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    @contextmanager
    def admit(
        self,
        pixels: int,
        seconds: float = math.inf,
        *,
        input_pixels: int | None = None,
        accepted: bool = False,
    ) -> Iterator[Permit]:
        """Hold the place of one request for the length of a `with` block.

        Refusals come at once; nothing waits here.

        Args:
            pixels: width × height, as the header of the image states them.
            seconds: until the answer has to be ready, without those that it takes to decode the image.
            input_pixels: of the padded network input; by default as many as the image has.
            accepted: the body was accepted (BodyBytes.accept).

        Raises:
            QueueFull: (429, with Retry-After) there is no room, or at the present rate the answer would take longer
                than MAX_FORECAST_SHARE of its time.
            NotReady, Draining: (503) while admission is closed.
            ImageTooLarge: (413) the image has more pixels than may be in flight at all. It could run while nothing
                else is in flight, but then its answer would depend on other traffic, and under steady load its client
                would be told to retry for ever.
        """
        if input_pixels is None:
            input_pixels = pixels
        self.raise_if_overloaded(accepted=accepted)
        self._raise_unless_fits(pixels, input_pixels, seconds)
        self.requests += 1
        self.pixels += pixels
        self.input_pixels += input_pixels
        self.peak_pixels = max(self.peak_pixels, self.pixels)
        self._update_empty()
        permit = Permit(pixels, self._clock(), input_pixels)
        try:
            yield permit
        finally:
            self.requests -= 1
            self.pixels -= pixels
            self.input_pixels -= permit.input_pixels
            self._update_empty()

    def count_done(self, permit: Permit, input_pixels: int) -> None:
        """The device has run a part of a request: a tile. The forecast for others is then shorter.

        Args:
            permit: of the request.
            input_pixels: of the network's input.
        """
        permit.input_pixels -= input_pixels
        self.input_pixels -= input_pixels

    def _raise_unless_fits(self, pixels: int, input_pixels: int, seconds: float) -> None:
        if pixels > self.max_pixels:
            self.refused[ImageTooLarge.slug] += 1
            raise ImageTooLarge(
                f"The image has {pixels} pixels; this service holds at most {self.max_pixels} at a time."
            )
        if self.pixels + pixels > self.max_pixels:
            raise self._queue_full(
                "pixels",
                f"{self.pixels} pixels are in flight, and this image's {pixels} would exceed the limit of "
                f"{self.max_pixels}.",
            )
        # With nothing else in flight the forecast is not applied: it could be wrong, and only a request can correct it.
        wait = self._seconds_for(self.input_pixels + input_pixels)
        if self.requests and wait > MAX_FORECAST_SHARE * seconds:
            raise self._queue_full(
                "deadline",
                f"At the present rate the answer would take {wait:.1f} seconds; this request has "
                f"{max(seconds, 0):.1f}, of which a fifth is kept in reserve.",
            )

    def raise_unless_decoded_within(self, seconds: float, wait: float) -> None:
        """Raise QueueFull if a decoder is free in `wait` seconds only, too late for a request that has `seconds`."""
        if wait > max(0.0, MAX_FORECAST_SHARE * seconds):
            raise self._queue_full(
                "deadline",
                f"A decoder will be free in {wait:.1f} seconds; this request has {max(seconds, 0):.1f}.",
            )

    def _queue_full(self, reason: str, detail: str) -> QueueFull:
        self.refused[reason] += 1
        return QueueFull(detail, retry_after=self.retry_after())

    async def wait_until_empty(self) -> None:
        """Return once nothing is in flight, and no accepted body waits to be admitted."""
        await self._empty.wait()

    def record_served(self, pixels: int, seconds: float) -> None:
        """Record that the device took `seconds` for network inputs of `pixels`; idle time must not be recorded.

        The rate is the ratio of two sums that decay alike, not a mean of ratios. A long batch therefore weighs as much
        as it lasted, and failed attempts (seconds without pixels) lower the rate, as they should.
        """
        decay = math.exp(-seconds / RATE_TIME_CONSTANT)
        self._served_pixels = self._served_pixels * decay + pixels
        self._served_seconds = self._served_seconds * decay + seconds

    @property
    def pixels_per_second(self) -> float | None:
        """The measured rate of the device in pixels of network input, or None before the first answer."""
        if self._served_pixels <= 0 or self._served_seconds <= 0:
            return None
        return self._served_pixels / self._served_seconds

    def _seconds_for(self, input_pixels: float) -> float:
        """Seconds of the device for so many pixels of network input; 0 before the first measurement."""
        rate = self.pixels_per_second
        return 0.0 if rate is None else input_pixels / rate

    def expected_wait(self) -> float:
        """Seconds until all that is in flight now is answered; 0 before the first measurement."""
        return self._seconds_for(self.input_pixels)

    def retry_after(self) -> float:
        """Seconds after which a refused client should find room: the expected wait, within bounds."""
        return min(max(self.expected_wait(), MIN_RETRY_AFTER), MAX_RETRY_AFTER)
