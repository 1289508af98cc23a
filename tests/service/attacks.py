"""What hostile clients send: files that are small to send and large to read, and connections that never end."""

from __future__ import annotations

import io
import socket
import struct
import zlib
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60.0  # for sockets; met only when something hangs


def file_of(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *before: bytes, pixels: bytes) -> bytes:
    """A PNG of 8-bit RGB with chunks before its compressed rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(before)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


# --- files


def many_scans(side: int, count: int) -> bytes:
    """C1: a progressive JPEG whose last scan, which brings nothing new, comes again and again."""
    content = file_of(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def tiff_of_tiny_tiles() -> bytes:
    """C2: 12 megapixels of 1 × 1 tiles in ten planes, whose list claims 2 thousand million entries."""
    tags = {
        256: (4, 1, 4000),
        257: (4, 1, 3000),
        258: (3, 1, 8),
        259: (3, 1, 8),
        262: (3, 1, 1),
        277: (3, 1, 10),
    }
    tags |= {284: (3, 1, 2), 322: (4, 1, 1), 323: (4, 1, 1), 324: (4, 0x7FFFFFFF, 8), 325: (4, 0x7FFFFFFF, 8)}
    rows = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + bytes(4)


def raw_profile() -> bytes:
    """C4: a PNG with 19 MB of line breaks where ImageMagick keeps EXIF."""
    text = b"Raw profile type exif\0" + b"\n" * 19_000_000
    return png(8, 8, chunk(b"tEXt", text), pixels=bytes(8 * 25))


def empty_chunks() -> bytes:
    """H6: a PNG of half a million empty chunks."""
    return png(8, 8, chunk(b"teSt", b"") * 500_000, pixels=bytes(8 * 25))


def webp_canvas() -> bytes:
    """H5: 40 bytes that claim 49 megapixels."""
    return b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0\x2f" + struct.pack("<I", 6999 | 6999 << 14) + bytes(11)


def float_tiff() -> bytes:
    """H5: 49 megapixels of floats, which compress to nothing."""
    return file_of(Image.new("F", (7000, 7000)), "TIFF", compression="tiff_adobe_deflate")


def bmp_rle() -> bytes:
    """H6: 49 megapixels of run lengths, which Pillow reads one by one."""
    pixels = (b"\xff\x07" * 27 + b"\x73\x07" + b"\0\0") * 256 + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 7000, 7000, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + bytes(1024) + pixels


def empty_lists() -> bytes:
    """C3: JSON of nine million of them."""
    return b'{"image":[' + b"[]," * 9_000_000 + b"[]]}"


def keys_without_end() -> bytes:
    """C3: JSON of two million keys."""
    return b"{" + b",".join(b'"%d":0' % number for number in range(2_000_000)) + b"}"


# Each is sent twice at once, and made only then.
FILES: dict[str, Callable[[], bytes]] = {
    "C1 JPEG of 1,500 scans": partial(many_scans, 1500, 1500),
    "C2 TIFF of tiny tiles": tiff_of_tiny_tiles,
    "C4 PNG with a profile of line breaks": raw_profile,
    "H5 WebP of 49 megapixels in 40 bytes": webp_canvas,
    "H5 TIFF of 49 million floats": float_tiff,
    "H6 BMP of run lengths": bmp_rle,
    "H6 PNG of empty chunks": empty_chunks,
}
DOCUMENTS: dict[str, Callable[[], bytes]] = {"lists": empty_lists, "keys": keys_without_end}


# --- connections

POST = b"POST /segment HTTP/1.1\r\nHost: x\r\n"


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=SECONDS)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with suppress(OSError):
        while data := connection.recv(1 << 16):
            received += data
    return received


def endless_trailers(url: str) -> bytes:
    """H1: a chunked body, then trailers as long as the server takes them, 300 MB at most."""
    with closing(connect(url)) as connection:
        connection.sendall(
            b"POST /segment HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        )
        with suppress(OSError):
            for _ in range(300):
                connection.sendall((b"x-trailer: " + b"t" * 1000 + b"\r\n") * 1000)
        return read_all(connection)


def requests_ahead(url: str) -> bytes:
    """H2: 100,000 requests at once, whose answers are read afterwards."""
    with closing(connect(url)) as connection:
        with suppress(OSError):
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100_000)
        return read_all(connection)


def unread_answer(url: str, photo: bytes) -> socket.socket:
    """H3: a picture is asked for and never read. The caller closes the connection."""
    connection = connect(url)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = POST + b"Accept: image/png\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(photo) + photo)
    return connection


def form_behind_it(connection: socket.socket, photo: bytes, count: int) -> None:
    """H4: a form of many images, sent while the answer before it is not read."""
    parts = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + photo + b"\r\n"
        for _ in range(count)
    )
    body = parts + b"--B--\r\n"
    head = POST + b"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: %d\r\n\r\n"
    with suppress(OSError):
        connection.sendall(head % len(body) + body)


def noise(width: int, height: int) -> bytes:
    """A PNG that does not compress, nor does the picture that answers it."""
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return file_of(Image.fromarray(values), "PNG", compress_level=1)
