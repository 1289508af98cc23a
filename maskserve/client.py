"""A maskserve service from Python, with and without asyncio: `Client` and `AsyncClient`.

Both retry what the service sheds (429, 503) as soon as its `Retry-After` says, have a deadline over all tries, and
keep a bound on how many requests they have open.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

import httpx
import numpy as np
from PIL import Image

from maskserve.results import Result
from maskserve.retry import Call, MaskserveError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from types import TracebackType

    from numpy.typing import NDArray

    Source = str | Path | bytes | NDArray[np.uint8] | Image.Image

DEADLINE = 120.0  # seconds over all tries
CONCURRENCY = 8  # requests open at once: about what one device takes as a batch


class Options(TypedDict, total=False):
    """The parameters of POST /segment."""

    score_threshold: float  # 0 to 1
    max_instances: int  # 1 to 100
    categories: Iterable[str | int]  # names or ids
    masks: str  # "rle", "polygon", "png", "none"


class Client:
    """A service, asked from any number of threads; a context manager.

    segment raises ServiceError for what the service refuses, UnreachableError and DeadlineError where none answers, and
    OSError for a file that cannot be read.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline: float | None = DEADLINE,
        concurrency: int = CONCURRENCY,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """deadline: seconds for each call, over all tries. concurrency: requests open at once."""
        self.concurrency = concurrency
        self.deadline = deadline
        self._places = threading.BoundedSemaphore(concurrency)
        self._closed = threading.Event()
        self._http = httpx.Client(
            base_url=url, headers=authorization(api_key), limits=limits(concurrency), transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls of other threads end with an error, those that wait for their next try too."""
        self._closed.set()
        self._http.close()

    def segment(self, image: Source, **options: Unpack[Options]) -> Result:
        """The instances in an image: a path, a file's bytes, pixels [H, W, 3] uint8 RGB, or a PIL image."""
        return result(self._send(segmentation(image, options)))

    def draw(self, image: Source, *, media_type: str = "image/png", **options: Unpack[Options]) -> bytes:
        """The image with its instances drawn on it, as a PNG or JPEG (`image/jpeg`) file."""
        return self._send(segmentation(image, options, media_type)).content

    def segment_many(
        self, images: Iterable[Source], **options: Unpack[Options]
    ) -> Iterator[Result | MaskserveError | OSError]:
        """The results of any number of images, in their order; for one that has none, the error that says why.

        Images are taken from `images` only a little ahead of what has been yielded.
        """
        with ThreadPoolExecutor(self.concurrency, "maskserve-client") as pool:
            pending: deque[Future[Result]] = deque()
            try:
                for image in images:
                    pending.append(pool.submit(self.segment, image, **options))
                    if len(pending) >= 2 * self.concurrency:
                        yield outcome(pending.popleft())
                while pending:
                    yield outcome(pending.popleft())
            except KeyboardInterrupt:
                self.close()  # or the pool would wait for what is on its way
                raise
            finally:
                for future in pending:
                    future.cancel()

    def model(self) -> dict[str, Any]:
        """Which model answers: its name, categories, precision, AP."""
        found: dict[str, Any] = self._send({"method": "GET", "url": "/model"}).json()
        return found

    def _send(self, request: dict[str, Any]) -> httpx.Response:
        call = Call(request, self.deadline)
        while True:
            try:
                with self._places:
                    response = self._http.request(**call.request())
            except httpx.TransportError as error:
                pause = call.pause(error)
            else:
                if response.is_success:
                    return response
                pause = call.pause(response)
            self._closed.wait(pause)


class AsyncClient:
    """The same on an event loop; an asynchronous context manager."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline: float | None = DEADLINE,
        concurrency: int = CONCURRENCY,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """deadline: seconds for each call, over all tries. concurrency: requests open at once."""
        self.concurrency = concurrency
        self.deadline = deadline
        self._places = asyncio.Semaphore(concurrency)
        self._http = httpx.AsyncClient(
            base_url=url, headers=authorization(api_key), limits=limits(concurrency), transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def segment(self, image: Source, **options: Unpack[Options]) -> Result:
        """As `Client.segment`; files are read on a thread."""
        return result(await self._send(await asyncio.to_thread(segmentation, image, options)))

    async def draw(
        self, image: Source, *, media_type: str = "image/png", **options: Unpack[Options]
    ) -> bytes:
        """As `Client.draw`."""
        request = await asyncio.to_thread(segmentation, image, options, media_type)
        return (await self._send(request)).content

    async def segment_many(
        self, images: Iterable[Source], **options: Unpack[Options]
    ) -> AsyncIterator[Result | MaskserveError | OSError]:
        """As `Client.segment_many`."""
        pending: deque[asyncio.Task[Result]] = deque()
        try:
            for image in images:
                pending.append(asyncio.create_task(self.segment(image, **options)))
                if len(pending) >= 2 * self.concurrency:
                    await asyncio.wait({pending[0]})
                    yield outcome(pending.popleft())
            while pending:
                await asyncio.wait({pending[0]})
                yield outcome(pending.popleft())
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        found: dict[str, Any] = (await self._send({"method": "GET", "url": "/model"})).json()
        return found

    async def _send(self, request: dict[str, Any]) -> httpx.Response:
        call = Call(request, self.deadline)
        while True:
            try:
                async with self._places:
                    response = await self._http.request(**call.request())
            except httpx.TransportError as error:
                pause = call.pause(error)
            else:
                if response.is_success:
                    return response
                pause = call.pause(response)
            await asyncio.sleep(pause)


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that carries a key."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def limits(concurrency: int) -> httpx.Limits:
    """As many connections as there may be requests."""
    return httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)


def segmentation(image: Source, options: Options, accept: str = "application/json") -> dict[str, Any]:
    """The request for an image, as httpx takes it. Raises OSError for a file that cannot be read."""
    parameters = {name: value for name, value in options.items() if value is not None}
    if "categories" in parameters:
        parameters["categories"] = ",".join(map(str, options["categories"]))
    return {
        "method": "POST",
        "url": "/segment",
        "params": parameters,
        "content": content_of(image),
        "headers": {"Accept": accept, "Content-Type": "application/octet-stream"},
    }


def content_of(image: Source) -> bytes:
    """An image's file; pixels become a PNG. Raises OSError for a file that cannot be read, TypeError, ValueError."""
    match image:
        case bytes():
            return image
        case str() | Path():
            return Path(image).read_bytes()
        case Image.Image():
            return encode_png(image.convert("RGB"))
    if image.dtype != np.uint8:
        raise TypeError(f"pixels are uint8 from 0 to 255, not {image.dtype}")
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
        raise ValueError(f"pixels are an array [H, W, 3] or [H, W], not {list(image.shape)}")
    return encode_png(Image.fromarray(image))


def encode_png(image: Image.Image) -> bytes:
    """A PNG file. On the fastest level: the service is waiting for it, and for most photos the size is the same."""
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


def result(response: httpx.Response) -> Result:
    """The answer, with the stages of its Server-Timing header."""
    timings = {}
    for entry in response.headers.get("server-timing", "").split(","):
        name, _, duration = entry.strip().partition(";dur=")
        if duration:
            timings[name] = float(duration)
    return Result.from_document(response.json(), timings)


def outcome(done: Future[Result] | asyncio.Task[Result]) -> Result | MaskserveError | OSError:
    """What became of an image."""
    try:
        return done.result()
    except (MaskserveError, OSError) as error:
        return error
