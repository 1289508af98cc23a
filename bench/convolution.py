"""3×3 convolutions by Winograd (model/kernels/winograd.py) against oneDNN's direct ones, and how exact each is.

Both sides get the same tensors, in turns in one process. The error is the standard deviation of the difference from
float64, relative to that of the result; in int8 it has the result's rounding to bytes in it. Inputs are like outputs
of a ReLU.

    python bench/convolution.py [--precision float32|bfloat16|int8] [--threads 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.allocator import keep_freed_memory
from app.runtime.cpus import usable_cpus
from model.kernels import onednn
from model.kernels.int8 import Int8Conv, QuantizedTensor
from model.kernels.quantization import IDENTITY, QuantParams
from model.kernels.winograd import Winograd, kernel_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# In a ResNet-50 with an input of 1088 × 800, and in `shapes`: images or RoIs, channels, height, width.
SHAPES = {
    "P2": (1, 256, 200, 272),
    "P3": (1, 256, 100, 136),
    "P5": (1, 256, 25, 34),
    "first stage": (1, 64, 200, 272),
    "second stage": (1, 128, 100, 136),
    "third stage": (1, 256, 50, 68),
    "fourth stage": (1, 512, 25, 34),
    "mask head, 20 instances": (20, 256, 14, 14),
    "V2's box head": (1000, 256, 7, 7),
    "P2 of `shapes`": (1, 96, 96, 128),
}
GEOMETRY: onednn.Geometry = [1, 1], [1, 1], [1, 1], 1
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16", "int8"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    dtype = torch.uint8 if given.precision == "int8" else getattr(torch, given.precision)
    if kernel_for(dtype) is None:
        sys.exit(f"this processor has no kernel for {given.precision}")
    print(f"{given.precision}, {given.threads} threads; ms, median of {ROUNDS}")
    print(f"{'':26}{'B × C × H × W':>22}{'oneDNN':>9}{'ours':>9}{'ratio':>8}{'errors':>20}")
    for name, shape in SHAPES.items():
        line = measured(shape, dtype)
        print(f"{name:26}{' × '.join(map(str, shape)):>22}{line}", flush=True)


def measured(shape: tuple[int, int, int, int], dtype: torch.dtype) -> str:
    torch.manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape).relu_().contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(requires_grad=False)
    nn.init.normal_(conv.weight, std=(9 * channels) ** -0.5)
    nn.init.normal_(conv.bias, std=0.1)
    exact = functional.conv2d(x[:8].double(), conv.weight.double(), conv.bias.double(), padding=1)
    if dtype == torch.uint8:
        params = QuantParams.from_range(float(exact.min()), float(exact.max()))
        sides, step = sides_in_int8(conv, x, params), params
    else:
        sides, step = sides_in_floats(conv, x.to(dtype)), IDENTITY
    found = [(side()[:8].double() - step.zero_point) * step.scale for side in sides]
    errors = [float((y - exact).std() / exact.std()) for y in found]
    times = [[seconds(side) for side in sides] for _ in range(ROUNDS)]
    theirs, ours = (median(side) for side in zip(*times, strict=True))
    ratio = median(before / after for before, after in times)
    return f"{theirs * 1e3:9.2f}{ours * 1e3:9.2f}{ratio:7.1f}×{errors[0]:11.2g}{errors[1]:9.2g}"


def sides_in_floats(conv: nn.Conv2d, x: Tensor) -> list[Callable[[], Tensor]]:
    """The convolution by oneDNN and by us."""
    weight, bias = (part.to(x.dtype) for part in (conv.weight, conv.bias))
    packed = weight.contiguous(memory_format=torch.channels_last)
    packed = onednn.convolution_weight(packed, GEOMETRY, list(x.shape))
    kernel = kernel_for(x.dtype)
    assert kernel is not None
    winograd = Winograd(conv.weight, conv.bias, kernel, x.dtype, relu=False)
    return [lambda: onednn.convolution(x, packed, bias, GEOMETRY), lambda: winograd(x)]


def sides_in_int8(conv: nn.Conv2d, x: Tensor, params: QuantParams) -> list[Callable[[], Tensor]]:
    """The same from bytes to bytes. params: of the result."""
    quantized = QuantizedTensor.quantize(x, QuantParams.from_range(0.0, float(x.max())))
    made = Int8Conv(conv, params)
    return [lambda: made._direct_conv(quantized, None, params), lambda: made(quantized).values]


def seconds(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
