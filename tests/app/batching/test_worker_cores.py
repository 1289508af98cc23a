"""Images that run at the same time on the cores of a CPU, each in a pass of its own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from app.batching.heartbeat import WorkerState
from app.problems import DeadlineExceeded, NotReady
from model.errors import DeviceFailed
from tests.app.batching.fakes import PATIENCE, POISON, Clock, Harness, gather, on_a_loop, picture, started


@on_a_loop
async def test_image_that_is_alone_runs_on_all_cores():
    async with started(cores=4) as harness:
        assert await harness.send(7) == 7
        assert await harness.send(8) == 8
        assert harness.engine.cores_given == [4, 4]


@on_a_loop
async def test_images_that_wait_run_at_the_same_time_on_a_core_each():
    async with started(cores=2) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, 2)]
        await harness.wait_enqueued(2)
        both = threading.Barrier(2)
        harness.engine.behave = lambda _: both.wait(PATIENCE)
        harness.gate.set()
        assert [await task for task in (first, *others)] == [0, 1, 2]
        assert harness.engine.cores_given == [2, 1, 1]
        assert sorted(harness.engine.calls) == [[0], [1], [2]]
        assert len(harness.engine.threads) == 2
        assert harness.worker.counts["images"] == 3


@on_a_loop
async def test_image_that_comes_while_another_has_all_cores_waits_for_them():
    async with started(cores=2) as harness:
        first = await harness.occupy()
        second = harness.send(1)
        await harness.wait_enqueued(1)
        harness.gate.set()
        await gather([first, second])
        assert harness.engine.cores_given == [2, 2]


@on_a_loop
async def test_one_image_at_a_time_where_no_more_are_allowed():
    async with started(cores=4, max_batch_size=1) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, 2, 3)]
        await harness.wait_enqueued(3)
        harness.gate.set()
        await gather([first, *others])
        assert harness.engine.cores_given == [None] * 4


@on_a_loop
async def test_pixels_of_images_that_run_at_the_same_time_are_limited():
    async with started(cores=4, max_batch_pixels=2 * 32 * 32 + 1) as harness:
        first = await harness.occupy()
        small = [harness.send(number) for number in (1, 2, 3)]
        large = asyncio.create_task(harness.ask(picture(4, 64, 64)))
        await harness.wait_enqueued(4)
        harness.gate.set()
        await gather([first, *small, large])
        # The large one is alone: it has more pixels than may run, as one image may.
        assert harness.engine.cores_given == [4, 2, 2, 2, 4]


@on_a_loop
async def test_small_image_does_not_pass_a_large_one_that_waits_for_pixels():
    async with started(cores=4, max_batch_pixels=4 * 32 * 32) as harness:
        first = await harness.occupy()
        small = harness.send(1)
        large = asyncio.create_task(harness.ask(picture(2, 64, 64)))
        last = harness.send(3)
        await harness.wait_enqueued(3)
        harness.gate.set()
        assert await gather([first, small, large, last]) == [0, 1, 2, 3]
        assert [call for [call] in harness.engine.calls] == [0, 1, 2, 3]


@on_a_loop
async def test_image_that_leaves_lets_those_behind_it_run():
    async with started(cores=2, max_batch_pixels=3 * 32 * 32) as harness:
        first = await harness.occupy()
        running = harness.send(1)
        large = asyncio.create_task(harness.ask(picture(2, 64, 64)))
        small = harness.send(3)
        await harness.wait_enqueued(3)
        held = threading.Event()
        harness.engine.behave = lambda numbers: numbers == [1] and held.wait(PATIENCE)
        harness.gate.set()
        await harness.wait_entered()
        await first
        large.cancel()
        # While the other still runs.
        assert await small == 3
        held.set()
        assert await running == 1


@on_a_loop
async def test_large_image_runs_once_the_last_of_the_others_has_ended():
    async with started(cores=2, max_batch_pixels=3 * 32 * 32) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, 2)]
        await harness.wait_enqueued(2)
        both, held = threading.Barrier(2), {1: threading.Event(), 2: threading.Event()}

        def behave(numbers):
            if numbers[0] in held:
                both.wait(PATIENCE)
                held[numbers[0]].wait(PATIENCE)

        harness.engine.behave = behave
        harness.gate.set()
        await first
        # The first thread has nothing to do, and may not begin the large one yet.
        held[1].set()
        assert await others[0] == 1
        large = asyncio.create_task(harness.ask(picture(3, 64, 64)))
        await harness.wait_enqueued(1)
        held[2].set()
        assert await gather([large, others[1]]) == [3, 2]


# Each is run by another thread.
@pytest.mark.parametrize("failing", [1, 2])
@on_a_loop
async def test_image_without_memory_is_tried_again_when_nothing_runs_beside_it(failing):
    async with started(cores=2) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, 2, 3)]
        await harness.wait_enqueued(3)
        both, running, beside = threading.Barrier(2), set(), []

        def behave(numbers):
            [number] = numbers
            running.add(number)
            try:
                if number != 3 and not beside:
                    both.wait(PATIENCE)
                if number == failing:
                    beside.append(running - {failing})
                    if len(beside) == 1:
                        raise MemoryError
            finally:
                running.discard(number)

        harness.engine.behave = behave
        harness.gate.set()
        assert await gather([first, *others]) == [0, 1, 2, 3]
        assert len(beside) == 2
        assert beside[1] == set()
        # Fewer may run now.
        assert harness.worker.budget.images == 1
        assert harness.worker.counts["too-large"] == 0
        assert await harness.send(4) == 4
        assert harness.engine.cores_given[-1] == 2


@on_a_loop
async def test_two_without_memory_are_tried_again_one_after_the_other():
    async with started(cores=2) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, 2)]
        await harness.wait_enqueued(2)
        both, tries = threading.Barrier(2), []

        def behave(numbers):
            tries.append(numbers)
            if len(tries) <= 2:
                both.wait(PATIENCE)
                raise MemoryError

        harness.engine.behave = behave
        harness.gate.set()
        assert await gather([first, *others]) == [0, 1, 2]
        assert len(tries) == 4


@on_a_loop
async def test_image_that_fails_costs_the_one_beside_it_nothing():
    async with started(cores=2) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (POISON, 1)]
        await harness.wait_enqueued(2)
        harness.raise_at(ValueError("poison"))
        harness.gate.set()
        results = await gather([first, *others])
        assert results[::2] == [0, 1]
        assert results[1].status == 500
        assert (harness.worker.counts["failed"], harness.worker.counts["images"]) == (1, 2)


@on_a_loop
async def test_lost_device_fails_what_runs_beside_it_and_is_told_once():
    async with started(cores=2) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (POISON, 1, 2)]
        await harness.wait_enqueued(3)
        both, held = threading.Barrier(2), threading.Event()

        def behave(numbers):
            both.wait(PATIENCE)
            if numbers == [POISON]:
                raise DeviceFailed("gone")
            held.wait(PATIENCE)
            raise DeviceFailed("gone for the second time")

        harness.engine.behave = behave
        harness.gate.set()
        results = await gather([first, *others])
        assert results[0] == 0
        assert all(isinstance(result, NotReady) for result in results[1:])
        held.set()
        await harness.worker.stop()
        assert harness.worker.status().state is WorkerState.FAILED
        assert [str(error) for error in harness.fatal] == ["gone"]
        assert harness.worker.status().reason == "DeviceFailed: gone"
        assert not any(lane.thread.is_alive() for lane in harness.worker._lanes)


@on_a_loop
async def test_pass_that_hangs_shows_while_another_goes_on():
    clock = Clock()
    async with started(cores=2, clock=clock) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, 2)]
        await harness.wait_enqueued(2)
        both, hung = threading.Barrier(2), threading.Event()

        def behave(numbers):
            if numbers != [3]:
                both.wait(PATIENCE)
            if numbers == [1]:
                hung.wait(PATIENCE)

        harness.engine.behave = behave
        harness.gate.set()
        await gather([first, others[1]])
        clock.now += 100
        # The other thread still works.
        assert await harness.send(3) == 3
        status = harness.worker.status()
        assert (status.activity, status.activity_seconds, status.heartbeat_age) == ("forward", 100, 100)
        assert not status.is_alive(timeout=50)
        assert harness.worker.fail_pending(DeadlineExceeded) == 1
        assert isinstance((await gather([others[0]]))[0], DeadlineExceeded)
        hung.set()


@on_a_loop
async def test_pass_on_half_of_the_cores_takes_half_of_the_device():
    clock, seconds = Clock(), []
    async with started(cores=2, clock=clock, on_attempt=lambda a: seconds.append(a.seconds)) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, 2)]
        await harness.wait_enqueued(2)
        clock.now += 3
        both = threading.Barrier(2, lambda: setattr(clock, "now", clock.now + 4))
        harness.engine.behave = lambda _: both.wait(PATIENCE)
        harness.gate.set()
        await gather([first, *others])
        assert seconds == pytest.approx([3, 2, 2])
        assert harness.admission.pixels_per_second == pytest.approx(3 * 32 * 32 / 7, rel=0.2)


@on_a_loop
async def test_image_that_is_alone_is_always_run_by_the_same_thread():
    async with started(cores=4) as harness:
        for number in range(8):
            await harness.send(number)
        assert len(harness.engine.threads) == 1


@on_a_loop
async def test_image_that_is_alone_wakes_no_other_thread():
    clock = Clock()
    async with started(cores=2, clock=clock) as harness:
        lanes = harness.worker._lanes
        # The other thread has gone to sleep once.
        while 1 not in harness.worker._schedule._idle:
            await asyncio.sleep(0.001)
        clock.now += 1
        for number in range(8):
            await harness.send(number)
        assert [lane.heartbeat.at for lane in lanes[1:]] == [clock.now - 1]


@on_a_loop
async def test_device_lost_by_another_thread_ends_the_first_too():
    async with started(cores=2) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, POISON)]
        await harness.wait_enqueued(2)
        passed = asyncio.Event()
        loop = asyncio.get_running_loop()
        both = threading.Barrier(2)

        def behave(numbers):
            both.wait(PATIENCE)
            if numbers == [POISON]:
                asyncio.run_coroutine_threadsafe(passed.wait(), loop).result(PATIENCE)
                raise DeviceFailed("gone")

        harness.engine.behave = behave
        harness.gate.set()
        assert await gather([first, others[0]]) == [0, 1]
        passed.set()
        assert isinstance((await gather([others[1]]))[0], NotReady)
        await harness.worker.stop()
        assert not any(lane.thread.is_alive() for lane in harness.worker._lanes)
        assert len(harness.fatal) == 1


@on_a_loop
async def test_stop_during_the_warm_up_ends_all_threads():
    harness = Harness(cores=3)
    warming, held = threading.Event(), threading.Event()

    def warm_up():
        warming.set()
        held.wait(PATIENCE)

    harness.engine.warm_up = warm_up
    harness.worker.start()
    await asyncio.to_thread(warming.wait, PATIENCE)
    stopping = asyncio.create_task(harness.worker.stop())
    await asyncio.sleep(0)
    held.set()
    await stopping
    assert harness.worker.status().state is WorkerState.STOPPED
    assert not any(lane.thread.is_alive() for lane in harness.worker._lanes)


@on_a_loop
async def test_stop_waits_for_all_that_run():
    async with started(cores=2) as harness:
        first = await harness.occupy()
        others = [harness.send(number) for number in (1, 2)]
        await harness.wait_enqueued(2)
        entered, held = threading.Semaphore(0), threading.Event()

        def behave(_):
            entered.release()
            held.wait(PATIENCE)

        harness.engine.behave = behave
        harness.gate.set()
        for _ in range(2):
            assert await asyncio.to_thread(entered.acquire, timeout=PATIENCE)
        stopping = asyncio.create_task(harness.worker.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        held.set()
        await stopping
        assert await gather([first, *others]) == [0, 1, 2]
