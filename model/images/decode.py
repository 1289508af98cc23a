"""Image files ↔ RGB pixels: decode what is accepted to upright uint8 [H, W, 3], and encode such pixels.

Pillow does the work; `model/images/formats.py` has the limits and the errors. The service calls this in processes that
can be killed (app/intake/). Colour profiles are not applied: neither are they to the photos that models are trained on.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from model.images.formats import (
    FORMATS,
    MAX_JPEG_SIDE,
    DamagedImage,
    ImageError,
    ImageTooBig,
    UnsupportedImage,
    format_of,
)
from model.images.header import (
    END_OF_IMAGE,
    READERS,
    START_OF_SCAN,
    Header,
    check_size,
    open_image,
    orientation,
    read_header,
    reason_of,
    webp_size,
)
from model.images.png import encode_png
from model.images.rgb import bands, fill

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
]


def decode(
    content: bytes, allocate: Callable[[tuple[int, int, int]], NDArray[np.uint8]] | None = None
) -> NDArray[np.uint8]:
    """The image in a file: [H, W, 3] uint8 RGB, upright, C-contiguous, writeable.

    Of animations it is the first frame, of TIFFs the first page, of multi-picture JPEGs the main image.
    Transparency is laid over white. Grey of 16 bits becomes round(v · 255 / 65535), in TIFFs with the white that
    model/images/rgb.py finds; colour of 16 bits keeps its upper byte, within one level of that: Pillow has no wider
    colour. Floats are scaled as rgb.py says, too. A JPEG that lacks only its end marker is complete.

    Args:
        content: the file.
        allocate: makes the array to fill, uint8 of the given shape; by default memory of its own.

    Raises UnsupportedImage, DamagedImage (of a file cut short, too) and ImageTooBig; whatever the bytes, no
    other. A JPEG that was cut and given an end marker again passes, grey below the cut, as does a PNG whose compressed
    stream ends regularly too soon: their decoders do not report it.
    """
    name = format_of(content)
    if name == "WEBP":
        check_size(name, *webp_size(content))
    size = (0, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image(content, name)
            size = image.size
            image = _load(image, content)
            _check_same_size(image.size, size)
            upright: Image.Image = image
            if (turn := orientation(image)) in _TRANSPOSE:
                upright = image.transpose(_TRANSPOSE[turn])
            return fill(upright, image, content, allocate or (lambda shape: np.empty(shape, np.uint8)))
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageTooBig(f"{size[0]} × {size[1]} pixels need too much memory.", size) from error
    except Exception as error:
        # On hostile bytes Pillow raises what its arithmetic runs into: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, IndexError, TypeError, AssertionError … A list would be today's bugs.
        raise DamagedImage(f"The {name} file cannot be decoded: {reason_of(error)}.") from error


def _check_same_size(size: tuple[int, int], admitted: tuple[int, int]) -> None:
    if size != admitted:
        raise ValueError("it claims two different sizes")


def _load(image: ImageFile, content: bytes) -> ImageFile:
    """Decode the pixels as they are stored."""
    try:
        image.load()
    except OSError:
        if not isinstance(image, JpegImageFile) or (complete := _without_end_marker(image, content)) is None:
            raise
        return complete
    return image


def _without_end_marker(image: ImageFile, content: bytes) -> ImageFile | None:
    """The image of a JPEG that has all its pixels and lacks only its last two bytes, as some cameras send; or None.

    Where pixels are missing, what is appended instead of them shows in the image.
    """
    if image.info.get("progressive") or content.count(START_OF_SCAN) != 1:
        return None
    completed = [
        READERS["JPEG"](io.BytesIO(content.removesuffix(b"\xff") + filling + END_OF_IMAGE))
        for filling in (b"", b"\x5a\xc3\x96\x3c\xa7\x19" * 16)
    ]
    pairs = zip(*map(bands, completed), strict=True)
    same = all(np.array_equal(np.asarray(one), np.asarray(other)) for (_, one), (_, other) in pairs)
    return completed[0] if same else None


# EXIF 2.32, table 6 (orientation): what brings the stored image upright.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Pixels [H, W, 3] uint8 as a JPEG file. Colour keeps its full resolution: thin lines would smear.

    Raises ImageTooBig for more than MAX_JPEG_SIDE pixels a side.
    """
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_JPEG_SIDE:
        raise ImageTooBig(
            f"A JPEG has at most {MAX_JPEG_SIDE} pixels a side, not {width} × {height}; a PNG may have more.",
            (width, height),
        )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:4:4")
    return file.getvalue()
