"""The queue: which images share a batch, and which are dropped because nothing waits for their answers any more.

No threads, no tensors, no sleeping; the clock is passed in. admission.py decides who enters, lane.py runs the
batches.

`Queue` does no locking itself. `Schedule` guards it by its lock: the event loop puts and discards entries, the worker's
threads take batches and drop dead ones.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from model.instances import Instances, Options

# Returns monotonic seconds.
Clock = Callable[[], float]
# (height, width) of the padded network input in pixels.
Bucket = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """The instances of one image, and the time that they took."""

    instances: Instances
    # Time from entering the queue until the batch started.
    queue_seconds: float
    # Time that the whole batch took on the device.
    forward_seconds: float
    batch_size: int


@dataclass(slots=True, eq=False)
class Entry:
    """One decoded image that waits for the device."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    # Pixels of the image as it was sent.
    pixels: int
    options: Options
    # Time on the queue's clock from which on the answer is of no use.
    deadline: float
    future: asyncio.Future[SegmentResult]
    bucket: Bucket
    enqueued_at: float


@dataclass(frozen=True, slots=True)
class Partition:
    """Entries split into those to run and those whose deadline has passed; cancelled ones are in neither list."""

    live: list[Entry]
    expired: list[Entry]


class Queue:
    """Entries in order of arrival, and again by bucket; every operation is O(1) for each entry that it moves.

    A batch is built when the device takes it, never ahead of time. Built ahead, it would miss what arrives while the
    previous batch runs, and would have to be checked for dead entries again. The device hardly waits for it, because
    the images are decoded by then: taking 8 of 1,000 entries needs 6 µs, taking 32 needs 20 µs (2-core Zen 4), while
    the fastest batch takes milliseconds.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        # Entries that never ran, by reason: "cancelled", "expired".
        self.dropped: Counter[str] = Counter()
        # Pixels of the waiting images, as they were sent.
        self.pixels = 0
        self._clock = clock
        # OrderedDict, because finding the first key of a dict that shrinks at its front is O(n).
        self._arrivals: OrderedDict[Entry, None] = OrderedDict()
        self._buckets: dict[Bucket, OrderedDict[Entry, None]] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    @property
    def next_pixels(self) -> int:
        """Pixels of padded input of the entry that is next; 0 if there is none."""
        oldest = next(iter(self._arrivals), None)
        return math.prod(oldest.bucket) if oldest is not None else 0

    def put(self, entry: Entry) -> None:
        """Append an entry. Admission bounds how many there can be."""
        self._arrivals[entry] = None
        self._buckets.setdefault(entry.bucket, OrderedDict())[entry] = None
        self.pixels += entry.pixels

    def discard(self, entry: Entry) -> bool:
        """Remove an entry whose caller has left, and its image with it; whether it was in the queue."""
        if entry not in self._arrivals:
            return False
        self._remove(entry)
        self.dropped[self._drop_reason(entry) or "cancelled"] += 1
        return True

    def next_batch(self, max_batch_size: int, max_batch_pixels: int) -> Partition:
        """Remove and return the next batch: entries of the oldest live entry's bucket, in order of arrival.

        Dead entries on the way are dropped and counted; expired ones are returned so that they can be answered.
        `live` is empty if nothing is left to run.

        Args:
            max_batch_size: entries in the batch.
            max_batch_pixels: pixels of padded input in the batch; one entry alone may have more.
        """
        batch = Partition([], [])
        while self._arrivals and not batch.live:
            oldest = next(iter(self._arrivals))
            self._remove(oldest)
            self._classify(oldest, batch)
        if batch.live:
            height, width = oldest.bucket
            room = min(max_batch_size, max_batch_pixels // (height * width))
            bucket = self._buckets.get(oldest.bucket)
            while bucket and len(batch.live) < room:
                entry = next(iter(bucket))
                self._remove(entry)
                self._classify(entry, batch)
        return batch

    def drop_dead(self, entries: Iterable[Entry]) -> Partition:
        """Split entries that were taken earlier, some of which may have died since; counts as next_batch does."""
        partition = Partition([], [])
        for entry in entries:
            self._classify(entry, partition)
        return partition

    def clear(self) -> list[Entry]:
        """Remove and return all entries, for the caller to answer."""
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

    def _classify(self, entry: Entry, into: Partition) -> None:
        reason = self._drop_reason(entry)
        if reason is None:
            into.live.append(entry)
            return
        self.dropped[reason] += 1
        if reason == "expired":
            into.expired.append(entry)

    def _drop_reason(self, entry: Entry) -> str | None:
        """Why the entry must not run, or None if it may.

        Past its deadline it counts as expired even if a timeout around the caller has cancelled it. A future that is
        done without having been cancelled holds DeadlineExceeded already.
        """
        if entry.deadline <= self._clock():
            return "expired"
        if entry.future.done():
            return "cancelled" if entry.future.cancelled() else "expired"
        return None
