"""Files that Pillow reads as the pixels that they were made of."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from model.images import png
from model.images.decode import decode, encode_jpeg
from model.images.png import encode_png


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (37, 53), (700, 900)])
@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_pillow_reads_the_same_pixels(size: tuple[int, int], mode: str) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (*size, 3) if mode == "RGB" else size, dtype=np.uint8)
    pixels = pixels > 127 if mode == "1" else pixels
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.format == "PNG"
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_pixels_in_any_order_of_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert encode_png(np.asfortranarray(pixels)) == encode_png(pixels)
    assert encode_png(np.asfortranarray(pixels[..., 0] > 99)) == encode_png(pixels[..., 0] > 99)


def test_without_isal_the_standard_library_compresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "compressobj", zlib.compressobj)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        encode_png(np.zeros((0, 5, 3), np.uint8))


def test_jpeg_keeps_thin_coloured_lines_apart() -> None:
    pixels = np.full((32, 32, 3), 128, np.uint8)
    pixels[:, 16] = (255, 0, 0)
    red = decode(encode_jpeg(pixels, quality=95)).astype(int)
    assert red[8:24, 16, 0].min() > 230
    assert np.abs(red[8:24, 13] - 128).max() < 20
