"""What Pillow does not check of a TIFF file, and the name of its kind for those that it does not read.

Tags are those of TIFF 6.0, section 8, and of SampleFormat (section 19).
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from model.images.formats import ACCEPTED, DamagedImage, ImageError, UnsupportedImage

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

DESCRIPTION = 270
SUBFILE_TYPE, WIDTH, HEIGHT, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
SAMPLES_PER_PIXEL = 277
MAX_SAMPLE_VALUE, PLANAR, SAMPLE_FORMAT, DNG_VERSION = 281, 284, 339, 50706
_REDUCED_RESOLUTION = 1
_WHITE_IS_ZERO, _SEPARATE_PLANES = 0, 2

_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex integer", 6: "complex"}
_SIGNED, _WEBP = 2, 50001
# Of those that are not read: whole slides and some microscopes write JPEG 2000.
_COMPRESSIONS = {
    22610: "JPEG XR",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    50002: "JPEG XL",
    52546: "JPEG XL",
    50001: "WebP",
}
_PHOTOMETRICS = {
    0: "white is zero",
    1: "black is zero",
    2: "RGB",
    3: "palette",
    5: "CMYK",
    6: "YCbCr",
    8: "Lab",
}


def check(image: TiffImageFile) -> None:
    """Refuse what Pillow would open and get wrong.

    Raises UnsupportedImage for camera raw files, whose first image is a thumbnail, and for 16-bit colour in
    separate planes; DamagedImage where uncompressed strips or tiles cover only part: Pillow leaves the rest black.
    """
    tags = image.tag_v2
    if DNG_VERSION in tags or number(tags, SUBFILE_TYPE, 0) & _REDUCED_RESOLUTION:
        raise UnsupportedImage("A camera raw file is not accepted; send an image that was developed from it.")
    # Pillow's libtiff is built without it.
    if number(tags, COMPRESSION, 1) == _WEBP:
        raise _compression_error(tags)
    planes = number(tags, SAMPLES_PER_PIXEL, 1) if number(tags, PLANAR, 1) == _SEPARATE_PLANES else 1
    if planes > 1 and number(tags, BITS_PER_SAMPLE, 1) > 8:
        raise UnsupportedImage(f"{describe(tags)} is not accepted; save it with interleaved channels.")
    # Of the image as it is stored: image.size is the upright one.
    width, height = number(tags, WIDTH, 0), number(tags, HEIGHT, 0)
    covered = [_area(tile[1], width, height) for tile in image.tile if tile[0] == "raw" and tile[1]]
    if covered and sum(covered) < width * height * planes:
        raise DamagedImage("The TIFF file's strips or tiles cover only a part of the image.")


def _area(box: tuple[int, int, int, int], width: int, height: int) -> int:
    """Pixels of a box that lie inside of the image."""
    x0, y0, x1, y1 = box
    return max(0, min(x1, width) - x0) * max(0, min(y1, height) - y0)


def refusal(content: bytes, reason: str) -> ImageError:
    """The error for a TIFF that Pillow cannot open; reason: what it said."""
    tags: dict[int, Any] = {}
    # Pillow raises whatever its arithmetic runs into on hostile bytes.
    with suppress(Exception):
        directory = ImageFileDirectory_v2(content[: 16 if b"+" in content[2:4] else 8])
        file = io.BytesIO(content)
        file.seek(directory.next)
        directory.load(file)
        tags = dict(directory)
    if is_camera_raw(tags):
        return camera_raw()
    if tags and number(tags, COMPRESSION, 1) not in COMPRESSION_INFO:
        return _compression_error(tags)
    if "pixel mode" in reason:
        return UnsupportedImage(f"{describe(tags)} is not accepted; save it as 8-bit grey or RGB.")
    return DamagedImage(f"The TIFF header is damaged: {reason}.")


def _compression_error(tags: Any) -> UnsupportedImage:
    return UnsupportedImage(
        f"{describe(tags)} is not accepted; save it uncompressed, or with LZW or Deflate."
    )


def is_camera_raw(tags: Any) -> bool:
    """Whether it is a DNG, or begins with a thumbnail as other raw files do."""
    return DNG_VERSION in tags or bool(number(tags, SUBFILE_TYPE, 0) & _REDUCED_RESOLUTION)


def camera_raw() -> UnsupportedImage:
    """The error for raw files."""
    return UnsupportedImage(f"A camera raw file is not accepted; send {ACCEPTED}.")


def describe(tags: Any) -> str:
    """The kind of pixels in words: `TIFF with 3 channels of 16-bit unsigned samples in separate planes (RGB)`."""
    channels = number(tags, SAMPLES_PER_PIXEL, 1)
    bits, kind = number(tags, BITS_PER_SAMPLE, 1), number(tags, SAMPLE_FORMAT, 1)
    photometric = number(tags, PHOTOMETRIC, -1)
    separate = " in separate planes" if number(tags, PLANAR, 1) == _SEPARATE_PLANES and channels > 1 else ""
    plural = "channels" if channels > 1 else "channel"
    return (
        f"TIFF with {channels} {plural} of {bits}-bit {_SAMPLE_FORMATS.get(kind, 'undefined')} samples{separate} "
        f"({_PHOTOMETRICS.get(photometric, f'photometric interpretation {photometric}')}, "
        f"compression {_COMPRESSIONS.get(number(tags, COMPRESSION, 1), number(tags, COMPRESSION, 1))})"
    )


def white_is_zero(tags: Any) -> bool:
    """Whether grey values count down from white."""
    return number(tags, PHOTOMETRIC, 1) == _WHITE_IS_ZERO


def is_signed(tags: Any) -> bool:
    """Whether values are signed whole numbers."""
    return number(tags, SAMPLE_FORMAT, 1) == _SIGNED


def display_range(tags: Any) -> tuple[float, float] | None:
    """The values that ImageJ shows as black and white, where it has written them into its description."""
    text = tags.get(DESCRIPTION, "")
    if not (isinstance(text, str) and text.startswith("ImageJ=")):
        return None
    stated = dict(line.partition("=")[::2] for line in text.splitlines())
    try:
        low, high = float(stated["min"]), float(stated["max"])
    except (KeyError, ValueError):
        return None
    return (low, high) if 0 <= low < high <= 65535 else None


def number(tags: Any, tag: int, default: int) -> int:
    """The tag's first value, or `default` where it is missing or no number.

    Args:
        tags: of the file.
        tag: its number.
        default: what counts where it is not there.
    """
    value = tags.get(tag, default)
    if isinstance(value, tuple):
        value = value[0] if value else default
    return int(value) if isinstance(value, int | float) and abs(value) < 1 << 32 else default
