"""torch's bilinear resize on the CPU at single pixels, to the last bit: what decides a mask's doubtful pixels.

`torch.nn.functional.interpolate` writes whole images; here any handful of its pixels costs only itself.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Indices = NDArray[np.int64]
    Interpolate = Callable[["Floats", "Pixels", "Rounding"], "Floats"]

# ATen takes its channels-last kernel up to this height + width, the separable one above (UpSampleKernel.cpp).
WEIGHTED_SUM_LIMIT = 128
# Pixels; pycocotools fills polygons on a grid of fifths of a pixel.
CLEARANCE = 0.15


class Pixels(NamedTuple):
    """Pixels of resized grids, [K] each."""

    # Number of the grid.
    grid: Indices
    # Of the grid resized.
    height: Indices
    width: Indices
    # Of the pixel in it.
    row: Indices
    column: Indices


class Rounding(NamedTuple):
    """Which products this build of torch, on this processor, adds without rounding them first.

    Compilers fuse as they like: one and the same wheel (2.14.1, x86-64) rounds differently with FMA and without.
    """

    # scale * (pixel + 0.5) - 0.5.
    position: Literal["plain", "fused"]
    # a * b + c * d: the product that is not rounded.
    sum: Literal["plain", "left", "right"]


def values(grids: Floats, pixels: Pixels) -> Floats:
    """The pixels, [K] float32, as `interpolate(..., mode="bilinear", align_corners=False)` computes them.

    grids: [N, S, S]. Raises RuntimeError where `rounding_is_known()` is false.
    """
    weighted = pixels.height + pixels.width <= WEIGHTED_SUM_LIMIT
    result = np.empty(len(weighted), dtype=np.float32)
    for kernel, chosen in (
        (_weighted_sum, np.flatnonzero(weighted)),
        (_separable, np.flatnonzero(~weighted)),
    ):
        if len(chosen):
            rounding = _rounding(kernel)
            if rounding is None:
                raise RuntimeError("torch rounds bilinear interpolation here in a way that is not known")
            # A grid that is not finite gives what it gives.
            with np.errstate(invalid="ignore", over="ignore"):
                result[chosen] = kernel(grids, Pixels(*(axis[chosen] for axis in pixels)), rounding)
    return result


def sample(grids: Floats, grid: Indices, y: Doubles, x: Doubles) -> Doubles:
    """The grids' values [K] at any places; beyond the first and the last sample these go on.

    Args:
        grids: [N, S, S].
        grid: [K] number of the grid.
        y: [K] in samples.
        x: [K] in samples.
    """
    last = grids.shape[-1] - 1
    x = np.clip(x, 0, last)
    left = np.minimum(x.astype(np.int64), last - 1)
    return _down_the_column(grids, grid, left, x - left, np.clip(y, 0, last))


def crossings(
    grids: Floats, threshold: np.float32, grid: Indices, x: Doubles, rows: tuple[Doubles, Doubles]
) -> Doubles:
    """How far below a pixel's centre its column crosses the threshold on the way to the next pixel's: [K], 0 to 1.

    Nearly, not to the last bit, and never close to either pixel, which a polygon through it must not touch.

    Args:
        grids: [N, S, S].
        threshold: what is crossed.
        grid: [K] number of the grid.
        x: [K] the columns' places, in samples.
        rows: [K] each, both pixels' centres, in samples.
    """
    upper, lower = (sample(grids, grid, y, x) for y in rows)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = (threshold - upper) / (lower - upper)
    return np.clip(np.where(np.isfinite(share), share, 0.5), CLEARANCE, 1 - CLEARANCE)


def _down_the_column(grids: Floats, grid: Indices, left: Indices, x: Doubles, y: Doubles) -> Doubles:
    top = np.minimum(y.astype(np.int64), grids.shape[-1] - 2)
    y = y - top
    rows = grids.reshape(-1)
    at = (grid * grids.shape[-1] + top) * grids.shape[-1] + left
    upper = rows[at] * (1 - x) + rows[at + 1] * x
    at += grids.shape[-1]
    lower = rows[at] * (1 - x) + rows[at + 1] * x
    value: Doubles = upper * (1 - y) + lower * y
    return value


def rounding_is_known() -> bool:
    """Whether `values` can be had here; tried against torch itself once a process, which takes some 20 ms."""
    return _rounding(_weighted_sum) is not None and _rounding(_separable) is not None


@cache
def _rounding(kernel: Interpolate) -> Rounding | None:
    """The one way of rounding that gives torch's own bits from noise; None where none of them does."""
    noise = np.random.default_rng(0).random((1, 30, 30), dtype=np.float32)
    small, large = (
        [(41, 53), (30, 71), (23, 30), (1, 97), (90, 1)],
        [(61, 83), (30, 131), (131, 30), (1, 190)],
    )
    sizes = small if kernel is _weighted_sum else large
    candidates = [
        Rounding(position, total) for position in ("plain", "fused") for total in ("plain", "left", "right")
    ]
    for height, width in sizes:
        resized = functional.interpolate(
            torch.from_numpy(noise)[None], size=(height, width), mode="bilinear", align_corners=False
        ).numpy()
        row, column = (axis.reshape(-1) for axis in np.indices((height, width)))
        pixels = Pixels(np.zeros_like(row), np.full_like(row, height), np.full_like(row, width), row, column)
        candidates = [
            way for way in candidates if np.array_equal(kernel(noise, pixels, way), resized.reshape(-1))
        ]
    return candidates[0] if len(candidates) == 1 else None


