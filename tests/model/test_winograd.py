"""Winograd's convolutions against torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from model import winograd
from model.winograd import Winograd, bands, pays
from model.winograd1d import Winograd1d
from model.winograd2d import Winograd2d


def problem(batch: int, height: int, width: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(batch + 10 * height + 100 * width)
    x = torch.randn(batch, inputs, height, width).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5), torch.randn(outputs)


def made(weight: Tensor, bias: Tensor, dtype: torch.dtype, *, relu: bool) -> Winograd:
    return (Winograd2d if dtype == torch.float32 else Winograd1d)(weight, bias, relu=relu)


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).std() / exact.std().clamp(min=1e-3))


SIZES = st.integers(1, 23)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), SIZES, SIZES, st.sampled_from([1, 3, 16]), st.sampled_from([1, 5, 16]))
def test_any_size_equals_torch(batch: int, height: int, width: int, inputs: int, outputs: int) -> None:
    x, weight, bias = problem(batch, height, width, inputs, outputs)
    exact = functional.conv2d(x, weight, bias, padding=1)
    for relu in (False, True):
        expected = exact.relu() if relu else exact
        torch.testing.assert_close(Winograd2d(weight, bias, relu=relu)(x), expected, atol=1e-4, rtol=1e-4)
        half = Winograd1d(weight, bias, relu=relu)(x.bfloat16())
        torch.testing.assert_close(half.float(), expected, atol=0.15, rtol=0.06)  # the mean is held to below


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3_000, 30_000])
def test_bands_of_any_size_give_the_same_answer(
    dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = problem(5, 19, 14, 8, 8)
    product = made(weight, bias, dtype, relu=True)
    whole = product(x.to(dtype))
    tile_row = product._tile_row(14, 8) * x.to(dtype).element_size()
    assert len(list(bands(5, 19, tile_row))) == 1
    monkeypatch.setattr(winograd, "BAND_BYTES", size)
    assert len(list(bands(5, 19, tile_row))) > 1
    torch.testing.assert_close(
        product(x.to(dtype)), whole, atol=0.02 if dtype == torch.bfloat16 else 1e-5, rtol=0.01
    )


@pytest.mark.parametrize(
    ("batch", "height", "tile_row"), [(1, 200, 835_584), (3, 50, 2_000_000), (20, 14, 43_008)]
)
def test_bands_cover_everything_once_and_are_of_nearly_one_size(
    batch: int, height: int, tile_row: int
) -> None:
    seen = torch.zeros(batch, height, dtype=torch.int64)
    sizes = []
    for images, top, bottom in bands(batch, height, tile_row):
        assert top % winograd.SIDE == 0
        seen[images, top:bottom] += 1
        tiles = -(-(bottom - top) // winograd.SIDE) * len(seen[images])
        assert tiles * tile_row <= winograd.BAND_BYTES
        sizes.append(tiles)
    assert (seen == 1).all()
    assert batch > 1 or max(sizes) - min(sizes) <= len(sizes)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_sum_and_place(dtype: torch.dtype, close: float) -> None:
    x, weight, bias = problem(2, 12, 10, 8, 6)
    exact = functional.conv2d(x, weight, bias, padding=1)
    onto = torch.randn(exact.shape).contiguous(memory_format=torch.channels_last)
    expected = (exact + onto).relu()
    product = made(weight, bias, dtype, relu=True)
    x, onto = x.to(dtype), onto.to(dtype)
    out = torch.empty_like(onto)
    assert product(x, out=out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out.float(), exact.relu(), atol=close, rtol=close)
    torch.testing.assert_close(product(x, onto).float(), expected, atol=close, rtol=close)
    with pytest.raises(ValueError, match="not both"):
        product(x, onto, out)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 8e-3)])
def test_error_is_of_the_order_of_a_direct_convolutions(dtype: torch.dtype, bound: float) -> None:
    x, weight, bias = problem(1, 32, 32, 256, 64)
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1).float()
    assert relative(made(weight, bias, dtype, relu=False)(x.to(dtype)), exact) < bound


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype", "amx", "expected"),
    [
        ((1, 256, 200, 272), 256, torch.float32, False, True),
        ((1, 256, 200, 272), 256, torch.float32, True, True),
        ((1, 256, 200, 272), 256, torch.bfloat16, False, True),
        ((1, 256, 200, 272), 256, torch.bfloat16, True, False),
        ((1, 128, 48, 64), 128, torch.bfloat16, False, True),
        (
            (1, 128, 24, 32),
            128,
            torch.bfloat16,
            False,
            False,
        ),  # so little that the sums' overhead outweighs it
        ((20, 256, 14, 14), 256, torch.bfloat16, False, True),
        ((1, 256, 14, 14), 256, torch.bfloat16, False, True),  # as if there were more
        ((1, 96, 96, 128), 96, torch.bfloat16, False, False),
        ((1, 192, 96, 128), 192, torch.bfloat16, False, False),  # several layouts of the weights
        ((1, 64, 200, 272), 64, torch.bfloat16, False, False),
        ((1, 256, 200, 272), 64, torch.bfloat16, False, False),
        ((1, 64, 200, 272), 256, torch.float32, False, False),
        ((1, 256, 200, 272), 64, torch.float32, False, False),
        ((1, 256, 3, 4), 256, torch.float32, False, False),
        ((1000, 256, 7, 7), 256, torch.bfloat16, False, True),
        ((1, 256, 53, 200), 256, torch.bfloat16, False, True),  # 3 of 56 rows hang over
        ((1, 256, 17, 200), 256, torch.bfloat16, False, False),  # 3 of 20
        ((1000, 256, 7, 7), 256, torch.float32, False, True),
    ],
)
def test_rule_that_says_where_it_pays(
    shape: tuple[int, ...],
    outputs: int,
    dtype: torch.dtype,
    *,
    amx: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert pays(torch.empty(shape, dtype=dtype, device="meta"), outputs) is expected
