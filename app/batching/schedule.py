"""What runs next on the device: the queue, the cores and the limits of a batch, behind one lock."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.batching.budget import BatchBudget
from app.batching.cores import Cores
from app.batching.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from app.batching.batch import Segmenter
    from app.batching.queue import Clock, Entry, Partition


@dataclass(frozen=True, slots=True)
class Turn:
    """A batch, and what it has of the device until its turn ends."""

    batch: Partition
    cores: int
    # Pixels of the batch's padded inputs.
    pixels: int


class Schedule:
    """A GPU runs one batch at a time. A CPU runs several passes of one image, which share the cores.

    `lock` guards all of it. Lanes are numbered from 0. A lane goes on only if at least as many passes run as there are
    lanes before it, so of those that are idle only the first can.
    """

    def __init__(self, engine: Segmenter, max_images: int, max_pixels: int, clock: Clock) -> None:
        """Begin with nothing that waits.

        Args:
            engine: says whether images run in batches, and on how many cores.
            max_images: that run at the same time; on a CPU there is a core for each.
            max_pixels: of their padded inputs; one image alone may have more.
            clock: of the deadlines.
        """
        most = max_images if engine.batches else min(max_images, engine.cores)
        # Re-entrant: the garbage collector may end a forgotten request at any time, which then leaves the queue.
        self.lock = threading.RLock()
        self.queue = Queue(clock=clock)
        self.budget = BatchBudget(most, max_pixels)
        self.cores = Cores(engine.cores)
        self.lanes = 1 if engine.batches else most
        # Nothing will be run any more.
        self.closed = False
        # For each lane its own: a thread that is woken for nothing takes the interpreter from those that run.
        self._work = [threading.Condition(self.lock) for _ in range(self.lanes)]
        self._idle: set[int] = set()
        self._pass_ended = threading.Condition(self.lock)
        self._batches = engine.batches
        # Pixels of the padded inputs of all that runs.
        self._pixels = 0
        # Turns that want the device for themselves, and whether one has it.
        self._want_all, self._one_has_all = 0, False

    # Call these with the lock held

    def put(self, entry: Entry) -> None:
        """Append an entry."""
        self.queue.put(entry)
        self._wake()

    def discard(self, entry: Entry) -> None:
        """Remove an entry whose caller has left, if it still waits."""
        if self.queue.discard(entry):
            # Others may have waited behind it.
            self._wake()

    def wait(self, lane: int, seconds: float) -> None:
        """Until there may be something to run on an idle lane, or the schedule is closed, or the time has passed."""
        self._idle.add(lane)
        self._work[lane].wait(seconds)
        self._idle.discard(lane)

    def close(self) -> list[Entry]:
        """Let nothing more run; the entries that waited."""
        self.closed = True
        for condition in (*self._work, self._pass_ended):
            condition.notify_all()
        return self.queue.clear()

    def take(self, lane: int) -> Turn | None:
        """The next batch for a lane, which may hold nothing but entries that are late; None if it has to wait."""
        # So the first lane runs a lone image, which all cores share: its OpenMP threads exist since the warm-up.
        if self._want_all or self.cores.passes < lane:
            return None
        cores = self.cores.take(len(self.queue), self._most_passes())
        if not cores:
            return None
        batch = self.queue.next_batch(self.budget.images if self._batches else 1, self.budget.pixels)
        turn = Turn(batch, cores, sum(math.prod(entry.bucket) for entry in batch.live))
        self._pixels += turn.pixels
        if not batch.live:
            self._end(turn)
        # There may be cores for one more.
        self._wake()
        return turn if batch.live or batch.expired else None

    def _most_passes(self) -> int:
        """Passes that may run at the same time, if those to come are like the next one."""
        if self._batches:
            return 1
        running = self.cores.passes
        fitting = max(0, self.budget.pixels - self._pixels) // max(1, self.queue.next_pixels)
        return min(self.budget.images, max(1, running + fitting))

    def _end(self, turn: Turn) -> None:
        self.cores.give_back(turn.cores)
        self._pixels -= turn.pixels
        self._pass_ended.notify_all()
        # The lane whose turn it was may not be the one that can go on.
        self._wake()

    def _wake(self) -> None:
        """Wake the first idle lane if it can go on. Where it cannot, a lane before it is about to look by itself."""
        if not self._idle or not len(self.queue) or self._want_all or not self.cores.free:
            return
        first = min(self._idle)
        if self.cores.passes >= first:
            self._work[first].notify()

    # These take the lock themselves

    def end(self, turn: Turn) -> None:
        """A turn with a live batch is over."""
        with self.lock:
            self._end(turn)

    @contextmanager
    def alone(self, beat: Callable[[], None], seconds: float) -> Iterator[None]:
        """For a turn that goes on while no other does. beat: is called every so many seconds until then."""
        with self.lock:
            self._want_all += 1
            while not self.closed and (self.cores.passes > self._want_all or self._one_has_all):
                beat()
                self._pass_ended.wait(seconds)
            self._one_has_all = True
        try:
            yield
        finally:
            with self.lock:
                self._want_all -= 1
                self._one_has_all = False
                self._pass_ended.notify_all()
                self._wake()

    def drop_dead(self, entries: Sequence[Entry]) -> Partition:
        """As Queue.drop_dead."""
        with self.lock:
            return self.queue.drop_dead(entries)

    def record(self, *, out_of_memory: bool, success: bool) -> None:
        """What an attempt has led to, for the limits."""
        with self.lock:
            if out_of_memory:
                self.budget.record_out_of_memory()
            elif success:
                self.budget.record_success()
