"""The response to several images: one line of JSON each, in the order sent.

A line is sent as soon as it and those before it are done. For an image in tiles, lines with the number of tiles that
are done come before it.

Each image passes admission on its own. The number of images of one request that are in flight is limited, so that a
large form neither fills the queue nor piles up answers for a client that reads slowly.
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

# Between two lines about the tiles of an image.
PROGRESS_SECONDS = 0.25


class BufferedUpload(BodyBytes):
    """One image of a form, and the account of its bytes. Releasing the bytes frees the image."""

    def __init__(self, form: BodyBytes, upload: Upload) -> None:
        super().__init__(form.admission)
        self.bytes = form.hand_over(len(upload.content))
        self.upload = upload
        # How many of its tiles are done, and how many it has.
        self.tiles = (0, 0)
        self.accept()

    def count_tiles(self, done: int, total: int) -> None:
        """So many tiles of the image are done."""
        self.tiles = (done, total)

    def release(self) -> None:
        """Call it once the image is decoded, or will not be."""
        self.upload = Upload(b"")
        super().release()


class NdjsonResponse(Response):
    """The response, `application/x-ndjson`. Each line is an answer of POST /segment or a problem, with an `index`.

    Its status is 200 once all images have arrived; the line of an image that failed says why.
    """

    media_type = NDJSON

    def __init__(
        self,
        line: Callable[[int], Awaitable[bytes]],
        held: Sequence[BufferedUpload],
        at_once: int,
        request_id: str,
        record: dict[str, Any],
        *,
        progress: bool = False,
    ) -> None:
        """Prepare the response; nothing runs before it is sent.

        Args:
            line: makes the line of the image with an index, or raises a Problem.
            held: the images.
            at_once: how many of them may be in flight.
            request_id: goes into the problems.
            record: the log's fields; gets the numbers of images and of failures.
            progress: images may be cut into tiles, whose progress is sent.
        """
        self.status_code = 200
        self.background = None
        self.init_headers({"Vary": "Accept"})
        self._line = line
        self._held = held
        self._at_once = at_once
        self._id = request_id
        self._record = record
        self._progress = progress
        # The images in flight, and finished lines that wait to be sent.
        self._running: deque[asyncio.Task[bytes]] = deque()
        # Those of them that admission refused and that will try again.
        self._waiting: set[asyncio.Task[Any] | None] = set()
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
        """Send each line as soon as it is ready."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._lines()) as lines:
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_whole(self, send: Send) -> None:
        """Send all lines with a Content-Length: HTTP/1.0 has no chunked encoding."""
        async with aclosing(self._lines()) as lines:
            content = b"".join([line async for line in lines])
        headers = [*self.raw_headers, (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    async def _lines(self) -> AsyncGenerator[bytes]:
        """The lines, in the order of the images."""
        started = 0
        try:
            for index in range(len(self._held)):
                while started < min(len(self._held), index + self._at_once):
                    self._running.append(asyncio.create_task(self._answer(started)))
                    started += 1
                async for content in self._progress_lines(index, self._running[0]):
                    yield content
                content = await self._running[0] + b"\n"
                self._running.popleft()
                yield content
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _progress_lines(self, index: int, task: asyncio.Task[bytes]) -> AsyncGenerator[bytes]:
        """Lines with the tiles that are done, until the task of their image is."""
        sent = (0, 0)
        while self._progress and not task.done():
            await asyncio.wait({task}, timeout=PROGRESS_SECONDS)
            if not task.done() and self._held[index].tiles != sent:
                sent = self._held[index].tiles
                tiles = dict(zip(("done", "total"), sent, strict=True))
                yield orjson.dumps({"index": index, "id": self._id, "tiles": tiles}) + b"\n"

    async def _answer(self, index: int) -> bytes:
        """The line of one image."""
        try:
            return await self._segment_when_admitted(index)
        except Problem as raised:
            problem = raised
            cause: BaseException = raised.__cause__ or raised
        except Exception as error:  # noqa: BLE001 - one image must not cut off the lines of others
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

    async def _segment_when_admitted(self, index: int) -> bytes:
        """The line of one image. If admission refuses it, it waits until another image of the same request is done."""
        own = asyncio.current_task()
        while True:
            try:
                return await self._line(index)
            except QueueFull:
                others = {task for task in self._running if not task.done()} - self._waiting - {own}
                # Nothing of this request will make room: other requests fill the queue.
                if not others:
                    raise
            self._waiting.add(own)
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            self._waiting.discard(own)
