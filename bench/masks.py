"""Mask maps to COCO RLE: `model.masks.paste.paste` against torchvision's paste and pycocotools' encoder.

Both sides get the same maps and boxes, on one core, in the same run; the answers are compared byte by byte. Times
are the processor's, the best of several repetitions: other work on the machine slows both sides but is not counted
as theirs. Peak memory is what the process's resident set grew by, each side in a process of its own (Linux).

    python bench/masks.py [--stack]

torchvision pastes ten masks at a time here, which is faster and smaller than what its model does. With --stack it
builds the whole stack of a hundred masks as its model does; 12 megapixels take 11 GB then.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model.masks.paste import outlines, paste

if TYPE_CHECKING:
    from torch import Tensor

INSTANCES = 100
SCENES = {"12 megapixels (4032 × 3024)": (3024, 4032), "640 × 480": (480, 640)}


def scene(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A hundred wavy discs, soft at the rim as a trained mask head's, in boxes from 5 to 100 % of each side."""
    random = np.random.default_rng(0)
    sides = np.array(size[::-1])
    extent = np.exp(random.uniform(np.log(0.05), 0, (INSTANCES, 2))) * sides
    corner = random.random((INSTANCES, 2)) * (sides - extent)
    boxes = np.concatenate([corner, corner + extent], axis=1)
    y, x = (np.mgrid[:28, :28] - 13.5) / 14
    angle = np.arctan2(y, x)
    radius = np.full((INSTANCES, 28, 28), 0.8)
    for wave in (1, 2, 3, 5):
        size_and_phase = random.normal(0, 0.12, (INSTANCES, 1, 1)), random.uniform(0, 7, (INSTANCES, 1, 1))
        radius += size_and_phase[0] * np.cos(wave * angle + size_and_phase[1])
    logits = 12 * (radius - np.hypot(x, y)) + random.normal(0, 0.3, radius.shape)
    return torch.from_numpy(1 / (1 + np.exp(-logits))).float(), torch.from_numpy(boxes).float()


def ours(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], _: int) -> list[bytes]:
    return [rle.counts for rle in paste(probabilities, boxes, size)]


def theirs(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], at_once: int) -> list[bytes]:
    counts = []
    for some, where in zip(probabilities.split(at_once), boxes.split(at_once), strict=True):
        masks = paste_masks_in_image(some[:, None], where, size)[:, 0] > 0.5
        counts += [coco.encode(np.asfortranarray(mask.numpy().view(np.uint8)))["counts"] for mask in masks]
    return counts


Side = "Callable[[Tensor, Tensor, tuple[int, int], int], list[bytes]]"


def best(side: Side, size: tuple[int, int], at_once: int, repetitions: int) -> tuple[float, list[bytes]]:
    """Processor seconds of the fastest run, and its answer."""
    probabilities, boxes = scene(size)
    side(probabilities[:2], boxes[:2], size, at_once)
    seconds = []
    for _ in range(repetitions):
        start = time.process_time()
        answer = side(probabilities, boxes, size, at_once)
        seconds.append(time.process_time() - start)
    return min(seconds), answer


def growth(side: Side, size: tuple[int, int], at_once: int, answer: multiprocessing.SimpleQueue[int]) -> None:
    torch.set_num_threads(1)
    probabilities, boxes = scene(size)
    # What is loaded once a process.
    side(probabilities, boxes / 100, (30, 40), at_once)
    before = highest_resident()
    side(probabilities, boxes, size, at_once)
    answer.put(highest_resident() - before)


def highest_resident() -> int:
    """Bytes; the resource module's figure would begin with the parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def peak(side: Side, size: tuple[int, int], at_once: int) -> int:
    """Bytes that one run adds to the highest resident set of a fresh process."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=growth, args=(side, size, at_once, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the memory measurement of {side.__name__} ended with code {process.exitcode}")
    return answer.get()


def as_polygons(size: tuple[int, int]) -> tuple[float, int, int, float]:
    """The same masks as polygons: processor seconds, points, bytes of JSON, and the lowest IoU that pycocotools finds
    between them and the masks of more than 1,000 pixels.
    """
    probabilities, boxes = scene(size)
    seconds = []
    for _ in range(10):
        start = time.process_time()
        found = outlines(probabilities, boxes, size)
        seconds.append(time.process_time() - start)
    parts = [outline.parts for outline in found]
    overlaps = [
        coco.iou([coco.merge(coco.frPyObjects(some, *size))], [rle.to_coco()], [0])[0, 0]
        for some, rle in zip(parts, paste(probabilities, boxes, size), strict=True)
        if rle.area > 1000
    ]
    points = sum(len(part) // 2 for some in parts for part in some)
    return min(seconds), points, len(json.dumps(parts, separators=(",", ":"))), float(min(overlaps))


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    torch.set_num_threads(1)
    at_once = INSTANCES if "--stack" in sys.argv[1:] else 10
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy", "pycocotools")
    )
    print(
        f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, one core; load {os.getloadavg()[0]:.1f}"
    )
    print(f"Python {platform.python_version()}, {packages}")
    for name, size in SCENES.items():
        fast, answer = best(ours, size, at_once, 30)
        slow, expected = best(theirs, size, at_once, 2 if size[0] > 1000 else 10)
        small, large = peak(ours, size, at_once), peak(theirs, size, at_once)
        print(f"\n{INSTANCES} instances, {name}")
        print(f"  maskserve                {fast * 1e3:9.1f} ms {small / 1e6:9.0f} MB extra")
        print(f"  torchvision + pycocotools{slow * 1e3:9.1f} ms {large / 1e6:9.0f} MB extra")
        seconds, points, length, overlap = as_polygons(size)
        print(
            f"  as polygons             {seconds * 1e3:10.1f} ms, {points} points, {length / 1e3:.0f} kB of JSON "
            f"(RLE: {sum(map(len, answer)) / 1e3:.0f} kB), IoU at least {overlap:.3f}"
        )
        print(
            f"  ratio                    {slow / fast:9.0f} ×  {'identical' if answer == expected else 'DIFFERENT'}"
        )


if __name__ == "__main__":
    main()
