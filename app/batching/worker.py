"""The queue worker: runs batches of images on one device and returns their instances.

It warms up the engine (starting), serves (ready), finishes what was admitted (draining) and ends (stopped). An error
that it cannot survive makes it `failed`, which is final: only a new process helps.

Its threads are in lane.py. One lock guards the state and the schedule. Futures, timers and admission belong to the
event loop; the threads reach them by `call_soon_threadsafe` only, once for each attempt at a batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from app.batching.answers import device_failed, expire, set_answers
from app.batching.heartbeat import Status, WorkerState
from app.batching.lane import Lane
from app.batching.queue import Entry, SegmentResult
from app.batching.schedule import Schedule
from app.problems import Draining, NotReady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from app.batching.admission import Admission, Permit
    from app.batching.batch import Attempt, Segmenter
    from app.batching.budget import BatchBudget
    from app.batching.queue import Clock
    from app.problems import Problem
    from model.instances import Options

log = logging.getLogger(__name__)


class Worker:
    """Runs admitted images on one device.

        worker = Worker(engine, admission, max_batch_size=8, max_batch_pixels=12_000_000, on_fatal=end)
        await worker.start()                       # warmed up, and `admission` is open
        with admission.admit(width * height) as permit:
            image = ...                            # decoded elsewhere
            result = await worker.segment(permit, image, options, deadline)
        await worker.drain()                       # `admission` is closed, and every admitted request is answered
        await worker.stop()

    Call it on the event loop; `status`, `waiting`, `dropped`, `counts` and `budget` may be read from any thread.
    """

    def __init__(
        self,
        engine: Segmenter,
        admission: Admission,
        *,
        max_batch_size: int,
        max_batch_pixels: int,
        on_fatal: Callable[[BaseException], None],
        on_attempt: Callable[[Attempt], None] = lambda _: None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Start nothing yet.

        Args:
            engine: that runs the images.
            admission: is opened once the engine is warm, and closed by `drain`, `stop` and a fatal error.
            max_batch_size: images that run at the same time: in a batch, or on a CPU with at least a core for each.
            max_batch_pixels: pixels of their padded inputs; one image alone may have more.
            on_fatal: called once on the event loop, after every waiting request has been answered with NotReady. The
                process should then end with a non-zero code.
            on_attempt: called on the event loop after each attempt at a batch.
            clock: in seconds.
        """
        self._engine = engine
        self._admission = admission
        self._on_fatal = on_fatal
        self._on_attempt = on_attempt
        self._clock = clock

        self._schedule = Schedule(engine, max_batch_size, max_batch_pixels, clock)
        # Guards the schedule and the next two.
        self._lock = self._schedule.lock
        self._state = WorkerState.STARTING
        self._reason: str | None = None
        self._lanes = [
            Lane(
                number, engine, self._schedule, clock,
                run=self._run, deliver=self._deliver, call_on_loop=self._call_on_loop,
            )
            for number in range(self._schedule.lanes)
        ]  # fmt: skip

        self._loop: asyncio.AbstractEventLoop
        self._warm: asyncio.Future[None]
        self._has_started = False
        self._have_ended = asyncio.Event()

    # On the event loop

    def start(self) -> asyncio.Future[None]:
        """Start the first thread, and once the engine is warm the others.

        The future is done then, or holds the error that prevented it. The warm-up runs on a thread that will serve,
        because OpenMP has one pool for each calling thread.
        """
        self._loop = asyncio.get_running_loop()
        self._warm = self._loop.create_future()
        self._lanes[0].thread.start()
        self._has_started = True
        return self._warm

    async def segment(
        self, permit: Permit, image: NDArray[np.uint8], options: Options, deadline: float
    ) -> SegmentResult:
        """The instances of an image, as soon as the device has found them.

        A call that is cancelled leaves nothing behind: if its image still waits, it never reaches the device.

        Args:
            permit: of the request, from `Admission.admit`.
            image: [H, W, 3] RGB.
            options: of the request.
            deadline: finite, on the worker's clock (`time.monotonic`).

        Raises:
            DeadlineExceeded: (504) at the moment when the deadline passes, even while the device runs the image.
            NotReady: (503) before the warm-up is complete, and after a fatal error.
            Draining: (503) once stopped.
            ImageTooLarge: (413) the image alone exceeds the device's memory.
            Problem: (500) the engine fails on this very image.
        """
        now = self._clock()
        height, width = image.shape[:2]
        bucket = self._engine.padded_shape(height, width)
        future: asyncio.Future[SegmentResult] = self._loop.create_future()
        entry = Entry(image, permit.pixels, options, deadline, future, bucket, now)
        with self._lock:
            self._raise_unless_running()
            self._schedule.put(entry)
        timer = self._loop.call_later(max(0.0, deadline - now), expire, future)
        try:
            return await future
        finally:
            timer.cancel()
            with self._lock:
                self._schedule.discard(entry)
            # An error's traceback holds this frame. If the frame held the future that holds the error, the images of
            # expired requests would accumulate under overload until the next garbage collection.
            del entry, future, image

    def _raise_unless_running(self) -> None:
        if self._state is WorkerState.FAILED:
            raise device_failed()
        if self._state is WorkerState.STOPPED:
            raise Draining
        if self._state is WorkerState.STARTING:
            raise NotReady("The model is warming up.", retry_after=5)

    async def drain(self) -> None:
        """Refuse new requests with Draining; return once every admitted request has been answered."""
        with self._lock:
            if self._state in {WorkerState.STARTING, WorkerState.READY}:
                self._state = WorkerState.DRAINING
            if self._state is not WorkerState.FAILED:
                self._admission.close(Draining, accepted_pass=True)
        await self._admission.wait_until_empty()

    async def stop(self) -> None:
        """End each thread after the batch that it runs; what still waits is answered with Draining.

        Limit it with `asyncio.timeout`: a device call that hangs never returns.
        """
        with self._lock:
            if self._state is not WorkerState.FAILED:
                self._state = WorkerState.STOPPED
                self._admission.close(Draining)
            waiting = self._schedule.close()
        set_answers((entry, Draining()) for entry in waiting)
        if self._has_started:
            await self._have_ended.wait()
            self._lanes[0].thread.join()

    def fail_pending(self, refusal: Callable[[], Problem]) -> int:
        """Answer every request that waits for the device, or runs on it, with a problem; return their number.

        For a device that hangs. If the batch ends after all, its results are discarded.
        """
        with self._lock:
            pending = [entry for entry in self._clear() if not entry.future.done()]
        set_answers((entry, refusal()) for entry in pending)
        return len(pending)

    def status(self) -> Status:
        """The present status; never waits."""
        return Status.of(self._state, self._reason, [lane.heartbeat for lane in self._lanes], self._clock())

    @property
    def waiting(self) -> tuple[int, int]:
        """Number of entries that wait for the device, and their pixels as they were sent."""
        return len(self._schedule.queue), self._schedule.queue.pixels

    @property
    def budget(self) -> BatchBudget:
        """How many images may run at the same time."""
        return self._schedule.budget

    @property
    def counts(self) -> Counter[str]:
        """Events by kind, as app.batching.batch.run_batch counts them."""
        total: Counter[str] = Counter()
        for lane in self._lanes:
            # Added from a copy, which is made at once: the lane's thread goes on counting.
            total.update(dict(lane.counts))
        return total

    @property
    def dropped(self) -> Counter[str]:
        """Entries that never ran, by reason: "cancelled", "expired"."""
        return self._schedule.queue.dropped

    def _deliver(self, attempt: Attempt) -> None:
        set_answers(attempt.answers)
        if attempt.seconds > 0:
            self._admission.record_served(attempt.input_pixels, attempt.seconds)
            self._on_attempt(attempt)

    def _on_warm(self) -> None:
        if self._state is WorkerState.READY:
            self._admission.open()
        if not self._warm.done():
            self._warm.set_result(None)

    def _on_failure(self, pending: Iterable[Entry], error: BaseException) -> None:
        self._admission.close(device_failed)
        set_answers((entry, device_failed()) for entry in pending)
        if not self._warm.done():
            self._warm.set_exception(error)
        self._on_fatal(error)

    # On the threads

    def _run(self, lane: Lane) -> None:
        is_first = lane.number == 0
        try:
            if is_first:
                self._begin()
            while lane.run_next():
                pass
        except BaseException as error:  # noqa: BLE001 - it is logged, and ends the process
            self._fail(error)
        finally:
            if is_first:
                for other in self._lanes[1:]:
                    if other.thread.ident is not None:
                        other.thread.join()
                self._call_on_loop(self._have_ended.set)

    def _begin(self) -> None:
        self._engine.warm_up()
        with self._lock:
            for lane in self._lanes:
                lane.beat("idle")
            if self._state is WorkerState.STARTING:
                self._state = WorkerState.READY
        for other in self._lanes[1:]:
            other.thread.start()
        self._call_on_loop(self._on_warm)

    def _fail(self, error: BaseException) -> None:
        log.critical("The device worker has failed; the process must be restarted.", exc_info=error)
        with self._lock:
            if self._state is WorkerState.FAILED:
                # Another thread was first, and has answered all.
                return
            self._state = WorkerState.FAILED
            self._reason = f"{type(error).__name__}: {error}"
            # Entries of a batch that have been answered keep their answers.
            pending = self._clear()
            self._schedule.close()
        self._call_on_loop(self._on_failure, pending, error)

    def _clear(self) -> list[Entry]:
        """All entries that run or wait; none waits any more. The caller holds the lock."""
        return [*(entry for lane in self._lanes for entry in lane.batch), *self._schedule.queue.clear()]

    def _call_on_loop(self, callback: Callable[..., Any], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # The loop is closed, so nothing waits for answers any more.
            log.warning("The event loop has ended before the device worker did.")
