"""The engine on a GPU: seconds of one photo, photos a second, and torchvision beside it.

    python bench/gpu.py [--model v1|v2|shapes] [--precision auto|float32|bfloat16|float16] [--detections 20]
                        [--batch 8] [--rounds 30] [--device cuda]

Run `pytest tests/model/inference/test_cuda.py` first, which checks the answers. COCO's weights are not needed (see
bench/engine.py). Prints these, each as the median of the rounds with the extremes:

    torchvision   one photo, pixels to results on the host, in float32 and under autocast, masks pasted
    engine        the same by maskserve, to RLE, alone and in a batch
    whole         JPEG bytes to JSON bytes: one photo at a time, and in batches while eight threads decode and encode

--device cpu shows that it runs, where there is no GPU.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.api import query, responses
from bench.engine import chosen, encoded, picture, tensor
from model.images.decode import decode
from model.inference.engine import Engine
from model.instances import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

THREADS = 8


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="v1", help="v1, v2, shapes, or a backbone")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--detections", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


def timed(name: str, photos: int, rounds: int, run: Callable[[], object]) -> None:
    """Run it a few times unseen, then `rounds` times; print milliseconds, and photos a second."""
    for _ in range(3):
        run()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    middle, low, high = median(taken), min(taken), max(taken)
    print(
        f"  {name:44}{1e3 * middle:8.2f} ms ({1e3 * low:.2f} to {1e3 * high:.2f}) {photos / middle:8.1f} photos/s",
        flush=True,
    )


def main() -> None:
    given = arguments()
    device = torch.device(given.device)
    image = picture(None, None, given.model)
    network: Any
    network, model = chosen(given.model, image, given.detections)
    engine = Engine(network, model, device, given.precision)
    engine.batches = True
    engine.warm_up()
    network.to(device)
    options = Options(score_threshold=0.05)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    jpeg = buffer.getvalue()

    def theirs(numbers: torch.dtype | None) -> None:
        half = torch.autocast(device.type, numbers) if numbers else nullcontext()
        with torch.inference_mode(), half:
            (found,) = network([tensor(image).to(device)])
        for values in found.values():
            values.cpu()

    def ours(photos: int) -> None:
        for found in engine.segment([image] * photos, [options] * photos):
            encoded(found)

    def answer(found: Any) -> bytes:
        return responses.encode(query.JSON, "id", model, image, found)

    def whole() -> None:
        answer(engine.segment([decode(jpeg)], [options])[0])

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}; torch {version('torch')}, torchvision {version('torchvision')}")
    print(
        f"{given.model}, {engine.precision}, photo {image.shape[1]} × {image.shape[0]}, JPEG of {len(jpeg)} bytes"
    )
    print(f"  {len(engine.segment([image], [options])[0])} detections")
    timed("torchvision, float32", 1, given.rounds, lambda: theirs(None))
    timed("torchvision, bfloat16 by autocast", 1, given.rounds, lambda: theirs(torch.bfloat16))
    timed("engine, one photo", 1, given.rounds, lambda: ours(1))
    timed(f"engine, {given.batch} photos", given.batch, given.rounds, lambda: ours(given.batch))
    timed("whole, one photo", 1, given.rounds, whole)
    with ThreadPoolExecutor(THREADS) as pool:
        # While one batch runs the next is decoded and the last one's answers are written.
        coming = [pool.submit(decode, jpeg) for _ in range(given.batch)]
        written: list[Any] = []

        def pipelined() -> None:
            nonlocal coming, written
            images: list[np.ndarray] = [future.result() for future in coming]
            coming = [pool.submit(decode, jpeg) for _ in range(given.batch)]
            found = engine.segment(images, [options] * given.batch)
            for future in written:
                future.result()
            written = [pool.submit(answer, each) for each in found]

        timed(f"whole, batches of {given.batch}", given.batch, given.rounds, pipelined)


if __name__ == "__main__":
    main()
