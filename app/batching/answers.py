"""Answers for the callers that wait on the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.batching.batch import deadline_exceeded
from app.problems import NotReady, Problem

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from app.batching.queue import Entry, SegmentResult


def set_answers(answers: Iterable[tuple[Entry, SegmentResult | Problem]]) -> None:
    """Give each entry's caller its answer, if it still waits for one."""
    for entry, answer in answers:
        # The client may have left, or the deadline may have passed, while the device ran the image.
        if entry.future.done():
            continue
        if isinstance(answer, Problem):
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)


def expire(future: asyncio.Future[SegmentResult]) -> None:
    """Answer a caller whose deadline has passed."""
    if not future.done():
        future.set_exception(deadline_exceeded())


def device_failed() -> NotReady:
    """The answer to every request once the device is lost."""
    return NotReady("The device has failed; the service is being restarted.", retry_after=5)
