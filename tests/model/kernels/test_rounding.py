"""Bytes to floating-point numbers and back by the compiled kernel, against torch."""

from __future__ import annotations

import pytest
import torch

from model.kernels import rounding
from model.kernels.openmp import use_threads
from model.kernels.quantization import QuantParams


def random_bytes(*shape: int) -> torch.Tensor:
    """[B, C, H, W], channels last."""
    values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return values.contiguous(memory_format=torch.channels_last)


def expected(values: torch.Tensor, params: QuantParams, dtype: torch.dtype) -> torch.Tensor:
    return ((values.int() - params.zero_point).float() * params.scale).to(dtype)


@pytest.mark.skipif(rounding.kernel() is None, reason="there is no compiled kernel here")
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
        rounding.dequantize(values, params, out)
    assert torch.equal(out, expected(values, params, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 16, 4, 4)])
def test_so_they_are_without_the_kernel(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "kernel", lambda: None)
    values, params = random_bytes(*shape), QuantParams(0.0312377, 117)
    out = torch.empty_like(values, dtype=dtype)
    rounding.dequantize(values, params, out)
    assert torch.equal(out, expected(values, params, dtype))


def test_only_the_part_of_a_table_is_written() -> None:
    values, params = random_bytes(1, 16, 4, 6), QuantParams(0.5, 3)
    table = torch.full((100, 16), -7.0)
    part = table[10:34].view(1, 4, 6, 16).permute(0, 3, 1, 2)
    rounding.dequantize(values, params, part)
    assert torch.equal(part, expected(values, params, torch.float32))
    assert bool((table[:10] == -7).all())
    assert bool((table[34:] == -7).all())


def test_other_places_are_refused() -> None:
    values = random_bytes(1, 8, 2, 2)
    for out in (torch.empty(1, 8, 2, 3), torch.empty(1, 8, 2, 2, dtype=torch.float64)):
        with pytest.raises(ValueError, match="not a place for these values"):
            rounding.dequantize(values, QuantParams(1.0, 0), out)


def numbers(*shape: int) -> torch.Tensor:
    """Within the range of the parameters below and beyond it, infinities, and some in the middle of two steps."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 20
    x.flatten()[::5] = (torch.arange(len(x.flatten()[::5])) % 300 - 150.5) / 4
    x.flatten()[:3] = torch.tensor([torch.inf, -torch.inf, 1e30])[: x.numel()]
    return x


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(8,), (1000, 1256), (3, 5), (2, 16, 9, 11), (0, 8)])
@pytest.mark.parametrize("params", [QuantParams(0.25, 117), QuantParams(0.0312377, 0), QuantParams(0.5, 255)])
def test_bytes_are_the_nearest(
    shape: tuple[int, ...], params: QuantParams, threads: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    if compiled and rounding.kernel() is None:
        pytest.skip("there is no compiled kernel here")
    if not compiled:
        monkeypatch.setattr(rounding, "kernel", lambda: None)
    x = numbers(*shape)
    nearest = ((x / params.scale).round() + params.zero_point).clamp(0, 255).to(torch.uint8)
    with use_threads(threads):
        assert torch.equal(rounding.quantize(x, params), nearest)


@pytest.mark.skipif(rounding.kernel() is None, reason="there is no compiled kernel here")
def test_bytes_lie_as_the_numbers_do_and_the_kernel_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    params = QuantParams(0.25, 117)
    x = numbers(2, 16, 9, 11).contiguous(memory_format=torch.channels_last)
    with_gaps = numbers(2, 16, 9, 22)[..., ::2]
    expected = [rounding.quantize(y.contiguous(), params) for y in (x, with_gaps)]
    assert torch.equal(rounding.quantize(with_gaps, params), expected[1])
    monkeypatch.setattr(torch.Tensor, "div", None)
    found = rounding.quantize(x, params)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, expected[0])


def test_only_float32_becomes_bytes() -> None:
    with pytest.raises(ValueError, match="only float32 becomes bytes"):
        rounding.quantize(torch.zeros(8, dtype=torch.float64), QuantParams(1.0, 0))
