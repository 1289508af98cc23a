"""The worker with its real thread and event loop, and an engine that fails, waits and counts on demand."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import random
import threading
import time
import weakref
from contextlib import ExitStack, asynccontextmanager, suppress

import numpy as np
import pytest
import torch

import app.batching.worker
from app.batching.admission import Admission
from app.batching.budget import RECOVERY
from app.batching.heartbeat import Heartbeat, State, Status
from app.batching.worker import Worker
from app.problems import DeadlineExceeded, Draining, ImageTooLarge, NotReady, Problem, QueueFull
from model.errors import DeviceFailed, OutOfDeviceMemory
from model.instances import Instances, Options

PATIENCE = 20  # seconds, for what takes milliseconds; met only when something hangs
POISON = 255


def on_a_loop(test):
    """Run an async test; fail it instead of hanging, and for any error in a callback of the loop."""

    async def watched(*args, **kwargs):
        broken = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
        await asyncio.wait_for(test(*args, **kwargs), PATIENCE)
        assert broken == []

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(watched(*args, **kwargs))

    return run


@pytest.fixture(autouse=True)
def _no_heartbeat_wakes_the_thread(monkeypatch):
    """What should wake the worker must do so itself."""
    monkeypatch.setattr(app.worker, "BEAT_SECONDS", 2 * PATIENCE)


def picture(number: int, height: int = 32, width: int = 32) -> np.ndarray:
    """An image that the fake engine recognises: the number is its first sample."""
    return np.full((height, width, 3), number, dtype=np.uint8)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """Finds one instance in every image, with the image's number for its label."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []  # the numbers of the images in each batch, in order
        self.shapes: list[set[tuple[int, int]]] = []  # their padded shapes
        self.behave = lambda numbers: None  # may raise, or wait
        self.warm_up = lambda: None
        self.entered = threading.Semaphore(0)
        self.threads: set[int] = set()

    def input_size(self, height, width):
        return height, width

    def padded_shape(self, height, width):
        return math.ceil(height / 32) * 32, math.ceil(width / 32) * 32

    def segment(self, images, options):
        assert len(images) == len(options)
        numbers = [int(image[0, 0, 0]) for image in images]
        self.calls.append(numbers)
        self.shapes.append({self.padded_shape(*image.shape[:2]) for image in images})
        self.threads.add(threading.get_ident())
        self.entered.release()
        self.behave(numbers)
        return [
            Instances(image.shape[:2], torch.zeros(1, 4), torch.ones(1), torch.tensor([number]), None)
            for image, number in zip(images, numbers, strict=True)
        ]


class House:
    """A worker with what surrounds it."""

    def __init__(
        self, *, clock=time.monotonic, max_batch_size=8, max_pixels=10**9, on_outcome=lambda _: None
    ) -> None:
        self.engine = FakeEngine()
        self.clock = clock
        self.admission = Admission(max_requests=1000, max_pixels=max_pixels, clock=clock)
        self.fatal: list[BaseException] = []
        self.worker = Worker(
            self.engine,
            self.admission,
            max_batch_size=max_batch_size,
            max_batch_pixels=10**9,
            on_fatal=self.fatal.append,
            on_outcome=on_outcome,
            clock=clock,
        )
        self.gate = threading.Event()

    async def ask(self, image, seconds=1000.0) -> int:
        """What the HTTP side does with a decoded image; returns the label found."""
        height, width = image.shape[:2]
        with self.admission.admit(height * width) as ticket:
            segmented = await self.worker.segment(ticket, image, Options(), self.clock() + seconds)
        return int(segmented.instances.labels[0])

    def send(self, number, **kwargs) -> asyncio.Task[int]:
        return asyncio.create_task(self.ask(picture(number), **kwargs))

    async def entered(self) -> None:
        """Wait until the device has begun one more batch."""
        assert await asyncio.to_thread(self.engine.entered.acquire, timeout=PATIENCE)

    async def occupy(self) -> asyncio.Task[int]:
        """Hold the device with image 0 until the gate opens; later batches pass."""
        self.engine.behave = lambda numbers: numbers == [0] and self.gate.wait(PATIENCE)
        task = self.send(0)
        await self.entered()
        return task

    async def enqueued(self, count) -> None:
        """Let the tasks that were just created run until so many entries wait."""
        for _ in range(1000):
            if self.worker.waiting[0] == count:
                return
            await asyncio.sleep(0)
        pytest.fail(f"{self.worker.waiting[0]} entries wait, not {count}")

    async def comes_to(self, condition) -> None:
        """Wait for the device thread to bring about what nothing announces."""
        for _ in range(200_000):
            if condition(self.worker.status()):
                return
            await asyncio.sleep(0)
        pytest.fail(f"still {self.worker.status()}")

    def raise_at(self, error, number=POISON) -> None:
        """From now on the engine fails on every batch that holds this image."""

        def behave(numbers):
            if number in numbers:
                raise error

        self.engine.behave = behave


