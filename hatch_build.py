"""Compiles model/kernels/*.c when the package is built, on Linux on x86 and ARM: elsewhere the engine does without."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# For each kind of machine, by the names of what is compiled, which begin with the source's: the processor (what a
# variant needs is said in Python beside its source), and the macros.
VARIANTS = {
    "x86_64": {
        "winograd_bytes_avx512": ["-mcpu=x86_64_v4+avx512vnni", "-DLANES=16", "-DBYTES"],
        "winograd_bytes_avx2": ["-mcpu=x86_64_v3", "-DLANES=8", "-DBYTES"],
        "winograd_bfloat16_avx512": ["-mcpu=x86_64_v4+avx512bf16", "-DLANES=16", "-DBFLOAT16"],
        "winograd_float32_avx512": ["-mcpu=x86_64_v4", "-DLANES=16"],
        "winograd_float32_avx2": ["-mcpu=x86_64_v3", "-DLANES=8"],
        "bilinear_avx2": ["-mcpu=x86_64_v3"],
        "rounding_avx2": ["-mcpu=x86_64_v3"],
        "linear_amx": ["-mcpu=x86_64_v4+avx512bf16+amx_bf16"],
        "nms_avx2": ["-mcpu=x86_64_v3", "-ffp-contract=off"],
    },
    # Atomics of the first ARMv8, and no choice of others at run time, which would be a library's.
    "aarch64": {
        "winograd_float32_neon": ["-mcpu=generic", "-mno-outline-atomics", "-DLANES=4"],
        "bilinear_neon": ["-mcpu=generic", "-mno-outline-atomics"],
        "nms_neon": ["-mcpu=generic", "-ffp-contract=off"],
    },
}
# They call nothing but memset, so they run with whatever glibc the machine has.
FLAGS = ["-std=c17", "-O3", "-ffp-contract=fast", "-ffreestanding", "-nostdlib", "-shared", "-fPIC"]
FLAGS += ["-Wall", "-Wextra", "-Werror"]


class Kernels(BuildHookInterface):
    """See the module."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Put the compiled variants beside their source, and into the wheel."""
        machine = platform.machine()
        # The wheel's tag is glibc's.
        if sys.platform != "linux" or machine not in VARIANTS or platform.libc_ver()[0] != "glibc":
            return
        target = f"{machine}-linux-gnu.2.17"
        kernels = Path(self.root) / "model" / "kernels"
        # The compiler's wheel comes with the build's requirements, so that no machine has to have one.
        with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor() as threads:
            made = [
                threads.submit(_compile, kernels, name, ["-target", target, *flags], cache)
                for name, flags in VARIANTS[machine].items()
            ]
            build_data["artifacts"] += [f"model/kernels/{future.result()}" for future in made]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_17_{machine}"


def _compile(kernels: Path, name: str, flags: list[str], cache: str) -> str:
    """Put a compiled variant beside its source, unless it lies there; its file's name."""
    source = kernels / f"{name.partition('_')[0]}.c"
    # So that a file that was compiled from another version is known.
    checksum = zlib.crc32(source.read_bytes())
    target = kernels / f"{name}.so"
    if _is_compiled(target, checksum):
        return target.name
    # A running service keeps the file that it has loaded.
    made = target.with_suffix(f".{os.getpid()}.new")
    options = [*FLAGS, *flags, f"-DSOURCE={checksum}", "-o", made.name]
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    command = [sys.executable, "-m", "ziglang", "cc", source.name, *options]
    subprocess.run(command, cwd=kernels, env=environment, check=True)
    made.replace(target)
    return target.name


def _is_compiled(target: Path, checksum: int) -> bool:
    """Whether a file is there that was compiled from that source, after the flags and the compiler were chosen."""
    root = Path(__file__).parent
    chosen = max((root / name).stat().st_mtime for name in ("hatch_build.py", "pyproject.toml"))
    if not target.exists() or target.stat().st_mtime < chosen:
        return False
    try:
        return ctypes.c_int64.in_dll(ctypes.CDLL(str(target)), "source").value == checksum
    except (OSError, ValueError):
        return False
