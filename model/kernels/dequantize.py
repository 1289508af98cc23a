"""Quantised tensors to floating-point ones, in one step where dequantize.c was compiled."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.kernels.compiled import AVX2, load_first, openmp_functions

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.kernels.quantization import QuantParams

SOURCE = Path(__file__).with_name("dequantize.c")
VARIANTS = {"avx2": AVX2}
# The kernel takes multiples of so many numbers.
LANES = 8


class Work(ctypes.Structure):
    """`struct Work` of dequantize.c, which describes it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "result")),
        *((name, ctypes.c_int64) for name in ("count", "is_bfloat16")),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
        ("next", ctypes.c_int64),
    ]


@cache
def kernel() -> Callable[[Work], None] | None:
    """The compiled function, on torch's threads; None on other processors, and where nothing was compiled or torch has
    no OpenMP.
    """
    openmp = openmp_functions()
    library = load_first(SOURCE, VARIANTS, Work, cost="int8 takes a tenth longer")
    if openmp is None or library is None:
        return None
    parallel, function = openmp[0], library.dequantize
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None

    def run(work: Work) -> None:
        function(ctypes.addressof(work), parallel, torch.get_num_threads())

    return run


def dequantize(values: Tensor, params: QuantParams, out: Tensor) -> None:
    """Put what quantised values stand for into `out`.

    Args:
        values: [B, K, H, W] uint8, channels last.
        params: their scale and zero point.
        out: [B, K, H, W] float32 or bfloat16, channels last.
    """
    if out.shape != values.shape or out.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"not a place for these values: {out.dtype} {list(out.shape)}")
    run = kernel()
    # Whether the numbers lie without gaps; the stride from image to image of a single one does not matter.
    whole = all(x.permute(0, 2, 3, 1).is_contiguous() for x in (values, out))
    if run is None or not whole or values.numel() % LANES:
        # In two steps, so that the difference, a whole number, is exact in bfloat16 too.
        torch.sub(values, torch.tensor(params.zero_point, dtype=out.dtype), out=out).mul_(params.scale)
        return
    run(
        Work(
            values=values.data_ptr(),
            result=out.data_ptr(),
            count=values.numel(),
            is_bfloat16=out.dtype == torch.bfloat16,
            scale=params.scale,
            zero_point=params.zero_point,
        )
    )