@asynccontextmanager
async def open_house(**kwargs):
    house = House(**kwargs)
    await house.worker.start()
    try:
        yield house
    finally:
        house.gate.set()
        await house.worker.stop()


async def outcomes(tasks):
    return await asyncio.gather(*tasks, return_exceptions=True)


# Batches


@on_a_loop
async def test_every_request_gets_its_own_images_answer():
    async with open_house() as house:
        assert await outcomes(house.send(n) for n in range(100)) == list(range(100))
        assert len(house.engine.threads) == 1
        assert house.engine.threads != {threading.get_ident()}


@on_a_loop
async def test_idle_device_takes_the_first_alone_and_those_that_arrive_meanwhile_together():
    async with open_house() as house:
        first = await house.occupy()
        others = [house.send(n) for n in (1, 2, 3, 4, 5)]
        await house.enqueued(5)
        house.gate.set()
        assert await outcomes([first, *others]) == [0, 1, 2, 3, 4, 5]
        assert house.engine.calls == [[0], [1, 2, 3, 4, 5]]


@on_a_loop
async def test_batch_is_topped_up_until_the_device_takes_it():
    async with open_house() as house:
        first = await house.occupy()
        early = house.send(1)
        await house.enqueued(1)
        late = house.send(2)
        await house.enqueued(2)
        house.gate.set()
        await outcomes([first, early, late])
        assert house.engine.calls == [[0], [1, 2]]


@on_a_loop
async def test_batch_never_mixes_padded_shapes():
    async with open_house() as house:
        first = await house.occupy()
        sizes = [(40, 40), (40, 90), (64, 64), (90, 40), (33, 50), (70, 50)]
        tasks = [asyncio.create_task(house.ask(picture(n, *size))) for n, size in enumerate(sizes, 1)]
        await house.enqueued(len(sizes))
        house.gate.set()
        assert await outcomes([first, *tasks]) == [0, 1, 2, 3, 4, 5, 6]
        assert house.engine.calls == [[0], [1, 3, 5], [2], [4, 6]]
        assert all(len(shapes) == 1 for shapes in house.engine.shapes)


@on_a_loop
async def test_answer_carries_what_it_took():
    clock = Clock()
    async with open_house(clock=clock) as house:
        first = await house.occupy()
        with house.admission.admit(1024) as ticket:
            task = asyncio.create_task(house.worker.segment(ticket, picture(1), Options(), clock.now + 1000))
            await house.enqueued(1)
            clock.now += 3

            def take_two_seconds(numbers):
                clock.now += 2

            house.engine.behave = take_two_seconds
            house.gate.set()
            segmented = await task
        await first
        assert (segmented.queue_seconds, segmented.forward_seconds, segmented.batch_size) == (3, 2, 1)


