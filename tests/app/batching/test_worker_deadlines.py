"""Clients that leave and deadlines that pass cost the device nothing."""

from __future__ import annotations

import asyncio

import pytest

from app.problems import DeadlineExceeded
from tests.app.batching.fakes import PATIENCE, Clock, gather, on_a_loop, picture, started


@on_a_loop
async def test_cancelled_entry_never_reaches_the_device():
    async with started() as harness:
        first = await harness.occupy()
        leaving, staying = harness.send(1), harness.send(2)
        await harness.wait_enqueued(2)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert harness.worker.waiting == (1, 1024)
        assert harness.admission.requests == 2
        harness.gate.set()
        assert await gather([first, staying]) == [0, 2]
        assert harness.engine.calls == [[0], [2]]
        assert harness.worker.dropped == {"cancelled": 1}


@on_a_loop
async def test_client_that_leaves_while_its_image_runs_does_not_affect_others():
    async with started() as harness:
        first = await harness.occupy()
        first.cancel()
        await asyncio.wait([first])
        assert harness.admission.requests == 0
        harness.gate.set()
        assert await harness.ask(picture(1)) == 1


@on_a_loop
async def test_expired_entry_never_reaches_the_device():
    clock = Clock()
    async with started(clock=clock) as harness:
        first = await harness.occupy()
        late, fine = harness.send(1, seconds=60), harness.send(2, seconds=61)
        await harness.wait_enqueued(2)
        clock.now += 60
        harness.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert await gather([first, fine]) == [0, 2]
        assert harness.engine.calls == [[0], [2]]
        assert harness.worker.dropped == {"expired": 1}


@on_a_loop
async def test_entry_that_is_late_already_is_refused_at_once():
    async with started() as harness:
        first = await harness.occupy()
        with pytest.raises(DeadlineExceeded):
            await harness.ask(picture(1), seconds=-1.0)
        harness.gate.set()
        await first
        assert harness.engine.calls == [[0]]
        assert harness.worker.dropped == {"expired": 1}


@on_a_loop
async def test_deadline_that_passes_while_waiting_is_answered_before_the_device_is_free():
    async with started() as harness:
        first = await harness.occupy()
        with pytest.raises(DeadlineExceeded):
            await harness.ask(picture(1), seconds=0.001)
        assert not harness.gate.is_set()
        assert harness.worker.waiting == (0, 0)
        harness.gate.set()
        await first
        assert harness.engine.calls == [[0]]


@on_a_loop
async def test_deadline_that_passes_while_the_image_runs_is_answered_at_once():
    async with started() as harness:
        harness.engine.behave = lambda numbers: harness.gate.wait(PATIENCE)
        with pytest.raises(DeadlineExceeded):
            await harness.ask(picture(1), seconds=0.001)
        assert not harness.gate.is_set()
        harness.gate.set()
        assert await harness.ask(picture(2)) == 2
