"""Answers on their way: sent in pieces, each within a deadline, and held to a limit of bytes together.

A client that does not read would otherwise keep its answer in memory, and its connection open, for as long as it likes.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Message, Scope, Send

# As much as the transport buffers before it makes the sender wait.
PIECE_BYTES = 64 << 10
# Where a scope has the function that cuts its connection off; connections.py puts it there.
ABORT = "maskserve.abort"


class UnsentAnswers:
    """The answers that clients have still to read. Belongs to the event loop."""

    def __init__(self, max_bytes: int, seconds: float) -> None:
        """Nothing is on its way.

        Args:
            max_bytes: of all answers; beyond them, the one that a client has left unread for longest is cut off.
            seconds: that a client may take for each PIECE_BYTES.
        """
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.bytes = 0
        # Most bytes at the same time since this was last set to 0.
        self.peak_bytes = 0
        # Those that moved last come last.
        self._answers: dict[PendingAnswer, None] = {}

    def sender(self, scope: Scope, send: Send) -> Send:
        """An ASGI `send` that is bound to these limits. It raises ClientDisconnect once it has cut the client off."""
        abort: Callable[[], None] = scope.get("extensions", {}).get(ABORT, lambda: None)

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                abort()
                # The server learns of it in the loop's next turn; before that, it would take the answer for incomplete.
                await asyncio.sleep(0)
                raise ClientDisconnect from None

        async def send_in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= PIECE_BYTES:
                await send_in_time(message)
                return
            view, more = memoryview(body), message.get("more_body", False)
            with self._hold(len(body), abort) as answer:
                for start in range(0, len(body), PIECE_BYTES):
                    piece = bytes(view[start : start + PIECE_BYTES])
                    last = start + PIECE_BYTES >= len(body)
                    await send_in_time({**message, "body": piece, "more_body": more or not last})
                    self._move(answer, len(piece))

        return send_in_pieces

    @contextmanager
    def _hold(self, count: int, abort: Callable[[], None]) -> Iterator[PendingAnswer]:
        answer = PendingAnswer(count, abort)
        self._answers[answer] = None
        self.bytes += count
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        for oldest in list(self._answers):
            if self.bytes <= self.max_bytes or oldest is answer:
                break
            self._drop(oldest)
            oldest.abort()
        try:
            yield answer
        finally:
            self._drop(answer)

    def _move(self, answer: PendingAnswer, count: int) -> None:
        if answer in self._answers:
            self.bytes -= count
            answer.left -= count
            del self._answers[answer]
            self._answers[answer] = None

    def _drop(self, answer: PendingAnswer) -> None:
        if answer in self._answers:
            del self._answers[answer]
            self.bytes -= answer.left


class PendingAnswer:
    """One answer that is being sent."""

    __slots__ = ("abort", "left")

    def __init__(self, left: int, abort: Callable[[], None]) -> None:
        # Bytes that the client has still to read.
        self.left = left
        # Cuts the connection off.
        self.abort = abort
