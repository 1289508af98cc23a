"""A photo's bytes to the network's input: ours (model/inference/preprocess.py) against torchvision's transform.

Both sides take turns in one process, with the same threads and allocator. torchvision begins with bytes too, as a
service that has decoded a photo would: it makes floats of them first.

    python bench/preprocess.py [--threads 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.allocator import keep_freed_memory
from app.runtime.cpus import usable_cpus
from model.inference.preprocess import Preprocessor
from model.kernels.convolution import Format

# Height and width of a photo, and the shorter and the longer side that the network takes at most.
SIZES = {
    "640 × 480 for `shapes`": (480, 640, 384, 768),
    "640 × 480 for V1": (480, 640, 800, 1333),
    "512 × 512 for `nuclei`": (512, 512, 512, 768),
    "12 megapixels for V1": (3000, 4000, 800, 1333),
}
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ROUNDS = 15


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=usable_cpus())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    print(f"{'milliseconds, medians':<28}{'torchvision':>12}{'ours':>8}{'ratio':>7}{'apart':>10}")
    for name, (height, width, low, high) in SIZES.items():
        photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        transform = GeneralizedRCNNTransform(low, high, MEAN, DEVIATION)
        ours = Preprocessor(transform, Format(torch.device("cpu"), torch.float32))
        seconds: tuple[list[float], list[float]] = [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            expected, _ = transform([torch.from_numpy(photo).permute(2, 0, 1) / 255])
            between = time.perf_counter()
            found = ours(
                [photo], expected.image_sizes, (expected.tensors.shape[2], expected.tensors.shape[3])
            )
            seconds[0].append(between - started)
            seconds[1].append(time.perf_counter() - between)
        theirs, own = (1000 * median(side) for side in seconds)
        apart = float((found - expected.tensors).abs().max())
        print(f"{name:<28}{theirs:>12.1f}{own:>8.1f}{theirs / own:>7.1f}{apart:>10.1e}")


if __name__ == "__main__":
    main()