@on_a_loop
async def test_many_clients_of_mixed_shapes_that_come_and_go_all_get_their_own_answer():
    shapes = [(32, 32), (40, 40), (64, 32), (32, 64)]
    chance = random.Random(5)
    async with open_house() as house:
        house.raise_at(ValueError("poison"))

        async def client():
            for _ in range(10):
                number = chance.choice([*range(8), POISON])
                task = asyncio.create_task(house.ask(picture(number, *chance.choice(shapes))))
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.2:
                    task.cancel()
                (outcome,) = await outcomes([task])
                if isinstance(outcome, asyncio.CancelledError):
                    continue
                if number == POISON:
                    assert type(outcome) is Problem
                else:
                    assert outcome == number

        await asyncio.gather(*(client() for _ in range(50)))
        assert house.worker.waiting == (0, 0)
        assert (house.admission.requests, house.admission.pixels) == (0, 0)
        assert all(len(shapes) == 1 for shapes in house.engine.shapes)
        assert house.worker.status().state is State.READY


# One bad image


@on_a_loop
async def test_poison_in_a_batch_of_eight_fails_alone_after_few_attempts():
    async with open_house() as house:
        first = await house.occupy()
        numbers = [1, 2, 3, 4, 5, POISON, 7, 8]
        tasks = [house.send(n) for n in numbers]
        await house.enqueued(8)
        house.raise_at(RuntimeError("no such kernel"))
        house.gate.set()
        answers = await outcomes(tasks)
        await first
        assert answers[:5] + answers[6:] == [1, 2, 3, 4, 5, 7, 8]
        assert type(answers[5]) is Problem
        assert answers[5].status == 500
        assert "kernel" not in answers[5].detail
        assert repr(answers[5].__cause__) == "RuntimeError('no such kernel')"
        assert len(house.engine.calls) - 1 == 1 + 2 * 3  # the eight, then two halves on each of three levels
        assert house.worker.counts["failed"] == 1
        assert house.worker.counts["splits"] == 3
        assert house.worker.counts["images"] == 8  # with the first, without the culprit


@on_a_loop
async def test_service_goes_on_after_a_failure():
    async with open_house() as house:
        house.raise_at(RuntimeError("once"))
        with pytest.raises(Problem):
            await house.ask(picture(POISON))
        assert await house.ask(picture(1)) == 1
        assert house.worker.status().is_alive(limit=5)
        assert house.fatal == []


@on_a_loop
async def test_batch_that_does_not_fit_runs_in_halves():
    async with open_house() as house:
        first = await house.occupy()
        tasks = [house.send(n) for n in range(1, 9)]
        await house.enqueued(8)

        def only_two_fit(numbers):
            if len(numbers) > 2:
                raise OutOfDeviceMemory

        house.engine.behave = only_two_fit
        house.gate.set()
        assert await outcomes([first, *tasks]) == list(range(9))
        assert house.worker.counts["too-large"] == 0


@pytest.mark.parametrize("error", [OutOfDeviceMemory(), MemoryError()], ids=repr)
@on_a_loop
async def test_image_that_alone_exceeds_the_devices_memory_is_too_large(error):
    async with open_house() as house:
        house.raise_at(error)
        with pytest.raises(ImageTooLarge):
            await house.ask(picture(POISON))
        assert house.worker.counts["too-large"] == 1
        assert house.worker.counts["failed"] == 0
        assert house.engine.calls == [[POISON], [POISON]]


@on_a_loop
async def test_image_whose_memory_was_taken_for_a_moment_is_answered_at_the_second_try():
    async with open_house() as house:

        def behave(numbers):
            if len(house.engine.calls) == 1:
                raise OutOfDeviceMemory

        house.engine.behave = behave
        assert await house.ask(picture(7)) == 7
        assert house.worker.counts["out-of-memory"] == 1
        assert house.worker.counts["splits"] == 0


@on_a_loop
async def test_batches_are_half_as_large_after_memory_ran_out_and_grow_again():
    async with open_house() as house:

        async def batch_of_sixteen():
            house.gate.clear()
            while house.engine.entered.acquire(blocking=False):  # batches that nobody waited for
                pass
            first = await house.occupy()
            house.engine.calls.clear()
            tasks = [house.send(n) for n in range(1, 17)]
            await house.enqueued(16)
            return [first, *tasks]

        tasks = await batch_of_sixteen()

        def only_four_fit(numbers):
            if len(numbers) > 4:
                raise OutOfDeviceMemory

        house.engine.behave = only_four_fit
        house.gate.set()
        assert await outcomes(tasks) == list(range(17))
        # The first batch of eight failed and its halves passed; the rest never came as eight again.
        assert [len(call) for call in house.engine.calls] == [8, 4, 4, 4, 4]
        assert house.worker.budget.images == 4
        for _ in range(RECOVERY):
            await house.ask(picture(1))
        tasks = await batch_of_sixteen()
        house.engine.behave = lambda numbers: None
        house.gate.set()
        assert await outcomes(tasks) == list(range(17))
        assert [len(call) for call in house.engine.calls] == [8, 8]


