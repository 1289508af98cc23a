"""Hostile and broken image files against a real process: each gets its answer soon, and nothing else changes."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import struct
import time
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from .conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NASTY = Path(__file__).parents[3] / "shared" / "data" / "nasty"
# On a machine with nothing else to do; to it comes what an ordinary request takes, several times.
MOST_SECONDS = 2.0
SLOWNESS = 10
MOST_MEMORY = 100 << 20  # bytes more than before, once all is answered


def photo() -> Image.Image:
    """A small picture with enough in it that its files have several blocks."""
    values = np.random.default_rng(7).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((64, 48))


def file(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    photo().save(buffer, kind, **options)
    return buffer.getvalue()


PNG, JPEG, WEBP, GIF = file("PNG"), file("JPEG"), file("WEBP"), file("GIF")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG file that claims a size, with whatever chunks follow."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def cuts(content: bytes) -> list[int]:
    """Where each chunk of a PNG, or each segment of a JPEG, begins, and the middle of each."""
    places, place = [], 8 if content.startswith(b"\x89PNG") else 2
    while place < len(content):
        places.append(place)
        if content.startswith(b"\x89PNG"):
            place += 12 + int.from_bytes(content[place : place + 4])
        elif content[place + 1] == 0xDA:  # the scan goes on to the end
            break
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4])
    return sorted({*places, *((a + b) // 2 for a, b in itertools.pairwise([*places, len(content)]))})


def hostile() -> Iterator[tuple[str, bytes]]:
    """Names and files that are cut, flipped, or lie."""
    for name, content in (("png", PNG), ("jpeg", JPEG), ("webp", WEBP), ("gif", GIF)):
        for part in range(1, 16):
            yield f"{name} cut at {part}/16", content[: len(content) * part // 16]
        for place in cuts(content) if name in ("png", "jpeg") else ():
            yield f"{name} cut at its byte {place}", content[:place]
        rng = random.Random(name)
        for number in range(12):
            flipped = bytearray(content)
            for _ in range(3):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            yield f"{name} flipped {number}", bytes(flipped)
    yield "png that claims 60000 × 60000", png(60_000, 60_000, chunk(b"IDAT", zlib.compress(b"")))
    yield "png that claims 2 ** 31", png(2**31 - 1, 2**31 - 1)
    yield "png of 7000 × 7000 without pixels", png(7000, 7000, chunk(b"IDAT", zlib.compress(b"")))
    bomb = zlib.compress(bytes(7000 * 7001 * 3), 9)
    yield "png bomb within the limit, 145 MB from 140 KB", png(7000, 7000, chunk(b"IDAT", bomb))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9))
    yield "png with a text of 200 MB", png(8, 8, text, chunk(b"IDAT", zlib.compress(bytes(8 * 25))))
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(200_000_000), 9))
    yield "png with a profile of 200 MB", png(8, 8, profile, chunk(b"IDAT", zlib.compress(bytes(8 * 25))))
    yield "png of tiny chunks", png(8, 8, *[chunk(b"tEXt", b"a\0b")] * 30_000)
    sized = bytearray(JPEG)
    place = sized.index(b"\xff\xc0")
    sized[place + 5 : place + 9] = struct.pack(">HH", 6000, 8000)
    yield "jpeg whose header lies about its size", bytes(sized)
    yield "jpeg of nothing but markers", b"\xff\xd8" + b"\xff\xe1\x00\x02" * 40_000
    yield "jpeg with a segment beyond the end", b"\xff\xd8\xff\xe0\xff\xff" + bytes(20)
    yield (
        "webp that claims 16383 × 16383",
        b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0\x2f\xff\xff\xff\x0f" + bytes(16),
    )
    yield "gif of 65535 × 65535", b"GIF89a\xff\xff\xff\xff\0\0\0"
    yield (
        "bmp of negative height",
        b"BM" + struct.pack("<IIIIiiHH", 54, 0, 54, 40, 8, -(2**31), 1, 24) + bytes(24),
    )
    yield "tiff whose directory is itself", b"II*\0\x08\0\0\0\x01\0" + bytes(12) + b"\x08\0\0\0"
    yield "tiff directory beyond the end", b"II*\0\xff\xff\xff\x7f"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "html", b"<!doctype html><title>404</title>"
    yield "zip", b"PK\x03\x04" + bytes(30)
    yield "zeros", bytes(5000)


@cache
def corpus() -> list[tuple[str, bytes]]:
    """The files that come with the workplace, where they are, and those made here."""
    found = [(path.name, path.read_bytes()) for path in sorted(NASTY.glob("*")) if path.suffix != ".json"]
    return [*found, *hostile()]


@pytest.fixture(scope="module")
def house(start_for_module: Callable[..., Any]) -> Any:
    """One server, warm in its memory too: the engine lays its weights out for the first two input shapes that it sees.

    The second one costs 43 MB with this model, whatever the image, and no other shape costs them again.
    """
    # A fork would come to own memory that it shared.
    running = start_for_module(forked=False).wait_until_ready()
    portrait = io.BytesIO()
    photo().transpose(Image.Transpose.ROTATE_90).save(portrait, "PNG")
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
        for content in (PNG, PNG, PNG, portrait.getvalue()):
            assert client.post("/segment", content=content).status_code == 200
    return running


def settles_at(house: Any, most: int) -> bool:
    """Whether the process comes down to so many bytes soon after it has nothing to do."""
    for _ in range(100):
        if house.resident_bytes < most:
            return True
        time.sleep(0.1)
    return False


def check(name: str, response: httpx.Response) -> None:
    """200, or a problem that is the client's."""
    if response.status_code == 200:
        assert response.json()["image"]["width"] > 0, name
        return
    assert response.status_code in (413, 415, 422), (name, response.text)
    assert response.headers["content-type"] == "application/problem+json", name
    problem = response.json()
    assert problem["status"] == response.status_code, name
    assert len(problem["detail"]) > 20, (name, problem)


def test_every_file_is_answered_soon_and_memory_stays(house: Any) -> None:
    slow = []
    with httpx.Client(base_url=house.url, timeout=PATIENCE) as client:
        usual = max(client.post("/segment", content=PNG).elapsed for _ in range(5)).total_seconds()
        before = house.resident_bytes
        for name, content in corpus():
            response = client.post("/segment?max_instances=1", content=content)
            check(name, response)
            if response.elapsed.total_seconds() > MOST_SECONDS + SLOWNESS * usual:
                slow.append((name, response.elapsed.total_seconds(), response.headers["server-timing"]))
        assert client.get("/healthz").status_code == 200
    assert slow == []
    assert settles_at(house, before + MOST_MEMORY)


def test_among_thirty_two_of_them_at_once_good_requests_are_answered_as_ever(house: Any) -> None:
    before = house.resident_bytes

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=house.url, timeout=PATIENCE, limits=limits) as client:
            alone = (await client.post("/segment", content=PNG)).json()["instances"]
            gate = asyncio.Semaphore(32)

            async def bad(name: str, content: bytes) -> None:
                async with gate:
                    check(name, await client.post("/segment?max_instances=1", content=content))

            async def good() -> None:
                for _ in range(25):
                    answer = await client.post("/segment", content=PNG)
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["instances"] == alone

            await asyncio.gather(*(bad(*item) for item in corpus()), good(), good())

    asyncio.run(run())
    assert settles_at(house, before + MOST_MEMORY)
