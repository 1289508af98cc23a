"""TIFFs of the kinds that microscopes, scanners and measuring devices write: right, or refused by name."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from model.images.decode import DamagedImage, UnsupportedImage, decode


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tiff_file(pixels: bytes, tags: dict[int, tuple[int, int, int]]) -> bytes:
    """A little-endian TIFF with its pixels at offset 8; tag → (type, count, value), 273 is filled in."""
    tags = {273: (4, 1, 8), **tags}
    rows = [struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags)]
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
        + pixels
        + struct.pack("<H", len(rows))
        + b"".join(rows)
        + bytes(4)
    )


def grey_tiff(bits: int, width: int, height: int, photometric: int = 1) -> dict[int, tuple[int, int, int]]:
    values = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height}
    return {tag: (4, 1, value) for tag, value in values.items()}


def test_sixteen_bit_grey_of_a_big_endian_tiff_is_scaled() -> None:
    content = file_of(Image.frombytes("I;16B", (2, 1), b"\x00\x00\x80\x00"), "TIFF")
    assert decode(content)[0, :, 0].tolist() == [0, 128]


def test_twelve_bit_tiff_is_scaled_from_its_own_white() -> None:
    packed = bytes((0xFF, 0xF0, 0x00))  # 4095, 0
    assert decode(tiff_file(packed, grey_tiff(12, 2, 1)))[0, :, 0].tolist() == [255, 0]


def test_sixteen_bit_tiff_with_white_at_zero_is_turned_around() -> None:
    pixels = np.array([0, 65535, 257], dtype="<u2").tobytes()
    assert decode(tiff_file(pixels, grey_tiff(16, 3, 1, photometric=0)))[0, :, 0].tolist() == [255, 0, 254]


def test_float_between_zero_and_one_is_brightness() -> None:
    values = np.array([[0.0, 0.25, 1.0, np.nan]], dtype=np.float32)
    assert decode(file_of(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 64, 255, 0]


def test_constant_measurements_are_black() -> None:
    assert (decode(file_of(Image.fromarray(np.full((2, 2), 7e9, np.float32)), "TIFF")) == 0).all()


def test_uncompressed_tiff_that_lacks_strips_is_damaged() -> None:
    tags = grey_tiff(8, 4, 4) | {278: (4, 1, 2)}
    with pytest.raises(DamagedImage, match="cover only a part"):
        decode(tiff_file(bytes(range(16)), tags))


# --- twelve bits in sixteen


@pytest.mark.parametrize(
    ("brightest", "white"), [(255, 255), (1000, 1023), (4095, 4095), (4096, 16383), (65535, 65535)]
)
def test_white_is_the_least_depth_that_the_brightest_pixel_fits_into(brightest: int, white: int) -> None:
    pixels = np.array([0, brightest // 2, brightest], dtype="<u2")
    decoded = decode(tiff_file(pixels.tobytes(), grey_tiff(16, 3, 1)))
    np.testing.assert_array_equal(decoded[0, :, 0], np.rint(pixels * (255 / white)))


def test_a_white_that_the_file_states_is_taken() -> None:
    pixels = np.array([0, 1500, 3000], dtype="<u2")
    tags = grey_tiff(16, 3, 1) | {281: (3, 1, 3000)}
    assert decode(tiff_file(pixels.tobytes(), tags))[0, :, 0].tolist() == [0, 128, 255]


def test_signed_bytes_are_spread_from_the_least_to_the_greatest() -> None:
    values = np.array([[-100, -60, 100]], np.int8)
    tags = grey_tiff(8, 3, 1) | {339: (3, 1, 2)}
    assert decode(tiff_file(values.tobytes(), tags))[0, :, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ImageJ=1.54\nimages=1\nmin=100.0\nmax=300.0\n", [0, 0, 128, 255, 255]),
        ("ImageJ=1.54\nmin=300.0\nmax=300.0\n", [0, 25, 50, 75, 255]),
        ("ImageJ=1.54\nmin=nan\nmax=1e9\n", [0, 25, 50, 75, 255]),
        ("min=100.0\nmax=300.0\n", [0, 25, 50, 75, 255]),
    ],
    ids=["stated", "empty", "no numbers", "not ImageJ's"],
)
def test_sixteen_bit_grey_is_shown_in_the_range_that_imagej_stated(text: str, shown: list[int]) -> None:
    values = np.array([[0, 100, 200, 300, 1023]], np.uint16)
    assert decode(file_of(Image.fromarray(values), "TIFF", tiffinfo={270: text}))[0, :, 0].tolist() == shown


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
def test_of_several_pages_the_first_is_read(big: bool) -> None:
    """A stack of a microscope, whose OME description is no picture."""
    pages = [Image.fromarray(np.full((4, 6), value, np.uint16)) for value in (65535, 0, 300)]
    stack = io.BytesIO()
    text = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"/>'
    pages[0].save(stack, "TIFF", save_all=True, append_images=pages[1:], big_tiff=big, tiffinfo={270: text})
    decoded = decode(stack.getvalue())
    assert decoded.shape == (4, 6, 3)
    assert (decoded == 255).all()


# --- kinds that are not read


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({258: (3, 1, 16), 339: (3, 1, 3)}, "1 channel of 16-bit floating-point samples"),
        ({258: (4, 1, 64), 339: (3, 1, 6)}, "1 channel of 64-bit complex samples"),
        ({277: (3, 1, 2), 258: (3, 2, 16 | 16 << 16)}, "2 channels of 16-bit unsigned samples"),
        ({259: (3, 1, 34712)}, r"compression JPEG 2000\) is not accepted; save it uncompressed"),
        ({259: (3, 1, 50001)}, r"compression WebP\) is not accepted; save it uncompressed"),
        ({259: (3, 1, 999)}, r"compression 999\) is not accepted; save it uncompressed"),
    ],
    ids=["float16", "complex", "two channels", "JPEG 2000", "WebP", "unknown compression"],
)
def test_a_kind_that_is_not_read_is_named(tags: dict[int, tuple[int, int, int]], said: str) -> None:
    with pytest.raises(UnsupportedImage, match=said):
        decode(tiff_file(bytes(4000), grey_tiff(8, 16, 16) | tags))


def test_sixteen_bit_colour_in_separate_planes_is_refused() -> None:
    # The lists of strips, their lengths and the bits of each channel lie before the pixels.
    lists = struct.pack("<3I3I3Hxx", 40, 48, 56, 8, 8, 8, 16, 16, 16)
    tags = grey_tiff(16, 2, 2, photometric=2) | {258: (3, 3, 32), 273: (4, 3, 8), 277: (4, 1, 3)}
    content = tiff_file(lists + bytes(24), tags | {279: (4, 3, 20), 284: (3, 1, 2)})
    with pytest.raises(UnsupportedImage, match=r"3 channels of 16-bit .* in separate planes"):
        decode(content)
