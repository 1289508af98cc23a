"""The OpenMP library that torch computes with, and how many threads it grants."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

# Of OpenMP, and of MKL where torch was built with it: how many threads work for the thread that calls.
_SETTERS = ("omp_set_num_threads", "MKL_Set_Num_Threads_Local")


@cache
def library() -> ctypes.CDLL | None:
    """libtorch_cpu, which has loaded OpenMP; None where torch lies otherwise than in its wheels for Linux."""
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


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let so many threads compute what the calling thread asks torch for.

    torch.set_num_threads is for the whole process, and drops what oneDNN has prepared. Where torch lies otherwise than
    in its wheels for Linux, nothing changes.
    """
    # A thread's first question sets its number to torch's, which would else come later.
    before = torch.get_num_threads()
    setters = _setters() if count != before else []
    for setter in setters:
        setter(count)
    try:
        yield
    finally:
        for setter in setters:
            setter(before)


@cache
def _setters() -> list[Callable[[int], object]]:
    openmp = library()
    return [setter for setter in (getattr(openmp, name, None) for name in _SETTERS) if setter is not None]


def can_share() -> bool:
    """Whether passes that run at once can have a part of the cores each."""
    return bool(_setters())


def one_thread() -> AbstractContextManager[None]:
    """For the few steps whose result would depend on the number of threads, in the last bits.

    Such are torch's resizing, for which it has one kernel for one thread and another for several; functions like exp,
    which are vectorised but for the rest of each thread's part; and sums of which each thread has a part, as in a
    GroupNorm.
    """
    return use_threads(1)
