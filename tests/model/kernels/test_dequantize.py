"""Bytes to floating-point numbers by the compiled kernel, against torch."""

from __future__ import annotations

import pytest
import torch

from model.kernels import dequantize
from model.kernels.openmp import use_threads
from model.kernels.quantization import QuantParams


def random_bytes(*shape: int) -> torch.Tensor:
    """[B, C, H, W], channels last."""
    values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return values.contiguous(memory_format=torch.channels_last)


def expected(values: torch.Tensor, params: QuantParams, dtype: torch.dtype) -> torch.Tensor:
    return ((values.int() - params.zero_point).float() * params.scale).to(dtype)


@pytest.mark.skipif(dequantize.kernel() is None, reason="there is no compiled kernel here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 96, 31, 44), (3, 16, 5, 7)])
@pytest.mark.parametrize("params", [QuantParams(0.0312377, 117), QuantParams(0.7, 0), QuantParams(1e-3, 255)])
def test_numbers_are_torchs(
    shape: tuple[int, ...], params: QuantParams, threads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    # Only the kernel.
    monkeypatch.delattr(torch, "sub")
    values = random_bytes(*shape)
    out = torch.empty_like(values, dtype=dtype)
    with use_threads(threads):
        dequantize.dequantize(values, params, out)
    assert torch.equal(out, expected(values, params, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 16, 4, 4)])
def test_so_they_are_without_the_kernel(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequantize, "kernel", lambda: None)
    values, params = random_bytes(*shape), QuantParams(0.0312377, 117)
    out = torch.empty_like(values, dtype=dtype)
    dequantize.dequantize(values, params, out)
    assert torch.equal(out, expected(values, params, dtype))


def test_only_the_part_of_a_table_is_written() -> None:
    values, params = random_bytes(1, 16, 4, 6), QuantParams(0.5, 3)
    table = torch.full((100, 16), -7.0)
    part = table[10:34].view(1, 4, 6, 16).permute(0, 3, 1, 2)
    dequantize.dequantize(values, params, part)
    assert torch.equal(part, expected(values, params, torch.float32))
    assert bool((table[:10] == -7).all())
    assert bool((table[34:] == -7).all())
