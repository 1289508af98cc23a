"""Format and size of an image, and the memory that decoding it takes, from its header alone: opened, not decoded."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.images import tiff
from model.images.formats import (
    MAX_PIXELS,
    MAX_SIDE,
    DamagedImage,
    ImageTooBig,
    UnsupportedImage,
    format_of,
)
from model.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.ImageFile import ImageFile

ORIENTATION = 274
# Where ImageMagick keeps EXIF in a PNG.
RAW_PROFILE = "Raw profile type exif"
# Errors of Python's that Pillow passes on, or gives as its own reason.
_ARITHMETIC = (ArithmeticError, AttributeError, LookupError, TypeError, UnicodeError, struct.error)
# Bytes as Python writes them, the names of a PNG's chunks.
_BYTES = re.compile(r"\bb'([^']*)'")
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says."""

    # One of FORMATS.
    format: str
    # Pixels of the upright image: swapped where the orientation asks for a quarter turn.
    width: int
    height: int
    # EXIF's, 1 to 8, as stored; width and height already count it in.
    orientation: int = 1
    # Bytes that decoding takes at most besides the file: measured by format and mode, see docs/operations.md.
    memory: int = 0

    @property
    def pixels(self) -> int:
        """How many pixels decoding will make."""
        return self.width * self.height


def read_header(content: bytes) -> Header:
    """Format and size of an image file, nothing decoded.

    Raises UnsupportedImage, DamagedImage, ImageTooBig and nothing else, whatever the bytes.
    """
    name = format_of(content)
    if name == "WEBP":
        # Pillow allocates its canvas, 8 bytes a pixel, as soon as it opens one.
        width, height = webp_size(content)
        check_size(name, width, height)
        turn, memory = _webp_orientation(content), width * height * _WEBP_BYTES
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image(content, name)
            width, height = image.size
            turn, memory = _orientation_before_decoding(image, content), _memory(image, content)
    # The size of TIFFs is the upright one already.
    if turn >= 5 and name != "TIFF":
        width, height = height, width
    return Header(name, width, height, turn, memory)


class _Tiff(TiffImageFile):
    """TIFF that gets its memory here, after its size was checked: Pillow refuses past 179 megapixels."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, getattr(self, "_tile_size", self.size)).im
        super().load_prepare()


def open_image(content: bytes, name: str) -> ImageFile:
    """Pillow's reader of one format, with nothing decoded yet.

    Not Image.open: it refuses past 179 megapixels, and makes of multi-picture JPEGs another class.
    Raises ImageError only.
    """
    try:
        image: ImageFile = READERS[name](io.BytesIO(content))
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageTooBig(f"Opening the {name} file needs too much memory.", (0, 0)) from error
    except Exception as error:
        reason = reason_of(error)
        if name == "TIFF":
            raise tiff.refusal(content, reason) from None
        if name == "JPEG" and (bits := reason.partition("-bit layers")[0].rpartition(" ")[2]).isdecimal():
            raise UnsupportedImage(
                f"JPEG with {bits} bits per sample is not accepted; send one with 8."
            ) from None
        raise DamagedImage(f"The {name} header is damaged: {reason}.") from error
    check_size(name, *image.size)
    if isinstance(image, TiffImageFile):
        tiff.check(image)
    return image


READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": _Tiff,
}


def check_size(name: str, width: int, height: int) -> None:
    """Raise DamagedImage or ImageTooBig for a size that no image has.

    Args:
        name: of the format.
        width: in the header, pixels.
        height: in the header, pixels.
    """
    if width <= 0 or height <= 0:
        raise DamagedImage(f"The {name} header is damaged: it claims {width} × {height} pixels.")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageTooBig(
            f"The {name} file claims {width} × {height} pixels; "
            f"at most {MAX_SIDE} a side and {MAX_PIXELS} in all can be read.",
            (width, height),
        )


def webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in a WebP's first chunk (RFC 9649, sections 2.5 to 2.7)."""
    kind = content[12:16]
    try:
        if kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", content, 26)
            return width & 0x3FFF, height & 0x3FFF
        if kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", content, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    except struct.error:
        raise DamagedImage("The WEBP header is cut short.") from None
    if kind != b"VP8X" or len(content) < 30:
        raise DamagedImage("The WEBP header is damaged: its first chunk is unknown or cut short.")
    return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1


