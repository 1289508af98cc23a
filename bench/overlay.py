"""Time to draw 100 instances on a 12-megapixel photo and encode it as PNG: maskserve against Pillow and torchvision.

The peer is what people write by hand: torchvision pastes the masks, ten at a time; Pillow blends each into the picture
with its box and label, and encodes the PNG at its fastest level. Both sides run on one core in the same run; the times
are processor times, the best of several. The photo has noise, because a smooth image compresses too well.

    python bench/overlay.py
"""

from __future__ import annotations

import io
import os
import platform
import sys
import time
import tracemalloc
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.models.detection.roi_heads import paste_masks_in_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.masks import INSTANCES, processor, scene
from model.images.decode import encode_png
from model.images.overlay import colour_of, overlay
from model.instances import Instances

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = (3024, 4032)
SHARES = {"boxes of 2 to 40 % of each side": 0.4, "boxes of 5 to 100 % of each side": 1.0}


def photo(size: tuple[int, int]) -> np.ndarray:
    """Smooth shades with a photo's noise; PNG halves its size, like that of sharp photos."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(np.float32)
    return np.clip(smooth + random.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def instances(size: tuple[int, int], share: float) -> Instances:
    maps, boxes = scene(size)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * share
    boxes = torch.cat([centre - half, centre + half], dim=1)
    return Instances(
        size, boxes, torch.linspace(0.99, 0.5, INSTANCES), torch.arange(INSTANCES) % 80 + 1, maps
    )


def ours(pixels: np.ndarray, found: Instances) -> bytes:
    return encode_png(overlay(pixels, found, {}))


def theirs(pixels: np.ndarray, found: Instances) -> bytes:
    picture = Image.fromarray(pixels)
    for maps, boxes, labels, scores in zip(
        found.probabilities.split(10),
        found.boxes.split(10),
        found.labels.split(10),
        found.scores.split(10),
        strict=True,
    ):
        masks = paste_masks_in_image(maps[:, None], boxes, found.size)[:, 0] > 0.5
        for mask, box, label, score in zip(
            masks, boxes.tolist(), labels.tolist(), scores.tolist(), strict=True
        ):
            opacity = Image.fromarray(mask.numpy().view(np.uint8) * np.uint8(102))
            picture.paste(colour_of(label), (0, 0), opacity)
            draw = ImageDraw.Draw(picture)
            draw.rectangle(box, outline=colour_of(label), width=10)
            draw.text(box[:2], f"{label} {score:.2f}", font_size=76, fill="white")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def fastest(
    side: Callable[[np.ndarray, Instances], bytes], found: Instances, repetitions: int
) -> tuple[float, int]:
    """Processor seconds of the fastest run, and the size of its file in bytes."""
    pixels = photo(SIZE)
    seconds = []
    for _ in range(repetitions):
        start = time.process_time()
        file = side(pixels, found)
        seconds.append(time.process_time() - start)
    return min(seconds), len(file)


def peak(found: Instances) -> int:
    """Peak memory of NumPy and Python while drawing, in bytes; a stack of the masks alone would take 1.2 GB."""
    pixels = photo(SIZE)
    tracemalloc.start()
    ours(pixels, found)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def main() -> None:
    torch.set_num_threads(1)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pillow", "isal"))
    print(
        f"{processor()}, one core; load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {packages}"
    )
    for name, share in SHARES.items():
        found = instances(SIZE, share)
        areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(dim=1).sum() / (SIZE[0] * SIZE[1])
        fast, size = fastest(ours, found, 5)
        slow, their_size = fastest(theirs, found, 1)
        print(
            f"\n{INSTANCES} instances on {SIZE[1]} × {SIZE[0]}, {name}: {areas:.1f} × the image's area in boxes"
        )
        print(
            f"  maskserve           {fast * 1e3:8.0f} ms {size / 1e6:6.1f} MB file, {peak(found) / 1e6:.0f} MB at most"
        )
        print(f"  pasted and blended  {slow * 1e3:8.0f} ms {their_size / 1e6:6.1f} MB file")
        print(f"  ratio               {slow / fast:8.1f} ×")


if __name__ == "__main__":
    main()
