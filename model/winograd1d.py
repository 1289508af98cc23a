"""3×3 convolutions in bfloat16 with half the multiplications: Winograd's F(4, 3) down the columns, a direct convolution
along the rows (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015; here in one of the two axes).

Four rows of the result come of six sums of six rows of the input, each convolved with a 1×3 kernel of its own. In both
axes the method takes away more products, but it writes and rounds every number several times, which in bfloat16 costs
more than it saves. Points 3/4 and 3/2 in place of the usual 1 and 2 take a quarter off the error
(docs/engine.md), and all their powers that are needed are bfloat16 numbers.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from model import onednn
from model.winograd import REACH, SIDE, Winograd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

NEAR, FAR = 0.75, 1.5
POINTS = (0.0, NEAR, -NEAR, FAR, -FAR)  # and infinity: in this order sums, kernels and products are numbered
GEOMETRY: onednn.Geometry = [0, 1], [1, 1], [1, 1], 1  # of a 1×3 convolution
# Rows and columns of the input for which weights are laid out; for what that does is in `pays` of winograd.py.
PACKED_FOR = 24, 256


class Winograd1d(Winograd):
    """See Winograd."""

    def __init__(self, weight: Tensor, bias: Tensor, *, relu: bool) -> None:
        """weight: [K, C, 3, 3], bias: [K], both as precise as they are known."""
        super().__init__(len(bias), relu=relu)
        kernels = torch.einsum("na,kcab->nkcb", _from_taps(), weight.double())[:, :, :, None]
        self._kernels = [_packed(kernel.to(torch.bfloat16)) for kernel in kernels]
        # What the products of ±NEAR and ±FAR add to each of the four rows.
        self._parts = torch.tensor([[p**row for p in POINTS[1:]] for row in range(SIDE)]).to(torch.bfloat16)
        # A bias of b to all four rows: ±NEAR give it to the two in the middle, and something to the outer ones, which 0
        # and infinity complete.
        even, odd = 1 / NEAR**2, 1 / NEAR
        shares = [1 - even, (even + odd) / 2, (even - odd) / 2, None, None, 1 - NEAR**2]
        self._biases = [None if s is None else (bias.double() * s).to(torch.bfloat16) for s in shares]

    def _tile_row(self, width: int, channels: int) -> int:
        return REACH * width * channels

    def _band(self, x: Tensor, top: int, bottom: int, result: Tensor, *, add: bool) -> None:
        maps = _sums(x, top, -(-(bottom - top) // SIDE)).permute(0, 1, 4, 2, 3)
        middle = torch.stack([self._product(maps, n).permute(0, 2, 3, 1) for n in range(1, REACH - 1)])
        by_row = torch.mm(self._parts, middle.view(SIDE, -1)).view(middle.shape)
        rectified = self._relu and not add
        activation = "relu" if rectified else "none"
        for row, n in ((0, 0), (SIDE - 1, REACH - 1)):
            self._product(maps, n, onto=by_row[row].permute(0, 3, 1, 2), activation=activation)
        for row in range(SIDE):
            place = result[:, row::SIDE]
            made = by_row[row, :, : place.shape[1]]
            if add:
                place += made
            elif rectified and 0 < row < SIDE - 1:
                torch.clamp_min(made, 0, out=place)
            else:
                place.copy_(made)
        if self._relu and add:
            result.relu_()

    def _product(
        self, maps: Tensor, n: int, onto: Tensor | None = None, *, activation: str = "none"
    ) -> Tensor:
        """The n-th sum [B, C, H, W] of `maps` convolved with the n-th kernel, added to `onto` where that is given."""
        return onednn.convolution(
            maps[n], self._kernels[n], self._biases[n], GEOMETRY, activation=activation, onto=onto
        )


def _from_taps() -> Tensor:
    """[6, 3] float64: the kernels' columns from the three rows of a 3×3 kernel."""
    norms = [prod(p - q for q in POINTS if q != p) for p in POINTS]
    finite = [[p**tap / norm for tap in range(3)] for p, norm in zip(POINTS, norms, strict=True)]
    return torch.tensor([*finite, [0.0, 0.0, 1.0]], dtype=torch.float64)


def _packed(kernel: Tensor) -> Tensor:
    """A kernel [K, C, 1, 3] as oneDNN reads it."""
    shape = [1, int(kernel.shape[1]), *PACKED_FOR]
    return onednn.convolution_weight(kernel.contiguous(memory_format=torch.channels_last), GEOMETRY, shape)


def _sums(x: Tensor, top: int, tiles: int) -> Tensor:
    """[6, B, tiles, W, C]: of each tile of six rows of x [B, H, W, C], the first of which begins above row `top`."""
    d = _tiles(x, top, tiles)
    sums = x.new_empty((REACH, *d[0].shape))
    even, odd = x.new_empty((2, *d[0].shape))
    near, far = NEAR**2, FAR**2
    for n, first in ((0, 0), (REACH - 1, 1)):
        torch.sub(d[first + 4], d[first + 2], alpha=near + far, out=sums[n]).add_(d[first], alpha=near * far)
    for n, point, other in ((1, NEAR, far), (3, FAR, near)):
        torch.sub(d[4], d[2], alpha=other, out=even)
        torch.sub(d[3], d[1], alpha=other, out=odd)
        torch.add(even, odd, alpha=point, out=sums[n])
        torch.sub(even, odd, alpha=point, out=sums[n + 1])
    return sums


def _tiles(x: Tensor, top: int, tiles: int) -> Sequence[Tensor]:
    """The first, second … sixth row of each tile, [B, tiles, W, C] each: views of x, or at its edges of a copy."""
    height = x.shape[1]
    first, last = top - 1, top + SIDE * tiles + 1
    inside = x[:, max(first, 0) : min(last, height)]
    if first < 0 or last > height:
        above, rows = max(-first, 0), inside.shape[1]
        padded = x.new_empty((len(x), last - first, *x.shape[2:]))
        padded[:, :above].zero_()
        padded[:, above : above + rows] = inside
        padded[:, above + rows :].zero_()
        inside = padded
    return [inside[:, n : n + SIDE * tiles - SIDE + 1 : SIDE] for n in range(REACH)]
