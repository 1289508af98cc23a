"""A maskserve service from Python, with and without asyncio: `AsyncClient` and `Client`.

Both retry what the service sheds (429, 503) as soon as its `Retry-After` says, have a deadline over all tries, and
limit how many requests they have open and how large an answer they read.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import httpx

from maskserve.answers import read_answer
from maskserve.errors import AnswerError, DeadlineError, MaskserveError, UnreachableError
from maskserve.loop_thread import LoopThread
from maskserve.requests import SegmentOptions, parse_json, parse_result, request_for
from maskserve.retry import retrying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
    from concurrent.futures import Future
    from types import TracebackType

    from maskserve.answers import Answer
    from maskserve.requests import Source
    from maskserve.results import Result

DEFAULT_URL = "http://127.0.0.1:8000"
# Seconds that a call may take over all tries.
DEADLINE = 120.0
# Requests open at once: about what one device takes as a batch.
CONCURRENCY = 8
# Bytes. Masks of a hundred instances take less than a tenth; a picture of 50 megapixels up to half of it.
MAX_ANSWER_BYTES = 256 << 20
CONNECT_SECONDS = 10.0
TIME_LIMIT = "X-Request-Timeout-Ms"
# The longest time that the service takes.
MOST_MILLISECONDS = 999_999_999

T = TypeVar("T")


class AsyncClient:
    """A service, asked from one event loop; an asynchronous context manager."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        deadline: float | None = DEADLINE,
        concurrency: int = CONCURRENCY,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: address of the service, or of a gateway before it.
            api_key: sent as a bearer token.
            deadline: seconds for each call, over all tries; None for no limit.
            concurrency: requests open at once.
            max_answer_bytes: a larger answer is an AnswerError.
            transport: httpx's; for tests, Unix sockets and proxies.

        Raises ValueError for what is no address.
        """
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is no address: {error}") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise ValueError(f"{url!r} is no address; write http://HOST:PORT")
        self.concurrency = concurrency
        self.deadline = None if deadline == math.inf else deadline
        self.max_answer_bytes = max_answer_bytes
        self._slots = asyncio.Semaphore(concurrency)
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(
            base_url=url,
            # A compressed answer could unpack to a thousand times its size.
            headers={"Accept-Encoding": "identity", **headers},
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            # The deadline bounds everything else.
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            transport=transport,
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

    async def segment(self, image: Source, **options: Unpack[SegmentOptions]) -> Result:
        """The instances in an image: a path, a file's bytes, pixels [H, W, 3] uint8 RGB, or a PIL image.

        Raises a MaskserveError where the service has no result, and OSError for a file that cannot be read.
        """
        answer = await self._call(await request_for(image, options))
        return parse_result(answer.content, answer.headers)

    async def draw(
        self, image: Source, *, media_type: str = "image/png", **options: Unpack[SegmentOptions]
    ) -> bytes:
        """The image with its instances drawn on it, as a PNG or JPEG (`image/jpeg`) file. Raises as `segment`."""
        answer = await self._call(await request_for(image, options, media_type))
        if not answer.headers.get("content-type", "").startswith("image/"):
            raise AnswerError(f"the answer is no picture; it begins {answer.content[:60]!r}")
        return answer.content

    async def segment_many(
        self, images: Iterable[Source], **options: Unpack[SegmentOptions]
    ) -> AsyncIterator[Result | MaskserveError | OSError]:
        """The results of any number of images, in their order; for one that has none, the error that says why.

        Images are taken from `images` only a little ahead of what has been yielded.
        """
        pending: deque[asyncio.Task[Result]] = deque()
        try:
            for image in images:
                pending.append(asyncio.create_task(self.segment(image, **options)))
                if len(pending) >= 2 * self.concurrency:
                    await asyncio.wait({pending[0]})
                    yield outcome(pending.popleft().result)
            while pending:
                await asyncio.wait({pending[0]})
                yield outcome(pending.popleft().result)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def model(self) -> dict[str, Any]:
        """Which model answers: its name, categories, precision, AP. Raises a MaskserveError."""
        document = parse_json((await self._call({"method": "GET", "url": "/model"})).content)
        match document.get("categories"):
            case [*categories] if all(isinstance(c, dict) and {"id", "name"} <= c.keys() for c in categories):
                return document
        raise AnswerError("the answer to GET /model has no list of categories")

    async def _call(self, request: dict[str, Any]) -> Answer:
        """Send a request until it succeeds, cannot succeed, or the deadline passes."""
        until = None if self.deadline is None else asyncio.get_running_loop().time() + self.deadline
        loop = retrying(self.deadline)
        try:
            async with asyncio.timeout_at(until):
                return await loop(self._try, request, until)
        except TimeoutError:
            tries = loop.statistics["attempt_number"]
            raise DeadlineError(f"no answer within {self.deadline:g} seconds, tried {tries} times") from None

    async def _try(self, request: dict[str, Any], until: float | None) -> Answer:
        async with self._slots:
            headers = dict(request.get("headers", {}))
            if until is not None:
                left = until - asyncio.get_running_loop().time()
                headers[TIME_LIMIT] = str(min(max(1, int(left * 1000)), MOST_MILLISECONDS))
            try:
                async with self._http.stream(**{**request, "headers": headers}) as response:
                    return await read_answer(response, self.max_answer_bytes)
            except httpx.TransportError as error:
                raise UnreachableError(self._explain(error)) from error

    def _explain(self, error: httpx.TransportError) -> str:
        """One line on why nothing came back."""
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return f"no service answers at {self._http.base_url}: {error or 'it does not accept connections'}"
        return f"{error.__class__.__name__}: {error}".rstrip(": ")


class Client:
    """A service, asked from any number of threads; a context manager.

    It is an AsyncClient on an event loop in a thread of its own: a blocking socket has a time limit for each read but
    none for the whole answer, so a server that sends a byte a second would hold it for hours.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        deadline: float | None = DEADLINE,
        concurrency: int = CONCURRENCY,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As AsyncClient."""
        self.concurrency = concurrency
        self._asynchronous = AsyncClient(
            url,
            api_key=api_key,
            deadline=deadline,
            concurrency=concurrency,
            max_answer_bytes=max_answer_bytes,
            transport=transport,
        )
        self._thread = LoopThread(self._asynchronous)
        # When a client that nobody closes is forgotten, or the program ends.
        weakref.finalize(self, self._thread.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls of other threads end with an UnreachableError."""
        self._thread.stop()

    def segment(self, image: Source, **options: Unpack[SegmentOptions]) -> Result:
        """As `AsyncClient.segment`."""
        return self._wait(self._start(self._asynchronous.segment, image, **options))

    def draw(
        self, image: Source, *, media_type: str = "image/png", **options: Unpack[SegmentOptions]
    ) -> bytes:
        """As `AsyncClient.draw`."""
        return self._wait(self._start(self._asynchronous.draw, image, media_type=media_type, **options))

    def segment_many(
        self, images: Iterable[Source], **options: Unpack[SegmentOptions]
    ) -> Iterator[Result | MaskserveError | OSError]:
        """As `AsyncClient.segment_many`."""
        pending: deque[Future[Result]] = deque()
        try:
            for image in images:
                pending.append(self._start(self._asynchronous.segment, image, **options))
                if len(pending) >= 2 * self.concurrency:
                    yield outcome(partial(self._wait, pending.popleft()))
            while pending:
                yield outcome(partial(self._wait, pending.popleft()))
        finally:
            for future in pending:
                future.cancel()

    def model(self) -> dict[str, Any]:
        """As `AsyncClient.model`."""
        return self._wait(self._start(self._asynchronous.model))

    def _start(
        self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any
    ) -> Future[T]:
        """Begin a call on the loop. Raises UnreachableError once closed."""
        return self._thread.start(partial(function, *args, **options))

    def _wait(self, future: Future[T]) -> T:
        try:
            return future.result()
        finally:
            # After Ctrl-C its result is not needed.
            future.cancel()


def outcome(result: Callable[[], Result]) -> Result | MaskserveError | OSError:
    """What became of an image: what `result` returns or raises."""
    try:
        return result()
    except (MaskserveError, OSError) as error:
        return error
