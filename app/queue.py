"""Who may come in, and who shares a batch: admission, deadlines, shape buckets, batch building.

`Admission` is the door, `Queue` the waiting room: no threads, no tensors, no sleeping, the clock is passed
in. What runs the batches is worker.py.

Who touches what: `Admission` belongs to the event loop alone. `Queue` does no locking itself; the worker
holds its one lock around every call, from the event loop (put, discard) and from the device thread
(next_batch, sift) alike.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.problems import ImageTooLarge, NotReady, Problem, QueueFull

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from model.instances import Instances, Options

Clock = Callable[[], float]  # monotonic seconds
Bucket = tuple[int, int]  # (height, width) of the padded network input, pixels

RETRY_AT_LEAST = 1.0  # seconds; the header has whole seconds, and 0 would invite a busy loop
RETRY_AT_MOST = 60.0  # seconds; farther ahead today's rate says little about who will still be waiting
RATE_MEMORY = 10.0  # seconds of device time: many batches of a GPU, yet quick to follow the traffic


@dataclass(frozen=True, slots=True)
class Ticket:
    """A place in the house, from admission until the answer is written."""

    pixels: int  # of the image as it was sent
    admitted_at: float  # on the clock of deadlines: add the time that the request may take


class Admission:
    """Bounds what is in flight, in requests and in pixels, and knows how long that will take.

    In flight is everything from admission to answer, so that decoding, waiting, running and encoding together
    have one bound. Pixels are those of the image as it was sent: that is what occupies memory.

    The door starts closed with 503 not-ready; whoever owns the life-cycle opens and closes it.
    """

    def __init__(self, *, max_requests: int, max_pixels: int, clock: Clock = time.monotonic) -> None:
        self.max_requests = max_requests
        self.max_pixels = max_pixels
        self.requests = 0  # in flight
        self.pixels = 0  # in flight
        self.refused: Counter[str] = Counter()  # by reason: "requests", "pixels", or the problem's slug
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

    @contextmanager
    def admit(self, pixels: int) -> Iterator[Ticket]:
        """One request's place for the length of a `with` block, released however the block ends.

        pixels: width × height, as the image's header states them.
        Raises at once, nothing ever waits here: QueueFull (429, with Retry-After), NotReady or Draining (503)
        while the door is closed, ImageTooLarge (413) for an image larger than the whole bound. That one could
        be let in whenever the house is empty, but then its answer would depend on the traffic of others, and
        under steady load it would be told to retry for ever.
        """
        self._refuse_unless_fits(pixels)
        self.requests += 1
        self.pixels += pixels
        self._empty.clear()
        try:
            yield Ticket(pixels, self._clock())
        finally:
            self.requests -= 1
            self.pixels -= pixels
            if self.requests == 0:
                self._empty.set()

    def _refuse_unless_fits(self, pixels: int) -> None:
        if self._closed is not None:
            problem = self._closed()
            self.refused[problem.slug] += 1
            raise problem
        if pixels > self.max_pixels:
            self.refused[ImageTooLarge.slug] += 1
            raise ImageTooLarge(
                f"The image has {pixels} pixels; this service holds at most {self.max_pixels} at a time."
            )
        if self.requests >= self.max_requests:
            self.refused["requests"] += 1
            raise QueueFull(
                f"{self.requests} requests are in flight, the limit.", retry_after=self.retry_after()
            )
        if self.pixels + pixels > self.max_pixels:
            self.refused["pixels"] += 1
            raise QueueFull(
                f"{self.pixels} pixels are in flight, and this image's {pixels} would exceed the limit of "
                f"{self.max_pixels}.",
                retry_after=self.retry_after(),
            )

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


@dataclass(frozen=True, slots=True)
class Segmented:
    """One request's instances, and what they took."""

    instances: Instances
    queue_seconds: float  # from entering the queue until its batch went to the device
    forward_seconds: float  # of the whole batch
    batch_size: int


