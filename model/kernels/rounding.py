"""Quantised tensors to floating-point ones and back, in one step where rounding.c was compiled."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from model.kernels.compiled import load_first, openmp_functions
from model.kernels.processor import AVX2

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.kernels.quantization import QuantParams

SOURCE = Path(__file__).with_name("rounding.c")
VARIANTS = {"avx2": AVX2}
# The kernel takes multiples of so many numbers.
LANES = 8


class Work(ctypes.Structure):
    """`struct Work` of rounding.c, which describes it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "floats")),
        *((name, ctypes.c_int64) for name in ("count", "is_bfloat16")),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
        ("next", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, values: Tensor, params: QuantParams, floats: Tensor) -> Work:
        """What is to be converted.

        Args:
            values: uint8, without gaps in memory.
            params: their scale and zero point.
            floats: as many numbers in the same order, float32 or bfloat16.
        """
        return cls(
            values=values.data_ptr(),
            floats=floats.data_ptr(),
            count=values.numel(),
            is_bfloat16=floats.dtype == torch.bfloat16,
            scale=params.scale,
            zero_point=params.zero_point,
        )


class Kernel(NamedTuple):
    """The compiled functions, on torch's threads."""

    dequantize: Callable[[Work], None]
    quantize: Callable[[Work], None]


@cache
def kernel() -> Kernel | None:
    """The compiled functions; None on other processors, and where nothing was compiled or torch has no OpenMP."""
    openmp = openmp_functions()
    library = load_first(SOURCE, VARIANTS, Work, cost="int8 takes a tenth longer")
    if openmp is None or library is None:
        return None

    def on_threads(name: str) -> Callable[[Work], None]:
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        return lambda work: function(ctypes.addressof(work), openmp[0], torch.get_num_threads())

    return Kernel(on_threads("dequantize"), on_threads("quantize"))


def dequantize(values: Tensor, params: QuantParams, out: Tensor) -> None:
    """Put what quantised values stand for into `out`.

    Args:
        values: [B, K, H, W] uint8, channels last.
        params: their scale and zero point.
        out: [B, K, H, W] float32 or bfloat16, channels last.
    """
    if out.shape != values.shape or out.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"not a place for these values: {out.dtype} {list(out.shape)}")
    compiled = kernel()
    # Whether the numbers lie without gaps; the stride from image to image of a single one does not matter.
    whole = all(x.permute(0, 2, 3, 1).is_contiguous() for x in (values, out))
    if compiled is None or not whole or values.numel() % LANES:
        # In two steps, so that the difference, a whole number, is exact in bfloat16 too.
        torch.sub(values, torch.tensor(params.zero_point, dtype=out.dtype), out=out).mul_(params.scale)
        return
    compiled.dequantize(Work.of(values, params, out))


def quantize(x: Tensor, params: QuantParams) -> Tensor:
    """The bytes that stand for numbers most nearly, as they lie in memory: what is beyond their range becomes its end.

    Args:
        x: of any shape, float32; no number of it NaN.
        params: scale and zero point of the result.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"only float32 becomes bytes, not {x.dtype}")
    compiled = kernel()
    values = torch.empty_like(x, dtype=torch.uint8)
    if compiled is None or values.stride() != x.stride() or x.numel() % LANES:
        return values.copy_(x.div(params.scale).round_().add_(params.zero_point).clamp_(0, 255))
    compiled.quantize(Work.of(values, params, x))
    return values
