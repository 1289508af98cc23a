"""Format and upright size of an image, read from its header alone, and the errors that a bad image ends in.

Arithmetic on bytes, without Pillow: microseconds for real files and a few milliseconds for hostile ones, so
that an event loop can refuse by format and pixels before anything is decoded. `model/images/decode.py` decodes.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.images import tiff

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # Pillow's names of what is accepted; nothing else is opened
ACCEPTED = "JPEG, PNG, WebP, GIF, BMP or TIFF"

# The largest JPEG side, and more than cameras make (200-megapixel phones: 16,320 × 12,240). A service has its
# own, lower limit; this one bounds what the decoder can be made to allocate.
MAX_SIDE = 65_535
MAX_PIXELS = 1 << 28

# Segments, chunks or blocks to look at before giving up. Real headers have a few dozen; a PNG in libpng's
# chunks of 8 KB is looked through up to 128 MB. A file of nothing but tiny segments costs about 10 ms.
_MAX_STEPS = 1 << 14


class ImageError(ValueError):
    """The bytes cannot be had as an image; the message says why, in a sentence fit for the client.

    ImageError
    ├── UnsupportedImage   not an accepted format
    ├── DamagedImage       an accepted format, but broken or cut short
    └── ImageTooBig        larger than any decoder should be asked for
    """


class UnsupportedImage(ImageError):  # noqa: N818 - says what the image is, as `except` reads best
    """Not an accepted format, or a variety of one that is not decoded here."""


class DamagedImage(ImageError):  # noqa: N818 - likewise
    """An accepted format, but the file is broken or cut short."""


class ImageTooBig(ImageError):  # noqa: N818 - likewise
    """Dimensions beyond reason; `size` is (width, height)."""

    def __init__(self, message: str, size: tuple[int, int]) -> None:
        super().__init__(message)
        self.size = size


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says."""

    format: str  # one of FORMATS
    width: int  # pixels of the upright image: swapped where the orientation asks for a quarter turn
    height: int
    orientation: int = 1  # EXIF's, 1 to 8, as stored; width and height already count it in

    @property
    def pixels(self) -> int:
        """How many pixels decoding will make."""
        return self.width * self.height


def read_header(content: bytes) -> Header:
    """Format and upright size of an image file, nothing decoded.

    Raises UnsupportedImage, DamagedImage, ImageTooBig and nothing else, whatever the bytes.
    """
    name = next((name for name, begins in _BEGINS.items() if begins.match(content)), None)
    if name is None:
        raise UnsupportedImage(f"{_describe(content)} is not accepted; send {ACCEPTED}.")
    try:
        width, height, orientation = _READERS[name](content)
    except ImageError:
        raise
    except (struct.error, IndexError):
        raise DamagedImage(f"The {name} header is cut short.") from None
    except ValueError as error:
        raise DamagedImage(f"The {name} header is damaged: {error}.") from error
    if width <= 0 or height <= 0:
        raise DamagedImage(f"The {name} header is damaged: it claims {width} × {height} pixels.")
    # Pillow's GIF reader warns past this size, through state that all threads share; no real GIF comes near.
    most = 80_000_000 if name == "GIF" else MAX_PIXELS
    if max(width, height) > MAX_SIDE or width * height > most:
        raise ImageTooBig(
            f"The {name} file claims {width} × {height} pixels; "
            f"at most {MAX_SIDE} a side and {most} in all can be read.",
            (width, height),
        )
    if orientation >= 5:
        width, height = height, width
    return Header(name, width, height, orientation)


_Read = tuple[int, int, int]  # width and height as stored, orientation

_MARKER = re.compile(rb"\xff([\x01-\xfe])")  # passes over fill bytes and escaped 0xFF, as decoders do
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(content: bytes) -> _Read:
    place, orientation = 2, None
    junk = 1 << 16  # bytes between segments that are passed over, in all
    for _ in range(_MAX_STEPS):
        found = _MARKER.search(content, place, place + junk)
        if found is None:
            raise ValueError("it is cut short before the frame header")
        junk -= found.start() - place
        marker, place = found[1][0], found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that stand alone
            continue
        if marker in {0xD9, 0xDA}:
            raise ValueError("it has no frame header")
        (length,) = struct.unpack_from(">H", content, place)
        if length < 2:
            raise ValueError("a segment has no length")
        if marker in _FRAME_HEADERS:
            bits, height, width = struct.unpack_from(">BHH", content, place + 2)
            if bits != 8:
                raise UnsupportedImage(f"JPEG with {bits} bits per sample is not accepted; send one with 8.")
            return width, height, orientation or 1
        if marker == 0xE1 and orientation is None and content.startswith(b"Exif\0\0", place + 2):
            orientation = tiff.orientation(content[place + 2 : place + length])
        place += length
    raise ValueError("it consists of tiny segments")


