"""The queue worker: one thread for each device that runs batches of images and returns their instances.

It warms up the engine (starting), serves (ready), finishes what was admitted (draining) and ends (stopped). An error
that it cannot survive makes it `failed`, which is final: only a new process helps.

One lock guards the queue and the state. The device thread owns the batch that it runs and the counts. Futures, timers
and admission belong to the event loop; the device thread reaches them by `call_soon_threadsafe` only, once for each
attempt at a batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from app.batching.batch import Attempt, Segmenter, deadline_exceeded, run_batch
from app.batching.budget import BatchBudget
from app.batching.heartbeat import Activity, Heartbeat, State, Status
from app.batching.queue import Entry, Queue, SegmentResult
from app.problems import Draining, NotReady, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from app.batching.admission import Admission, Permit
    from app.batching.queue import Clock, Partition
    from model.instances import Options

log = logging.getLogger(__name__)

# Between heartbeats of an idle worker. A new entry wakes it at once.
HEARTBEAT_SECONDS = 1.0


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
            max_batch_size: images in a batch.
            max_batch_pixels: pixels of padded input in a batch; one image alone may have more.
            on_fatal: called once on the event loop, after every waiting request has been answered with NotReady. The
                process should then end with a non-zero code.
            on_attempt: called on the event loop after each attempt at a batch.
            clock: in seconds.
        """
        # By kind, as app.batching.batch.run_batch counts them.
        self.counts: Counter[str] = Counter()
        self.budget = BatchBudget(max_batch_size, max_batch_pixels)
        self._engine = engine
        self._admission = admission
        self._on_fatal = on_fatal
        self._on_attempt = on_attempt
        self._clock = clock

        # Guards the next three; notified when there is something to do.
        self._lock = threading.Condition()
        self._queue = Queue(clock=clock)
        self._state = State.STARTING
        self._reason: str | None = None

        # What the device thread runs now.
        self._batch: Sequence[Entry] = ()
        self._heartbeat = Heartbeat(clock(), "warm-up", clock())

        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._warm: asyncio.Future[None]
        self._thread_ended = asyncio.Event()

    # On the event loop

    def start(self) -> asyncio.Future[None]:
        """Start the thread. The future is done once the engine is warm, or holds the error that prevented it.

        The warm-up runs on the thread that will serve, because OpenMP has one pool for each calling thread.
        """
        self._loop = asyncio.get_running_loop()
        self._warm = self._loop.create_future()
        # A daemon, because a device call that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="maskserve-device", daemon=True)
        self._thread.start()
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
            self._queue.put(entry)
            self._lock.notify()
        timer = self._loop.call_later(max(0.0, deadline - now), _expire, future)
        try:
            return await future
        finally:
            timer.cancel()
            with self._lock:
                self._queue.discard(entry)
            # An error's traceback holds this frame. If the frame held the future that holds the error, the images of
            # expired requests would accumulate under overload until the next garbage collection.
            del entry, future, image

    def _raise_unless_running(self) -> None:
        if self._state is State.FAILED:
            raise _device_failed()
        if self._state is State.STOPPED:
            raise Draining
        if self._state is State.STARTING:
            raise NotReady("The model is warming up.", retry_after=5)

    async def drain(self) -> None:
        """Refuse new requests with Draining; return once every admitted request has been answered."""
        with self._lock:
            if self._state in {State.STARTING, State.READY}:
                self._state = State.DRAINING
            if self._state is not State.FAILED:
                self._admission.close(Draining, accepted_pass=True)
        await self._admission.wait_until_empty()

    async def stop(self) -> None:
        """End the thread after the batch that it runs; what still waits is answered with Draining.

        Limit it with `asyncio.timeout`: a device call that hangs never returns.
        """
        with self._lock:
            if self._state is not State.FAILED:
                self._state = State.STOPPED
                self._admission.close(Draining)
            waiting = self._queue.clear()
            self._lock.notify()
        _set_answers((entry, Draining()) for entry in waiting)
        if self._thread is not None:
            await self._thread_ended.wait()
            self._thread.join()

    def fail_pending(self, refusal: Callable[[], Problem]) -> int:
        """Answer every request that waits for the device, or runs on it, with a problem; return their number.

        For a device that hangs. If the batch ends after all, its results are discarded.
        """
        with self._lock:
            pending = [entry for entry in (*self._batch, *self._queue.clear()) if not entry.future.done()]
        _set_answers((entry, refusal()) for entry in pending)
        return len(pending)

    def status(self) -> Status:
        """The present status; never waits."""
        now, beat = self._clock(), self._heartbeat
        return Status(self._state, self._reason, beat.activity, now - beat.since, now - beat.at)

    @property
    def waiting(self) -> tuple[int, int]:
        """Number of entries that wait for the device, and their pixels as they were sent."""
        return len(self._queue), self._queue.pixels

    @property
    def dropped(self) -> Counter[str]:
        """Entries that never ran, by reason: "cancelled", "expired"."""
        return self._queue.dropped

    def _deliver(self, attempt: Attempt) -> None:
        _set_answers(attempt.answers)
        if attempt.seconds > 0:
            self._admission.record_served(attempt.input_pixels, attempt.seconds)
            self._on_attempt(attempt)

    def _on_warm(self) -> None:
        if self._state is State.READY:
            self._admission.open()
        if not self._warm.done():
            self._warm.set_result(None)

    def _on_failure(self, pending: Iterable[Entry], error: BaseException) -> None:
        self._admission.close(_device_failed)
        _set_answers((entry, _device_failed()) for entry in pending)
        if not self._warm.done():
            self._warm.set_exception(error)
        self._on_fatal(error)

    # On the device thread

    def _run(self) -> None:
        try:
            self._engine.warm_up()
            with self._lock:
                if self._state is State.STARTING:
                    self._state = State.READY
            self._call_on_loop(self._on_warm)
            while self._run_next_batch():
                pass
        except BaseException as error:
            log.critical("The device worker has failed; the process must be restarted.", exc_info=error)
            with self._lock:
                self._state = State.FAILED
                self._reason = f"{type(error).__name__}: {error}"
                # Entries of the batch that have been answered keep their answers.
                pending = [*self._batch, *self._queue.clear()]
            self._call_on_loop(self._on_failure, pending, error)
        finally:
            self._call_on_loop(self._thread_ended.set)

    def _run_next_batch(self) -> bool:
        """Run the next batch, or wait until there may be one; False once stopped.

        While it waits, no local variable holds an entry, whose image would stay in memory.
        """
        with self._lock:
            batch = self._queue.next_batch(self.budget.images, self.budget.pixels)
            if not batch.live and not batch.expired:
                if self._state is State.STOPPED:
                    return False
                self._beat("idle")
                self._lock.wait(HEARTBEAT_SECONDS)
                return True
        if batch.expired:
            self._call_on_loop(_set_answers, [(entry, deadline_exceeded()) for entry in batch.expired])
        if batch.live:
            self._batch = batch.live
            self._beat("forward")
            attempts = run_batch(
                self._engine, batch.live, drop_dead=self._drop_dead, clock=self._clock, counts=self.counts
            )
            for attempt in attempts:
                self._call_on_loop(self._deliver, attempt)
                self._beat("forward")
                if attempt.out_of_memory:
                    self.budget.record_out_of_memory()
                elif attempt.answers and attempt.seconds > 0:
                    self.budget.record_success()
            self._batch = ()
        return True

    def _drop_dead(self, entries: Sequence[Entry]) -> Partition:
        with self._lock:
            return self._queue.drop_dead(entries)

    def _beat(self, activity: Activity) -> None:
        self._heartbeat = self._heartbeat.next(self._clock(), activity)

    def _call_on_loop(self, callback: Callable[..., Any], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # The loop is closed, so nothing waits for answers any more.
            log.warning("The event loop has ended before the device worker did.")


def _set_answers(answers: Iterable[tuple[Entry, SegmentResult | Problem]]) -> None:
    for entry, answer in answers:
        # The client may have left, or the deadline may have passed, while the device ran the image.
        if entry.future.done():
            continue
        if isinstance(answer, Problem):
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)


def _expire(future: asyncio.Future[SegmentResult]) -> None:
    if not future.done():
        future.set_exception(deadline_exceeded())


def _device_failed() -> NotReady:
    return NotReady("The device has failed; the service is being restarted.", retry_after=5)
