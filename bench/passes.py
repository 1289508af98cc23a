"""Several passes at the same time, each on a part of the cores, against one after the other on all of them.

    GOMP_SPINCOUNT=10000 python bench/passes.py [--model shapes|nuclei|v1|v2|resnet18|…] [--precision auto]
                         [--photo FILE] [--detections 20] [--passes 2] [--seconds 5] [--rounds 6]

Both ways take turns in one process, as the queue worker runs images of which several wait; it has that GOMP_SPINCOUNT.
Models and photos are those of bench/engine.py. Prints images a second and their ratio as the median of the rounds, the
processor's milliseconds for an image, and by how much the resident set peaked in each way over that of the model.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.allocator import keep_freed_memory
from app.runtime.cpus import usable_cpus
from bench.engine import chosen, forget_peak, picture
from bench.masks import highest_resident, processor
from model.inference.devices import resolve_precision
from model.inference.engine import Engine
from model.instances import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--detections", type=int, default=20, help="of models with synthetic weights")
    parser.add_argument("--passes", type=int, default=usable_cpus(), help="at the same time")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=6)
    return parser.parse_args()


class Turn(NamedTuple):
    """Of one way."""

    # Images a second.
    rate: float
    # Of the processor, for an image.
    seconds: float


def turn(engine: Engine, image: NDArray[np.uint8], passes: int, seconds: float) -> Turn:
    """Let so many threads run it for so long, each on its part of the cores."""
    cores = max(1, engine.cores // passes)
    end = time.perf_counter() + seconds
    done: list[int] = []

    def run() -> None:
        count = 0
        while time.perf_counter() < end:
            engine.segment([image], [Options(score_threshold=0.05)], cores=cores)
            count += 1
        done.append(count)

    threads = [threading.Thread(target=run) for _ in range(passes)]
    started, used = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    images = sum(done)
    return Turn(images / (time.perf_counter() - started), (time.process_time() - used) / images)


def main() -> None:
    given = arguments()
    torch.set_num_threads(usable_cpus())
    device = torch.device("cpu")
    precision = resolve_precision(given.precision, device)
    image = picture(given.photo, None, given.model)
    engine = Engine(*chosen(given.model, image, given.detections), device, precision)
    keep_freed_memory()
    print(f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}; {given.model}, {precision}")
    ways = (1, given.passes)
    peaks = []
    # What is laid out and compiled once is there after the first turn.
    turn(engine, image, given.passes, 1.0)
    for passes in ways:
        before = forget_peak()
        turn(engine, image, passes, 1.0)
        peaks.append(highest_resident() - before)
    rounds = [[turn(engine, image, passes, given.seconds) for passes in ways] for _ in range(given.rounds)]
    for passes, peak, taken in zip(ways, peaks, zip(*rounds, strict=True), strict=True):
        print(
            f"{passes} at a time: {median(t.rate for t in taken):.2f} images/s, "
            f"{1000 * median(t.seconds for t in taken):.0f} ms of the processor each, "
            f"{peak / 1e6:.0f} MB more than the model"
        )
    ratios = [many.rate / one.rate for one, many in rounds]
    print(f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
