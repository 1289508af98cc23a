"""Time and memory at 100, 300 and 1,000 instances in one image: the engine, and each form of the answer.

    python bench/dense.py [--model v1|v2|nuclei|resnet18|…] [--precision auto|float32|bfloat16]
                          [--instances 100 300 1000] [--megapixels 12] [--tiles 2] [--rounds 5] [--threads 2]

Random weights that behave like trained ones (bench/synthetic_weights.py) find as many as are asked for in a drawn
scene. `nuclei` finds real ones in an example, up to 500; with `--tiles 2`, in a mosaic of 2 × 2 of it.
`bench/engine.py --detections N` compares the engine with torchvision at as many.

Prints the processor and versions; for each number the median milliseconds of the rounds, those of the processor (with
--threads 1 they hold on a machine that does other things too), by how much the resident set peaks over the loaded
model's during them, and how large the answer is.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.api.query import JSON, PNG
from app.api.responses import encode
from app.runtime.cpus import usable_cpus
from bench.engine import chosen, forget_peak, picture
from bench.masks import highest_resident, processor
from model.inference.engine import Engine
from model.instances import Options

if TYPE_CHECKING:
    from collections.abc import Callable


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="v1", help="v1, v2, nuclei, or a backbone")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--instances", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--megapixels", type=float, help="enlarge the scene to this size first")
    parser.add_argument(
        "--tiles", type=int, default=1, help="as many copies of the scene beside and below it"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    return parser.parse_args()


def measure(run: Callable[[], Any], rounds: int) -> tuple[str, Any]:
    """Median milliseconds, those of the processor, MB that the resident set peaked at over what it was; the result."""
    run()
    before, result = forget_peak(), None
    taken: list[tuple[float, float]] = []
    for _ in range(rounds):
        started, busy = time.perf_counter(), time.process_time()
        result = run()
        taken.append((time.perf_counter() - started, time.process_time() - busy))
    wall, processor_time = (1e3 * median(column) for column in zip(*taken, strict=True))
    added = (highest_resident() - before) / 1e6
    return f"{wall:7.1f} ms, of the processor {processor_time:7.1f} ms, {added:4.0f} MB", result


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    image = np.tile(picture(None, given.megapixels, given.model), (given.tiles, given.tiles, 1))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
    print(f"{processor()}, {given.threads} threads; {packages}; Python {platform.python_version()}")
    # Proposals are the same for all.
    network, model = chosen(given.model, image, max(given.instances))
    engine = Engine(network, model, torch.device("cpu"), given.precision)
    del network
    size = f"scene {image.shape[1]} × {image.shape[0]}, input {engine.padded_shape(*image.shape[:2])[::-1]}"
    print(f"{given.model}, {engine.precision}; {size}; load {os.getloadavg()[0]:.1f}\n")
    for count in given.instances:
        options = Options(score_threshold=0.05, max_instances=count)
        figures, (found,) = measure(partial(engine.segment, [image], [options]), given.rounds)
        print(f"{len(found)} instances\n  engine         {figures}")
        answers = {
            f"JSON, {masks}": partial(encode, JSON, "id", model, image, found, mask_format=masks)
            for masks in ("rle", "polygon", "png")
        }
        answers["drawn, PNG"] = partial(encode, PNG, "id", model, image, found)
        for name, run in answers.items():
            figures, content = measure(run, given.rounds)
            print(f"  {name:14} {figures}, answer {len(content) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
