"""Which number formats the processor computes fast in."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

# What torch.cpu.get_capabilities calls what the kernels in C need: x86 processors have it since 2013 (Intel) and 2015
# (AMD), and 64-bit ARM processors always.
AVX2 = "avx2", "fma3"
NEON = ("neon",)


def is_fast_in_bfloat16() -> bool:
    """Whether it computes in bfloat16 faster than in float32.

    Intel's processors have AVX512-BF16 at half of the rate of float32, so that it takes them longer (docs/engine.md).
    They are fast with AMX, which virtual machines may not have.
    """
    return has_amx() or bool(torch.cpu.get_capabilities().get("avx512_bf16") and not is_intel())


def has_avx2() -> bool:
    """Whether it has AVX2 and FMA."""
    has = torch.cpu.get_capabilities()
    return all(has.get(name) for name in AVX2)


def has_vnni() -> bool:
    """Whether oneDNN multiplies 64 bytes in one instruction, which sums them in 32 bits (AVX512-VNNI).

    False where it is told to use older instructions only.
    """
    if os.environ.keys() & {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}:
        return False
    return bool(torch.cpu._is_vnni_supported())  # noqa: SLF001 - torch has no public name for it


def has_amx() -> bool:
    """Whether it multiplies matrices of bfloat16, and the system lets this process do so, which it asks for that."""
    if not torch.cpu.get_capabilities().get("amx_bf16"):
        return False
    ask = getattr(torch.cpu, "_init_amx", lambda: False)
    return bool(ask())


@cache
def is_intel(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor is Intel's; False where it does not say."""
    try:
        return "GenuineIntel" in cpuinfo.read_text()
    except OSError:
        return False
