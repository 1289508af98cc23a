"""Pillow's images → RGB pixels of 8 bits, whatever their mode, in bands: conversion needs next to no memory."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from model.images import tiff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

# Of one band of an image that is converted: it stays in the cache, and what conversion needs is bounded.
BAND_PIXELS = 1 << 17


def fill(
    upright: Image.Image,
    stored: ImageFile,
    content: bytes,
    allocate: Callable[[tuple[int, int, int]], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    """The pixels, converted band by band: [H, W, 3] uint8.

    Args:
        upright: the image to convert.
        stored: the same as Pillow opened it, before it was turned upright.
        content: of the file.
        allocate: gives an array of a shape (H, W, 3).
    """
    to_rgb = _converter(upright, stored, content)
    width, height = upright.size
    pixels = allocate((height, width, 3))
    for top, band in bands(upright):
        converted = to_rgb(band)
        pixels[top : top + len(converted)] = converted if converted.ndim == 3 else converted[:, :, None]
    return pixels


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image's rows from top to bottom, some at a time, and the number of the first of them."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _converter(
    image: Image.Image, stored: ImageFile, content: bytes
) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """What turns a band of the image into [h, W, 3] uint8, or [h, W] for grey."""
    name = stored.format
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray
    if image.mode.startswith("I;16"):
        return _grey16(image, stored)
    if image.mode == "F" or (image.mode == "I" and name != "PNG"):
        low, high = _range(image)
        return lambda band: _stretch(np.asarray(band), low, high)
    if image.mode == "L" and isinstance(stored, TiffImageFile) and tiff.is_signed(stored.tag_v2):
        # Pillow gives the bytes as they are, -1 as 255.
        low, high = _range(image, np.int8)
        return lambda band: _stretch(np.asarray(band).view(np.int8), low, high)
    if image.mode == "RGB" and name == "PNG" and content[24] == 16:
        # The one transparent colour still has 16 bits; the pixels have lost their lower byte.
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    if image.has_transparency_data:
        return _over_white
    return lambda band: np.asarray(band.convert("RGB"))


def _over_white(band: Image.Image) -> NDArray[np.uint8]:
    band = band.convert("RGBA")
    white = Image.new("RGB", band.size, "white")
    white.paste(band, mask=band.getchannel("A"))
    return np.asarray(white)


def _grey16(image: Image.Image, stored: ImageFile) -> Callable[[Image.Image], NDArray[np.uint8]]:
    black, white, inverted = 0, 65535, False
    if isinstance(stored, TiffImageFile):
        # Pillow leaves 12-bit values as they are, and does not turn 16-bit "white is zero" around.
        inverted = tiff.white_is_zero(stored.tag_v2)
        if shown := tiff.display_range(stored.tag_v2):
            black, white = map(round, shown)
        else:
            white = _white(image, stored, inverted=inverted)
    table = _to_byte(black, max(white, black + 1))
    transparent = image.info.get("transparency")

    def convert(band: Image.Image) -> NDArray[np.uint8]:
        values = np.asarray(band)
        grey: NDArray[np.uint8] = table[values]
        if inverted:
            grey = 255 - grey
        if transparent is not None:
            grey[values == transparent] = 255
        return grey

    return convert


def _white(image: Image.Image, stored: TiffImageFile, *, inverted: bool) -> int:
    """The value of a 16-bit grey TIFF that is shown as white.

    What the file states (BitsPerSample below 16, else MaxSampleValue); else the most that 8, 10, 12, 14 or 16 bits
    hold, whichever is the least that the brightest pixel fits into: microscopes and medical devices write their 12 bits
    into 16 without saying so.
    """
    bits = tiff.number(stored.tag_v2, tiff.BITS_PER_SAMPLE, 16)
    stated = tiff.number(stored.tag_v2, tiff.MAX_SAMPLE_VALUE, 0)
    if bits < 16:
        return (1 << bits) - 1
    if 0 < stated < 65535:
        return stated
    if inverted or stated:
        return 65535
    brightest = max(int(np.asarray(band).max()) for _, band in bands(image))
    return next(white for depth in (8, 10, 12, 14, 16) if (white := (1 << depth) - 1) >= brightest)


@cache
def _to_byte(black: int, white: int) -> NDArray[np.uint8]:
    """Table [65536] from a value to round((v - black) · 255 / (white - black)), of values cut off at both."""
    values, span = np.clip(np.arange(1 << 16, dtype=np.int64), black, white) - black, white - black
    return ((values * 255 + span // 2) // span).astype(np.uint8)


def _range(image: Image.Image, dtype: type[np.generic] | None = None) -> tuple[float, float]:
    """What is shown as black and white of measurements with no agreed white.

    Floats between 0 and 1 are brightness; of anything else, the least and the greatest finite value.
    dtype: what the values are, if not what Pillow takes them for.
    """
    lows, highs = [], []
    for _, band in bands(image):
        values = np.asarray(band)
        values = values if dtype is None else values.view(dtype)
        finite = values[np.isfinite(values)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    low, high = (min(lows), max(highs)) if lows else (0.0, 0.0)
    return (0.0, 1.0) if image.mode == "F" and low >= 0 and high <= 1 else (low, high)


def _stretch(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Grey [h, W] from measurements; what is not finite becomes black."""
    numbers = values.astype(np.float64)
    scaled = (numbers - low) * (255 / (high - low) if high > low else 0)
    return np.where(np.isfinite(numbers), np.rint(scaled), 0).astype(np.uint8)