@dataclass(slots=True, eq=False)
class Entry:
    """One decoded image that waits for the device."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    pixels: int  # of the image as it was sent
    options: Options
    deadline: float  # on the queue's clock; from then on nobody waits for the answer
    future: asyncio.Future[Segmented]
    bucket: Bucket
    enqueued_at: float


@dataclass(frozen=True, slots=True)
class Sifted:
    """Entries parted into those to run and those whose deadline passed; cancelled ones have vanished."""

    live: list[Entry]
    expired: list[Entry]


class Queue:
    """Entries in order of arrival, and the same entries by bucket; all operations are O(1) per entry touched.

    A batch is built when the device takes it, never ahead: one built ahead would miss what arrives while the
    batch before it runs, and it would have to be checked for dead entries again. It costs the device
    nothing that matters, since the images are decoded by then: taking 8 of 1,000 waiting entries needs 6 µs,
    taking 32 needs 20 µs (2-core Zen 4), against milliseconds for the fastest batch.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self.dropped: Counter[str] = Counter()  # never ran, by reason: "cancelled", "expired"
        self.pixels = 0  # waiting, as sent
        self._clock = clock
        # OrderedDict, not dict: taking the first key of a dict that shrinks at its front is O(n) there.
        self._arrivals: OrderedDict[Entry, None] = OrderedDict()
        self._buckets: dict[Bucket, OrderedDict[Entry, None]] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def put(self, entry: Entry) -> None:
        """Append the entry. Admission has bounded how many there can be."""
        self._arrivals[entry] = None
        self._buckets.setdefault(entry.bucket, OrderedDict())[entry] = None
        self.pixels += entry.pixels

    def discard(self, entry: Entry) -> None:
        """Take out an entry that nobody waits for any more, with its image; one that has left is fine."""
        if entry in self._arrivals:
            self._remove(entry)
            self.dropped[self._fate(entry) or "cancelled"] += 1

    def next_batch(self, max_batch_size: int, max_batch_pixels: int) -> Sifted:
        """Remove and return the next batch: entries of the oldest live entry's bucket, in order of arrival.

        At most `max_batch_size` of them, and at most `max_batch_pixels` pixels of padded input, except that
        one entry may always go alone. `live` is empty when nothing is left to run. Dead entries met on the
        way are dropped and counted; the expired ones are handed back so that they can be told.
        """
        batch = Sifted([], [])
        while self._arrivals and not batch.live:
            oldest = next(iter(self._arrivals))
            self._remove(oldest)
            self._sort_out(oldest, batch)
        if batch.live:
            height, width = oldest.bucket
            room = min(max_batch_size, max_batch_pixels // (height * width))
            bucket = self._buckets.get(oldest.bucket)
            while bucket and len(batch.live) < room:
                entry = next(iter(bucket))
                self._remove(entry)
                self._sort_out(entry, batch)
        return batch

    def sift(self, entries: Iterable[Entry]) -> Sifted:
        """Part entries that were taken earlier, some of which may have died; counts as next_batch does."""
        sifted = Sifted([], [])
        for entry in entries:
            self._sort_out(entry, sifted)
        return sifted

    def clear(self) -> list[Entry]:
        """Remove and return everything, for the caller to answer."""
        entries = list(self._arrivals)
        self._arrivals.clear()
        self._buckets.clear()
        self.pixels = 0
        return entries

    def _remove(self, entry: Entry) -> None:
        del self._arrivals[entry]
        bucket = self._buckets[entry.bucket]
        del bucket[entry]
        if not bucket:
            del self._buckets[entry.bucket]
        self.pixels -= entry.pixels

    def _sort_out(self, entry: Entry, into: Sifted) -> None:
        fate = self._fate(entry)
        if fate is None:
            into.live.append(entry)
            return
        self.dropped[fate] += 1
        if fate == "expired":
            into.expired.append(entry)

    def _fate(self, entry: Entry) -> str | None:
        """Why the entry must not run, or None.

        Past its deadline it has expired, also if a time limit around the caller was first to cancel it; and a
        future that is done without being cancelled has been told so already.
        """
        if entry.deadline <= self._clock():
            return "expired"
        if entry.future.done():
            return "cancelled" if entry.future.cancelled() else "expired"
        return None
