"""When a call is tried again, after how long, and when it is given up; tenacity runs the loop."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import tenacity

from maskserve.errors import ServiceError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

# The service is full, is starting or is shutting down.
RETRIED_STATUS = frozenset((429, 503))
# Tries to reach a service that does not answer at all; a replacement takes seconds.
CONNECTION_TRIES = 4
# Seconds; doubled from try to try where the service names no time.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
# Seconds; doubled from try to try where it names a shorter one, so that `Retry-After: 0` is no busy loop.
SHORTEST_PAUSE, LONGEST_SHORT_PAUSE = 0.1, 1.0
# Part of a pause, at random on top: clients that were refused together should not come back together.
SPREAD = 0.25


def retrying(deadline: float | None) -> tenacity.AsyncRetrying:
    """The loop for one call: what it ends with is raised.

    deadline: seconds over all tries; None for ever. It ends at once where the next try would begin after it.
    """
    too_late = tenacity.stop_never if deadline is None else tenacity.stop_before_delay(deadline)
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_temporary),
        wait=lambda state: pause(error_of(state), state.attempt_number),
        stop=too_late | StopWhenUnreachable(),
        reraise=True,
    )


def error_of(state: tenacity.RetryCallState) -> BaseException | None:
    """How the last try ended."""
    return None if state.outcome is None else state.outcome.exception()


def is_temporary(error: BaseException) -> bool:
    """Whether trying again may help."""
    if isinstance(error, ServiceError):
        return error.status in RETRIED_STATUS
    return isinstance(error, UnreachableError)


def pause(error: BaseException | None, tries: int, chance: Callable[[], float] = random.random) -> float:
    """Seconds until the next try: what the service says, else twice as long from try to try.

    Args:
        error: how the last try ended.
        tries: how many there have been, from 1.
        chance: a number from 0 to 1, for the random part.
    """
    named = error.retry_after if isinstance(error, ServiceError) else None
    if named is None:
        seconds = min(FIRST_PAUSE * 2.0 ** min(tries - 1, 10), LONGEST_PAUSE)
    else:
        seconds = max(named, min(SHORTEST_PAUSE * 2.0 ** min(tries - 1, 10), LONGEST_SHORT_PAUSE))
    return seconds * (1 + SPREAD * chance())


class StopWhenUnreachable(tenacity.stop.stop_base):
    """Give up after CONNECTION_TRIES connections of a call that failed, whatever happened between them."""

    def __init__(self) -> None:
        self._failures = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        """Whether the call has ended."""
        self._failures += isinstance(error_of(retry_state), UnreachableError)
        return self._failures >= CONNECTION_TRIES


def retry_after(value: str) -> float | None:
    """Seconds in a Retry-After header (RFC 9110, section 10.2.3), a number or a date; None if it is neither."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