def _orientation_before_decoding(image: ImageFile, content: bytes) -> int:
    """The orientation of an image that is only opened: Pillow would decode a PNG to look for EXIF behind its pixels."""
    if isinstance(image, TiffImageFile):
        return _valid_orientation(tiff.number(image.tag_v2, ORIENTATION, 1))
    if image.format == "JPEG" or {"exif", RAW_PROFILE} & image.info.keys():
        return orientation(image)
    if image.format == "PNG" and (place := content.rfind(b"eXIf")) > 0:
        end = place + 4 + int.from_bytes(content[place - 4 : place], "big")
        # Its checksum tells a chunk from bytes of pixels that look like one.
        if zlib.crc32(content[place:end]).to_bytes(4, "big") == content[end : end + 4]:
            return _exif_orientation(content[place + 4 : end])
    return 1


def _webp_orientation(content: bytes) -> int:
    """The orientation in the EXIF chunk of a WebP, which follows the pixels."""
    place = content.rfind(b"EXIF") if content[12:16] == b"VP8X" and content[20] & 0x08 else -1
    length = int.from_bytes(content[place + 4 : place + 8], "little")
    return _exif_orientation(content[place + 8 : place + 8 + length]) if place > 0 else 1


def _exif_orientation(block: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(block)
        return _valid_orientation(exif.get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - see `decode`
        return 1


# Bytes a pixel that Pillow's image takes, by mode.
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
# Bytes a pixel of a WebP: Pillow's image, libwebp's two canvases, Pillow's copy of one, and some of lossless coding.
_WEBP_BYTES = 18
_OUTPUT_BYTES = 3


def _memory(image: ImageFile, content: bytes) -> int:
    """Bytes that decoding takes at most, the output's three a pixel included, the file not."""
    pixels = image.size[0] * image.size[1]
    stored = _MODE_BYTES.get(image.mode, 4)
    # Bytes that are freed before the output is filled.
    decoding = 0
    if image.format == "JPEG":
        # libjpeg keeps the coefficients of all samples, two bytes each, if they come in several scans.
        if image.info.get("progressive") or content.count(START_OF_SCAN) > 1:
            decoding = pixels * 2 * len(image.getbands())
        # It is decoded twice more to see whether only the end marker is missing.
        if END_OF_IMAGE not in content[-64:]:
            decoding = pixels * 2 * stored
    elif isinstance(image, TiffImageFile) and any(tile[0] != "raw" for tile in image.tile):
        # libtiff gets the file once more, and decodes a strip at a time: there may be only one.
        samples = tiff.number(image.tag_v2, tiff.SAMPLES_PER_PIXEL, 1)
        bits = tiff.number(image.tag_v2, tiff.BITS_PER_SAMPLE, 8)
        decoding = len(content) + pixels * max(stored, samples * bits // 8)
    # The copy that is turned upright.
    turned = stored if image.format == "TIFF" or {"exif", RAW_PROFILE} & image.info.keys() else 0
    return pixels * stored + max(decoding, pixels * (turned + _OUTPUT_BYTES))


def orientation(image: Image.Image) -> int:
    """The orientation, 1 to 8, that the image's EXIF states; 1 if it is damaged: that is no reason to refuse it.

    Pillow turns TIFFs upright by itself.
    """
    try:
        value = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - see `decode`
        return 1
    return _valid_orientation(value)


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def reason_of(error: Exception) -> str:
    """What Pillow said, as the end of a sentence: one line, printable, without its full stop.

    What its arithmetic ran into says nothing to people who send images.
    """
    cause = error.__cause__
    passed_on = isinstance(cause, _ARITHMETIC) and str(cause) == str(error)
    if passed_on or isinstance(error, _ARITHMETIC):
        return "it is broken or cut short"
    line = "".join(character for character in first_line(error) if character.isprintable())
    text = _BYTES.sub(r"\1", line)[:200].rstrip(". ")
    return text or type(error).__name__
