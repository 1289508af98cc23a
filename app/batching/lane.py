"""One of the threads that run images on the device."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from app.batching.answers import set_answers
from app.batching.batch import deadline_exceeded, run_batch
from app.batching.heartbeat import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.batching.batch import Attempt, Segmenter
    from app.batching.heartbeat import Activity
    from app.batching.queue import Clock, Entry
    from app.batching.schedule import Schedule, Turn

# Between heartbeats of an idle thread. A new entry wakes the first of them at once.
HEARTBEAT_SECONDS = 1.0


class Lane:
    """Runs one batch of the schedule after another, on a thread of its own.

    `batch`, `counts` and `heartbeat` belong to the thread; others may read them.
    """

    def __init__(
        self,
        number: int,
        engine: Segmenter,
        schedule: Schedule,
        clock: Clock,
        *,
        run: Callable[[Lane], None],
        deliver: Callable[[Attempt], None],
        call_on_loop: Callable[..., None],
    ) -> None:
        """Start nothing yet.

        Args:
            number: 0 is the first.
            engine: that runs the images.
            schedule: has the batches.
            clock: in seconds.
            run: what the thread does.
            deliver: is called on the event loop after each attempt at a batch.
            call_on_loop: calls a function on the event loop, with arguments.
        """
        self.number = number
        # A daemon, because a device call that never returns must not keep the process from ending.
        name = "maskserve-device" if number == 0 else f"maskserve-device-{number}"
        self.thread = threading.Thread(target=run, args=(self,), name=name, daemon=True)
        # What it runs now.
        self.batch: Sequence[Entry] = ()
        self.heartbeat = Heartbeat(clock(), "warm-up", clock())
        # Events by kind, as app.batching.batch.run_batch counts them.
        self.counts: Counter[str] = Counter()
        self._engine, self._schedule, self._clock = engine, schedule, clock
        self._deliver, self._call_on_loop = deliver, call_on_loop

    def run_next(self) -> bool:
        """Run the next batch, or wait until there may be one; False once the schedule is closed.

        While it waits, no local variable holds an entry, whose image would stay in memory.
        """
        schedule = self._schedule
        with schedule.lock:
            turn = schedule.take(self.number)
            if turn is None:
                if schedule.closed:
                    return False
                self.beat("idle")
                schedule.wait(self.number, HEARTBEAT_SECONDS)
                return True
            # Under the lock: a thread that fails answers the batches of all lanes (Worker._clear).
            self.batch = turn.batch.live
        if turn.batch.expired:
            self._call_on_loop(set_answers, [(entry, deadline_exceeded()) for entry in turn.batch.expired])
        if turn.batch.live:
            self._run(turn)
        return True

    def _run(self, turn: Turn) -> None:
        self.beat("forward")
        schedule, segment = self._schedule, self._engine.segment
        attempts = run_batch(
            partial(segment, cores=turn.cores) if schedule.lanes > 1 else segment,
            turn.batch.live,
            drop_dead=schedule.drop_dead,
            alone=lambda: schedule.alone(lambda: self.beat("forward"), HEARTBEAT_SECONDS),
            clock=self._clock,
            counts=self.counts,
            share=turn.cores / schedule.cores.count,
        )
        for attempt in attempts:
            self._call_on_loop(self._deliver, attempt)
            self.beat("forward")
            success = bool(attempt.answers) and attempt.seconds > 0
            schedule.record(out_of_memory=attempt.out_of_memory, success=success)
        self.batch = ()
        schedule.end(turn)

    def beat(self, activity: Activity) -> None:
        """Give a heartbeat."""
        self.heartbeat = self.heartbeat.next(self._clock(), activity)
