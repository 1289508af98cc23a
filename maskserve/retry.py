"""One call's life: what is sent, when it is tried again, and when it is given up. No input or output happens here."""

from __future__ import annotations

import math
import random
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RETRIED = frozenset((429, 503))  # the service is full, or is starting or ending
CONNECTION_TRIES = 4  # to reach a service that does not answer at all; a replacement takes seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds; doubled from try to try where the service names no time
SPREAD = 0.25  # of a pause, at random on top: those who were refused together should not come back together
CONNECT_SECONDS = 10.0
TIME_LIMIT = "X-Request-Timeout-Ms"


class MaskserveError(Exception):
    """No result came. Its subclasses say why."""


class ServiceError(MaskserveError):
    """The service answered with a problem (RFC 9457): its fields are the attributes."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title", ""))
        self.detail = str(problem.get("detail", ""))
        self.request_id = str(problem.get("request_id", ""))
        super().__init__(f"{status} {self.title}: {self.detail}".rstrip(": "))

    @classmethod
    def of(cls, response: httpx.Response) -> ServiceError:
        """From any answer that is no success, also a gateway's."""
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            problem = {"title": response.reason_phrase, "detail": response.text[:200]}
        return cls(response.status_code, {"request_id": response.headers.get("x-request-id", ""), **problem})


class UnreachableError(MaskserveError):
    """No connection, or it broke, again and again."""


class DeadlineError(MaskserveError):
    """The deadline passed before there was an answer."""


class Call:
    """One request, tried until it succeeds, cannot succeed, or its deadline passes."""

    def __init__(
        self,
        request: Mapping[str, Any],
        deadline: float | None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """request: what httpx's `request` takes. deadline: seconds from now, over all tries; None for ever."""
        self._request = request
        self._seconds = math.inf if deadline is None else deadline
        self._clock = clock
        self._chance = chance
        self._until = clock() + self._seconds
        self._tries = 0
        self._failures = 0  # of the connection

    def request(self) -> dict[str, Any]:
        """The next try, for httpx. Raises DeadlineError if it would come too late."""
        left = self._until - self._clock()
        if left <= 0:
            raise self._timed_out()
        self._tries += 1
        headers = dict(self._request.get("headers", {}))
        if math.isinf(left):
            return {**self._request, "timeout": httpx.Timeout(None, connect=CONNECT_SECONDS)}
        headers[TIME_LIMIT] = str(max(1, int(left * 1000)))
        timeout = httpx.Timeout(left, connect=min(left, CONNECT_SECONDS))
        return {**self._request, "headers": headers, "timeout": timeout}

    def pause(self, outcome: httpx.Response | httpx.TransportError) -> float:
        """Seconds until the next try. Raises what the call ends with if there is none to be made."""
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in RETRIED:
                raise ServiceError.of(outcome)
            pause = retry_after(outcome.headers.get("retry-after", ""))
            error: MaskserveError = ServiceError.of(outcome)
        else:
            self._failures += 1
            if self._until <= self._clock():
                raise self._timed_out() from outcome
            pause = None
            error = UnreachableError(f"{outcome.__class__.__name__}: {outcome}".rstrip(": "))
            error.__cause__ = outcome
            if self._failures >= CONNECTION_TRIES:
                raise error
        if pause is None:
            pause = min(FIRST_PAUSE * 2 ** (self._tries - 1), LONGEST_PAUSE)
        pause *= 1 + SPREAD * self._chance()
        if self._clock() + pause >= self._until:
            raise error
        return pause

    def _timed_out(self) -> DeadlineError:
        return DeadlineError(f"no answer within {self._seconds:g} seconds, tried {self._tries} times")


def retry_after(value: str) -> float | None:
    """Seconds in a Retry-After header (RFC 9110, section 10.2.3), a number or a date; None if it is neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