@on_a_loop
async def test_those_whom_a_hanging_device_keeps_waiting_are_sent_elsewhere():
    async with open_house() as house:
        running = await house.occupy()
        waiting = [house.send(n) for n in (1, 2)]
        await house.enqueued(2)
        assert house.worker.abandon(NotReady) == 3
        assert [type(answer) for answer in await outcomes([running, *waiting])] == [NotReady] * 3
        assert house.worker.abandon(NotReady) == 0
        house.gate.set()
        assert await house.ask(picture(3)) == 3
        assert house.engine.calls == [[0], [3]]


@on_a_loop
async def test_every_attempt_at_a_batch_is_reported_once():
    outcomes_seen = []
    async with open_house(on_outcome=outcomes_seen.append) as house:
        first = await house.occupy()
        tasks = [house.send(n) for n in (1, POISON)]
        await house.enqueued(2)
        house.raise_at(ValueError("poison"))
        house.gate.set()
        await outcomes([first, *tasks])
        sizes = [len(outcome.answers) for outcome in outcomes_seen]
        assert sizes == [1, 0, 1, 1]


@on_a_loop
async def test_engine_that_answers_too_few_never_gives_one_the_answer_of_another():
    async with open_house() as house:
        first = await house.occupy()
        tasks = [house.send(n) for n in (1, 2, 3, 4)]
        await house.enqueued(4)
        segment = house.engine.segment
        house.engine.segment = lambda images, options: segment(images, options)[-2:]
        house.gate.set()
        assert await outcomes([first, *tasks]) == [0, 1, 2, 3, 4]


@on_a_loop
async def test_client_that_left_while_its_batch_failed_is_not_tried_again():
    async with open_house() as house:
        first = await house.occupy()
        tasks = [house.send(n) for n in (1, 2, 3, 4)]
        await house.enqueued(4)
        halved = threading.Event()

        def fail_the_four(numbers):
            if len(numbers) == 4:
                assert halved.wait(PATIENCE)
                raise RuntimeError

        house.engine.behave = fail_the_four
        house.gate.set()
        await house.entered()
        tasks[0].cancel()
        tasks[3].cancel()
        await asyncio.sleep(0)
        halved.set()
        await outcomes([first, *tasks])
        assert house.engine.calls == [[0], [1, 2, 3, 4], [2], [3]]
        assert house.worker.dropped == {"cancelled": 2}


# Clients that leave, deadlines


@on_a_loop
async def test_cancelled_entry_never_reaches_the_device():
    async with open_house() as house:
        first = await house.occupy()
        leaving, staying = house.send(1), house.send(2)
        await house.enqueued(2)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert house.worker.waiting == (1, 1024)
        assert house.admission.requests == 2
        house.gate.set()
        assert await outcomes([first, staying]) == [0, 2]
        assert house.engine.calls == [[0], [2]]
        assert house.worker.dropped == {"cancelled": 1}


@on_a_loop
async def test_client_that_leaves_while_the_device_is_at_it_hurts_nobody():
    async with open_house() as house:
        first = await house.occupy()
        first.cancel()
        await asyncio.wait([first])
        assert house.admission.requests == 0
        house.gate.set()
        assert await house.ask(picture(1)) == 1


@on_a_loop
async def test_expired_entry_never_reaches_the_device():
    clock = Clock()
    async with open_house(clock=clock) as house:
        first = await house.occupy()
        late, fine = house.send(1, seconds=60), house.send(2, seconds=61)
        await house.enqueued(2)
        clock.now += 60
        house.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert await outcomes([first, fine]) == [0, 2]
        assert house.engine.calls == [[0], [2]]
        assert house.worker.dropped == {"expired": 1}


