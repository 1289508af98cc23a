"""Image files ↔ RGB pixels: decode what is accepted to upright uint8 [H, W, 3], and encode such pixels.

Pillow does the work; `model/images/header.py` tells format and size before it, and has the errors. Colour profiles
are not applied: neither are they to the photos that models are trained on.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.images import tiff
from model.images.header import (
    FORMATS,
    DamagedImage,
    Header,
    ImageError,
    ImageTooBig,
    UnsupportedImage,
    read_header,
)
from model.images.png import encode_png
from model.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

__all__ = [
    "FORMATS",
    "DamagedImage",
    "Header",
    "ImageError",
    "ImageTooBig",
    "UnsupportedImage",
    "decode",
    "encode_jpeg",
    "encode_png",
    "read_header",
    "to_pixels",
]


def decode(content: bytes) -> NDArray[np.uint8]:
    """The picture in an image file: [H, W, 3] uint8 RGB, upright, C-contiguous, writeable.

    Of animations it is the first frame, of TIFFs the first page, of multi-picture JPEGs the main picture.
    Transparency is laid over white. Grey of 16 bits becomes round(v · 255 / 65535); colour of 16 bits keeps
    its upper byte, within one level of that: Pillow has no wider colour. For floats see `_stretch`.
    Raises UnsupportedImage, DamagedImage (of a file cut short, too) and ImageTooBig; whatever the bytes, no
    other. A JPEG that was cut and given an end marker again passes, grey below the cut, as does a PNG whose compressed
    stream ends regularly too soon: their decoders tell nobody.
    """
    header = read_header(content)
    size = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    try:
        stored = _open(content, header.format, size)
        stored.load()
        image = stored if header.orientation == 1 else stored.transpose(_TRANSPOSE[header.orientation])
        return _rgb(image, header.format, content)
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageTooBig(f"{size[0]} × {size[1]} pixels need too much memory.", size) from error
    except Exception as error:
        # On hostile bytes Pillow raises what its arithmetic runs into: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, IndexError, TypeError, AssertionError … A list would be today's bugs.
        raise DamagedImage(f"The {header.format} file cannot be decoded: {_reason(error)}.") from error


class _Jpeg(JpegImageFile):
    """JPEG without EXIF, in which Pillow looks for the dots per inch, with warnings where it is damaged."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


class _Tiff(TiffImageFile):
    """TIFF that gets its memory here, after its size was checked: Pillow warns past 89 megapixels."""

    def load_prepare(self) -> None:
        self.im = Image.new(self.mode, self.size).im
        super().load_prepare()


def _open(content: bytes, name: str, size: tuple[int, int]) -> ImageFile:
    """Pillow's reader of one format, with nothing decoded yet.

    Not Image.open: it warns past 89 megapixels, and warnings are filtered by state that all threads share, so
    they can be neither heard nor silenced for one request alone. And it makes of multi-picture JPEGs another
    class, which warns too, for the sake of pictures that are not wanted here.
    """
    image: ImageFile
    if name == "TIFF":
        directory = tiff.Directory(content)
        directory.check_complete()
        image = _Tiff(io.BytesIO(directory.rebuild()))
    else:
        image = _READERS[name](io.BytesIO(content))
    if image.size != size:  # nothing but what was admitted by its pixels gets decoded
        raise ValueError("it claims two different sizes")
    return image


_READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}

# EXIF 2.32, table 6 (orientation): what brings the stored picture upright.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _rgb(image: Image.Image, name: str, content: bytes) -> NDArray[np.uint8]:
    if image.mode == "RGB" and "transparency" not in image.info:
        return to_pixels(image)
    if image.mode.startswith("I;16"):
        return _grey16(image, name, content)
    if image.mode == "F" or (image.mode == "I" and name != "PNG"):
        return _three(_stretch(np.asarray(image)))
    if image.mode == "RGB" and name == "PNG" and content[24] == 16:
        # The one transparent colour still has 16 bits; the pixels have lost their lower byte.
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return to_pixels(white)
    return to_pixels(image.convert("RGB"))


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB image in memory of their own.

    In bands that stay in the cache, 24 ms for 12 megapixels; np.array(image), by way of one string of the
    whole picture, takes 57 ms and that memory twice.
    """
    width, height = image.size
    rows = max(1, (1 << 17) // width)
    if rows >= height:
        return np.array(image)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _grey16(image: Image.Image, name: str, content: bytes) -> NDArray[np.uint8]:
    values = np.asarray(image)  # [H, W] uint16
    bits, inverted = 16, False
    if (
        name == "TIFF"
    ):  # Pillow leaves 12-bit values as they are, and does not turn 16-bit "white is zero" around
        directory = tiff.Directory(content)
        bits = directory.integer(tiff.BITS_PER_SAMPLE, 16)
        inverted = directory.integer(tiff.PHOTOMETRIC, 1) == 0
    grey = _to_byte(bits)[values]
    if inverted:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return _three(grey)


@cache
def _to_byte(bits: int) -> NDArray[np.uint8]:
    """Table [65536] from a value of so many bits to round(v · 255 / most); values beyond stay at 255."""
    most = (1 << bits) - 1
    values = np.minimum(np.arange(1 << 16, dtype=np.int64), most)
    return ((values * 255 + most // 2) // most).astype(np.uint8)


def _stretch(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey from measurements with no agreed white: floats between 0 and 1 become round(v · 255), anything
    else is spread from its least to its greatest finite value. What is not finite becomes black.
    """
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    low, high = (numbers[finite].min(), numbers[finite].max()) if finite.any() else (0.0, 0.0)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (numbers - low) * (255 / (high - low) if high > low else 0)
    return np.where(finite, np.rint(scaled), 0).astype(np.uint8)


def _three(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _reason(error: Exception) -> str:
    """What Pillow said, as the end of a sentence: one line, printable, without its full stop."""
    line = "".join(character for character in first_line(error) if character.isprintable())
    text = line[:200].rstrip(". ")
    return text or type(error).__name__


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Pixels [H, W, 3] uint8 as a JPEG file. Colour keeps its full resolution: thin lines would smear."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:4:4")
    return file.getvalue()
