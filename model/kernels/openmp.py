"""The OpenMP library that torch computes with, and how many threads it grants."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from model.errors import EngineError


@cache
def library() -> ctypes.CDLL | None:
    """It, or what has loaded it; None where torch lies otherwise than in its wheels for Linux."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:
        return None


def match_threads() -> None:
    """Let torch ask for no more threads than OpenMP grants.

    oneDNN takes for granted that it gets as many as it asks for. With fewer, as under OMP_THREAD_LIMIT=1, its products
    in bfloat16 are wrong without an error (torch 2.14.1).

    Raises EngineError if OpenMP may grant fewer at any time, which depends on the machine's load.
    """
    try:
        openmp = library()
        if openmp is None:
            return
        dynamic, limit = openmp.omp_get_dynamic(), openmp.omp_get_thread_limit()
    # A torch without OpenMP.
    except AttributeError:
        return
    if dynamic:
        raise EngineError(
            "OMP_DYNAMIC is set. With it torch may compute on fewer threads than it expects, which gives wrong "
            "results. Unset it."
        )
    if limit < torch.get_num_threads():
        torch.set_num_threads(limit)
