"""The accepted image formats: how a file of each begins, the largest size, and the errors that a bad image ends in.

Needs no Pillow. `model/images/decode.py` reads headers and pixels.
"""

from __future__ import annotations

import re

# Pillow's names of what is accepted; nothing else is opened.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ACCEPTED = "JPEG, PNG, WebP, GIF, BMP or TIFF"

# The largest JPEG side, and a gigapixel, as scanners of slides and aerial cameras make. A service has its own, lower
# limit; this one bounds what the decoder can be made to allocate.
MAX_SIDE = 65_535
# libjpeg writes no larger ones.
MAX_JPEG_SIDE = 65_500
MAX_PIXELS = 1 << 30


class ImageError(ValueError):
    """The bytes cannot be decoded to an image; the message says why, in a sentence fit for the client.

    ImageError
    ├── UnsupportedImage   not an accepted format
    ├── DamagedImage       an accepted format, but broken or cut short
    └── ImageTooBig        larger than any decoder should be asked for
    """


class UnsupportedImage(ImageError):  # noqa: N818 - says what the image is, as `except` reads best
    """Not an accepted format, or a variety of one that is not decoded here."""


class DamagedImage(ImageError):  # noqa: N818 - says what the image is, as `except` reads best
    """An accepted format, but the file is broken or cut short."""


class ImageTooBig(ImageError):  # noqa: N818 - says what the image is, as `except` reads best
    """Dimensions beyond reason; `size` is (width, height)."""

    def __init__(self, message: str, size: tuple[int, int]) -> None:
        super().__init__(message)
        self.size = size


def format_of(content: bytes) -> str:
    """The format of a file by its first bytes, one of FORMATS. Raises UnsupportedImage, which names what else it is."""
    for name, begins in _BEGINS.items():
        if begins.match(content):
            return name
    raise UnsupportedImage(f"{_describe(content)} is not accepted; send {ACCEPTED}.")


_BEGINS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    # With the size of one of its headers: plain text may begin with BM, too.
    "BMP": re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
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
        (rb"version https://git-lfs", "A pointer of Git LFS (`git lfs pull` brings the file itself)"),
    )
]


def _describe(content: bytes) -> str:
    """What the bytes seem to be, as the subject of a sentence."""
    if not content:
        return "An empty file"
    start = content[:2048]
    return next((name for pattern, name in _OTHERS if pattern.match(start)), "This file")