def _png(content: bytes) -> _Read:
    if content[12:16] != b"IHDR":
        raise ValueError("it does not begin with IHDR")
    width, height = struct.unpack_from(">II", content, 16)
    place, exif, raw_profile, animations = 8, None, None, 0
    for _ in range(_MAX_STEPS):
        if place + 8 > len(content):
            break  # cut short: for the decoder to find out
        (length,) = struct.unpack_from(">I", content, place)
        kind, body = content[place + 4 : place + 8], place + 8
        if kind == b"eXIf" and exif is None:
            exif = tiff.orientation(content[body : body + length])
        elif kind in {b"tEXt", b"zTXt"} and content.startswith(b"Raw profile type exif\0", body):
            if raw_profile is None:
                raw_profile = _raw_profile(kind, content[body + 22 : body + length])
        elif kind == b"acTL":
            animations += 1
            if animations > 1 or content[body : body + 4] == bytes(4):  # Pillow would warn
                raise ValueError("its animation has no frames, or it has two")
        elif kind == b"IEND":
            break
        place = body + length + 4
    return width, height, exif or raw_profile or 1


def _raw_profile(kind: bytes, text: bytes) -> int:
    """The orientation in EXIF as ImageMagick keeps it in PNG: a name, a length, then hexadecimal digits."""
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], 1 << 20)
        return tiff.orientation(bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii")))
    except (ValueError, zlib.error):
        return 1


def _webp(content: bytes) -> _Read:
    kind = content[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF, 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1
    if kind != b"VP8X":
        raise ValueError("its first chunk is unknown")
    if len(content) < 30:
        raise IndexError
    width = int.from_bytes(content[24:27], "little") + 1
    height = int.from_bytes(content[27:30], "little") + 1
    place = 12
    for _ in range(_MAX_STEPS if content[20] & 0x08 else 0):  # the flag that says there is EXIF
        if place + 8 > len(content):
            break
        (length,) = struct.unpack_from("<I", content, place + 4)
        if content.startswith(b"EXIF", place):
            return width, height, tiff.orientation(content[place + 8 : place + 8 + length])
        place += 8 + length + length % 2
    return width, height, 1


def _gif(content: bytes) -> _Read:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    steps = _MAX_STEPS * 4  # extensions come in sub-blocks of 255 bytes: one may have 16 MB
    while steps > 0:
        steps -= 1
        block = content[place]
        if block == 0x2C:  # the first picture; one that reaches beyond the screen enlarges it
            x, y, w, h = struct.unpack_from("<HHHH", content, place + 1)
            return max(width, x + w), max(height, y + h), 1
        if block == 0x3B:
            raise ValueError("it holds no picture")
        place += 1
        if block == 0x21:
            place += 1
            while content[place] and steps > 0:
                place += 1 + content[place]
                steps -= 1
            place += 1
    raise ValueError("it consists of tiny blocks")


def _bmp(content: bytes) -> _Read:
    (size,) = struct.unpack_from("<I", content, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", content, 18)
    elif size in {40, 52, 56, 64, 108, 124}:
        width, height = struct.unpack_from("<ii", content, 18)
    else:
        raise UnsupportedImage(f"{_describe(content)} is not accepted; send {ACCEPTED}.")
    return width, abs(height), 1  # rows from top to bottom count their height below zero


def _tiff(content: bytes) -> _Read:
    directory = tiff.Directory(content)
    # Camera raw files are TIFFs too, but their first picture is a thumbnail: the answer would be about that.
    if tiff.DNG_VERSION in directory.entries or directory.integer(tiff.REDUCED_RESOLUTION, 0) & 1:
        raise UnsupportedImage(f"A camera raw file is not accepted; send {ACCEPTED}.")
    orientation = directory.integer(tiff.ORIENTATION, 1)
    size = directory.integer(tiff.WIDTH, 0), directory.integer(tiff.HEIGHT, 0)
    return *size, orientation if 1 <= orientation <= 8 else 1


_BEGINS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
}
_READERS: dict[str, Callable[[bytes], _Read]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
}

# What people send besides, so that the error can name it.
_OTHERS = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), name)
    for pattern, name in (
        (rb"....ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1)", "A HEIC image"),
        (rb"....ftyp(?:avif|avis)", "An AVIF image"),
        (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", "A video"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "A JPEG XL image"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "A JPEG 2000 image"),
        (rb"\0\0[\x01\x02]\0", "An icon (ICO)"),
        (rb"8BPS", "A Photoshop document"),
        (rb"P[1-7]\s", "A PPM image"),
        (rb"%PDF-", "A PDF"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
        (rb"\xd0\xcf\x11\xe0", "An Office document"),
        (rb"PK\x03\x04", "A ZIP archive"),
        (rb"\x1f\x8b", "A gzip archive"),
        (rb"data:|/9j/|iVBORw0KGgo|UklGR|R0lGOD", "Base64 text instead of the image's bytes"),
        (rb"\s*<svg|\s*<(?:\?xml|!--|!doctype svg).{0,1500}?<svg", "An SVG drawing"),
        (rb"\s*<(?:!doctype|html)", "An HTML page"),
        (rb"\s*[{\[]", "JSON"),
    )
]


def _describe(content: bytes) -> str:
    """What the bytes seem to be, as the subject of a sentence."""
    if not content:
        return "An empty file"
    start = content[:2048]
    return next((name for pattern, name in _OTHERS if pattern.match(start)), "This file")
