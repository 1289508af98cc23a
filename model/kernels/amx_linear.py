"""Fully connected layers in bfloat16 on processors with AMX, with the same bits on any number of threads, unlike
oneDNN's: compiled from linear.c.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from model.kernels.compiled import load_first, openmp_functions
from model.kernels.processor import has_amx

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SOURCE = Path(__file__).with_name("linear.c")
VARIANTS = {"amx": ("amx_bf16", "avx512_bf16", "avx512_vl", "avx512_bw", "avx512_dq")}
# Of rows and columns, as linear.c has them, and of the depth.
SIDE, STEP = 32, 32
# At most: rows that a thread works on at once, and of the depth, for which a second cache of 2 MB has room.
BLOCK, SLICE = 256, 2048


class Work(ctypes.Structure):
    """`struct Work` of linear.c, which describes it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "result", "scratch")),
        *((name, ctypes.c_int64) for name in ("rows", "depth", "columns", "block", "part", "slice")),
        ("least", ctypes.c_float),
        ("next", ctypes.c_int64),
        ("thread_number", ctypes.c_void_p),
    ]


@cache
def kernel() -> Callable[[Work], None] | None:
    """The compiled function, on torch's threads; None on other processors, and where nothing was compiled or torch has
    no OpenMP.
    """
    openmp = openmp_functions()
    library = load_first(SOURCE, VARIANTS, Work, cost="bfloat16 takes a tenth longer")
    if openmp is None or library is None or not has_amx():
        return None
    apply: Any = library.apply
    apply.argtypes, apply.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    library.scratch_bytes.argtypes, library.scratch_bytes.restype = [ctypes.c_void_p], ctypes.c_int64
    parallel, thread_number = openmp

    def run(work: Work) -> None:
        work.thread_number = thread_number
        threads, address = torch.get_num_threads(), ctypes.addressof(work)
        scratch = torch.empty(threads * library.scratch_bytes(address), dtype=torch.uint8)
        work.scratch = scratch.data_ptr()
        apply(address, parallel, threads)

    return run


def can_run(columns: int, depth: int) -> bool:
    """Whether there is a kernel for weights of this shape."""
    return depth % STEP == 0 and columns % (SIDE // 2) == 0 and kernel() is not None


def lay_out(weight: Tensor) -> Tensor:
    """A weight [K, D] bfloat16 as `linear` reads it: [K / SIDE, D / 2, SIDE, 2]."""
    filled = functional.pad(weight, (0, 0, 0, -len(weight) % SIDE))
    return filled.view(-1, SIDE, weight.shape[1] // 2, 2).transpose(1, 2).contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """activation(x weightᵀ + bias): [R, K] bfloat16, on processors that `can_run` it.

    Args:
        x: [R, D] bfloat16.
        weight: from `lay_out`.
        bias: [K].
        activation: "none" or "relu".
    """
    run = kernel()
    if run is None:
        raise RuntimeError("there is no kernel for fully connected layers")
    if x.dtype != torch.bfloat16 or x.shape[1] != 2 * weight.shape[1]:
        raise ValueError(f"not for this weight: {x.dtype} {list(x.shape)}")
    x, bias = x.contiguous(), bias.float()
    result = x.new_empty((len(x), len(bias)))
    blocks = max(-(-len(x) // BLOCK), 1)
    # Threads that would have no block share them.
    parts = 1 if blocks % torch.get_num_threads() == 0 else torch.get_num_threads()
    work = Work(
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        result=result.data_ptr(),
        rows=len(x),
        depth=x.shape[1],
        columns=len(bias),
        block=round_up(-(-len(x) // blocks), SIDE),
        part=-(-len(weight) // parts),
        slice=round_up(-(-x.shape[1] // -(-x.shape[1] // SLICE)), STEP),
        least=0.0 if activation == "relu" else -math.inf,
    )
    run(work)
    return result


def round_up(number: int, multiple: int) -> int:
    """To the next multiple."""
    return -(-number // multiple) * multiple
