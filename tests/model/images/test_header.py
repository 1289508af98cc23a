"""Format and upright size from the header alone; what is refused before anything is decoded."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.images.decode import decode
from model.images.formats import FORMATS, DamagedImage, ImageError, ImageTooBig, UnsupportedImage
from model.images.header import read_header

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG_SIGNATURE + head + chunk(b"IDAT", b"")


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[274] = orientation
    return block.tobytes()


def header(content: bytes) -> tuple[str, int, int]:
    """Format, width and height."""
    found = read_header(content)
    return found.format, found.width, found.height


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (300, 2), (1023, 513)])
@pytest.mark.parametrize("form", FORMATS)
def test_size_is_read_without_decoding(form: str, size: tuple[int, int]) -> None:
    content = file_of(Image.new("RGB", size), form)
    assert header(content) == (form, *size)
    assert read_header(content).pixels == size[0] * size[1]


@pytest.mark.parametrize("mode", ["lossy", "lossless", "with metadata", "animated"])
def test_size_of_every_kind_of_webp(mode: str) -> None:
    options: dict[str, dict[str, object]] = {
        "lossy": {"quality": 50},
        "lossless": {"lossless": True},
        "with metadata": {"exif": exif(1)},
        "animated": {"save_all": True, "append_images": [Image.new("RGB", (37, 21), "red")]},
    }
    content = file_of(Image.new("RGB", (37, 21), "blue"), "WEBP", **options[mode])
    assert header(content) == ("WEBP", 37, 21)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_quarter_turns_swap_width_and_height(form: str, orientation: int) -> None:
    content = file_of(Image.new("RGB", (30, 20)), form, exif=exif(orientation))
    size = (20, 30) if orientation >= 5 else (30, 20)
    assert header(content) == (form, *size)
    assert read_header(content).orientation == orientation


@pytest.mark.parametrize("compressed", [False, True])
def test_orientation_in_the_text_chunk_of_imagemagick(compressed: bool) -> None:
    digits = exif(6).hex()
    text = PngInfo()
    text.add_text(
        "Raw profile type exif",
        f"\nexif\n{len(digits) // 2:8}\n{digits[:40]}\n{digits[40:]}\n",
        zip=compressed,
    )
    assert header(file_of(Image.new("RGB", (30, 20)), "PNG", pnginfo=text)) == ("PNG", 20, 30)


def test_png_orientation_after_the_pixels_counts() -> None:
    content = file_of(Image.new("RGB", (30, 20)), "PNG")
    content = content[:-12] + chunk(b"eXIf", exif(8)[6:]) + content[-12:]
    assert header(content) == ("PNG", 20, 30)
    assert decode(content).shape == (30, 20, 3)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0XX*\0\x08\0\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 274, 3, 1, 99),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 274, 2, 900, 4_000_000_000),
    ],
    ids=["nothing", "prefix", "byte order", "offset", "count", "value", "place"],
)
def test_damaged_exif_means_upright(block: bytes) -> None:
    content = file_of(Image.new("RGB", (30, 20)), "JPEG", exif=block)
    assert header(content) == ("JPEG", 30, 20)


def test_exif_prefix_written_twice_is_understood() -> None:
    content = file_of(Image.new("RGB", (30, 20)), "JPEG", exif=b"Exif\0\0" + exif(6))
    assert header(content) == ("JPEG", 20, 30)


@pytest.mark.parametrize("frames", [[0], [2, 2]])
def test_png_with_an_impossible_animation_is_its_still_picture(frames: list[int]) -> None:
    content = file_of(Image.new("RGB", (30, 20)), "PNG")
    control = b"".join(chunk(b"acTL", struct.pack(">II", count, 0)) for count in frames)
    assert decode(content[:33] + control + content[33:]).shape == (20, 30, 3)


def test_gif_picture_beyond_its_screen_enlarges_it() -> None:
    content = bytearray(file_of(Image.new("P", (30, 20)), "GIF"))
    struct.pack_into("<HH", content, 6, 4, 4)
    assert header(bytes(content)) == ("GIF", 30, 20)


def test_bmp_from_top_to_bottom_has_a_positive_height() -> None:
    content = bytearray(file_of(Image.new("RGB", (30, 20)), "BMP"))
    struct.pack_into("<i", content, 22, -20)
    assert header(bytes(content)) == ("BMP", 30, 20)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "An empty file"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x1cftypisom", "video"),
        (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg width="9">', "SVG"),
        (b"  <svg>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\1\0\1\0", "ICO"),
        (b"8BPS\0\1", "Photoshop"),
        (b"P6\n2 2\n255\n", "PPM"),
        (b"%!PS-Adobe", "PostScript"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b'{"image": "a cat"}', "JSON"),
        (b"data:image/png;base64,iVBORw0KGgo", "Base64"),
        (b"/9j/4AAQSkZJRgABAQ", "Base64"),
        (b"BM is how this sentence begins, and it is no picture", "This file"),
        (b"just some words", "This file"),
    ],
)
def test_what_is_not_accepted_is_named(content: bytes, said: str) -> None:
    with pytest.raises(UnsupportedImage, match=said) as caught:
        read_header(content)
    assert "send JPEG, PNG, WebP, GIF, BMP or TIFF" in str(caught.value)


def test_twelve_bit_jpeg_is_not_called_damaged() -> None:
    frame = struct.pack(">BBHBHHBBBB", 0xFF, 0xC1, 11, 12, 20, 30, 1, 1, 0x11, 0)
    with pytest.raises(UnsupportedImage, match="12 bits"):
        read_header(b"\xff\xd8" + frame)


def test_camera_raw_is_not_mistaken_for_its_thumbnail() -> None:
    tags = [(256, 4, 1, 160), (257, 4, 1, 120), (50706, 1, 4, 0x0401)]
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    with pytest.raises(UnsupportedImage, match="raw"):
        read_header(content + bytes(4))


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (
            PNG_SIGNATURE
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", b""),
            (60_000, 60_000),
        ),
        (
            PNG_SIGNATURE
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 70_000, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", b""),
            (1, 70_000),
        ),
        (
            b"BM" + bytes(12) + struct.pack("<IiiHH24x", 40, 3_000_000, 2_000_000, 1, 24),
            (3_000_000, 2_000_000),
        ),
        (
            b"GIF89a" + struct.pack("<HHBBB", 50_000, 50_000, 0, 0, 0) + b",".ljust(11, b"\0"),
            (50_000, 50_000),
        ),
    ],
    ids=["pixels", "side", "bmp", "gif"],
)
def test_dimensions_beyond_reason_are_refused_with_the_size(content: bytes, size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooBig, match=str(size[1])) as caught:
        read_header(content)
    assert caught.value.size == size


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000,
        b"\xff\xd8\xff" + b"\xff" * 1_000_000,
        b"GIF89a" + bytes(7) + b"!\xfe" + b"\1a" * 10_000,
        b"GIF89a" + bytes(7) + b"?" * 1_000_000,
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 60_000) + struct.pack("<HHQQ", 999, 3, 1, 1) * 60_000,
    ],
    ids=["jpeg segments", "jpeg padding", "gif sub-blocks", "gif junk", "tiff tags"],
)
def test_a_file_of_nothing_but_tiny_parts_is_no_picture(content: bytes) -> None:
    with pytest.raises(ImageError):
        decode(content + file_of(Image.new("RGB", (30, 20)), "JPEG"))


@pytest.mark.parametrize("form", FORMATS)
def test_a_header_cut_short_is_damaged(form: str) -> None:
    content = file_of(Image.new("RGB", (30, 20)), form)
    for end in range(8, 22):
        with pytest.raises((DamagedImage, UnsupportedImage)):
            read_header(content[:end])


@pytest.mark.parametrize("name", ["PNG", "GIF", "JPEG", "TIFF", "BMP", "WEBP"])
def test_no_error_quotes_python(name: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((9, 7), 50).save(file, name)
    whole = file.getvalue()
    said = set()
    for length in range(len(whole)):
        for content in (whole[:length], whole[:length] + b"\xff" + whole[length + 1 :]):
            with contextlib.suppress(UnsupportedImage):
                try:
                    decode(content)
                except ImageError as error:
                    said.add(str(error))
    assert said
    for sentence in said:
        assert not re.search(r"unpack|out of range|b'|: \d+\.$", sentence)
