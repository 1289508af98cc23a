"""What the device worker says about itself: the state it is in and its last sign of life."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """Where the worker stands in its life; `failed` is for good."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The device thread's last sign of life. Replaced as a whole, so that any thread may read it."""

    at: float
    doing: str  # "warm-up", "idle" or "forward"
    since: float  # when it began to do that

    def next(self, now: float, doing: str) -> Heartbeat:
        """The beat after this one. Every forward pass begins anew; idleness goes on."""
        return Heartbeat(now, doing, self.since if doing == self.doing == "idle" else now)


@dataclass(frozen=True, slots=True)
class Status:
    """What a probe may know. Nothing here depends on how much is waiting."""

    state: State
    reason: str | None  # why it failed
    doing: str  # as in Heartbeat
    doing_seconds: float
    heartbeat_age: float  # seconds

    def is_alive(self, limit: float) -> bool:
        """False after a fatal error, or when there was no sign of life for `limit` seconds.

        Such silence is a forward pass that hangs, or a thread that is gone; choose `limit` longer than the
        longest batch. A warm-up has no limit here: how long a start may take, the start-up probe says.
        """
        if self.state is State.FAILED:
            return False
        return self.state is State.STARTING or self.heartbeat_age < limit
