"""The client's reading of a response: bounded, whatever the server sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from maskserve.errors import AnswerError, ServiceError
from maskserve.retry import retry_after

if TYPE_CHECKING:
    import httpx

# Most bytes of an answer that is no success; it is only quoted.
MAX_PROBLEM_BYTES = 1 << 20


class Answer(NamedTuple):
    """A response that has been read."""

    content: bytes
    headers: httpx.Headers


async def read_answer(response: httpx.Response, max_bytes: int) -> Answer:
    """The whole answer.

    Raises ServiceError for a problem, AnswerError for an answer of more than `max_bytes` or a compressed one.
    """
    compressed = response.headers.get("content-encoding", "identity") != "identity"
    if not response.is_success:
        raise ServiceError.from_answer(
            response.status_code,
            response.reason_phrase,
            response.headers,
            b"" if compressed else await first_bytes(response, MAX_PROBLEM_BYTES),
            retry_after(response.headers.get("retry-after", "")),
        )
    if compressed:
        raise AnswerError("the answer is compressed, which was not asked for")
    content = await first_bytes(response, max_bytes + 1)
    if len(content) > max_bytes:
        raise AnswerError(f"the answer has more than {max_bytes:,} bytes")
    return Answer(content, response.headers)


async def first_bytes(response: httpx.Response, most: int) -> bytes:
    """A body, or its beginning where it has more bytes."""
    chunks, size = [], 0
    async for chunk in response.aiter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size >= most:
            break
    return b"".join(chunks)[:most]
