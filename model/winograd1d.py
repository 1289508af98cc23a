"""3×3 convolutions in bfloat16 with about half the multiplications: Winograd's F(4, 3), F(5, 3) or F(6, 3) down the
columns, a direct convolution along the rows (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015;
here in one of the two axes).

Four rows of the result come of six sums of six rows of the input, each convolved with a 1×3 kernel of its own; five
come of seven, six of eight. In both axes the method takes away more products, but it writes and rounds every number
several times, which in bfloat16 costs more than it saves.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from model import onednn
from model.winograd import Winograd

if TYPE_CHECKING:
    from torch import Tensor

# Where the polynomials are evaluated, besides at infinity, by the rows of a tile: of the sets whose sums need no other
# numbers than bfloat16 has, those with the least error (docs/engine.md).
POINTS = {
    4: (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2),
    5: (0, 1, -1, 2, -2, 3 / 8),
    6: (0, 1 / 2, -1 / 2, 1, -1, 2, -2),
}
GEOMETRY: onednn.Geometry = [0, 1], [1, 1], [1, 1], 1  # of a 1×3 convolution
# Rows and columns of the input for which weights are laid out; for what that does is in `pays` of winograd.py.
PACKED_FOR = 24, 256


@cache
def transforms(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sums' matrix [side + 2, side + 2], the kernels' [side + 2, 3] and the result's [side, side + 2], float64.

    Toom and Cook: a polynomial product from its values at the points (Lavin and Gray, section 4, who name them Bᵀ, G
    and Aᵀ). The points in the order of POINTS, then infinity.
    """
    points = np.array(POINTS[side])
    others = [np.delete(points, n) for n in range(len(points))]
    # The coefficients of the product of (x - q) over the other points q, that of the lowest power first.
    before = np.array([*(np.append(np.poly(q)[::-1], 0) for q in others), np.poly(points)[::-1]])
    norms = np.array([np.prod(p - q) for p, q in zip(points, others, strict=True)])
    infinity = np.eye(side + 2)[-1]
    taps = np.vstack([np.vander(points, 3, increasing=True) / norms[:, None], infinity[-3:]])
    after = np.vstack([np.vander(points, side, increasing=True), infinity[-side:]]).T
    return before, taps, after


def side_for(height: int) -> int:
    """The rows of a tile for maps of so many rows: those that take the fewest products, of equals the fewest rows."""
    return min(POINTS, key=lambda side: -(-height // side) * (side + 2))


class Winograd1d(Winograd):
    """See Winograd."""

    def __init__(self, weight: Tensor, bias: Tensor, *, relu: bool, side: int = 4) -> None:
        """weight: [K, C, 3, 3], bias: [K], both as precise as they are known. side: rows of a tile, 4, 5 or 6."""
        super().__init__(len(bias), side, relu=relu)
        before, taps, after = (torch.from_numpy(matrix) for matrix in transforms(side))
        kernels = torch.einsum("na,kcab->nkcb", taps, weight.double())[:, :, :, None]
        self._kernels = [_packed(kernel.to(torch.bfloat16)) for kernel in kernels]
        self._before, self._after = before.to(torch.bfloat16), after.to(torch.bfloat16)
        # Shares of the products in the bias, of which every row gets a whole one.
        shares = torch.linalg.pinv(after).sum(1)
        self._biases = (shares[:, None] * bias.double()).to(torch.bfloat16)

    def _tile_row(self, width: int, channels: int) -> int:
        return self._reach * width * channels

    def _band(self, x: Tensor, top: int, bottom: int, result: Tensor, *, add: bool) -> None:
        maps = self._sums(x, top, bottom).permute(0, 1, 4, 2, 3)
        products = torch.stack(
            [
                onednn.convolution(m, kernel, bias, GEOMETRY).permute(0, 2, 3, 1)
                for m, kernel, bias in zip(maps, self._kernels, self._biases, strict=True)
            ]
        )
        by_row = torch.mm(self._after, products.view(self._reach, -1)).view(-1, *products.shape[1:])
        for row, tiles in enumerate(by_row):
            place = result[:, row :: self._side]
            made = tiles[:, : place.shape[1]]
            if add:
                place += made
            elif self._relu:
                torch.clamp_min(made, 0, out=place)
            else:
                place.copy_(made)
        if self._relu and add:
            result.relu_()

    def _sums(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """[reach, B, tiles, W, C]: of each tile of `reach` rows of x [B, H, W, C], the first of which begins above row
        `top`. Rows that there are not are zeros.
        """
        batch, height, width, channels = x.shape
        tiles = -(-(bottom - top) // self._side)
        rows = x.flatten(2)
        sums = x.new_empty((self._reach, batch, tiles, width * channels))
        # The tiles of one image that are whole are transformed at once, all others one by one: those at an edge by
        # fewer of the matrix' columns, so that nothing is copied to put zeros around it.
        inner = range(0)
        if batch == 1:
            first = 1 if top == 0 else 0
            inner = range(first, max(first, min(tiles, (height - top - 1) // self._side)))
        if inner:
            start = top + self._side * inner.start - 1
            whole = rows[0, start:].unfold(0, self._reach, self._side)[: len(inner)].transpose(1, 2)
            self._transform(whole, 0, sums[:, 0, inner.start : inner.stop])
        for tile in (n for n in range(tiles) if n not in inner):
            start = top + self._side * tile - 1
            missing = max(0, -start)
            self._transform(rows[:, start + missing : start + self._reach], missing, sums[:, :, tile])
        return sums.view(self._reach, batch, tiles, width, channels)

    def _transform(self, rows: Tensor, missing: int, out: Tensor) -> None:
        """Put into `out` [reach, N, W * C] the sums of N tiles, of each of which `rows` [N, n, W * C] has all but the
        first `missing`, and those that follow the n.
        """
        matrix = self._before[:, missing : missing + rows.shape[1]]
        torch.bmm(matrix.expand(len(rows), -1, -1), rows, out=out.transpose(0, 1))


def _packed(kernel: Tensor) -> Tensor:
    """A kernel [K, C, 1, 3] as oneDNN reads it."""
    shape = [1, int(kernel.shape[1]), *PACKED_FOR]
    return onednn.convolution_weight(kernel.contiguous(memory_format=torch.channels_last), GEOMETRY, shape)
