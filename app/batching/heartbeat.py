"""What the worker reports about itself: its state, and the last heartbeats of its threads."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Activity = Literal["warm-up", "idle", "forward"]


class WorkerState(enum.StrEnum):
    """The state of the worker; `failed` is final."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last heartbeat of one of the worker's threads. It is replaced as a whole, so any thread may read it."""

    at: float
    activity: Activity
    # When this activity began.
    since: float

    def next(self, now: float, activity: Activity) -> Heartbeat:
        """The heartbeat after this one. Each forward pass is an activity of its own; idleness continues."""
        return Heartbeat(now, activity, self.since if activity == self.activity == "idle" else now)


@dataclass(frozen=True, slots=True)
class Status:
    """What a probe may know. Nothing here depends on how many requests wait."""

    state: WorkerState
    # Why it failed, if it did.
    reason: str | None
    # What the thread does that has been at it longest, of those that do something, and for how long.
    activity: Activity
    activity_seconds: float
    # Seconds since the last heartbeat of the thread that has been silent longest.
    heartbeat_age: float

    @classmethod
    def of(cls, state: WorkerState, reason: str | None, beats: Sequence[Heartbeat], now: float) -> Status:
        """From the last heartbeats of all threads.

        Args:
            state: of the worker.
            reason: why it failed, if it did.
            beats: the last one of each thread.
            now: monotonic seconds.
        """
        shown = min(beats, key=lambda beat: (beat.activity == "idle", beat.since))
        oldest = min(beat.at for beat in beats)
        return cls(state, reason, shown.activity, now - shown.since, now - oldest)

    def is_alive(self, timeout: float) -> bool:
        """False after a fatal error, or without a heartbeat for `timeout` seconds.

        That long without one means that a forward pass hangs or that the thread has ended, so `timeout` must exceed the
        longest batch. The warm-up has no limit here: the start-up probe decides how long a start may take.
        """
        if self.state is WorkerState.FAILED:
            return False
        return self.state is WorkerState.STARTING or self.heartbeat_age < timeout
