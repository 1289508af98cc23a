"""The request's body → the bytes of its image: raw, as multipart part `image`, or JSON {"image": "<base64>"}.

A form may have several images.

The body is counted while it arrives, and cut off at its limit and its deadline. Images are not opened here.
"""

from __future__ import annotations

import asyncio
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from app.intake.multipart import FormLimits, image_parts
from app.problems import BodyTooLarge, BodyTooSlow, MalformedRequest, UnsupportedFormat
from model.images.formats import UnsupportedImage, format_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.datastructures import Headers
    from starlette.types import Message, Receive

HOW_TO_SEND = (
    "Send the image as a form (curl -F image=@photo.jpg …), as the body itself "
    '(curl -H \'Content-Type: image/jpeg\' --data-binary @photo.jpg …) or as JSON {"image": "<base64>"}.'
)
# Besides the image: a form's boundaries and part headers; the key and a data: URL's prefix in JSON.
ENVELOPE_BYTES = 64 << 10
# Between two pieces of a body.
STALL_SECONDS = 15.0
LINE_BREAK_ADVICE = "Was it sent by curl -d? That strips line breaks from files: use --data-binary or -F."
FILE_ADVICE = "Did you mean -F image=@FILE? Without the @, curl sends the name instead of the file."


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded image file."""

    content: bytes
    # What probably went wrong, should the content turn out not to be a sound image.
    advice: str = ""
    # Where the content is to be fetched from instead.
    url: str = ""
    # The content is the inside of a JSON string, which has the file in base64.
    base64: bool = False


async def read_uploads(
    headers: Headers,
    receive: Receive,
    *,
    max_bytes: int,
    seconds: float,
    arrived: Callable[[int], None] = lambda _: None,
    max_images: int = 1,
    max_form_bytes: int = 0,
) -> list[Upload]:
    """The images of a request, at least one, in whichever of the three forms its Content-Type announces.

    Args:
        headers: of the request.
        receive: ASGI's.
        max_bytes: of each image.
        seconds: that the whole body may take.
        arrived: called with the number of bytes as they come; may raise.
        max_images: in a form.
        max_form_bytes: of a form's images together; one image alone may always have max_bytes.

    Raises MalformedRequest, BodyTooLarge, BodyTooSlow, UnsupportedFormat, and ClientDisconnect if the client has left.
    """
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedFormat(
            "A body with a Content-Encoding is not accepted: image files are compressed already."
        )
    loop = asyncio.get_running_loop()
    end, stalled = loop.time() + seconds, False
    try:
        # One timer for both limits: a client that stalls gives up its place before its whole time is over.
        async with asyncio.timeout_at(end) as timer:

            async def receive_soon() -> Message:
                nonlocal stalled
                soon = loop.time() + STALL_SECONDS
                stalled = soon < end
                timer.reschedule(min(soon, end))
                return await receive()

            limits = FormLimits(max_bytes, max_images, max(max_bytes, max_form_bytes))
            uploads = await read_body(headers, receive_soon, limits, arrived)
    except TimeoutError:
        if stalled:
            raise BodyTooSlow(f"Nothing of the body arrived for {STALL_SECONDS:g} seconds.") from None
        raise BodyTooSlow(f"The body did not arrive completely within {seconds:g} seconds.") from None
    if not any(upload.content or upload.url for upload in uploads):
        raise MalformedRequest(f"There is no image in the request. {HOW_TO_SEND}")
    return uploads


async def read_body(
    headers: Headers, receive: Receive, limits: FormLimits, arrived: Callable[[int], None]
) -> list[Upload]:
    """The images, read as the Content-Type says; what is neither form nor JSON is taken for the image.

    Args:
        headers: of the request.
        receive: ASGI's.
        limits: of the images; of a body without a form only `image_bytes` counts.
        arrived: called with the number of bytes as they come; may raise.

    Raises as `read_uploads`, but for BodyTooSlow.
    """
    max_bytes = limits.image_bytes
    kind, parameters = parse_options_header(headers.get("content-type"))
    if kind == b"multipart/form-data":
        # As many boundaries and part headers as there may be images; `image_parts` counts the images themselves.
        limit = limits.form_bytes + limits.images * ENVELOPE_BYTES
        body = chunks(headers, receive, limits.form_too_large(), limit, arrived)
        parts = await image_parts(body, parameters.get(b"boundary", b""), limits)
        return [Upload(part.content, "" if part.is_file else FILE_ADVICE) for part in parts]
    if kind.startswith(b"multipart/"):
        raise MalformedRequest(f"{kind.decode('latin-1')} is not read here. {HOW_TO_SEND}")
    if is_json(kind) or kind == b"text/plain":
        limit = json_bytes(max_bytes)
        text = await whole(chunks(headers, receive, BodyTooLarge.beyond(max_bytes), limit, arrived))
        if looks_like_json(text) or (is_json(kind) and not _is_image(text)):
            return [from_json(text)]
        if len(text) > max_bytes:
            raise BodyTooLarge.beyond(max_bytes)
        return [Upload(text)]
    content = await whole(chunks(headers, receive, BodyTooLarge.beyond(max_bytes), max_bytes, arrived))
    # Clients that name no type, or any.
    if looks_like_json(content):
        return [from_json(content)]
    if kind == b"application/x-www-form-urlencoded":
        return [from_unnamed(content)]
    return [Upload(content)]


async def chunks(
    headers: Headers, receive: Receive, too_large: BodyTooLarge, limit: int, arrived: Callable[[int], None]
) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Args:
        headers: of the request.
        receive: ASGI's.
        too_large: raised for a longer body; at once if the Content-Length announces one.
        limit: most bytes of the body.
        arrived: called with the number of bytes as they come; may raise.

    Raises ClientDisconnect if the client has left.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise too_large
    total = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        total += len(chunk)
        if total > limit:
            raise too_large
        arrived(len(chunk))
        if chunk:
            yield chunk


async def whole(body: AsyncIterator[bytes]) -> bytes:
    """All chunks as one, in one buffer all along: a list of one-byte chunks takes 40 times their memory."""
    content = bytearray()
    async for chunk in body:
        content += chunk
    return bytes(content)


def from_unnamed(content: bytes) -> Upload:
    """What `curl --data-binary` sends where no Content-Type is given: it calls the image a form."""
    # Every accepted image format has bytes outside printable ASCII near its start; an HTML form has none.
    if content and all(0x20 <= byte < 0x7F for byte in content[:64]):
        raise MalformedRequest(f"The body is an HTML form (application/x-www-form-urlencoded). {HOW_TO_SEND}")
    return Upload(content, LINE_BREAK_ADVICE)


def json_bytes(max_bytes: int) -> int:
    """The longest JSON body that may hold an image file of so many bytes.

    Base64 makes 4 bytes of 3; a 16th more for the escaped slashes that some JSON encoders write, or for line breaks.
    """
    encoded = max_bytes * 4 // 3
    return encoded + encoded // 16 + ENVELOPE_BYTES


def is_json(kind: bytes) -> bool:
    """Whether a media type is JSON, or a form of it (RFC 6839, section 3.1)."""
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def looks_like_json(body: bytes) -> bool:
    """Whether a body begins as a JSON object, which no accepted image does."""
    return body[:MOST_BLANKS].removeprefix(BOM_UTF8).lstrip().startswith(b"{")


def _is_image(body: bytes) -> bool:
    try:
        return bool(format_of(body))
    except UnsupportedImage:
        return False


def from_json(body: bytes) -> Upload:
    """The image in {"image": "<base64>"}, still in base64, or the address in {"url": …}.

    Nothing large is parsed here: a body is searched for where its one string begins and ends. Raises MalformedRequest.
    """
    body = body.removeprefix(BOM_UTF8)
    begin, end = _IMAGE_KEY.match(body), _END_OF_OBJECT.search(body, max(0, len(body) - MOST_BLANKS))
    if begin is not None and end is not None and begin.end() <= end.start():
        text = body[begin.end() : end.start()]
        if b'"' not in text:
            return Upload(text, base64=True)
    if len(body) > MOST_PARSED_BYTES:
        raise MalformedRequest(
            'The JSON must be an object with the one key "image", a string: {"image": "<base64>"}. '
            f"Anything else of more than {MOST_PARSED_BYTES} bytes is not read."
        )
    return _explain_json(body)


# Begin and end of {"image": "…"}; blanks as JSON has them.
_IMAGE_KEY = re.compile(rb'[ \t\r\n]{0,256}\{[ \t\r\n]{0,256}"image"[ \t\r\n]{0,256}:[ \t\r\n]{0,256}"')
_END_OF_OBJECT = re.compile(rb'"[ \t\r\n]{0,256}\}[ \t\r\n]{0,256}\Z')
MOST_BLANKS = 1024
# Microseconds to parse, whatever it is.
MOST_PARSED_BYTES = 64 << 10


def _explain_json(body: bytes) -> Upload:
    """The address, the image where its key comes twice, or what is wrong with a JSON body that is not large."""
    try:
        document = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        where = "" if _is_utf8(body) else ": it is not in UTF-8"
        where = where or f": line {error.lineno}, column {error.colno}"
        raise MalformedRequest(f"The body is not valid JSON{where}. {HOW_TO_SEND}") from None
    if isinstance(document, dict) and isinstance(url := document.get("url"), str) and len(document) == 1:
        return Upload(b"", url=url)
    if not isinstance(document, dict) or (document and "image" not in document):
        raise MalformedRequest('The JSON must be an object with the key "image": {"image": "<base64>"}.')
    others = sorted(document.keys() - {"image"})
    if others:
        raise MalformedRequest(
            f'Unknown key "{others[0][:40]}" in the JSON: its only key is "image". '
            "Options belong in the address, as in /segment?score_threshold=0.7."
        )
    text = document.get("image", "")
    if not isinstance(text, str):
        raise MalformedRequest('"image" must be a string: the image file in base64.')
    return Upload(orjson.dumps(text)[1:-1], base64=True)


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
