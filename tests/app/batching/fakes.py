"""A worker with its real thread and event loop, and an engine that fails, waits and counts as the test demands."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch

from app.batching.admission import Admission
from app.batching.worker import Worker
from model.instances import Instances, Options

# Seconds, for what takes milliseconds; reached only when something hangs.
PATIENCE = 20
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


def picture(number: int, height: int = 32, width: int = 32) -> np.ndarray:
    """An image that the fake engine recognises: the number is its first sample."""
    return np.full((height, width, 3), number, dtype=np.uint8)


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """Finds one instance in every image, with the image's number for its label."""

    def __init__(self, cores: int = 1) -> None:
        """cores: of a CPU; 1 for a GPU, which runs batches."""
        self.batches = cores == 1
        self.cores = cores
        # Of each pass, in order.
        self.cores_given: list[int | None] = []
        # The numbers of the images in each batch, in order.
        self.calls: list[list[int]] = []
        # Their padded shapes.
        self.shapes: list[set[tuple[int, int]]] = []
        # May raise, or wait.
        self.behave = lambda numbers: None
        self.warm_up = lambda: None
        self.entered = threading.Semaphore(0)
        self.threads: set[int] = set()

    def input_size(self, height, width):
        return height, width

    def padded_shape(self, height, width):
        return math.ceil(height / 32) * 32, math.ceil(width / 32) * 32

    def segment(self, images, options, *, cores=None):
        assert len(images) == len(options)
        self.cores_given.append(cores)
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


class Harness:
    """A worker, its engine and its admission."""

    def __init__(
        self,
        *,
        clock=time.monotonic,
        cores=1,
        max_batch_size=8,
        max_batch_pixels=10**9,
        max_pixels=10**9,
        on_attempt=lambda _: None,
    ) -> None:
        self.engine = FakeEngine(cores)
        self.clock = clock
        self.admission = Admission(max_requests=1000, max_pixels=max_pixels, clock=clock)
        self.fatal: list[BaseException] = []
        self.worker = Worker(
            self.engine,
            self.admission,
            max_batch_size=max_batch_size,
            max_batch_pixels=max_batch_pixels,
            on_fatal=self.fatal.append,
            on_attempt=on_attempt,
            clock=clock,
        )
        self.gate = threading.Event()

    async def ask(self, image, seconds=1000.0) -> int:
        """What the HTTP side does with a decoded image; returns the label found."""
        height, width = image.shape[:2]
        with self.admission.admit(height * width) as permit:
            result = await self.worker.segment(permit, image, Options(), self.clock() + seconds)
        return int(result.instances.labels[0])

    def send(self, number, **kwargs) -> asyncio.Task[int]:
        return asyncio.create_task(self.ask(picture(number), **kwargs))

    async def wait_entered(self) -> None:
        """Wait until the device has begun one more batch."""
        assert await asyncio.to_thread(self.engine.entered.acquire, timeout=PATIENCE)

    async def occupy(self) -> asyncio.Task[int]:
        """Hold the device with image 0 until the gate opens; later batches pass."""
        self.engine.behave = lambda numbers: numbers == [0] and self.gate.wait(PATIENCE)
        task = self.send(0)
        await self.wait_entered()
        return task

    async def wait_enqueued(self, count) -> None:
        """Let the tasks that were just created run until so many entries wait."""
        for _ in range(1000):
            if self.worker.waiting[0] == count:
                return
            await asyncio.sleep(0)
        pytest.fail(f"{self.worker.waiting[0]} entries wait, not {count}")

    async def wait_for(self, condition) -> None:
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
async def started(**kwargs):
    """A harness whose worker is ready, and is stopped afterwards."""
    harness = Harness(**kwargs)
    await harness.worker.start()
    try:
        yield harness
    finally:
        harness.gate.set()
        await harness.worker.stop()


async def gather(tasks):
    """The results of the tasks; errors are returned, not raised."""
    return await asyncio.gather(*tasks, return_exceptions=True)
