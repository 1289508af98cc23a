"""A bad image, or one too large, fails alone; its neighbours get their answers."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from contextlib import suppress

import pytest

from app.batching.budget import RECOVERY_BATCHES
from app.problems import ImageTooLarge, NotReady, Problem
from model.errors import OutOfDeviceMemory
from tests.app.batching.fakes import PATIENCE, POISON, gather, on_a_loop, picture, started

# One bad image


@on_a_loop
async def test_one_bad_image_of_eight_fails_alone_after_few_attempts():
    async with started() as harness:
        first = await harness.occupy()
        numbers = [1, 2, 3, 4, 5, POISON, 7, 8]
        tasks = [harness.send(n) for n in numbers]
        await harness.wait_enqueued(8)
        harness.raise_at(RuntimeError("no such kernel"))
        harness.gate.set()
        answers = await gather(tasks)
        await first
        assert answers[:5] + answers[6:] == [1, 2, 3, 4, 5, 7, 8]
        assert type(answers[5]) is Problem
        assert answers[5].status == 500
        assert "kernel" not in answers[5].detail
        assert repr(answers[5].__cause__) == "RuntimeError('no such kernel')"
        # The eight together, then two halves on each of three levels.
        assert len(harness.engine.calls) - 1 == 1 + 2 * 3
        assert harness.worker.counts["failed"] == 1
        assert harness.worker.counts["splits"] == 3
        # With the first, without the bad image.
        assert harness.worker.counts["images"] == 8


@on_a_loop
async def test_worker_continues_after_a_failure():
    async with started() as harness:
        harness.raise_at(RuntimeError("once"))
        with pytest.raises(Problem):
            await harness.ask(picture(POISON))
        assert await harness.ask(picture(1)) == 1
        assert harness.worker.status().is_alive(timeout=5)
        assert harness.fatal == []


@on_a_loop
async def test_batch_that_does_not_fit_runs_in_halves():
    async with started() as harness:
        first = await harness.occupy()
        tasks = [harness.send(n) for n in range(1, 9)]
        await harness.wait_enqueued(8)

        def only_two_fit(numbers):
            if len(numbers) > 2:
                raise OutOfDeviceMemory

        harness.engine.behave = only_two_fit
        harness.gate.set()
        assert await gather([first, *tasks]) == list(range(9))
        assert harness.worker.counts["too-large"] == 0


@pytest.mark.parametrize("error", [OutOfDeviceMemory(), MemoryError()], ids=repr)
@on_a_loop
async def test_image_that_alone_exceeds_the_devices_memory_is_too_large(error):
    async with started() as harness:
        harness.raise_at(error)
        with pytest.raises(ImageTooLarge):
            await harness.ask(picture(POISON))
        assert harness.worker.counts["too-large"] == 1
        assert harness.worker.counts["failed"] == 0
        assert harness.engine.calls == [[POISON], [POISON]]


@on_a_loop
async def test_image_whose_memory_was_taken_for_a_moment_is_answered_at_the_second_try():
    async with started() as harness:

        def behave(numbers):
            if len(harness.engine.calls) == 1:
                raise OutOfDeviceMemory

        harness.engine.behave = behave
        assert await harness.ask(picture(7)) == 7
        assert harness.worker.counts["out-of-memory"] == 1
        assert harness.worker.counts["splits"] == 0


@on_a_loop
async def test_batches_are_half_as_large_after_memory_ran_out_and_grow_again():
    async with started() as harness:

        async def batch_of_sixteen():
            harness.gate.clear()
            # Batches that no test has waited for.
            while harness.engine.entered.acquire(blocking=False):
                pass
            first = await harness.occupy()
            harness.engine.calls.clear()
            tasks = [harness.send(n) for n in range(1, 17)]
            await harness.wait_enqueued(16)
            return [first, *tasks]

        tasks = await batch_of_sixteen()

        def only_four_fit(numbers):
            if len(numbers) > 4:
                raise OutOfDeviceMemory

        harness.engine.behave = only_four_fit
        harness.gate.set()
        assert await gather(tasks) == list(range(17))
        # The first batch of eight failed and its halves passed; the rest never came as eight again.
        assert [len(call) for call in harness.engine.calls] == [8, 4, 4, 4, 4]
        assert harness.worker.budget.images == 4
        for _ in range(RECOVERY_BATCHES):
            await harness.ask(picture(1))
        tasks = await batch_of_sixteen()
        harness.engine.behave = lambda numbers: None
        harness.gate.set()
        assert await gather(tasks) == list(range(17))
        assert [len(call) for call in harness.engine.calls] == [8, 8]


@on_a_loop
async def test_requests_that_a_hanging_device_keeps_waiting_can_be_failed():
    async with started() as harness:
        running = await harness.occupy()
        waiting = [harness.send(n) for n in (1, 2)]
        await harness.wait_enqueued(2)
        assert harness.worker.fail_pending(NotReady) == 3
        assert [type(answer) for answer in await gather([running, *waiting])] == [NotReady] * 3
        assert harness.worker.fail_pending(NotReady) == 0
        harness.gate.set()
        assert await harness.ask(picture(3)) == 3
        assert harness.engine.calls == [[0], [3]]


@on_a_loop
async def test_every_attempt_at_a_batch_is_reported_once():
    attempts = []
    async with started(on_attempt=attempts.append) as harness:
        first = await harness.occupy()
        tasks = [harness.send(n) for n in (1, POISON)]
        await harness.wait_enqueued(2)
        harness.raise_at(ValueError("poison"))
        harness.gate.set()
        await gather([first, *tasks])
        sizes = [len(attempt.answers) for attempt in attempts]
        assert sizes == [1, 0, 1, 1]


@on_a_loop
async def test_engine_that_returns_too_few_results_never_mixes_up_answers():
    async with started() as harness:
        first = await harness.occupy()
        tasks = [harness.send(n) for n in (1, 2, 3, 4)]
        await harness.wait_enqueued(4)
        segment = harness.engine.segment
        harness.engine.segment = lambda images, options: segment(images, options)[-2:]
        harness.gate.set()
        assert await gather([first, *tasks]) == [0, 1, 2, 3, 4]


@on_a_loop
async def test_client_that_left_while_its_batch_failed_is_not_tried_again():
    async with started() as harness:
        first = await harness.occupy()
        tasks = [harness.send(n) for n in (1, 2, 3, 4)]
        await harness.wait_enqueued(4)
        halved = threading.Event()

        def fail_the_four(numbers):
            if len(numbers) == 4:
                assert halved.wait(PATIENCE)
                raise RuntimeError

        harness.engine.behave = fail_the_four
        harness.gate.set()
        await harness.wait_entered()
        tasks[0].cancel()
        tasks[3].cancel()
        await asyncio.sleep(0)
        halved.set()
        await gather([first, *tasks])
        assert harness.engine.calls == [[0], [1, 2, 3, 4], [2], [3]]
        assert harness.worker.dropped == {"cancelled": 2}


# Memory that is freed


@pytest.mark.parametrize("ending", ["answered", "failed", "late", "cancelled"])
@on_a_loop
async def test_image_is_freed_once_the_request_has_ended(ending, caplog):
    # Pytest keeps log records, and with them tracebacks.
    caplog.set_level(logging.CRITICAL)
    gc.collect()
    # No reference cycle may keep it until the next collection.
    gc.disable()
    try:
        async with started() as harness:
            first = await harness.occupy()
            image = picture(POISON)
            watch = weakref.ref(image)
            task = asyncio.create_task(harness.ask(image, seconds=0.001 if ending == "late" else 1000.0))
            del image
            await harness.wait_enqueued(1)
            if ending == "failed":
                harness.raise_at(RuntimeError("poison"))
            if ending == "cancelled":
                task.cancel()
            if ending in {"answered", "failed"}:
                harness.gate.set()
            with suppress(Problem, asyncio.CancelledError):
                await task
            del task
            # The loop itself holds the task until its callbacks have run.
            await asyncio.sleep(0)
            if ending in {"answered", "failed"}:
                await first
                await harness.wait_for(lambda status: status.activity == "idle")
            assert watch() is None
    finally:
        gc.enable()
