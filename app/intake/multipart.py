"""The images in a multipart/form-data body (RFC 7578), read as the stream arrives: nothing is spooled.

Starlette's parser (1.10) is not used: it takes a form that breaks off for a complete one, looks at no name before the
end, and spools parts of more than 1 MB to disk, where no account holds them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.problems import BodyTooLarge, MalformedRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Most bytes of one part's headers; browsers and HTTP libraries send about 150.
HEADER_BYTES = 8 << 10
FILENAME_EXTENDED = re.compile(r";\s*filename\*\s*=", re.IGNORECASE)
# RFC 2046, section 5.1.1 allows 70.
BOUNDARY_BYTES = 256


@dataclass(frozen=True, slots=True)
class FormLimits:
    """What the images of a form may have."""

    # Most bytes of each image.
    image_bytes: int
    images: int
    # Most bytes of all images together.
    form_bytes: int

    def form_too_large(self) -> BodyTooLarge:
        """The problem of a form with too many bytes; if only one image is taken, that is the image's."""
        if self.images == 1:
            return BodyTooLarge.beyond(self.image_bytes)
        return BodyTooLarge(
            f"The images of a form may have at most {self.form_bytes} bytes together here, "
            f"and each at most {self.image_bytes}."
        )


@dataclass(frozen=True, slots=True)
class FormPart:
    """One part of the form, named `image`."""

    content: bytes
    # Whether it came with a file name.
    is_file: bool


async def image_parts(body: AsyncIterator[bytes], boundary: bytes, limits: FormLimits) -> list[FormPart]:
    """The parts of a form, all of them named `image`, at least one.

    Args:
        body: its bytes as they arrive.
        boundary: as the Content-Type names it.
        limits: of the images.

    Raises MalformedRequest for a form that is damaged or has other parts, BodyTooLarge for images beyond the limits;
    both as soon as it shows, without waiting for the rest of the body.
    """
    if not 0 < len(boundary) <= BOUNDARY_BYTES:
        raise MalformedRequest(
            "multipart/form-data has no usable boundary; let the HTTP client set Content-Type."
        )
    form = Form(limits)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_part_end": form.on_part_end,
                "on_end": form.on_end,
            },
        )
        async for chunk in body:
            parser.write(chunk)
    except FormParserError:
        raise MalformedRequest(
            "The form cannot be read: a part is damaged, its header size is too large, or the boundary is not the one "
            "that Content-Type announces; let the HTTP client set Content-Type."
        ) from None
    if not form.ended:
        raise MalformedRequest("The form breaks off before its closing boundary.")
    if not form.parts:
        raise MalformedRequest("The form has no part named image: curl -F image=@photo.jpg …")
    return form.parts


class Form:
    """What the parser has found so far. Each method is one of its events, and may end it all by raising."""

    def __init__(self, limits: FormLimits) -> None:
        self.limits = limits
        self.parts: list[FormPart] = []
        # Bytes of all parts.
        self.bytes = 0
        # The content of the current part.
        self.content = bytearray()
        self.is_file = False
        self.ended = False
        # The headers of the current part; names are in lower case.
        self.headers: dict[str, str] = {}
        self.header_bytes = 0
        self.header_name = bytearray()
        self.header_value = bytearray()

    def on_part_begin(self) -> None:
        """A boundary was read and a part follows."""
        self.content = bytearray()
        self.headers = {}
        self.header_bytes = 0

    def on_header_field(self, chunk: bytes, start: int, end: int) -> None:
        """Some bytes of a header's name."""
        self.count_header(end - start)
        self.header_name += chunk[start:end]

    def on_header_value(self, chunk: bytes, start: int, end: int) -> None:
        """Some bytes of a header's value."""
        self.count_header(end - start)
        self.header_value += chunk[start:end]

    def count_header(self, count: int) -> None:
        """Bound the memory that a part's headers can take."""
        self.header_bytes += count
        if self.header_bytes > HEADER_BYTES:
            raise MalformedRequest(f"The headers of a part of the form exceed {HEADER_BYTES} bytes.")

    def on_header_end(self) -> None:
        """One header is complete."""
        self.headers[self.header_name.decode("latin-1").lower()] = self.header_value.decode("latin-1")
        self.header_name.clear()
        self.header_value.clear()

    def on_headers_finished(self) -> None:
        """The part's bytes follow: it must be an image, and not one too many."""
        disposition = self.headers.get("content-disposition", "")
        _, parameters = parse_options_header(disposition)
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if name != "image":
            raise MalformedRequest(
                f'Unexpected part "{name[:40]}" in the form: its parts are all called "image". '
                "Options belong in the address, as in /segment?score_threshold=0.7."
            )
        if len(self.parts) == self.limits.images:
            count = self.limits.images
            raise BodyTooLarge(f"A form may have at most {count} image{'s' * (count != 1)} here.")
        encoding = self.headers.get("content-transfer-encoding", "binary").strip().lower()
        if encoding not in ("binary", "8bit", "7bit"):
            raise MalformedRequest(
                f"Content-Transfer-Encoding {encoding[:40]} is not read; send the file's own bytes."
            )
        # RFC 7578, section 4.2 forbids filename*, and python-multipart leaves it out; some libraries send it alone.
        self.is_file = b"filename" in parameters or FILENAME_EXTENDED.search(disposition) is not None

    def on_part_data(self, chunk: bytes, start: int, end: int) -> None:
        """Some bytes of the image."""
        self.content += chunk[start:end]
        self.bytes += end - start
        if len(self.content) > self.limits.image_bytes:
            raise BodyTooLarge.beyond(self.limits.image_bytes)
        if self.bytes > self.limits.form_bytes:
            raise self.limits.form_too_large()

    def on_part_end(self) -> None:
        """The image is complete."""
        self.parts.append(FormPart(bytes(self.content), self.is_file))

    def on_end(self) -> None:
        """The closing boundary was read."""
        self.ended = True
