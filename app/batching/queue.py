"""Who shares a batch: shape buckets, deadlines, batch building. The door before it is admission.py.

No threads, no tensors, no sleeping, the clock is passed in. What runs the batches is worker.py.

Who touches what: `Queue` does no locking itself; the worker holds its one lock around every call, from the
event loop (put, discard) and from the device thread (next_batch, drop_dead) alike.
"""

from __future__ import annotations

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

Clock = Callable[[], float]  # monotonic seconds
Bucket = tuple[int, int]  # (height, width) of the padded network input, pixels


@dataclass(frozen=True, slots=True)
class SegmentResult:
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
    future: asyncio.Future[SegmentResult]
    bucket: Bucket
    enqueued_at: float


@dataclass(frozen=True, slots=True)
class Partition:
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
            self.dropped[self._drop_reason(entry) or "cancelled"] += 1

    def next_batch(self, max_batch_size: int, max_batch_pixels: int) -> Partition:
        """Remove and return the next batch: entries of the oldest live entry's bucket, in order of arrival.

        At most `max_batch_size` of them, and at most `max_batch_pixels` pixels of padded input, except that
        one entry may always go alone. `live` is empty when nothing is left to run. Dead entries met on the
        way are dropped and counted; the expired ones are handed back so that they can be told.
        """
        batch = Partition([], [])
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

    def drop_dead(self, entries: Iterable[Entry]) -> Partition:
        """Part entries that were taken earlier, some of which may have died; counts as next_batch does."""
        partition = Partition([], [])
        for entry in entries:
            self._sort_out(entry, partition)
        return partition

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

    def _sort_out(self, entry: Entry, into: Partition) -> None:
        reason = self._drop_reason(entry)
        if reason is None:
            into.live.append(entry)
            return
        self.dropped[reason] += 1
        if reason == "expired":
            into.expired.append(entry)

    def _drop_reason(self, entry: Entry) -> str | None:
        """Why the entry must not run, or None.

        Past its deadline it has expired, also if a time limit around the caller was first to cancel it; and a
        future that is done without being cancelled has been told so already.
        """
        if entry.deadline <= self._clock():
            return "expired"
        if entry.future.done():
            return "cancelled" if entry.future.cancelled() else "expired"
        return None
