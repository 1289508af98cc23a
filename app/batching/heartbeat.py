"""What the worker reports about itself: its state, and the last heartbeat of the device thread."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

Activity = Literal["warm-up", "idle", "forward"]


class State(enum.StrEnum):
    """The state of the worker; `failed` is final."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last heartbeat of the device thread. It is replaced as a whole, so any thread may read it."""

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

    state: State
    # Why it failed, if it did.
    reason: str | None
    activity: Activity
    activity_seconds: float
    # Seconds.
    heartbeat_age: float

    def is_alive(self, timeout: float) -> bool:
        """False after a fatal error, or without a heartbeat for `timeout` seconds.

        That long without one means that a forward pass hangs or that the thread has ended, so `timeout` must exceed the
        longest batch. The warm-up has no limit here: the start-up probe decides how long a start may take.
        """
        if self.state is State.FAILED:
            return False
        return self.state is State.STARTING or self.heartbeat_age < timeout