@on_a_loop
async def test_entry_that_is_late_already_is_refused_at_once():
    async with open_house() as house:
        first = await house.occupy()
        with pytest.raises(DeadlineExceeded):
            await house.ask(picture(1), seconds=-1.0)
        house.gate.set()
        await first
        assert house.engine.calls == [[0]]
        assert house.worker.dropped == {"expired": 1}


@on_a_loop
async def test_deadline_that_passes_while_waiting_is_told_before_the_device_is_free():
    async with open_house() as house:
        first = await house.occupy()
        with pytest.raises(DeadlineExceeded):
            await house.ask(picture(1), seconds=0.001)
        assert not house.gate.is_set()
        assert house.worker.waiting == (0, 0)
        house.gate.set()
        await first
        assert house.engine.calls == [[0]]


@on_a_loop
async def test_deadline_that_passes_while_the_device_is_at_it_is_told_at_once():
    async with open_house() as house:
        house.engine.behave = lambda numbers: house.gate.wait(PATIENCE)
        with pytest.raises(DeadlineExceeded):
            await house.ask(picture(1), seconds=0.001)
        assert not house.gate.is_set()
        house.gate.set()
        assert await house.ask(picture(2)) == 2


# Memory


@pytest.mark.parametrize("ending", ["answered", "failed", "late", "cancelled"])
@on_a_loop
async def test_image_is_let_go_once_the_request_has_ended(ending, caplog):
    caplog.set_level(logging.CRITICAL)  # pytest keeps log records, and with them tracebacks
    gc.collect()
    gc.disable()  # nothing may hang in a circle until the collector comes
    try:
        async with open_house() as house:
            first = await house.occupy()
            image = picture(POISON)
            watch = weakref.ref(image)
            task = asyncio.create_task(house.ask(image, seconds=0.001 if ending == "late" else 1000.0))
            del image
            await house.enqueued(1)
            if ending == "failed":
                house.raise_at(RuntimeError("poison"))
            if ending == "cancelled":
                task.cancel()
            if ending in {"answered", "failed"}:
                house.gate.set()
            with suppress(Problem, asyncio.CancelledError):
                await task
            del task
            await asyncio.sleep(0)  # the loop itself holds the task until its callbacks have run
            if ending in {"answered", "failed"}:
                await first
                await house.comes_to(lambda status: status.doing == "idle")
            assert watch() is None
    finally:
        gc.enable()


# Fatal errors


class DriverGone(BaseException):
    """Nothing that `except Exception` would stop."""


@pytest.mark.parametrize(
    "error", [DeviceFailed("illegal access"), DriverGone("gone"), SystemExit(3)], ids=repr
)
@on_a_loop
async def test_fatal_error_answers_everyone_with_not_ready_and_reports_itself(error):
    house = House()
    await house.worker.start()
    first = await house.occupy()
    tasks = [house.send(n) for n in (1, 2)]
    other_shape = asyncio.create_task(house.ask(picture(3, 64, 64)))
    await house.enqueued(3)
    house.raise_at(error, number=2)
    house.gate.set()
    assert await first == 0
    lost = await outcomes([*tasks, other_shape])
    assert [type(problem) for problem in lost] == [NotReady] * 3
    assert all(problem.retry_after for problem in lost)
    assert house.fatal == [error]

    status = house.worker.status()
    assert status.state is State.FAILED
    assert str(error) in status.reason
    assert not status.is_alive(limit=math.inf)

    with pytest.raises(NotReady):  # at the door
        await house.ask(picture(4))
    assert house.admission.refused == {"not-ready": 1}
    house.admission.open()
    with pytest.raises(NotReady):  # and, for whoever was past it, at the queue
        await house.ask(picture(4))
    await house.worker.stop()
    assert house.worker.status().state is State.FAILED
    assert house.engine.calls == [[0], [1, 2]]


