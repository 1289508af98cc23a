"""The queue worker: one thread per device that turns batches into instances.

It warms the engine up (starting), serves (ready), finishes what was accepted (draining), ends (stopped). An
error that it cannot live with makes it `failed`, for good: only a new process helps.

Who touches what: one lock guards the queue and the state. The device thread owns the batch that it runs and
the counts. Futures, timers and admission belong to the event loop; the device thread reaches them by
`call_soon_threadsafe` only, once per forward pass.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from app.batching.batch import Outcome, Segmenter, forward, too_late
from app.batching.budget import BatchBudget
from app.batching.heartbeat import Heartbeat, State, Status
from app.batching.queue import Entry, Queue, SegmentResult
from app.problems import Draining, NotReady, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from app.batching.admission import Admission, Ticket
    from app.batching.queue import Clock, Partition
    from model.instances import Options

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0  # an idle worker gives a sign of life this often; work wakes it at once


class Worker:
    """Turns admitted images into instances on one device.

        worker = Worker(engine, admission, max_batch_size=8, max_batch_pixels=12_000_000, on_fatal=end)
        await worker.start()                       # warmed up, and the door of `admission` is open
        with admission.admit(width * height) as ticket:
            image = ...                            # decoded elsewhere
            segmented = await worker.segment(ticket, image, options, deadline)
        await worker.drain()                       # the door is shut, and everyone inside has got the answer
        await worker.stop()

    Call it on the event loop; `status`, `waiting`, `dropped`, `counts` and `budget` may be read from anywhere.
    `on_fatal(error)` is called on the loop too, once, after all that waited has been answered with NotReady:
    the process should then end with a non-zero code. So is `on_outcome`, for every attempt at a batch.
    """

    def __init__(
        self,
        engine: Segmenter,
        admission: Admission,
        *,
        max_batch_size: int,
        max_batch_pixels: int,
        on_fatal: Callable[[BaseException], None],
        on_outcome: Callable[[Outcome], None] = lambda _: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.counts: Counter[str] = Counter()  # by kind, as app.batching.batch.forward counts them
        self._engine = engine
        self._admission = admission
        self.budget = BatchBudget(max_batch_size, max_batch_pixels)
        self._on_fatal = on_fatal
        self._on_outcome = on_outcome
        self._clock = clock

        self._lock = threading.Condition()  # guards the next three; notified when there is something to do
        self._queue = Queue(clock=clock)
        self._state = State.STARTING
        self._reason: str | None = None

        self._batch: Sequence[Entry] = ()  # what the device thread runs
        self._heartbeat = Heartbeat(clock(), "warm-up", clock())

        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._warm: asyncio.Future[None]
        self._ended = asyncio.Event()

    # On the event loop

    def start(self) -> asyncio.Future[None]:
        """Start the thread. The future is done once the engine is warm, or carries what went wrong.

        The warm-up runs on the thread that will serve, because OpenMP keeps its pool per calling thread.
        """
        self._loop = asyncio.get_running_loop()
        self._warm = self._loop.create_future()
        # A daemon: a device call that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._live, name="maskserve-device", daemon=True)
        self._thread.start()
        return self._warm

    async def segment(
        self, ticket: Ticket, image: NDArray[np.uint8], options: Options, deadline: float
    ) -> SegmentResult:
        """The image's instances, as soon as the device has found them.

        image: [H, W, 3] RGB. deadline: finite, on the worker's clock (`time.monotonic`).
        Raises DeadlineExceeded (504) the moment the deadline passes, even while the device is at it; NotReady
        (503) before the warm-up and after a fatal error; Draining (503) once stopped; ImageTooLarge (413) if
        the image alone exceeds the device's memory; Problem (500) if the engine fails on this very image.
        A cancelled call leaves nothing behind: what still waits is taken out and never reaches the device.
        """
        now = self._clock()
        height, width = image.shape[:2]
        bucket = self._engine.padded_shape(height, width)
        future: asyncio.Future[SegmentResult] = self._loop.create_future()
        entry = Entry(image, ticket.pixels, options, deadline, future, bucket, now)
        with self._lock:
            self._refuse_unless_running()
            self._queue.put(entry)
            self._lock.notify()
        timer = self._loop.call_later(max(0.0, deadline - now), _expire, future)
        try:
            return await future
        finally:
            timer.cancel()
            with self._lock:
                self._queue.discard(entry)
            # An error's traceback holds this frame; if the frame held the future that holds the error, the
            # images of late requests would pile up under overload until the garbage collector came.
            del entry, future, image

    def _refuse_unless_running(self) -> None:
        if self._state is State.FAILED:
            raise _device_failed()
        if self._state is State.STOPPED:
            raise Draining
        if self._state is State.STARTING:
            raise NotReady("The model is warming up.", retry_after=5)

    async def drain(self) -> None:
        """Refuse new requests with Draining; return once everyone who was admitted has been answered."""
        with self._lock:
            if self._state in {State.STARTING, State.READY}:
                self._state = State.DRAINING
            if self._state is not State.FAILED:
                self._admission.close(Draining)
        await self._admission.emptied()

    async def stop(self) -> None:
        """End the thread; the batch that runs is finished, what still waits is answered with Draining.

        Bound it with `asyncio.timeout`: a device call that hangs never returns.
        """
        with self._lock:
            if self._state is not State.FAILED:
                self._state = State.STOPPED
                self._admission.close(Draining)
            left = self._queue.clear()
            self._lock.notify()
        _answer((entry, Draining()) for entry in left)
        if self._thread is not None:
            await self._ended.wait()
            self._thread.join()

    def abandon(self, refusal: Callable[[], Problem]) -> int:
        """Answer everyone whom the device keeps waiting with a problem, and say how many they were.

        For a device that hangs: others may answer them. What it brings after all is thrown away.
        """
        with self._lock:
            lost = [entry for entry in (*self._batch, *self._queue.clear()) if not entry.future.done()]
        _answer((entry, refusal()) for entry in lost)
        return len(lost)

    def status(self) -> Status:
        """How the worker is; never waits."""
        now, beat = self._clock(), self._heartbeat
        return Status(self._state, self._reason, beat.doing, now - beat.since, now - beat.at)

    @property
    def waiting(self) -> tuple[int, int]:
        """Entries that wait for the device, and their pixels as sent."""
        return len(self._queue), self._queue.pixels

    @property
    def dropped(self) -> Counter[str]:
        """Entries that never ran, by reason: "cancelled", "expired"."""
        return self._queue.dropped

    def _deliver(self, outcome: Outcome) -> None:
        _answer(outcome.answers)
        if outcome.seconds > 0:
            self._admission.served(outcome.pixels, outcome.seconds)
            self._on_outcome(outcome)

    def _on_warm(self) -> None:
        if self._state is State.READY:
            self._admission.open()
        if not self._warm.done():
            self._warm.set_result(None)

    def _on_failed(self, lost: Iterable[Entry], error: BaseException) -> None:
        self._admission.close(_device_failed)
        _answer((entry, _device_failed()) for entry in lost)
        if not self._warm.done():
            self._warm.set_exception(error)
        self._on_fatal(error)

    # On the device thread

    def _live(self) -> None:
        try:
            self._engine.warm_up()
            with self._lock:
                if self._state is State.STARTING:
                    self._state = State.READY
            self._post(self._on_warm)
            while self._work():
                pass
        except BaseException as error:
            log.critical("The device worker has failed; the process must be restarted.", exc_info=error)
            with self._lock:
                self._state = State.FAILED
                self._reason = f"{type(error).__name__}: {error}"
                lost = [*self._batch, *self._queue.clear()]  # whoever has an answer already keeps it
            self._post(self._on_failed, lost, error)
        finally:
            self._post(self._ended.set)

    def _work(self) -> bool:
        """Run what is there, or wait until something may be; False once stopped. Waits empty-handed."""
        with self._lock:
            taken = self._queue.next_batch(self.budget.images, self.budget.pixels)
            if not taken.live and not taken.expired:
                if self._state is State.STOPPED:
                    return False
                self._beat("idle")
                self._lock.wait(BEAT_SECONDS)
                return True
        if taken.expired:
            self._post(_answer, [(entry, too_late()) for entry in taken.expired])
        if taken.live:
            self._batch = taken.live
            self._beat("forward")
            for outcome in forward(
                self._engine, taken.live, drop_dead=self._drop_dead, clock=self._clock, counts=self.counts
            ):
                self._post(self._deliver, outcome)
                self._beat("forward")
                if outcome.out_of_memory:
                    self.budget.ran_out()
                elif outcome.answers and outcome.seconds > 0:
                    self.budget.passed()
            self._batch = ()
        return True

    def _drop_dead(self, entries: Sequence[Entry]) -> Partition:
        with self._lock:
            return self._queue.drop_dead(entries)

    def _beat(self, doing: str) -> None:
        self._heartbeat = self._heartbeat.next(self._clock(), doing)

    def _post(self, callback: Callable[..., Any], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody waits for answers any more
            log.warning("The event loop has ended before the device worker did.")


def _answer(answers: Iterable[tuple[Entry, SegmentResult | Problem]]) -> None:
    for entry, answer in answers:
        if entry.future.done():  # the client left, or the deadline passed, while the device was at it
            continue
        if isinstance(answer, Problem):
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)


def _expire(future: asyncio.Future[SegmentResult]) -> None:
    if not future.done():
        future.set_exception(too_late())


def _device_failed() -> NotReady:
    return NotReady("The device has failed; the service is being restarted.", retry_after=5)
