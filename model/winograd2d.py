"""3×3 convolutions in float32 with a quarter of the multiplications: Winograd's F(4×4, 3×3) as sums of shifted views,
one batched matrix product, and sums again. In bfloat16 its errors would be too large; winograd1d.py is for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.winograd import Winograd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SIDE, REACH = 4, 6  # in an axis: so many outputs of a tile, of so many inputs
# How the 3 weights of an axis become the weights of 6 products.
FROM_TAPS = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]


class Winograd2d(Winograd):
    """See Winograd."""

    def __init__(self, weight: Tensor, bias: Tensor, *, relu: bool) -> None:
        """weight: [K, C, 3, 3], bias: [K], both as precise as they are known."""
        super().__init__(len(bias), SIDE, relu=relu)
        matrix = torch.tensor(FROM_TAPS, dtype=torch.float64)
        spread = torch.einsum("ia,kcab,jb->ijck", matrix, weight.double(), matrix)
        self._weight = spread.flatten(0, 1).float().contiguous()  # [36, C, K]
        self._bias = bias.float()

    def _tile_row(self, width: int, channels: int) -> int:
        return REACH**2 * -(-width // SIDE) * channels

    def _band(self, x: Tensor, top: int, bottom: int, result: Tensor, *, add: bool) -> None:
        sums = self._convolved(x, top, bottom)
        if add:
            result += sums
            result += self._bias
        else:
            torch.add(sums, self._bias, out=result)
        if self._relu:
            result.relu_()

    def _convolved(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top … bottom - 1 of the convolution of x [B, H, W, C], without bias."""
        (batch, height, width, channels), deep = x.shape, self._weight.shape[2]
        down, across = -(-(bottom - top) // SIDE), -(-width // SIDE)
        padded = x.new_zeros((batch, down * SIDE + 2, across * SIDE + 2, channels))
        first, last = max(top - 1, 0), min(top + down * SIDE + 1, height)
        padded[:, first - top + 1 : last - top + 1, 1 : width + 1] = x[:, first:last]
        halfway = x.new_empty((REACH, batch, down, padded.shape[2], channels))
        _before([padded[:, n : n + SIDE * down - SIDE + 1 : SIDE] for n in range(REACH)], halfway.unbind(0))
        spread = x.new_empty((REACH, REACH, batch, down, across, channels))
        columns = [halfway[:, :, :, n : n + SIDE * across - SIDE + 1 : SIDE] for n in range(REACH)]
        _before(columns, spread.unbind(1))
        products = torch.bmm(spread.view(REACH * REACH, -1, channels), self._weight)
        products = products.view(REACH, REACH, batch, down, across, deep)
        halfway = x.new_empty((SIDE, REACH, batch, down, across, deep))
        _after(products.unbind(0), halfway.unbind(0))
        sums = x.new_empty((batch, down, SIDE, across, SIDE, deep))
        _after(halfway.unbind(1), list(sums.permute(4, 2, 0, 1, 3, 5).unbind(0)))
        return sums.view(batch, down * SIDE, across * SIDE, deep)[:, : bottom - top, :width]


def _before(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    torch.add(d[4], d[2], alpha=-5, out=out[0]).add_(d[0], alpha=4)
    even, odd = torch.add(d[4], d[2], alpha=-4), torch.add(d[3], d[1], alpha=-4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.add(d[5], d[3], alpha=-5, out=out[5]).add_(d[1], alpha=4)


def _after(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    near, far = m[1] + m[2], m[3] + m[4]
    torch.add(near, far, out=out[0]).add_(m[0])
    torch.add(near, far, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=near)
    torch.sub(m[3], m[4], out=far)
    torch.add(near, far, alpha=2, out=out[1])
    torch.add(near, far, alpha=8, out=out[3]).add_(m[5])