def _weighted_sum(grids: Floats, pixels: Pixels, rounding: Rounding) -> Floats:
    """Four samples, each times the product of its row's and its column's weight."""
    side = grids.shape[-1]
    top, bottom, of_top, of_bottom = _neighbours(side, pixels.height, pixels.row, rounding)
    left, right, of_left, of_right = _neighbours(side, pixels.width, pixels.column, rounding)
    total = _sum(
        of_top * of_left,
        grids[pixels.grid, top, left],
        of_top * of_right,
        grids[pixels.grid, top, right],
        rounding,
    )
    for weight, sample in (
        (of_bottom * of_left, grids[pixels.grid, bottom, left]),
        (of_bottom * of_right, grids[pixels.grid, bottom, right]),
    ):
        total = total + weight * sample if rounding.sum == "plain" else _fma(weight, sample, total)
    return total


def _separable(grids: Floats, pixels: Pixels, rounding: Rounding) -> Floats:
    """First along two rows of samples, then between the two."""
    side = grids.shape[-1]
    top, bottom, of_top, of_bottom = _neighbours(side, pixels.height, pixels.row, rounding)
    left, right, of_left, of_right = _neighbours(side, pixels.width, pixels.column, rounding)
    upper, lower = (
        _sum(of_left, grids[pixels.grid, y, left], of_right, grids[pixels.grid, y, right], rounding)
        for y in (top, bottom)
    )
    return _sum(of_top, upper, of_bottom, lower, rounding)


def _neighbours(
    side: int, size: Indices, pixel: Indices, rounding: Rounding
) -> tuple[Indices, Indices, Floats, Floats]:
    """The two samples that a pixel lies between on one axis, and their weights."""
    half = np.float32(0.5)
    scale = np.float32(side) / size.astype(np.float32)
    centre = pixel.astype(np.float32) + half
    fused = rounding.position == "fused"
    position = _fma(scale, centre, np.full_like(scale, -half)) if fused else scale * centre - half
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.int64), side - 1)
    second = np.minimum(first + 1, side - 1)
    weight = np.minimum(position - first.astype(np.float32), np.float32(1))
    # ATen copies an axis that keeps its size.
    copied = size == side
    first, second = np.where(copied, pixel, first), np.where(copied, pixel, second)
    weight[copied] = 0
    return first, second, np.float32(1) - weight, weight


def _sum(a: Floats, b: Floats, c: Floats, d: Floats, rounding: Rounding) -> Floats:
    """The sum a * b + c * d."""
    if rounding.sum == "left":
        return _fma(a, b, c * d)
    if rounding.sum == "right":
        return _fma(c, d, a * b)
    return a * b + c * d


def _fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """The sum a * b + c, rounded once, as a fused multiply-add does.

    In float64 the product is exact. The sum is rounded to odd (Boldo and Melquiond, 2008), so that rounding it
    once more, to float32, gives what rounding the exact sum would.
    """
    product, term = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + term
    virtual = total - product
    error = (product - (total - virtual)) + (term - virtual)
    inexact = np.flatnonzero((error != 0) & (total.view(np.int64) & 1 == 0))
    total[inexact] = np.nextafter(total[inexact], np.copysign(np.inf, error[inexact]))
    return total.astype(np.float32)
