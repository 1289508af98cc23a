"""What the worker reports about itself: its heartbeat, its status, and the rate of the device."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

import app.batching.lane
from app.batching.heartbeat import Heartbeat, Status, WorkerState
from app.problems import QueueFull
from tests.app.batching.fakes import POISON, Clock, gather, on_a_loop, picture, started


@on_a_loop
async def test_heartbeat_grows_old_while_a_batch_hangs_and_is_young_again_after_it():
    clock = Clock()
    async with started(clock=clock) as harness:
        first = await harness.occupy()
        clock.now += 30
        status = harness.worker.status()
        assert (status.activity, status.activity_seconds, status.heartbeat_age) == ("forward", 30, 30)
        assert not status.is_alive(timeout=30)
        assert status.is_alive(timeout=31)
        harness.gate.set()
        await first
        await harness.ask(picture(1))
        assert harness.worker.status().is_alive(timeout=1)


@on_a_loop
async def test_every_attempt_at_a_failing_batch_is_a_heartbeat():
    clock = Clock()
    async with started(clock=clock) as harness:
        first = await harness.occupy()
        tasks = [harness.send(n) for n in (1, 2, 3, POISON)]
        await harness.wait_enqueued(4)
        ages = []

        def fail_slowly(numbers):
            ages.append(harness.worker.status().heartbeat_age)
            clock.now += 10
            if POISON in numbers:
                raise RuntimeError

        harness.engine.behave = fail_slowly
        harness.gate.set()
        await gather([first, *tasks])
        assert ages == [0] * 5


@on_a_loop
async def test_idle_worker_keeps_its_heartbeat(monkeypatch):
    monkeypatch.setattr(app.batching.lane, "HEARTBEAT_SECONDS", 0.001)
    clock = Clock()
    async with started(clock=clock) as harness:
        await harness.wait_for(lambda status: status.activity == "idle")
        clock.now += 100
        await harness.wait_for(lambda status: status.heartbeat_age == 0)
        assert harness.worker.status().activity_seconds == 100


@on_a_loop
async def test_health_does_not_depend_on_what_waits():
    clock = Clock()
    async with started(clock=clock) as harness:
        first = await harness.occupy()
        before = harness.worker.status()
        tasks = [harness.send(n % 200 + 1) for n in range(500)]
        await harness.wait_enqueued(500)
        assert harness.worker.status() == before
        harness.gate.set()
        await gather([first, *tasks])


@pytest.mark.parametrize(
    ("before", "activity", "since"),
    [
        pytest.param("idle", "idle", 3, id="idleness continues"),
        pytest.param("forward", "idle", 9, id="idleness begins"),
        pytest.param("idle", "forward", 9, id="a batch begins"),
        pytest.param("forward", "forward", 9, id="each batch is an activity of its own"),
    ],
)
def test_heartbeat_knows_since_when_an_activity_lasts(before, activity, since):
    assert Heartbeat(at=5, activity=before, since=3).next(9, activity) == Heartbeat(9, activity, since)


@pytest.mark.parametrize("state", list(WorkerState))
def test_without_a_heartbeat_only_a_starting_worker_is_alive(state):
    silent = Status(state, None, "forward", 99, heartbeat_age=99)
    assert silent.is_alive(timeout=10) == (state is WorkerState.STARTING)


@on_a_loop
async def test_measured_rate_reaches_retry_after():
    clock = Clock()
    async with started(clock=clock, max_pixels=10_000) as harness:

        def take_two_seconds(numbers):
            clock.now += 2

        harness.engine.behave = take_two_seconds
        for _ in range(5):
            await harness.ask(picture(1, 32, 32))
        assert harness.admission.pixels_per_second == pytest.approx(32 * 32 / 2)
        with ExitStack() as others:
            others.enter_context(harness.admission.admit(9_999))
            with pytest.raises(QueueFull) as refused:
                await harness.ask(picture(1))
        # 9,999 / 512, in whole seconds.
        assert refused.value.headers()["Retry-After"] == "20"
