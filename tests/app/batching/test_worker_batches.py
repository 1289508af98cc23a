"""Which images run together, and whose answer is whose."""

from __future__ import annotations

import asyncio
import random
import threading

from app.batching.heartbeat import WorkerState
from app.problems import Problem
from model.instances import Options
from tests.app.batching.fakes import POISON, Clock, gather, on_a_loop, picture, started


@on_a_loop
async def test_every_request_gets_its_own_images_answer():
    async with started() as harness:
        assert await gather(harness.send(n) for n in range(100)) == list(range(100))
        assert len(harness.engine.threads) == 1
        assert harness.engine.threads != {threading.get_ident()}


@on_a_loop
async def test_idle_device_takes_the_first_alone_and_those_that_arrive_meanwhile_together():
    async with started() as harness:
        first = await harness.occupy()
        others = [harness.send(n) for n in (1, 2, 3, 4, 5)]
        await harness.wait_enqueued(5)
        harness.gate.set()
        assert await gather([first, *others]) == [0, 1, 2, 3, 4, 5]
        assert harness.engine.calls == [[0], [1, 2, 3, 4, 5]]


@on_a_loop
async def test_batch_is_topped_up_until_the_device_takes_it():
    async with started() as harness:
        first = await harness.occupy()
        early = harness.send(1)
        await harness.wait_enqueued(1)
        late = harness.send(2)
        await harness.wait_enqueued(2)
        harness.gate.set()
        await gather([first, early, late])
        assert harness.engine.calls == [[0], [1, 2]]


@on_a_loop
async def test_batch_never_mixes_padded_shapes():
    async with started() as harness:
        first = await harness.occupy()
        sizes = [(40, 40), (40, 90), (64, 64), (90, 40), (33, 50), (70, 50)]
        tasks = [asyncio.create_task(harness.ask(picture(n, *size))) for n, size in enumerate(sizes, 1)]
        await harness.wait_enqueued(len(sizes))
        harness.gate.set()
        assert await gather([first, *tasks]) == [0, 1, 2, 3, 4, 5, 6]
        assert harness.engine.calls == [[0], [1, 3, 5], [2], [4, 6]]
        assert all(len(shapes) == 1 for shapes in harness.engine.shapes)


@on_a_loop
async def test_answer_carries_what_it_took():
    clock = Clock()
    async with started(clock=clock) as harness:
        first = await harness.occupy()
        with harness.admission.admit(1024) as permit:
            task = asyncio.create_task(
                harness.worker.segment(permit, picture(1), Options(), clock.now + 1000)
            )
            await harness.wait_enqueued(1)
            clock.now += 3

            def take_two_seconds(numbers):
                clock.now += 2

            harness.engine.behave = take_two_seconds
            harness.gate.set()
            result = await task
        await first
        assert (result.queue_seconds, result.forward_seconds, result.batch_size) == (3, 2, 1)


@on_a_loop
async def test_many_clients_of_mixed_shapes_that_come_and_go_all_get_their_own_answer():
    shapes = [(32, 32), (40, 40), (64, 32), (32, 64)]
    chance = random.Random(5)
    async with started() as harness:
        harness.raise_at(ValueError("poison"))

        async def client():
            for _ in range(10):
                number = chance.choice([*range(8), POISON])
                task = asyncio.create_task(harness.ask(picture(number, *chance.choice(shapes))))
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.2:
                    task.cancel()
                (outcome,) = await gather([task])
                if isinstance(outcome, asyncio.CancelledError):
                    continue
                if number == POISON:
                    assert type(outcome) is Problem
                else:
                    assert outcome == number

        await asyncio.gather(*(client() for _ in range(50)))
        assert harness.worker.waiting == (0, 0)
        assert (harness.admission.requests, harness.admission.pixels) == (0, 0)
        assert all(len(shapes) == 1 for shapes in harness.engine.shapes)
        assert harness.worker.status().state is WorkerState.READY
