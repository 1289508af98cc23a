"""Several images in one call: a line of JSON for each, in the order sent, as soon as it and those before it are done.

Each image passes admission by itself. A call has only so many of its images in flight at once, so that one large form
neither fills the queue nor piles up answers for a client who reads slowly.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from app.api.query import NDJSON
from app.batching.admission import BodyBytes
from app.http.disconnect import cancel_on_disconnect
from app.intake.uploads import Upload
from app.observability.logs import FIELDS
from app.problems import Problem, QueueFull

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)


class BufferedUpload(BodyBytes):
    """One image of a form, and the account of its bytes; it is let go when they are released."""

    def __init__(self, form: BodyBytes, upload: Upload) -> None:
        super().__init__(form.admission)
        self.bytes = form.hand_over(len(upload.content))
        self.upload = upload

    def release(self) -> None:
        """The image is decoded, or will never be."""
        self.upload = Upload(b"")
        super().release()


class NdjsonResponse(Response):
    """The answer, `application/x-ndjson`: a result of POST /segment or a problem a line, each with its `index`.

    The status is 200 once all images have arrived; what is wrong with one of them is told in its own line.
    """

    media_type = NDJSON

    def __init__(
        self,
        line: Callable[[int], Awaitable[bytes]],
        held: Sequence[BufferedUpload],
        at_once: int,
        request_id: str,
        record: dict[str, Any],
    ) -> None:
        """line: the result for the image of that index, or a Problem raised. record: told how many failed."""
        self.status_code = 200
        self.background = None
        self.init_headers({"Vary": "Accept"})
        self._line = line
        self._held = held
        self._at_once = at_once
        self._id = request_id
        self._record = record
        self._running: deque[asyncio.Task[bytes]] = (
            deque()
        )  # the images in flight, and those that wait to be sent
        self._waiting: set[asyncio.Task[Any] | None] = set()  # those of them that found no room
        self._failed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all lines. A client that disconnects frees the places of all images."""
        whole = scope["http_version"] == "1.0"
        try:
            await cancel_on_disconnect(receive, self._send_whole(send) if whole else self._send(send))
        finally:
            for held in self._held:
                held.release()
            self._record.update({"images": len(self._held), "failed": self._failed})

    async def _send(self, send: Send) -> None:
        """Each line as soon as it is there."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._lines()) as lines:
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_whole(self, send: Send) -> None:
        """All lines at once: HTTP/1.0 has no chunks, and without a length the connection could not go on."""
        async with aclosing(self._lines()) as lines:
            content = b"".join([line async for line in lines])
        headers = [*self.raw_headers, (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    async def _lines(self) -> AsyncGenerator[bytes]:
        started = 0
        try:
            for index in range(len(self._held)):
                while started < min(len(self._held), index + self._at_once):
                    self._running.append(asyncio.create_task(self._answer(started)))
                    started += 1
                content = await self._running[0] + b"\n"
                self._running.popleft()
                yield content
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _answer(self, index: int) -> bytes:
        """The line of one image."""
        try:
            return await self._admitted(index)
        except Problem as raised:
            problem = raised
            cause: BaseException = raised.__cause__ or raised
        except Exception as error:  # noqa: BLE001 - nothing that happens to one image may cut off the others' lines
            problem, cause = Problem(), error
        finally:
            self._held[index].release()
        self._failed += 1
        if problem.status == Problem.status:
            fields = {FIELDS: {"id": self._id}}
            log.error(
                "request %s failed on image %d: %r", self._id, index, cause, exc_info=cause, extra=fields
            )
        return orjson.dumps({"index": index, **problem.document(self._id)})

    async def _admitted(self, index: int) -> bytes:
        """The result. An image that finds no room beside those of its own call waits until one of them is done."""
        own = asyncio.current_task()
        while True:
            try:
                return await self._line(index)
            except QueueFull:
                others = {task for task in self._running if not task.done()} - self._waiting - {own}
                if not others:  # it is the images of others that fill the house
                    raise
            self._waiting.add(own)
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            self._waiting.discard(own)
