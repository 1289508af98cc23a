"""Photos to the network's input in one step, on x86 and ARM: compiled from bilinear.c."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model.kernels.compiled import load_first, openmp_functions
from model.kernels.processor import AVX2, NEON

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = Path(__file__).with_name("bilinear.c")
VARIANTS = {"avx2": AVX2, "neon": NEON}


class Work(ctypes.Structure):
    """`struct Work` of bilinear.c, which describes it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("photo", "result")),
        *((name, ctypes.c_void_p) for name in ("above", "below", "left", "right", "down", "across")),
        *((name, ctypes.c_int64) for name in ("photo_row", "result_row", "height", "width", "is_bfloat16")),
        *((name, ctypes.c_float * 3) for name in ("scale", "shift")),
        ("next", ctypes.c_int64),
    ]


@dataclass(frozen=True, slots=True)
class Taps:
    """What places of an axis after resizing are made of, without antialiasing.

    A place lies between two of those before it.
    """

    first: Tensor  # [after] int64
    second: Tensor  # [after] int64
    part: Tensor  # [after] float32: how far it is from the first to the second, 0 to 1

    @classmethod
    def of(cls, before: int, after: int) -> Taps:
        """As torch.nn.functional.interpolate counts, without aligned corners. before, after: places of the axis."""
        # torch rounds the scale to float32, and then once more what follows as a whole.
        scale = torch.tensor(before / after, dtype=torch.float32).double()
        place = ((torch.arange(after, dtype=torch.float64) + 0.5) * scale - 0.5).float().clamp(min=0)
        first = place.to(torch.int64).clamp(max=before - 1)
        return cls(first, (first + 1).clamp(max=before - 1), place - first)


class ResizeKernel:
    """The compiled function."""

    def __init__(self, library: Any, parallel: int) -> None:
        """Args are of ctypes, and the address of OpenMP's function."""
        self._resize, self._parallel = library.resize, parallel
        self._resize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        self._resize.restype = None

    def __call__(self, photo: np.ndarray, result: Tensor, scale: Tensor, shift: Tensor) -> None:
        """Fill `result` with the photo, resized, times `scale` plus `shift`; the same on any number of threads.

        Args:
            photo: [H, W, 3] uint8.
            result: [h, w, 3] float32 or bfloat16, its rows as far apart as you like.
            scale: [3] float32.
            shift: [3] float32.

        Raises ValueError for other arrays.
        """
        if (
            result.device.type != "cpu"
            or result.dtype not in (torch.float32, torch.bfloat16)
            or result.shape[2:] != (3,)
            or result.stride()[1:] != (3, 1)
            or not result.numel()
        ):
            raise ValueError(
                f"not a result for this kernel: {result.dtype} {list(result.shape)}, steps {result.stride()}"
            )
        if photo.dtype != np.uint8 or photo.shape[2:] != (3,) or not photo.size:
            raise ValueError(f"not a photo: {photo.dtype} {photo.shape}")
        if not len(scale) == len(shift) == 3:
            raise ValueError(f"not numbers of three channels: {scale}, {shift}")
        if photo.strides[1:] != (3, 1):
            photo = np.ascontiguousarray(photo)
        height, width = result.shape[:2]
        rows, columns = Taps.of(photo.shape[0], height), Taps.of(photo.shape[1], width)
        work = Work(
            photo=photo.ctypes.data,
            result=result.data_ptr(),
            above=rows.first.data_ptr(),
            below=rows.second.data_ptr(),
            left=columns.first.data_ptr(),
            right=columns.second.data_ptr(),
            down=rows.part.data_ptr(),
            across=columns.part.data_ptr(),
            photo_row=photo.strides[0],
            result_row=result.stride(0),
            height=height,
            width=width,
            is_bfloat16=result.dtype == torch.bfloat16,
            scale=tuple(scale.tolist()),
            shift=tuple(shift.tolist()),
        )
        self._resize(ctypes.addressof(work), self._parallel, torch.get_num_threads())


@cache
def kernel() -> ResizeKernel | None:
    """The compiled function; None on other processors, and where nothing was compiled or torch has no OpenMP."""
    openmp = openmp_functions()
    library = load_first(SOURCE, VARIANTS, Work, cost="photos take several times as long to resize")
    return None if openmp is None or library is None else ResizeKernel(library, openmp[0])