@on_a_loop
async def test_neighbour_that_was_answered_before_the_device_failed_keeps_its_answer():
    house = House()
    await house.worker.start()
    first = await house.occupy()
    tasks = [house.send(n) for n in (1, 2, 3, 4)]
    await house.enqueued(4)

    def behave(numbers):
        if len(numbers) == 4:
            raise RuntimeError
        if 3 in numbers:
            raise DeviceFailed

    house.engine.behave = behave
    house.gate.set()
    answers = await outcomes([first, *tasks])
    assert answers[:3] == [0, 1, 2]
    assert [type(problem) for problem in answers[3:]] == [NotReady] * 2
    await house.worker.stop()


@on_a_loop
async def test_failed_warm_up_stops_the_start():
    house = House()
    error = RuntimeError("no kernel image for this device")

    def warm_up():
        raise error

    house.engine.warm_up = warm_up
    with pytest.raises(RuntimeError, match="no kernel image"):
        await house.worker.start()
    assert house.fatal == [error]
    assert house.worker.status().state is State.FAILED
    with pytest.raises(NotReady):
        await house.ask(picture(1))
    await house.worker.stop()


def test_results_for_a_closed_loop_do_not_crash_the_thread(caplog):
    house = House()

    async def leave_in_the_middle():
        await house.worker.start()
        await house.occupy()

    asyncio.run(leave_in_the_middle())  # cancels the request and closes the loop while the device is at it
    house.gate.set()
    thread = house.worker._thread
    with house.worker._lock:
        house.worker._state = State.STOPPED
        house.worker._lock.notify()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert house.worker.status().state is State.STOPPED
    assert "event loop has ended" in caplog.text


# Life-cycle


@on_a_loop
async def test_door_opens_only_after_the_warm_up_which_runs_on_the_device_thread():
    house = House()
    threads = []

    def warm_up():
        threads.append(threading.get_ident())
        assert house.gate.wait(PATIENCE)

    house.engine.warm_up = warm_up
    started = house.worker.start()
    with pytest.raises(NotReady):
        await house.ask(picture(1))
    assert house.worker.status().state is State.STARTING
    assert house.worker.status().is_alive(limit=0)
    house.gate.set()
    await started
    assert house.worker.status().state is State.READY
    assert await house.ask(picture(1)) == 1
    assert house.engine.threads == set(threads)
    await house.worker.stop()


@on_a_loop
async def test_drain_finishes_whom_it_admitted_and_refuses_the_next():
    async with open_house() as house:
        first = await house.occupy()
        queued = house.send(1)
        await house.enqueued(1)
        with house.admission.admit(1024) as ticket:  # still being decoded
            draining = asyncio.create_task(house.worker.drain())
            await asyncio.sleep(0)
            with pytest.raises(Draining) as refused:
                await house.ask(picture(9))
            assert refused.value.retry_after
            house.gate.set()
            assert await outcomes([first, queued]) == [0, 1]
            assert house.worker.status().state is State.DRAINING
            decoded = await house.worker.segment(ticket, picture(2), Options(), house.clock() + 1000)
            assert int(decoded.instances.labels[0]) == 2
            assert not draining.done()
        await draining
        assert house.worker.status().is_alive(limit=5)
        await house.worker.stop()
        assert house.worker.status().state is State.STOPPED
        assert not house.worker._thread.is_alive()
        assert house.fatal == []


@on_a_loop
async def test_drain_during_the_warm_up_keeps_the_door_shut():
    house = House()
    house.engine.warm_up = lambda: house.gate.wait(PATIENCE)
    started = house.worker.start()
    await house.worker.drain()
    house.gate.set()
    await started
    with pytest.raises(Draining):
        await house.ask(picture(1))
    await house.worker.stop()


@on_a_loop
async def test_stop_finishes_the_batch_that_runs_and_tells_those_who_wait():
    async with open_house() as house:
        first = await house.occupy()
        waiting = house.send(1)
        await house.enqueued(1)
        stopping = asyncio.create_task(house.worker.stop())
        with pytest.raises(Draining):
            await waiting
        assert not stopping.done()
        house.gate.set()
        assert await first == 0
        await stopping
        assert house.engine.calls == [[0]]


