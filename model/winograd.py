"""3×3 convolutions with fewer multiplications (Winograd; Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2015), on channels-last tensors: sums of shifted views, one batched matrix product, sums again.

F(2×2) takes 2.25 times fewer products, and in bfloat16 its errors are 1.3 to 2.5 times a direct convolution's. F(4×4)
takes 4 times fewer and is for float32: in bfloat16 its errors would be five times as large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    Sums = Callable[[Sequence[Tensor], Sequence[Tensor]], None]

# Transformed input that is worked on at once: small enough for the last cache, large enough that threads are not
# started for little and the weights, which are read anew for each band, do not weigh. Measured from 3 to 16 MiB on the
# finest level of a ResNet-50's pyramid: 12 takes an eighth less time than 4 in bfloat16, a quarter less in float32.
BAND_BYTES = 12 << 20


def pays(x: Tensor, outputs: int) -> bool:
    """Whether a convolution of x [B, C, H, W] to `outputs` channels on the CPU is quicker this way.

    A rule and no timing at start, so that two replicas on like machines give the same answer: docs/engine.md has the
    measurements behind it. Where the processor multiplies bfloat16 matrices by AMX, a direct convolution has no equal.
    """
    height, width = int(x.shape[2]), int(x.shape[3])
    narrow = min(int(x.shape[1]), outputs)
    if x.dtype == torch.float32:
        return narrow >= 128 and height * width >= 49
    even = (height + height % 2) * (width + width % 2)  # the tiles' area
    wide = narrow >= 256 or (narrow >= 128 and height * width <= 4096)
    return wide and even <= 1.15 * height * width and not torch.cpu._is_amx_tile_supported()  # noqa: SLF001


def _input2(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _output2(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    torch.add(m[0], m[1], out=out[0]).add_(m[2])
    torch.sub(m[1], m[2], out=out[1]).sub_(m[3])


def _input4(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    torch.add(d[4], d[2], alpha=-5, out=out[0]).add_(d[0], alpha=4)
    even, odd = torch.add(d[4], d[2], alpha=-4), torch.add(d[3], d[1], alpha=-4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.add(d[5], d[3], alpha=-5, out=out[5]).add_(d[1], alpha=4)


def _output4(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    near, far = m[1] + m[2], m[3] + m[4]
    torch.add(near, far, out=out[0]).add_(m[0])
    torch.add(near, far, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=near)
    torch.sub(m[3], m[4], out=far)
    torch.add(near, far, alpha=2, out=out[1])
    torch.add(near, far, alpha=8, out=out[3]).add_(m[5])


# By outputs per side: how the 3 weights of an axis become products' weights, and the sums before and after.
_WEIGHTS = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
_SUMS: dict[int, tuple[Sums, Sums]] = {2: (_input2, _output2), 4: (_input4, _output4)}


class Winograd:
    """A 3×3 convolution with stride 1 and padding 1: relu(convolution(x) + bias + onto), each part as wanted."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, relu: bool) -> None:
        """weight: [K, C, 3, 3], bias: [K], both as precise as they are known."""
        self._side = 4 if dtype == torch.float32 else 2  # outputs of a tile
        self._reach = self._side + 2  # inputs of a tile
        matrix = torch.tensor(_WEIGHTS[self._side], dtype=torch.float64)
        spread = torch.einsum("ia,kcab,jb->ijck", matrix, weight.double(), matrix)
        self._weight = spread.flatten(0, 1).to(dtype).contiguous()  # [reach², C, K]
        self._bias, self._relu = bias.to(dtype), relu

    def __call__(self, x: Tensor, onto: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """[B, K, H, W], in `out` if given, from x [B, C, H, W], channels last. `onto` [B, K, H, W] is overwritten."""
        rows = x.permute(0, 2, 3, 1)
        if onto is not None:
            if out is not None:
                raise ValueError("the result goes onto `onto` or into `out`, not both")
            out = onto
        shape = (*rows.shape[:3], self._weight.shape[2])
        result = x.new_empty(shape) if out is None else out.permute(0, 2, 3, 1)
        for images, top, bottom in self._bands(rows):
            band = result[images, top:bottom]
            sums = self._convolved(rows[images], top, bottom)
            if onto is None:
                torch.add(sums, self._bias, out=band)
            else:
                band += sums
                band += self._bias
            if self._relu:
                band.relu_()
        return result.permute(0, 3, 1, 2)

    def _bands(self, x: Tensor) -> Iterator[tuple[slice, int, int]]:
        """Images, first and last row + 1 of what is worked on at once: rows of one image, or whole small images."""
        batch, height, width, channels = x.shape
        across = -(-width // self._side)
        tiles = max(1, BAND_BYTES // (self._reach**2 * channels * x.element_size()))
        at_once = max(1, tiles // across) * self._side
        if at_once < height:
            for image in range(batch):
                for top in range(0, height, at_once):
                    yield slice(image, image + 1), top, min(top + at_once, height)
            return
        images = max(1, tiles // (across * -(-height // self._side)))
        for first in range(0, batch, images):
            yield slice(first, first + images), 0, height

    def _convolved(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top … bottom - 1 of the convolution of x [B, H, W, C], without bias."""
        side, reach = self._side, self._reach
        (batch, height, width, channels), deep = x.shape, self._weight.shape[2]
        down, across = -(-(bottom - top) // side), -(-width // side)
        padded = x.new_zeros((batch, down * side + 2, across * side + 2, channels))
        first, last = max(top - 1, 0), min(top + down * side + 1, height)
        padded[:, first - top + 1 : last - top + 1, 1 : width + 1] = x[:, first:last]
        before, after = _SUMS[side]
        halfway = x.new_empty((reach, batch, down, padded.shape[2], channels))
        before([padded[:, n : n + side * down - side + 1 : side] for n in range(reach)], halfway.unbind(0))
        spread = x.new_empty((reach, reach, batch, down, across, channels))
        columns = [halfway[:, :, :, n : n + side * across - side + 1 : side] for n in range(reach)]
        before(columns, spread.unbind(1))
        products = torch.bmm(spread.view(reach * reach, -1, channels), self._weight)
        products = products.view(reach, reach, batch, down, across, deep)
        halfway = x.new_empty((side, reach, batch, down, across, deep))
        after(products.unbind(0), halfway.unbind(0))
        sums = x.new_empty((batch, down, side, across, side, deep))
        after(halfway.unbind(1), list(sums.permute(4, 2, 0, 1, 3, 5).unbind(0)))
        return sums.view(batch, down * side, across * side, deep)[:, : bottom - top, :width]
