"""Image files of every accepted kind become upright RGB; anything else ends in one of three errors."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from model.images.decode import (
    FORMATS,
    DamagedImage,
    ImageError,
    ImageTooBig,
    UnsupportedImage,
    decode,
    read_header,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
EXPECTED = SHARED / "nasty" / "EXPECTED.json"
NASTY = json.loads(EXPECTED.read_text())["files"] if EXPECTED.exists() else {}
needs_shared = pytest.mark.skipif(
    not NASTY, reason="shared/data lies beside the repository only where it is developed"
)


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def scene(width: int = 48, height: int = 32) -> NDArray[np.uint8]:
    """A picture that no flip or turn maps onto itself, with noise that no codec can drop."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * x / width, 255 * y / height, 255 * (x + y < 20)]
    noise = np.random.default_rng(0).integers(-20, 20, (height, width, 3))
    return np.clip(np.stack(planes, axis=2) + noise, 0, 255).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_file(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    body = b"".join([head, *extra, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


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


# --- what comes out


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (1999, 1503)])
def test_pixels_are_rgb_contiguous_and_writeable(size: tuple[int, int]) -> None:
    pixels = scene(*size)
    decoded = decode(file_of(Image.fromarray(pixels), "BMP"))
    assert decoded.dtype == np.uint8
    assert decoded.shape == (size[1], size[0], 3)
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_lossless_formats_keep_every_pixel(form: str, options: dict[str, object]) -> None:
    pixels = scene()
    np.testing.assert_array_equal(decode(file_of(Image.fromarray(pixels), form, **options)), pixels)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"restart_marker_rows": 1}]
)
def test_jpeg_is_what_pillow_decodes(options: dict[str, object]) -> None:
    content = file_of(Image.fromarray(scene()), "JPEG", quality=95, **options)
    np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(form: str) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.abs(decode(file_of(cyan, form)).astype(int) - (0, 255, 255)).max() <= 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_grey_becomes_three_equal_channels(form: str) -> None:
    decoded = decode(file_of(Image.new("L", (16, 16), 77), form))
    assert np.abs(decoded.astype(int) - 77).max() <= 1
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF"])
def test_one_bit_becomes_black_and_white(form: str) -> None:
    bits = np.random.default_rng(1).random((9, 13)) > 0.5
    decoded = decode(file_of(Image.fromarray(bits), form))
    np.testing.assert_array_equal(decoded, np.where(bits, 255, 0)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_becomes_its_colours(form: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30, 250, 0, 0])
    assert (decode(file_of(image, form)) == (10, 200, 30)).all()


def test_lab_tiff_becomes_rgb() -> None:
    red = decode(file_of(Image.new("LAB", (4, 4), (136, 208, 195)), "TIFF"))
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 12  # beyond what 8-bit sRGB can show


