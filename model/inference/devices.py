"""Where the engine runs and in which numbers: devices by name, precisions, and what a GPU is told before a pass."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from model.errors import EngineError
from model.kernels import int8
from model.kernels.processor import is_fast_in_bfloat16

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")


def find_device(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:1" …, or "auto": a GPU if there is one.

    Raises EngineError for one that cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EngineError(f"no such device: {name!r}; there are cpu, cuda and cuda:N") from None
    # Torch takes the number modulo 256.
    if str(device) != name:
        raise EngineError(f"no such device: {name!r}; there are cpu, cuda and cuda:N")
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device {name!r} is not supported; cpu, cuda and cuda:N are")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise EngineError(f"device {name!r} was asked for, but {count} CUDA devices are usable here")
        capability, built_for = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
        if not has_kernels_for(capability, built_for):
            generation = "{}.{}".format(*capability)
            raise EngineError(
                f"this torch has no kernels for a GPU of compute capability {generation}: it was built for "
                f"{', '.join(built_for)}"
            )
    return device


def has_kernels_for(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether one of a build's architectures, such as "sm_90" or "compute_90", runs on a GPU.

    Machine code runs on the same major and later minor generations, PTX on all later ones (CUDA's guide,
    "Application compatibility").
    """
    for name in built_for:
        known = re.match(r"(sm|compute)_(\d+)", name)
        built = divmod(int(known[2]), 10) if known else (0, 0)
        if known and built <= capability and (known[1] == "compute" or built[0] == capability[0]):
            return True
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """The number format that `precision` means on a device: "float32", "bfloat16", "float16" or "int8".

    "auto" is the fastest that the hardware computes in by itself: bfloat16 on processors with AMX, on AMD's with
    AVX512-BF16 and on GPUs since Ampere, float16 on GPUs since Volta, else float32. It is never int8, whose answers
    differ visibly.
    Raises EngineError.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"no such precision: {precision!r}; there are {', '.join(PRECISIONS)}")
    cuda = device.type == "cuda"
    if precision == "auto":
        if not cuda:
            return "bfloat16" if is_fast_in_bfloat16() else "float32"
        generation = torch.cuda.get_device_capability(device)[0]
        return "bfloat16" if generation >= 8 else "float16" if generation >= 7 else "float32"
    if precision == "float16" and not cuda:
        raise EngineError("float16 is for GPUs; on a CPU there are float32, bfloat16 and int8")
    if precision == "int8" and cuda:
        raise EngineError("int8 is for CPUs; on a GPU there are float32, bfloat16 and float16")
    if precision == "int8" and not int8.is_supported():
        raise EngineError("int8 needs an x86 processor with AVX2; here there are float32 and bfloat16")
    return precision


@contextmanager
def use_device(device: torch.device, precision: str) -> Iterator[None]:
    """A GPU is the calling thread's current one, and float32 means float32 on it; of the CPU nothing is changed."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    # TF32 has 10 bits of mantissa, and convolutions would be computed in it.
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = before and precision != "float32"
    try:
        with torch.cuda.device(device):
            yield
    finally:
        cudnn.allow_tf32 = before
