"""The queue alone: no threads, no model, and a clock that the test sets."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from app.batching.admission import Admission
from app.batching.queue import Entry, Queue
from app.problems import DeadlineExceeded, QueueFull
from model.instances import Options

IMAGE = np.zeros((1, 1, 3), dtype=np.uint8)
FAR = 1e9


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def loop():
    # Futures need one to belong to; it never runs.
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def queue(clock):
    return Queue(clock=clock)


@pytest.fixture
def enqueue(queue, loop, clock):
    def enqueue(bucket=(32, 32), deadline=FAR):
        entry = Entry(IMAGE, 10, Options(), deadline, loop.create_future(), bucket, clock())
        queue.put(entry)
        return entry

    return enqueue


# Batches


def test_batch_holds_one_bucket_only_the_oldest_entrys(queue, enqueue):
    first, other, second, third = enqueue((64, 32)), enqueue((32, 64)), enqueue((64, 32)), enqueue((64, 32))
    assert queue.next_batch(8, 10**9).live == [first, second, third]
    assert queue.next_batch(8, 10**9).live == [other]
    assert queue.next_batch(8, 10**9).live == []


def test_no_bucket_starves_behind_a_busy_one(queue, enqueue):
    for _ in range(5):
        enqueue((32, 32))
    rare = enqueue((64, 64))
    served = []
    while rare not in served:
        served = queue.next_batch(2, 10**9).live
        enqueue((32, 32))
        enqueue((32, 32))
        assert len(queue) < 16, "the rare bucket was never served"


def test_batch_stops_at_its_size(queue, enqueue):
    entries = [enqueue() for _ in range(5)]
    assert queue.next_batch(3, 10**9).live == entries[:3]
    assert queue.next_batch(3, 10**9).live == entries[3:]


def test_batch_stops_at_the_budget_of_padded_pixels(queue, enqueue):
    entries = [enqueue((32, 32)) for _ in range(5)]
    assert queue.next_batch(8, 3 * 32 * 32 + 1).live == entries[:3]


def test_entry_larger_than_the_budget_goes_alone(queue, enqueue):
    entries = [enqueue((320, 320)) for _ in range(2)]
    assert queue.next_batch(8, 1000).live == entries[:1]


def test_entry_that_arrives_while_a_batch_runs_joins_the_next(queue, enqueue):
    enqueue()
    # Runs.
    queue.next_batch(8, 10**9)
    entries = [enqueue() for _ in range(7)]
    assert queue.next_batch(8, 10**9).live == entries


def test_cancelled_entry_is_dropped_silently_and_counted(queue, enqueue):
    first, second, third = enqueue(), enqueue(), enqueue()
    first.future.cancel()
    second.future.cancel()
    batch = queue.next_batch(8, 10**9)
    assert (batch.live, batch.expired) == ([third], [])
    assert queue.dropped == {"cancelled": 2}


def test_expired_entry_is_dropped_returned_and_counted(queue, enqueue, clock):
    late, fine = enqueue(deadline=clock.now + 5), enqueue(deadline=clock.now + 5.001)
    clock.now += 5
    batch = queue.next_batch(8, 10**9)
    assert (batch.live, batch.expired) == ([fine], [late])
    assert queue.dropped == {"expired": 1}


def test_entry_that_was_answered_for_its_deadline_does_not_run(queue, enqueue):
    entry = enqueue()
    entry.future.set_exception(DeadlineExceeded())
    assert queue.next_batch(8, 10**9).live == []
    assert queue.dropped == {"expired": 1}
    assert isinstance(entry.future.exception(), DeadlineExceeded)


def test_entry_cancelled_by_a_time_limit_at_its_deadline_counts_as_expired(queue, enqueue, clock):
    entry = enqueue(deadline=clock.now + 5)
    clock.now += 5
    entry.future.cancel()
    queue.discard(entry)
    assert queue.dropped == {"expired": 1}


def test_dead_entries_take_no_room_in_the_batch(queue, enqueue):
    entries = [enqueue() for _ in range(6)]
    for dead in entries[1:4]:
        dead.future.cancel()
    assert queue.next_batch(3, 10**9).live == [entries[0], *entries[4:]]


def test_dead_entry_at_the_front_does_not_choose_the_bucket(queue, enqueue):
    dead, oldest, _younger = enqueue((32, 32)), enqueue((64, 64)), enqueue((32, 32))
    dead.future.cancel()
    assert queue.next_batch(8, 10**9).live == [oldest]


def test_discarded_entry_is_gone_with_its_pixels(queue, enqueue):
    entry, other = enqueue(), enqueue()
    entry.future.cancel()
    queue.discard(entry)
    # What has left already is no error.
    queue.discard(entry)
    assert (len(queue), queue.pixels) == (1, 10)
    assert queue.next_batch(8, 10**9).live == [other]
    assert queue.dropped == {"cancelled": 1}


def test_discarding_what_was_taken_counts_nothing(queue, enqueue):
    entry = enqueue()
    queue.next_batch(8, 10**9)
    queue.discard(entry)
    assert not queue.dropped


def test_drop_dead_drops_what_died_after_it_was_taken(queue, enqueue, clock):
    cancelled, late, fine = enqueue(), enqueue(deadline=clock.now + 1), enqueue()
    batch = queue.next_batch(8, 10**9).live
    cancelled.future.cancel()
    clock.now += 2
    partition = queue.drop_dead(batch)
    assert (partition.live, partition.expired) == ([fine], [late])
    assert queue.dropped == {"cancelled": 1, "expired": 1}


def test_clear_returns_everything_in_order(queue, enqueue):
    entries = [enqueue((32, 32)), enqueue((64, 64)), enqueue((32, 32))]
    assert queue.clear() == entries
    assert (len(queue), queue.pixels) == (0, 0)
    assert queue.next_batch(8, 10**9).live == []


def test_taking_a_batch_touches_only_its_own_entries(queue, loop):
    class Watched(Entry):
        __slots__ = ()
        looked_at = 0

        def __hash__(self) -> int:
            Watched.looked_at += 1
            return object.__hash__(self)

        __eq__ = object.__eq__

    for i in range(500):
        queue.put(Watched(IMAGE, 1, Options(), FAR, loop.create_future(), (32 + i % 50, 32), 0.0))
    Watched.looked_at = 0
    assert len(queue.next_batch(4, 10**9).live) == 4
    # A few look-ups for each of the four, of 500.
    assert Watched.looked_at <= 16


# Everything together


class QueueMachine(RuleBasedStateMachine):
    """Requests come, leave, grow old and are taken in any order, beside the simplest books."""

    # Admitted, not yet left.
    inside = Bundle("inside")

    MAX_REQUESTS = 6
    MAX_PIXELS = 60
    MAX_BATCH = 3
    MAX_BATCH_PIXELS = 2 * 64 * 64

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.loop = asyncio.new_event_loop()
        self.admission = Admission(
            max_requests=self.MAX_REQUESTS, max_pixels=self.MAX_PIXELS, clock=self.clock
        )
        self.admission.open()
        self.queue = Queue(clock=self.clock)
        # In order of arrival, dead ones included.
        self.waiting: list[Entry] = []
        self.run: list[Entry] = []
        self.expired: list[Entry] = []
        self.discarded: list[Entry] = []
        self.places: dict[Entry, ExitStack] = {}
        self.arrived = 0

    def is_dead(self, entry: Entry) -> bool:
        return entry.future.done() or entry.deadline <= self.clock.now

    @rule(
        target=inside,
        pixels=st.integers(1, 25),
        timeout=st.integers(1, 9),
        bucket=st.sampled_from([(32, 32), (32, 64), (64, 32), (64, 64), (512, 512)]),
    )
    def arrive(self, pixels, timeout, bucket):
        room = len(self.places) < self.MAX_REQUESTS and self.admission.pixels + pixels <= self.MAX_PIXELS
        place = ExitStack()
        if not room:
            with pytest.raises(QueueFull) as caught:
                place.enter_context(self.admission.admit(pixels))
            assert 1 <= caught.value.retry_after <= 60
            return None
        permit = place.enter_context(self.admission.admit(pixels))
        entry = Entry(
            IMAGE,
            permit.pixels,
            Options(),
            self.clock.now + timeout,
            self.loop.create_future(),
            bucket,
            self.clock.now,
        )
        self.places[entry] = place
        self.queue.put(entry)
        self.waiting.append(entry)
        self.arrived += 1
        return entry

    @rule(entry=consumes(inside))
    def leave(self, entry):
        """The client has its answer, or goes away without one."""
        if entry is None:
            return
        if not entry.future.done():
            entry.future.cancel()
        self.queue.discard(entry)
        if entry in self.waiting:
            self.waiting.remove(entry)
            self.discarded.append(entry)
        self.places.pop(entry).close()

    @rule(entry=inside)
    def cancel_unnoticed(self, entry):
        """The future is cancelled, but the event loop has not come round to discarding the entry."""
        if entry is not None:
            entry.future.cancel()

    @rule(seconds=st.integers(1, 4))
    def grow_old(self, seconds):
        self.clock.now += seconds

    @rule(pixels=st.integers(0, 30), seconds=st.floats(0.001, 100))
    def measure(self, pixels, seconds):
        self.admission.record_served(pixels, seconds)

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self):
        living = [entry for entry in self.waiting if not self.is_dead(entry)]
        batch = self.queue.next_batch(self.MAX_BATCH, self.MAX_BATCH_PIXELS)

        assert bool(batch.live) == bool(living), "an idle device takes what is there"
        if batch.live:
            bucket = living[0].bucket
            same = [entry for entry in living if entry.bucket == bucket]
            room = max(1, min(self.MAX_BATCH, self.MAX_BATCH_PIXELS // (bucket[0] * bucket[1])))
            assert batch.live == same[:room], "the oldest entry's bucket, in order, as full as allowed"
        assert all(entry.deadline <= self.clock.now for entry in batch.expired)

        self.run += batch.live
        self.expired += batch.expired
        self.waiting = list(self.queue._arrivals)

    @invariant()
    def no_entry_is_lost_or_duplicated(self):
        everywhere = [*self.waiting, *self.run, *self.expired, *self.discarded]
        assert len(everywhere) == len(set(everywhere))
        for entry in set(self.places) - set(everywhere):
            assert entry.future.cancelled(), "what is neither waiting, run nor expired was cancelled"
        dropped = self.queue.dropped
        assert set(dropped) <= {"cancelled", "expired"}
        assert dropped.total() == self.arrived - len(self.waiting) - len(self.run), "every drop is counted"

    @invariant()
    def books_agree(self):
        assert self.admission.requests == len(self.places)
        assert self.admission.pixels == sum(entry.pixels for entry in self.places)
        assert self.admission.pixels <= self.MAX_PIXELS
        assert len(self.queue) == len(self.waiting)
        assert self.queue.pixels == sum(entry.pixels for entry in self.waiting)
        in_buckets = [entry for bucket in self.queue._buckets.values() for entry in bucket]
        assert sorted(map(id, in_buckets)) == sorted(map(id, self.waiting))
        assert all(self.queue._buckets.values()), "no empty bucket is kept"

    def teardown(self):
        for place in self.places.values():
            place.close()
        assert (self.admission.requests, self.admission.pixels) == (0, 0)
        cleared = self.queue.clear()
        assert cleared == self.waiting
        self.loop.close()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