# --- sixteen bits and more


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_to_the_nearest_level(form: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = decode(file_of(Image.fromarray(ramp), form))
    np.testing.assert_array_equal(decoded[..., 0], np.rint(ramp * (255 / 65535)))
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("colour", [2, 4, 6], ids=["rgb", "grey-alpha", "rgba"])
def test_sixteen_bit_colour_is_within_a_level(colour: int) -> None:
    channels = {2: 3, 4: 2, 6: 4}[colour]
    values = np.random.default_rng(2).integers(0, 65536, (16, 16, channels), dtype=np.uint16)
    if colour != 2:
        values[..., -1] = 65535
    decoded = decode(png_file(16, 16, 16, colour, values.astype(">u2").tobytes()))
    wanted = values[..., : 1 if colour == 4 else 3] * (255 / 65535)
    assert np.abs(decoded - wanted).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_measurements_are_spread_over_black_to_white(kind: type) -> None:
    values = np.array([[-1000, 0, 1000]], dtype=kind)
    assert decode(file_of(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


# --- transparency


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(form: str, mode: str) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (40, 40, 40, alpha))
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    decoded = decode(file_of(image.convert(mode), form, **options))
    assert decoded[0, :, 0].tolist() == [255, round((40 * 128 + 255 * 127) / 255), 40]


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(form: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "L").convert("P")
    image.putpalette([1, 2, 3, 10, 200, 30, 250, 0, 0])
    decoded = decode(file_of(image, form, transparency=1))
    assert decoded[0].tolist() == [[1, 2, 3], [255, 255, 255], [250, 0, 0]]


def test_half_transparent_palette_entry_is_mixed() -> None:
    image = Image.new("P", (1, 1), 0)
    image.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(file_of(image, "PNG", transparency=b"\x80\xff"))[0, 0].tolist() == [127] * 3


@pytest.mark.parametrize(
    ("bits", "colour", "pixels", "transparent", "opaque"),
    [
        (8, 0, bytes((7, 8)), struct.pack(">H", 7), 8),
        (8, 2, bytes((7, 7, 7, 8, 8, 8)), struct.pack(">HHH", 7, 7, 7), 8),
        (16, 0, struct.pack(">HH", 300, 6682), struct.pack(">H", 300), 26),
        (16, 2, struct.pack(">6H", 0x1234, 0x1234, 0x1234, 0x9999, 0x9999, 0x9999), b"\x12\x34" * 3, 0x99),
    ],
)
def test_the_one_transparent_colour_of_a_png_is_white(
    bits: int, colour: int, pixels: bytes, transparent: bytes, opaque: int
) -> None:
    content = png_file(2, 1, bits, colour, pixels, chunk(b"tRNS", transparent))
    assert decode(content)[0, :, 0].tolist() == [255, opaque]


# --- frames and pages


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_first_of_several_pictures_is_taken(form: str) -> None:
    first, second = Image.new("RGB", (24, 16), (250, 0, 0)), Image.new("RGB", (24, 16), (0, 0, 250))
    options = {"lossless": True} if form == "WEBP" else {}
    content = file_of(first, form, save_all=True, append_images=[second], **options)
    assert read_header(content).format == ("JPEG" if form == "MPO" else form)
    assert np.abs(decode(content).astype(int) - (250, 0, 0)).max() <= 6


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_comes_out_upright(form: str, orientation: int) -> None:
    upright = scene(50, 30)
    stored = {  # where EXIF 2.32 says that the first row and column of the stored picture are seen
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": "4:4:4"}, "WEBP": {"lossless": True}}.get(form, {})
    content = file_of(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif.tobytes(), **options)
    header, decoded = read_header(content), decode(content)
    assert (header.width, header.height) == (50, 30)
    assert np.abs(decoded.astype(int) - upright).max() <= (6 if form == "JPEG" else 0)


@needs_shared
def test_the_same_photo_in_every_orientation_is_the_same_picture() -> None:
    folder = SHARED / "exif_orientation"
    reference = decode((folder / "Landscape_1.jpg").read_bytes()).astype(int)
    for path in sorted(folder.glob("Landscape_*.jpg")):
        decoded = decode(path.read_bytes())
        with Image.open(path) as image:
            np.testing.assert_array_equal(decoded, np.asarray(ImageOps.exif_transpose(image)), path.name)
        assert np.abs(decoded - reference).mean() < 5, path.name  # each is its own compression


# --- damage


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("GIF", {"interlace": False}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_a_file_cut_short_is_never_a_picture(form: str, options: dict[str, object]) -> None:
    content = file_of(Image.fromarray(scene(96, 64)), form, **options)
    assert decode(content).shape == (64, 96, 3)
    whole = decode(content)
    for kept in (
        *(len(content) * twentieth // 20 for twentieth in range(20)),
        *range(len(content) - 300, len(content)),
    ):
        try:
            pixels = decode(content[:kept])
        except (DamagedImage, UnsupportedImage):
            continue
        # What lies behind the last pixel may be missing.
        assert kept > len(content) - 40
        np.testing.assert_array_equal(pixels, whole)


def test_a_jpeg_without_its_end_marker_is_complete() -> None:
    content = file_of(Image.fromarray(scene(96, 64)), "JPEG", quality=90)
    np.testing.assert_array_equal(decode(content[:-2]), decode(content))
    np.testing.assert_array_equal(decode(content[:-1]), decode(content))


@pytest.mark.parametrize("missing", [10, 100, 1000])
def test_a_jpeg_that_lacks_pixels_is_damaged(missing: int) -> None:
    content = file_of(Image.fromarray(scene(96, 64)), "JPEG", quality=90)
    with pytest.raises(DamagedImage, match="truncated"):
        decode(content[:-missing])


def test_what_pillow_said_is_in_the_message() -> None:
    content = file_of(Image.fromarray(scene()), "JPEG")
    with pytest.raises(
        DamagedImage, match=r"^The JPEG file cannot be decoded: image file is truncated.*\)\.$"
    ):
        decode(content[:-20])


def test_png_whose_text_inflates_to_a_bomb_is_damaged() -> None:
    text = PngInfo()
    text.add_text("Comment", "0" * (2 << 20), zip=True)
    with pytest.raises(DamagedImage, match="too large"):
        decode(file_of(Image.new("RGB", (4, 4)), "PNG", pnginfo=text))


def test_png_with_two_sizes_is_damaged() -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0))
    with pytest.raises(DamagedImage):
        decode(png_file(1, 1, 8, 0, b"\0", head))


def test_picture_that_does_not_fit_into_memory_is_too_big(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    content = file_of(Image.new("RGB", (4, 3)), "PNG")
    monkeypatch.setattr("model.images.decode.fill", exhausted)
    with pytest.raises(ImageTooBig, match="4 × 3") as caught:
        decode(content)
    assert caught.value.size == (4, 3)


@pytest.mark.parametrize("form", FORMATS)
def test_nobody_is_warned_of_sizes_that_were_admitted(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = file_of(Image.new("RGB", (12, 12)), form)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above, and refuses from twice that on
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode(content).shape == (12, 12, 3)
    assert caught == []


@pytest.mark.parametrize("wrong", ["exif", "mpo", "tiff"])
def test_bad_metadata_neither_fails_nor_warns(wrong: str) -> None:
    pixels = np.full((16, 16, 3), 90, np.uint8)
    entry = struct.pack("<HHII", 270, 2, 5000, 70)  # a text that would reach far beyond the end
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    if wrong == "exif":
        content = file_of(Image.fromarray(pixels), "JPEG", exif=exif)
    elif wrong == "mpo":
        jpeg = file_of(Image.fromarray(pixels), "JPEG")
        segment = b"MPF\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
        content = jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    else:
        tags = grey_tiff(8, 16, 16) | {270: (2, 5000, 70), 277: (3, 1, 1), 305: (2, 9, 1 << 31)}
        content = tiff_file(pixels[..., 0].tobytes(), tags)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(decode(content), pixels)
    assert caught == []


@needs_shared
@pytest.mark.parametrize("name", sorted(NASTY))
def test_hostile_file_decodes_or_fails_as_it_should(name: str) -> None:
    content, expected = (SHARED / "nasty" / name).read_bytes(), NASTY[name]
    accepted = expected["magic"] in {form.lower() for form in FORMATS}
    if name == "ljt__monkey12.jpg":
        accepted = False  # 12 bits: a JPEG, but not of the accepted kind
    if not accepted:
        with pytest.raises(UnsupportedImage):
            read_header(content)
        with pytest.raises(UnsupportedImage):
            decode(content)
    elif expected["pillow"] == "bomb":
        with pytest.raises(ImageTooBig):
            read_header(content)
    elif expected["pillow"] == "decodes":
        header, decoded = read_header(content), decode(content)
        turned = (
            expected.get("exif_orientation", 1) >= 5 and expected["format"] != "TIFF"
        )  # turned by Pillow itself
        size = tuple(expected["size"][::-1] if turned else expected["size"])
        assert (header.format, header.width, header.height) == (expected["format"], *size)
        assert decoded.shape == (size[1], size[0], 3)
    else:
        with pytest.raises(DamagedImage):
            decode(content)


# --- whatever the bytes

SEEDS = [
    file_of(Image.fromarray(scene(12, 8)), "JPEG"),
    file_of(Image.fromarray(scene(12, 8)), "JPEG", progressive=True, exif=Image.Exif().tobytes()),
    file_of(Image.fromarray(scene(12, 8)), "PNG"),
    file_of(Image.fromarray(scene(12, 8)).convert("P"), "PNG", transparency=b"\0\x80"),
    file_of(Image.fromarray(scene(12, 8)), "PNG", save_all=True, append_images=[Image.new("RGB", (12, 8))]),
    file_of(Image.fromarray(scene(12, 8)), "WEBP"),
    file_of(Image.fromarray(scene(12, 8)), "WEBP", lossless=True, exif=Image.Exif().tobytes()),
    file_of(Image.fromarray(scene(12, 8)), "GIF"),
    file_of(Image.fromarray(scene(12, 8)), "BMP"),
    file_of(Image.fromarray(scene(12, 8)).convert("P"), "BMP"),
    file_of(Image.fromarray(scene(12, 8)), "TIFF"),
    file_of(Image.fromarray(scene(12, 8)), "TIFF", compression="tiff_adobe_deflate"),
    file_of(Image.fromarray(scene(12, 8)), "TIFF", big_tiff=True),
]
MAGIC = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\0\0\0WEBPVP8X",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0+",
]


def decodes_or_refuses(content: bytes) -> None:
    try:
        header = read_header(content)
    except ImageError as error:
        with pytest.raises(type(error)):
            decode(content)
        return
    if header.pixels > 1_000_000:
        return  # would be refused by the caller's own limit
    try:
        decoded = decode(content)
    except ImageError as error:
        sentence = str(error)
    else:
        assert decoded.shape == (header.height, header.width, 3)
        return
    assert sentence.endswith(".")


@given(st.sampled_from(MAGIC), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_but_an_image_error(magic: bytes, rest: bytes) -> None:
    decodes_or_refuses(magic + rest)


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.data(),
)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_mutation_raises_anything_but_an_image_error(
    content: bytes, changes: list[tuple[float, int]], data: st.DataObject
) -> None:
    mutated = bytearray(content)
    for where, value in changes:
        mutated[min(int(where * len(mutated)), len(mutated) - 1)] = value
    start = data.draw(st.integers(0, len(mutated)))
    stop = data.draw(st.sampled_from([start, start + 1, start + 9, len(mutated)]))
    del mutated[start:stop]
    decodes_or_refuses(bytes(mutated))
