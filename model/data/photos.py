"""A dataset's image files: the size that a header says against the labels', and pixels, by file and reason."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from model.data import DatasetError
from model.images.decode import ImageError, decode, read_header
from model.images.formats import format_of
from model.images.header import open_image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from model.images.decode import Header

UNREADABLE_IMAGE = "unreadable image"
OTHER_IMAGE_SIZE = "image of another size than annotated"
# Bytes, in which nearly all files have their header.
BEGINNING = 1 << 16
# Modes of Pillow with a band that numbers no objects.
_WITHOUT_ALPHA = {"RGBA": "RGB", "LA": "L", "PA": "P"}
# Of an image file; whatever is larger is none.
MOST_BYTES = 1 << 31


class ImageProblem(DatasetError):  # noqa: N818 - says what the image is, as `except` reads best
    """An image that cannot be used; `kind` is what to count it by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_size(file: Path, annotated: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of an upright image, from its header. Raises ImageProblem.

    annotated: what the labels say it is, if they do; the image must be that.
    """
    header = _header(file, BEGINNING)
    if header is None or (annotated is not None and (header.height, header.width) != annotated):
        # What turns a PNG may stand at its end.
        header = _header(file, MOST_BYTES)
    if header is None:
        raise ImageProblem(UNREADABLE_IMAGE, f"{file}: {_reason(file)}")
    if annotated is not None:
        _compare(file, header, annotated)
    return header.height, header.width


def _header(file: Path, most: int) -> Header | None:
    try:
        return read_header(_read(file, most))
    except ImageError:
        return None


def _reason(file: Path) -> str:
    try:
        read_header(_read(file, MOST_BYTES))
    except ImageError as error:
        return str(error)
    return "it changes while it is read"


def _read(file: Path, most: int) -> bytes:
    try:
        with file.open("rb") as opened:
            # Python allocates as much as is asked for, however small the file is.
            return opened.read(min(most, os.fstat(opened.fileno()).st_size))
    except OSError as error:
        told = (error.strerror or "unknown reason").lower()
        raise ImageProblem(UNREADABLE_IMAGE, f"{file}: cannot be read ({told})") from error


def _compare(file: Path, header: Header, annotated: tuple[int, int]) -> None:
    size = header.height, header.width
    if size == annotated:
        return
    text = (
        f"{file}: {size[1]}×{size[0]} pixels, annotated as {annotated[1]}×{annotated[0]} (width and height)"
    )
    if header.orientation >= 5 and size == annotated[::-1]:
        text += (
            f"; its EXIF orientation ({header.orientation}) turns it by a quarter, so its labels are of the stored or "
            "of the upright image, and it cannot be told which: save the images upright (exiftran -ai, mogrify "
            "-auto-orient), and label or export them again"
        )
    elif size == annotated[::-1]:
        text += "; width and height are exchanged"
    elif header.orientation >= 5:
        text += f"; its EXIF orientation ({header.orientation}) turns it by a quarter"
    raise ImageProblem(OTHER_IMAGE_SIZE, text)


def read_pixels(file: Path, annotated: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """[H, W, 3] uint8, upright. annotated: (height, width) that it must have. Raises ImageProblem."""
    content = _read(file, MOST_BYTES)
    try:
        pixels: NDArray[np.uint8] = decode(content)
    except ImageError as error:
        raise ImageProblem(UNREADABLE_IMAGE, f"{file}: {error}") from error
    if annotated is not None and pixels.shape[:2] != annotated:
        _compare(file, read_header(content), annotated)
    return pixels


def read_label_image(file: Path, size: tuple[int, int]) -> NDArray[np.int64]:
    """[H, W] numbers of objects as they are stored, 0 where there is none; a colour is one number. Raises ImageProblem.

    size: (height, width) of the image that it belongs to.
    """
    content = _read(file, MOST_BYTES)
    try:
        image = open_image(content, format_of(content))
        image.load()
    except (ImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageProblem(UNREADABLE_IMAGE, f"{file}: {error}") from error
    stored = np.asarray(image.convert(_WITHOUT_ALPHA.get(image.mode, image.mode)))
    values = stored.astype(np.int64)
    if not np.array_equal(values, stored):
        raise ImageProblem(
            UNREADABLE_IMAGE, f"{file}: its values are not whole numbers, so no numbers of objects"
        )
    if values.ndim == 3:
        values = (values << (8 * np.arange(values.shape[2]))).sum(-1)
    if values.shape != size:
        raise ImageProblem(
            OTHER_IMAGE_SIZE,
            f"{file}: {values.shape[1]}×{values.shape[0]} pixels; its image has {size[1]}×{size[0]} (width and height)",
        )
    return values
