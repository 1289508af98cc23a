"""Every error that a client can get, one class each; the class tree is the table of HTTP errors.

Problem (500 internal)
├── MalformedRequest      400  the body or the query cannot be read as the contract says
├── Unauthorized          401
├── UnknownPath           404
├── MethodNotAllowed      405
├── HeaderTooSlow         408  the header did not arrive in time
├── BodyTooSlow           408  the body did not arrive in time
├── BodyTooLarge          413  more bytes than the limit
├── ImageTooLarge         413  more pixels than the limit
├── UnsupportedFormat     415  not an image format that is accepted
├── UndecodableImage      422  the right format, but damaged
├── InvalidParameter      422  an option outside its range, or an unknown category
├── UnusableUrl           422  the image's address may not be fetched, or no image came from it
├── QueueFull             429  + Retry-After
├── HeaderTooLarge        431  the request line and headers have too many bytes
├── NotReady              503  + Retry-After: loading, after a fatal device error, or short of memory
├── Draining              503  + Retry-After: shutting down
└── DeadlineExceeded      504  the answer would be too late

Errors travel as RFC 9457 `application/problem+json`.
"""

from __future__ import annotations

import math
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Self

import orjson
from starlette.responses import Response

from model.messages import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

MEDIA_TYPE = "application/problem+json"
# Names in a message; LVIS has 1,203 categories.
MAX_LISTED = 100


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it so, and so do the subclasses
    """Something failed inside the service; the log has the cause, with the request's id."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    default_detail: ClassVar[str] = (
        "The request failed inside the service. The log has the cause, with the request's id."
    )

    def __init__(self, detail: str | None = None, *, retry_after: float | None = None) -> None:
        """detail: by default that of the class. retry_after: seconds."""
        self.detail = detail if detail is not None else self.default_detail
        self.retry_after = retry_after
        super().__init__(self.detail)

    def document(self, request_id: str) -> dict[str, Any]:
        """The JSON document (RFC 9457, section 3), with the extensions `request_id` and `retry_after`."""
        document: dict[str, Any] = {
            "type": f"urn:maskserve:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.retry_after is not None:
            document["retry_after"] = math.ceil(self.retry_after)
        return document

    def headers(self) -> dict[str, str]:
        """The HTTP headers of the response. Retry-After has whole seconds (RFC 9110, section 10.2.3)."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class MalformedRequest(Problem):
    """The body or the query cannot be read as the contract says."""

    status = 400
    slug = "malformed-request"
    title = "Malformed request"


class Unauthorized(Problem):
    """The API key is missing or wrong."""

    status = 401
    slug = "unauthorized"
    title = "Unauthorized"

    def headers(self) -> dict[str, str]:
        """With the scheme of credentials that is required (RFC 9110, section 15.5.2)."""
        return {**super().headers(), "WWW-Authenticate": "Bearer"}


class UnknownPath(Problem):
    """The service has nothing at this path."""

    status = 404
    slug = "unknown-path"
    title = "Unknown path"


class MethodNotAllowed(Problem):
    """The path exists, but not for this method."""

    status = 405
    slug = "method-not-allowed"
    title = "Method not allowed"

    def __init__(self, detail: str, *, allow: str) -> None:
        """allow: the methods of the path, separated by commas."""
        super().__init__(detail)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        """With the methods of the path (RFC 9110, section 15.5.6)."""
        return {**super().headers(), "Allow": self.allow}


class HeaderTooSlow(Problem):
    """The request's header did not arrive in time."""

    status = 408
    slug = "header-too-slow"
    title = "Header too slow"


class BodyTooSlow(Problem):
    """The body did not arrive in time."""

    status = 408
    slug = "body-too-slow"
    title = "Body too slow"


class BodyTooLarge(Problem):
    """The body has more bytes than the service accepts."""

    status = 413
    slug = "body-too-large"
    title = "Body too large"

    @classmethod
    def beyond(cls, limit: int) -> Self:
        """The problem for an image file of more than `limit` bytes."""
        return cls(f"An image file may have at most {limit} bytes here.")


class ImageTooLarge(Problem):
    """The image has more pixels than the service accepts, or a side too long for the JPEG that is asked for."""

    status = 413
    slug = "image-too-large"
    title = "Image too large"


class UnsupportedFormat(Problem):
    """The bytes are not in an image format that the service accepts."""

    status = 415
    slug = "unsupported-format"
    title = "Unsupported image format"


class UndecodableImage(Problem):
    """The image is damaged or cut short."""

    status = 422
    slug = "undecodable-image"
    title = "Undecodable image"


class InvalidParameter(Problem):
    """A parameter is unknown, outside its range, or names a category that the model does not have."""

    status = 422
    slug = "invalid-parameter"
    title = "Invalid parameter"


class UnusableUrl(Problem):
    """The image's address may not be fetched, or no image came from it."""

    status = 422
    slug = "unusable-url"
    title = "Unusable address"


class QueueFull(Problem):
    """The service is at its limit; `Retry-After` says when to try again."""

    status = 429
    slug = "queue-full"
    title = "Queue full"


class HeaderTooLarge(Problem):
    """The request line and header have more bytes than the service reads."""

    status = 431
    slug = "header-too-large"
    title = "Header too large"


class NotReady(Problem):
    """The model is not loaded yet, the device has failed, or the decoder was killed from outside."""

    status = 503
    slug = "not-ready"
    title = "Not ready"


class Draining(Problem):
    """The service is shutting down and takes no new work."""

    status = 503
    slug = "draining"
    title = "Shutting down"
    default_detail = "The service is shutting down; another replica may answer."

    def __init__(self, detail: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(detail, retry_after=retry_after)


class DeadlineExceeded(Problem):
    """The answer would come after the request's deadline."""

    status = 504
    slug = "deadline-exceeded"
    title = "Deadline exceeded"


def suggest(name: str, names: Iterable[str]) -> str:
    """A sentence for someone who misspelt a name: the names most like it, or else the names that there are."""
    names = list(names)
    if hint := did_you_mean(name, names, most=3):
        return f"{hint[0].upper()}{hint[1:]}"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"There are: {', '.join(names[:MAX_LISTED])}{more}."


def respond(problem: Problem, request_id: str) -> Response:
    """The problem as an HTTP response."""
    return Response(
        orjson.dumps(problem.document(request_id)),
        problem.status,
        {**problem.headers(), "Cache-Control": "no-store"},
        MEDIA_TYPE,
    )


def as_bytes(problem: Problem) -> bytes:
    """The problem as a whole HTTP response, for a connection that is closed after it."""
    request_id = uuid.uuid4().hex
    response = respond(problem, request_id)
    response.headers.update({"X-Request-ID": request_id, "Connection": "close"})
    lines = [f"{name}: {value}" for name, value in response.headers.items()]
    status = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"
    return "\r\n".join([status, *lines, "", ""]).encode("latin-1") + bytes(response.body)
