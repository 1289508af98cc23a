"""Winograd's convolutions against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from model import winograd
from model.winograd import Winograd, bands, pays
from model.winograd1d import POINTS, Winograd1d, side_for, transforms
from model.winograd2d import Winograd2d

# What computes it: in which numbers, rows of a tile, and by how much a single result near 1 may be off.
KINDS = [
    pytest.param(torch.float32, 4, 1e-5, id="float32"),
    pytest.param(torch.bfloat16, 4, 0.06, id="bfloat16, four rows"),
    pytest.param(torch.bfloat16, 5, 0.1, id="bfloat16, five rows"),
    pytest.param(torch.bfloat16, 6, 0.12, id="bfloat16, six rows"),
]


def problem(batch: int, height: int, width: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(batch + 10 * height + 100 * width)
    x = torch.randn(batch, inputs, height, width).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5), torch.randn(outputs)


def made(weight: Tensor, bias: Tensor, dtype: torch.dtype, side: int, *, relu: bool) -> Winograd:
    if dtype == torch.float32:
        return Winograd2d(weight, bias, relu=relu)
    return Winograd1d(weight, bias, relu=relu, side=side)


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
        for side, close in ((4, 0.15), (5, 0.25), (6, 0.3)):  # the mean is held to below
            half = Winograd1d(weight, bias, relu=relu, side=side)(x.bfloat16())
            torch.testing.assert_close(half.float(), expected, atol=close, rtol=0.06)


@pytest.mark.parametrize("side", POINTS)
def test_sums_kernels_and_products_make_a_convolution(side: int) -> None:
    before, taps, after = transforms(side)
    made_of = np.einsum(
        "rn,nk,ni->rki", after, taps, before
    )  # row r of the result: tap k times row i of the input
    row, tap, read = np.indices(made_of.shape)
    np.testing.assert_allclose(made_of, read == row + tap, atol=1e-12)
    for matrix in (torch.from_numpy(before), torch.from_numpy(after)):
        assert torch.equal(matrix.bfloat16().double(), matrix)


@pytest.mark.parametrize(("dtype", "side", "close"), KINDS)
@pytest.mark.parametrize("size", [1, 3_000, 30_000])
def test_bands_of_any_size_give_the_same_answer(
    dtype: torch.dtype, side: int, close: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = problem(5, 19, 14, 8, 8)
    product = made(weight, bias, dtype, side, relu=True)
    whole = product(x.to(dtype))
    assert len(list(product._bands(x.to(dtype)))) == 1
    monkeypatch.setattr(winograd, "BAND_BYTES", size)
    assert len(list(product._bands(x.to(dtype)))) > 1
    torch.testing.assert_close(product(x.to(dtype)), whole, atol=close / 3, rtol=0.01)


@pytest.mark.parametrize(("dtype", "side", "close"), KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_maps_that_lie_in_memory_with_gaps(dtype: torch.dtype, side: int, close: float, batch: int) -> None:
    x, weight, bias = problem(batch, 38, 28, 8, 8)
    x = x.to(dtype)[:, :, ::2, ::2]  # as P6 is made of P5
    product = made(weight, bias, dtype, side, relu=False)
    dense = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(product(x), product(dense), atol=close / 3, rtol=0.01)


@pytest.mark.parametrize(("dtype", "side", "close"), KINDS)
@pytest.mark.parametrize("size", [1, 3_000, 1 << 20])
def test_another_convolution_behind_it_band_by_band(
    dtype: torch.dtype, side: int, close: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = problem(2, 19, 14, 8, 8)
    x, behind = x.to(dtype), torch.randn(5, 8, 1, 1).to(dtype) / 8**0.5
    product = made(weight, bias, dtype, side, relu=True)
    monkeypatch.setattr(winograd, "BAND_BYTES", size)
    seen = []

    def pointwise(band: Tensor) -> Tensor:
        seen.append(band.shape[0] * band.shape[2])
        return functional.conv2d(band, behind)

    found = product.through(x, pointwise, 5)
    assert sum(seen) == 2 * 19
    assert (len(seen) > 1) == (size < 1 << 20)
    torch.testing.assert_close(found, functional.conv2d(product(x), behind), atol=close / 3, rtol=0.01)


@pytest.mark.parametrize(
    ("batch", "height", "tile_row", "side"),
    [(1, 200, 835_584, 4), (3, 50, 2_000_000, 4), (20, 14, 43_008, 4), (1, 200, 1_114_112, 6)],
)
def test_bands_cover_everything_once_and_are_of_nearly_one_size(
    batch: int, height: int, tile_row: int, side: int
) -> None:
    seen = torch.zeros(batch, height, dtype=torch.int64)
    sizes = []
    for images, top, bottom in bands(batch, height, tile_row, side):
        assert top % side == 0
        seen[images, top:bottom] += 1
        tiles = -(-(bottom - top) // side) * len(seen[images])
        assert tiles * tile_row <= winograd.BAND_BYTES
        sizes.append(tiles)
    assert (seen == 1).all()
    assert batch > 1 or max(sizes) - min(sizes) <= len(sizes)


@pytest.mark.parametrize(("dtype", "side", "close"), KINDS)
def test_sum_and_place(dtype: torch.dtype, side: int, close: float) -> None:
    x, weight, bias = problem(2, 12, 10, 8, 6)
    exact = functional.conv2d(x, weight, bias, padding=1)
    onto = torch.randn(exact.shape).contiguous(memory_format=torch.channels_last)
    expected = (exact + onto).relu()
    product = made(weight, bias, dtype, side, relu=True)
    x, onto = x.to(dtype), onto.to(dtype)
    out = torch.empty_like(onto)
    assert product(x, out=out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out.float(), exact.relu(), atol=close, rtol=close)
    torch.testing.assert_close(product(x, onto).float(), expected, atol=close, rtol=close)
    with pytest.raises(ValueError, match="not both"):
        product(x, onto, out)


@pytest.mark.parametrize(
    ("dtype", "side", "bound"),
    [
        (torch.float32, 4, 3e-6),
        (torch.bfloat16, 4, 7e-3),
        (torch.bfloat16, 5, 1.1e-2),
        (torch.bfloat16, 6, 1.3e-2),
    ],
)
def test_error_is_of_the_order_of_a_direct_convolutions(dtype: torch.dtype, side: int, bound: float) -> None:
    x, weight, bias = problem(1, 32, 32, 256, 64)
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1).float()
    assert relative(made(weight, bias, dtype, side, relu=False)(x.to(dtype)), exact) < bound


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
        ((1, 256, 17, 200), 256, torch.bfloat16, False, True),
        ((1, 256, 3, 1000), 256, torch.bfloat16, False, False),  # six products for three rows
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


@pytest.mark.parametrize(
    ("height", "expected"),
    [(200, 6), (100, 6), (50, 5), (25, 5), (14, 5), (8, 4), (7, 4), (6, 6), (5, 5), (1, 4)],
)
def test_rows_of_a_tile_are_those_that_multiply_least(height: int, expected: int) -> None:
    assert side_for(height) == expected
