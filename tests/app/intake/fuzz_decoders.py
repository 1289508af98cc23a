"""Mutated image files through decoder processes: each ends in pixels or in a problem that is the client's.

    python tests/app/intake/fuzz_decoders.py --minutes 60

pytest does not collect it: CONTRIBUTING.md says when to run it. What breaks the rule is written to a file and named.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import random
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from app.intake.decoder_child import ImageFile
from app.intake.decoders import Decoders
from app.problems import Problem

KINDS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("RGB", "JPEG", {}),
    ("RGB", "JPEG", {"progressive": True}),
    ("CMYK", "JPEG", {}),
    ("RGB", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("P", "PNG", {"transparency": 3}),
    ("I;16", "PNG", {}),
    ("RGB", "WEBP", {}),
    ("RGBA", "WEBP", {"lossless": True}),
    ("P", "GIF", {}),
    ("RGB", "BMP", {}),
    ("P", "BMP", {}),
    ("RGB", "TIFF", {}),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ("RGB", "TIFF", {"compression": "jpeg"}),
    ("1", "TIFF", {"compression": "group4"}),
    ("F", "TIFF", {}),
    ("RGB", "TIFF", {"big_tiff": True}),
)
# Values that arithmetic stumbles over.
EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def seeds() -> list[bytes]:
    """A small file of each kind."""
    values = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(values).resize((64, 48))
    files = []
    for mode, form, options in KINDS:
        image = picture.convert("L" if mode in ("I;16", "F") else mode)
        if mode == "I;16":
            image = image.convert("I")
        image = image.convert(mode)
        file = io.BytesIO()
        image.save(file, form, **options)
        files.append(file.getvalue())
    return files


def mutate(content: bytes, files: list[bytes], rng: random.Random) -> bytes:
    """A file with some bytes changed, cut, repeated or taken from another file."""
    mutated = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = min(int(rng.random() ** 2 * len(mutated)), len(mutated) - 1)
        what = rng.randrange(6)
        if what <= 1:
            mutated[place] ^= 1 << rng.randrange(8)
        elif what == 2:
            mutated[place : place + 4] = bytes(rng.choice(EDGES) for _ in range(4))
        elif what == 3:
            del mutated[place : place + rng.randrange(1, 40)]
        elif what == 4:
            mutated[place:place] = mutated[place : place + rng.randrange(1, 200)] * rng.randrange(1, 20)
        else:
            other = rng.choice(files)
            start = rng.randrange(len(other))
            mutated[place : place + 30] = other[start : start + 30]
        if not mutated:
            return content[:1]
    return bytes(mutated)


async def fuzz(minutes: float, seed: int, folder: Path) -> int:
    """Run for so long; the number of files that broke the rule."""
    rng, files = random.Random(seed), seeds()
    decoders = Decoders(2, max_bytes=1 << 22, max_pixels=4_000_000)
    outcomes: Counter[str] = Counter()
    broken = 0
    end = time.monotonic() + 60 * minutes

    async def one(content: bytes) -> None:
        nonlocal broken
        try:
            file = ImageFile(content)
            found = await decoders.inspect(file)
            if found.pixels > 4_000_000:
                outcomes["too large"] += 1
                return
            pixels = await decoders.decode(file, found)
            assert pixels.ndim == 3
            assert pixels.shape[0] * pixels.shape[1] == found.pixels
            outcomes["decoded"] += 1
        except Problem as problem:
            outcomes[problem.slug] += 1
            if 400 <= problem.status < 500 and "gave up" not in problem.detail:
                return
            keep(content, problem)
        except AssertionError as error:
            keep(content, error)

    def keep(content: bytes, error: Exception) -> None:
        nonlocal broken
        broken += 1
        path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.bin"
        path.write_bytes(content)
        print(f"{path}: {error!r}", flush=True)  # noqa: T201

    while time.monotonic() < end:
        await asyncio.gather(*(one(mutate(rng.choice(files), files, rng)) for _ in range(64)))
    await decoders.stop()
    total = sum(outcomes.values())
    print(f"{total} files, seed {seed}: {dict(outcomes)}; killed: {dict(decoders.killed)}")  # noqa: T201
    return broken


def main() -> None:
    """Fuzz as the arguments say; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where files that break the rule are written"
    )
    arguments = parser.parse_args()
    sys.exit(1 if asyncio.run(fuzz(arguments.minutes, arguments.seed, arguments.folder)) else 0)


if __name__ == "__main__":
    main()
