"""Decoder processes: whatever is done to the bytes of an image that a stranger sent is done where it can be killed.

A pool of our own: what a library's pool lacks (pebble 5.2, loky 3.5 and concurrent.futures were looked at) is memory
that each process shares with this one from its start, limits for each job, and a slow job that gives up its turn
instead of holding it. decoder_process.py is what runs in them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, TypeVar

from app.intake import decoder_accounts as accounts
from app.intake.decoder_child import (
    Child,
    DecoderJob,
    DecoderLostError,
    ImageFile,
    Inspection,
    raise_if_refused,
    too_slow,
    why_lost,
)
from app.problems import ImageTooLarge, Problem, UndecodableImage

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
T = TypeVar("T")

# A job that takes longer no longer holds its turn: another process takes the next job beside it.
SLOW_SECONDS = 0.25
# So many jobs at most go on beside those that have a turn.
MAX_SLOW = 6
# A process that is not needed any more is ended after so long.
IDLE_SECONDS = 5.0
# Seconds by the clock for one of processor time, on a machine that has other things to do.
CLOCK_FACTOR = 6.0
# Memory of a look at a header, for each byte of the file.
INSPECTION_FACTOR = 4
# Bytes for each pixel of the largest image that all jobs together may take. A WebP takes 18 to 22 (docs/operations.md).
MEMORY_PER_PIXEL = 24


class Decoders:
    """The pool. Belongs to the event loop.

        decoders = Decoders(2, max_bytes=20 << 20, max_pixels=50_000_000)
        decoders.start()
        found = await decoders.inspect(file)      # format and size
        pixels = await decoders.decode(file, found)   # [H, W, 3] uint8
        await decoders.stop()

    `turns` jobs run at once, in the order of their arrival. One that takes longer than SLOW_SECONDS gives up its turn
    and goes on beside the others until its limit, so that no other job waits for it.
    """

    def __init__(self, turns: int, *, max_bytes: int, max_pixels: int, max_text: int = 0) -> None:
        """max_bytes: of an image file. max_pixels: of an image. max_text: bytes of the longest base64 text."""
        self.turns = turns
        self.max_bytes = max_bytes
        self.memory = accounts.MemoryBudget(max_pixels * MEMORY_PER_PIXEL)
        # Jobs that ended with their process, by reason: "time", "crash", "outside", "abandoned".
        self.killed: Counter[str] = Counter()
        self._shared_bytes = max(max_bytes, max_text, 3 * max_pixels)
        self._children: set[Child] = set()
        self._idle: list[Child] = []
        self._waiting: deque[asyncio.Future[Child]] = deque()
        # Jobs that have a turn, and those that have given it up.
        self._running, self._slow = 0, 0
        self._starting = 0
        self._failed_starts = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False
        self._retry: asyncio.TimerHandle | None = None
        self._turn_times = accounts.TurnTimes()

    def start(self) -> None:
        """Begin to start the first process, and return. The others start when jobs wait for them."""
        self._ensure_processes(1)

    async def inspect(self, file: ImageFile, *, decode_up_to: int = 0) -> Inspection:
        """Format and size, and the pixels too of an image that has no more than `decode_up_to`: that saves a hop.

        Raises UnsupportedFormat, UndecodableImage, ImageTooLarge; for base64 MalformedRequest and BodyTooLarge, too.
        """
        size = len(file.content)
        memory = INSPECTION_FACTOR * size + MEMORY_PER_PIXEL * decode_up_to
        if not self.memory.fits(memory):
            memory, decode_up_to = INSPECTION_FACTOR * size, 0
        seconds = accounts.inspection_seconds(size, decode_up_to)
        with self._turn_times.count_pending():
            async with self.memory.hold(memory if decode_up_to else 0):
                found, pixels = await self._run(DecoderJob("inspect", file, memory, seconds, decode_up_to))
        return Inspection(found["format"], found["width"], found["height"], found["memory"], pixels)

    async def decode(self, file: ImageFile, found: Inspection) -> NDArray[np.uint8]:
        """The pixels, [H, W, 3] uint8 RGB, upright, in memory of their own. Raises what `inspect` raises."""
        size = len(file.content)
        seconds = accounts.decoding_seconds(size, found.pixels)
        needed = found.memory + 2 * size
        if needed > self.memory.limit:
            raise ImageTooLarge(
                f"Decoding the {found.format} file takes {needed >> 20} MiB; "
                f"the limit is {self.memory.limit >> 20} MiB."
            )
        with self._turn_times.count_pending():
            async with self.memory.hold(needed):
                _, pixels = await self._run(DecoderJob("decode", file, found.memory + size, seconds))
        if pixels is None:
            raise UndecodableImage("The decoder did not answer with pixels.")
        return pixels

    def expected_wait(self) -> float:
        """Seconds until a job that comes now would have its turn."""
        return self._turn_times.expected_seconds() / self.turns

    def processes(self, *, busy: bool) -> list[int]:
        """Ids of the processes that run a job, or of the others."""
        return [child.process.pid for child in self._children if (child not in self._idle) is busy]

    async def stop(self) -> None:
        """End all processes."""
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()
        for waiter in self._waiting:
            waiter.cancel()
        # Ending one task may begin another: a process that was just being started is waited for.
        while self._tasks or self._children:
            for child in list(self._children):
                self._end(child)
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, job: DecoderJob) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
        """One job's answer, and the pixels if it has decoded any."""
        child = await self._wait_for_turn()
        started, reply = time.monotonic(), None
        try:
            if job.small:
                child.write(job.file.content)
                reply = child.ask(job, self.max_bytes)
                await asyncio.wait({reply}, timeout=SLOW_SECONDS)
        except BaseException:
            job.abandoned.set()
            self._spawn(self._supervise(child, job, started, reply))
            raise
        work = self._supervise(child, job, started, reply)
        if reply is not None and reply.done():
            # Nothing is left to wait for.
            found, pixels = await work
        else:
            # A task of its own: whoever waits for it may leave, but the process is busy until it has answered.
            task = self._spawn(work)
            try:
                found, pixels = await asyncio.shield(task)
            except asyncio.CancelledError:
                job.abandoned.set()
                raise
        raise_if_refused(found, self.max_bytes)
        return found, pixels

    async def _supervise(
        self, child: Child, job: DecoderJob, started: float, reply: asyncio.Future[bytes] | None
    ) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
        """See to a job on a process that has its turn since `started`; afterwards the process is free again, or gone.

        reply: what it answers, or None if it has not been asked yet.
        """
        slow = sound = False
        try:
            if reply is None:
                await asyncio.to_thread(child.write, job.file.content)
                reply = child.ask(job, self.max_bytes)
            if not reply.done():
                await asyncio.wait({reply}, timeout=max(0.0, started + SLOW_SECONDS - time.monotonic()))
            if not reply.done() and self._slow < MAX_SLOW:
                slow = True
                self._turn_times.add(time.monotonic() - started)
                self._running -= 1
                self._slow += 1
                self._dispatch()
            if not reply.done():
                left = asyncio.ensure_future(job.abandoned.wait())
                limit = started + CLOCK_FACTOR * job.seconds - time.monotonic()
                both: set[asyncio.Future[Any]] = {reply, left}
                await asyncio.wait(both, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                left.cancel()
            if not reply.done():
                self.killed["abandoned" if job.abandoned.is_set() else "time"] += 1
                raise too_slow(job)
            found = await child.answer(reply)
            shape = found.get("shape")
            pixels = await child.pixels(shape) if shape else None
            await child.forget(job, shape or ())
            sound = not found["worn_out"]
        except DecoderLostError as lost:
            raise self._problem(job, *lost.args) from None
        else:
            return found, pixels
        finally:
            if reply is not None and not reply.done():
                reply.cancel()
            if not slow:
                self._turn_times.add(time.monotonic() - started)
            self._release(child, slow=slow, sound=sound)

    def _problem(self, job: DecoderJob, exit_code: int) -> Problem:
        """What a job is answered whose process ended."""
        reason, problem = why_lost(job, exit_code)
        self.killed[reason] += 1
        if reason != "time":
            log.warning("a decoder process ended with code %d, and was replaced", exit_code)
        return problem

    async def _wait_for_turn(self) -> Child:
        """A process for one job, when it is this job's turn."""
        waiter: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._dispatch()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release(waiter.result(), slow=False, sound=True)
            raise

    def _dispatch(self) -> None:
        """Give turns to those who wait, as long as there are turns and processes."""
        # The kernel ends these first where memory is short, also while they have nothing to do.
        for child in [child for child in self._idle if child.is_lost]:
            self._idle.remove(child)
            self._end(child)
        while self._waiting and self._idle and self._running < self.turns:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._running += 1
                waiter.set_result(self._idle.pop())
        if self._waiting:
            self._ensure_processes(self.turns + self._slow)

    def _release(self, child: Child, *, slow: bool, sound: bool) -> None:
        """A job has ended."""
        if slow:
            self._slow -= 1
        else:
            self._running -= 1
        if sound and not self._stopped:
            self._idle.append(child)
            if len(self._children) > self.turns:
                asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_surplus)
        else:
            self._end(child)
            self._ensure_processes(1)
        self._dispatch()

    def _end_surplus(self) -> None:
        """End processes that a slow job has made necessary."""
        while self._idle and len(self._children) > self.turns + self._slow:
            self._end(self._idle.pop(0))

    def _ensure_processes(self, wanted: int) -> None:
        """Start processes until there are so many; after one that did not start, not before its pause is over."""
        while not self._stopped and self._retry is None and len(self._children) + self._starting < wanted:
            self._starting += 1
            self._spawn(self._start_process())

    def _start_again(self) -> None:
        self._retry = None
        self._ensure_processes(self.turns + self._slow if self._waiting else 1)

    async def _start_process(self) -> None:
        """Start one process."""
        child: Child | None = None
        try:
            try:
                child = await asyncio.to_thread(Child, self._shared_bytes)
                self._children.add(child)
            finally:
                self._starting -= 1
            async with asyncio.timeout(accounts.START_SECONDS):
                await child.connect()
        except Exception as error:  # noqa: BLE001 - whatever it was, jobs wait for a process
            if child is not None:
                self._end(child)
            if self._stopped:
                return
            log.error("a decoder process could not be started: %r", error)  # noqa: TRY400 - its traceback tells nothing
            if self._retry is None:
                pause = accounts.restart_pause(self._failed_starts)
                self._failed_starts += 1
                self._retry = asyncio.get_running_loop().call_later(pause, self._start_again)
            return
        if self._stopped:
            self._end(child)
            return
        self._failed_starts = 0
        self._idle.append(child)
        self._dispatch()

    def _end(self, child: Child) -> None:
        """Kill a process, and forget it."""
        self._children.discard(child)
        child.kill()
        self._spawn(asyncio.to_thread(child.process.wait))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Whoever waited for it may have left; its error is theirs alone.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task
