"""Start, drain, stop, and errors that the worker cannot survive."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest

from app.batching.heartbeat import WorkerState
from app.problems import Draining, NotReady
from model.errors import DeviceFailed
from model.instances import Options
from tests.app.batching.fakes import PATIENCE, Harness, gather, on_a_loop, picture, started

# Life cycle


@on_a_loop
async def test_admission_opens_only_after_the_warm_up_which_runs_on_the_device_thread():
    harness = Harness()
    threads = []

    def warm_up():
        threads.append(threading.get_ident())
        assert harness.gate.wait(PATIENCE)

    harness.engine.warm_up = warm_up
    started = harness.worker.start()
    with pytest.raises(NotReady):
        await harness.ask(picture(1))
    assert harness.worker.status().state is WorkerState.STARTING
    assert harness.worker.status().is_alive(timeout=0)
    harness.gate.set()
    await started
    assert harness.worker.status().state is WorkerState.READY
    assert await harness.ask(picture(1)) == 1
    assert harness.engine.threads == set(threads)
    await harness.worker.stop()


@on_a_loop
async def test_drain_finishes_admitted_requests_and_refuses_new_ones():
    async with started() as harness:
        first = await harness.occupy()
        queued = harness.send(1)
        await harness.wait_enqueued(1)
        # Still being decoded.
        with harness.admission.admit(1024) as permit:
            draining = asyncio.create_task(harness.worker.drain())
            await asyncio.sleep(0)
            with pytest.raises(Draining) as refused:
                await harness.ask(picture(9))
            assert refused.value.retry_after
            harness.gate.set()
            assert await gather([first, queued]) == [0, 1]
            assert harness.worker.status().state is WorkerState.DRAINING
            decoded = await harness.worker.segment(permit, picture(2), Options(), harness.clock() + 1000)
            assert int(decoded.instances.labels[0]) == 2
            assert not draining.done()
        await draining
        assert harness.worker.status().is_alive(timeout=5)
        await harness.worker.stop()
        assert harness.worker.status().state is WorkerState.STOPPED
        assert not harness.worker._lanes[0].thread.is_alive()
        assert harness.fatal == []


@on_a_loop
async def test_drain_during_the_warm_up_keeps_admission_closed():
    harness = Harness()
    harness.engine.warm_up = lambda: harness.gate.wait(PATIENCE)
    started = harness.worker.start()
    await harness.worker.drain()
    harness.gate.set()
    await started
    with pytest.raises(Draining):
        await harness.ask(picture(1))
    await harness.worker.stop()


@on_a_loop
async def test_stop_finishes_the_running_batch_and_refuses_the_waiting_requests():
    async with started() as harness:
        first = await harness.occupy()
        waiting = harness.send(1)
        await harness.wait_enqueued(1)
        stopping = asyncio.create_task(harness.worker.stop())
        with pytest.raises(Draining):
            await waiting
        assert not stopping.done()
        harness.gate.set()
        assert await first == 0
        await stopping
        assert harness.engine.calls == [[0]]


@on_a_loop
async def test_giving_up_the_wait_for_the_warm_up_does_not_break_the_worker():
    harness = Harness()
    harness.engine.warm_up = lambda: harness.gate.wait(PATIENCE)
    harness.worker.start().cancel()
    harness.gate.set()
    await harness.worker.stop()
    assert harness.fatal == []


@on_a_loop
async def test_stop_without_start_returns():
    await Harness().worker.stop()


# Fatal errors


class DriverGone(BaseException):
    """Nothing that `except Exception` would stop."""


@pytest.mark.parametrize(
    "error", [DeviceFailed("illegal access"), DriverGone("gone"), SystemExit(3)], ids=repr
)
@on_a_loop
async def test_fatal_error_answers_all_requests_with_not_ready_and_is_reported(error):
    harness = Harness()
    await harness.worker.start()
    first = await harness.occupy()
    tasks = [harness.send(n) for n in (1, 2)]
    other_shape = asyncio.create_task(harness.ask(picture(3, 64, 64)))
    await harness.wait_enqueued(3)
    harness.raise_at(error, number=2)
    harness.gate.set()
    assert await first == 0
    answers = await gather([*tasks, other_shape])
    assert [type(problem) for problem in answers] == [NotReady] * 3
    assert all(problem.retry_after for problem in answers)
    assert harness.fatal == [error]

    status = harness.worker.status()
    assert status.state is WorkerState.FAILED
    assert str(error) in status.reason
    assert not status.is_alive(timeout=math.inf)

    # At admission.
    with pytest.raises(NotReady):
        await harness.ask(picture(4))
    assert harness.admission.refused == {"not-ready": 1}
    harness.admission.open()
    # And at the queue, for requests that were admitted before.
    with pytest.raises(NotReady):
        await harness.ask(picture(4))
    await harness.worker.stop()
    assert harness.worker.status().state is WorkerState.FAILED
    assert harness.engine.calls == [[0], [1, 2]]


@on_a_loop
async def test_neighbour_that_was_answered_before_the_device_failed_keeps_its_answer():
    harness = Harness()
    await harness.worker.start()
    first = await harness.occupy()
    tasks = [harness.send(n) for n in (1, 2, 3, 4)]
    await harness.wait_enqueued(4)

    def behave(numbers):
        if len(numbers) == 4:
            raise RuntimeError
        if 3 in numbers:
            raise DeviceFailed

    harness.engine.behave = behave
    harness.gate.set()
    answers = await gather([first, *tasks])
    assert answers[:3] == [0, 1, 2]
    assert [type(problem) for problem in answers[3:]] == [NotReady] * 2
    await harness.worker.stop()


@on_a_loop
async def test_failed_warm_up_stops_the_start():
    harness = Harness()
    error = RuntimeError("no kernel image for this device")

    def warm_up():
        raise error

    harness.engine.warm_up = warm_up
    with pytest.raises(RuntimeError, match="no kernel image"):
        await harness.worker.start()
    assert harness.fatal == [error]
    assert harness.worker.status().state is WorkerState.FAILED
    with pytest.raises(NotReady):
        await harness.ask(picture(1))
    await harness.worker.stop()


def test_results_for_a_closed_loop_do_not_crash_the_thread(caplog):
    harness = Harness()

    async def leave_in_the_middle():
        await harness.worker.start()
        await harness.occupy()

    # Cancels the request and closes the loop while the device runs.
    asyncio.run(leave_in_the_middle())
    harness.gate.set()
    thread = harness.worker._lanes[0].thread
    with harness.worker._lock:
        harness.worker._state = WorkerState.STOPPED
        harness.worker._schedule.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert harness.worker.status().state is WorkerState.STOPPED
    assert "event loop has ended" in caplog.text
