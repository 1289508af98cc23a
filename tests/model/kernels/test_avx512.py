"""Winograd's variants for AVX-512 on any processor with AVX2: avx512/immintrin.h has their instructions in plain C.

They need the dependency group `kernels`, which has the compiler: docs/engine.md.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from model.kernels import winograd
from model.kernels.compiled import openmp_functions
from model.kernels.processor import has_avx2
from model.kernels.quantization import QuantParams
from model.kernels.winograd import Winograd, WinogradKernel

if TYPE_CHECKING:
    from torch import Tensor

MISSING = [name for name in ("hatchling", "ziglang") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"not installed (dependency group kernels): {', '.join(MISSING)}"
    ),
    pytest.mark.skipif(sys.platform != "linux" or not has_avx2(), reason="for Linux and AVX2 only"),
]
INSTRUCTIONS = Path(__file__).with_name("avx512")
SIZES = [(1, 32, 48, 13, 17), (2, 96, 64, 20, 21), (1, 256, 80, 30, 14), (1, 160, 16, 9, 9)]


def compiled(folder: Path, name: str) -> WinogradKernel:
    """A variant with the flags of the package's own build, but for the processor."""
    import hatch_build

    macros = [flag for flag in hatch_build.VARIANTS["x86_64"][f"winograd_{name}"] if flag.startswith("-D")]
    source, library = winograd.SOURCE, folder / f"{name}.so"
    own = [flag for flag in hatch_build.FLAGS if flag not in ("-nostdlib", "-ffreestanding", "-Werror")]
    command = [sys.executable, "-m", "ziglang", "cc", source, "-target", "x86_64-linux-gnu", *own, *macros]
    command += ["-mcpu=x86_64_v3", f"-I{INSTRUCTIONS}", f"-DSOURCE={zlib.crc32(source.read_bytes())}"]
    subprocess.run([*command, "-o", library, "-lm"], check=True)
    openmp = openmp_functions()
    assert openmp is not None
    return WinogradKernel.load(library, openmp)


def normal(seed: int, *shape: int) -> Tensor:
    """Numbers [B, C, H, W], channels last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def bytes_kernels(tmp_path_factory: pytest.TempPathFactory) -> tuple[WinogradKernel, WinogradKernel]:
    """With AVX2's own instructions, and with AVX512-VNNI's."""
    openmp = openmp_functions()
    assert openmp is not None
    own = WinogradKernel.load(winograd.SOURCE.with_name("winograd_bytes_avx2.so"), openmp)
    return own, compiled(tmp_path_factory.mktemp("bytes"), "bytes_avx512")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_residual", [False, True])
def test_bytes_are_those_of_avx2(
    size: tuple[int, ...], has_residual: bool, bytes_kernels: tuple[WinogradKernel, WinogradKernel]
) -> None:
    batch, inputs, outputs, height, width = size
    x, residual = (
        normal(seed, batch, channels, height, width).mul(60).add(128).clamp(0, 255).to(torch.uint8)
        for seed, channels in enumerate((inputs, outputs))
    )
    weight, bias = normal(2, outputs, inputs, 3, 3) / (9 * inputs) ** 0.5, torch.linspace(-1, 1, outputs)
    found = []
    for kernel in bytes_kernels:
        convolve = Winograd(
            weight, bias, kernel, torch.uint8, relu=has_residual, output_params=QuantParams(0.03, 120)
        )
        x_params, more = QuantParams(0.01, 117), QuantParams(0.02, 3)
        place = residual.clone(memory_format=torch.preserve_format) if has_residual else None
        found.append(convolve(x, place, x_params=x_params, residual_params=more))
    assert torch.equal(*found)
    assert found[0].float().std() > 20


@pytest.fixture(scope="module")
def kernels_of_floats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WinogradKernel]:
    folder = tmp_path_factory.mktemp("floats")
    return {name: compiled(folder, name) for name in ("float32_avx512", "bfloat16_avx512")}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [("float32_avx512", torch.float32, 2e-6), ("bfloat16_avx512", torch.bfloat16, 0.012)],
)
def test_floats_are_torchs(
    name: str,
    dtype: torch.dtype,
    bound: float,
    size: tuple[int, ...],
    kernels_of_floats: dict[str, WinogradKernel],
) -> None:
    batch, inputs, outputs, height, width = size
    x, weight = normal(0, batch, inputs, height, width).to(dtype), normal(1, outputs, inputs, 3, 3)
    weight /= (9 * inputs) ** 0.5
    exact = functional.conv2d(x.double(), weight.double(), padding=1)
    found = Winograd(weight, torch.zeros(outputs), kernels_of_floats[name], dtype, relu=False)(x)
    assert (found - exact).std() < bound * exact.std()