@on_a_loop
async def test_giving_up_the_wait_for_the_warm_up_does_not_break_the_worker():
    house = House()
    house.engine.warm_up = lambda: house.gate.wait(PATIENCE)
    house.worker.start().cancel()
    house.gate.set()
    await house.worker.stop()
    assert house.fatal == []


@on_a_loop
async def test_stop_without_start_returns():
    await House().worker.stop()


# What it tells others


@on_a_loop
async def test_heartbeat_grows_old_while_a_batch_hangs_and_is_young_again_after_it():
    clock = Clock()
    async with open_house(clock=clock) as house:
        first = await house.occupy()
        clock.now += 30
        status = house.worker.status()
        assert (status.doing, status.doing_seconds, status.heartbeat_age) == ("forward", 30, 30)
        assert not status.is_alive(limit=30)
        assert status.is_alive(limit=31)
        house.gate.set()
        await first
        await house.ask(picture(1))
        assert house.worker.status().is_alive(limit=1)


@on_a_loop
async def test_every_attempt_at_a_failing_batch_is_a_sign_of_life():
    clock = Clock()
    async with open_house(clock=clock) as house:
        first = await house.occupy()
        tasks = [house.send(n) for n in (1, 2, 3, POISON)]
        await house.enqueued(4)
        ages = []

        def fail_slowly(numbers):
            ages.append(house.worker.status().heartbeat_age)
            clock.now += 10
            if POISON in numbers:
                raise RuntimeError

        house.engine.behave = fail_slowly
        house.gate.set()
        await outcomes([first, *tasks])
        assert ages == [0] * 5


@on_a_loop
async def test_idle_worker_gives_signs_of_life_by_itself(monkeypatch):
    monkeypatch.setattr(app.worker, "BEAT_SECONDS", 0.001)
    clock = Clock()
    async with open_house(clock=clock) as house:
        await house.comes_to(lambda status: status.doing == "idle")
        clock.now += 100
        await house.comes_to(lambda status: status.heartbeat_age == 0)
        assert house.worker.status().doing_seconds == 100


@on_a_loop
async def test_what_is_waiting_never_touches_health():
    clock = Clock()
    async with open_house(clock=clock) as house:
        first = await house.occupy()
        before = house.worker.status()
        tasks = [house.send(n % 200 + 1) for n in range(500)]
        await house.enqueued(500)
        assert house.worker.status() == before
        house.gate.set()
        await outcomes([first, *tasks])


@pytest.mark.parametrize(
    ("before", "doing", "since"),
    [
        pytest.param("idle", "idle", 3, id="idleness goes on"),
        pytest.param("forward", "idle", 9, id="idleness begins"),
        pytest.param("idle", "forward", 9, id="a batch begins"),
        pytest.param("forward", "forward", 9, id="every batch begins anew"),
    ],
)
def test_heartbeat_knows_since_when(before, doing, since):
    assert Heartbeat(at=5, doing=before, since=3).next(9, doing) == Heartbeat(9, doing, since)


@pytest.mark.parametrize("state", list(State))
def test_silence_is_death_in_every_state_but_the_start(state):
    silent = Status(state, None, "forward", 99, heartbeat_age=99)
    assert silent.is_alive(limit=10) == (state is State.STARTING)


@on_a_loop
async def test_measured_rate_reaches_retry_after():
    clock = Clock()
    async with open_house(clock=clock, max_pixels=10_000) as house:

        def take_two_seconds(numbers):
            clock.now += 2

        house.engine.behave = take_two_seconds
        for _ in range(5):
            await house.ask(picture(1, 32, 32))
        assert house.admission.pixels_per_second == pytest.approx(32 * 32 / 2)
        with ExitStack() as others:
            others.enter_context(house.admission.admit(9_999))
            with pytest.raises(QueueFull) as refused:
                await house.ask(picture(1))
        assert refused.value.headers()["Retry-After"] == "20"  # 9,999 / 512, in whole seconds
