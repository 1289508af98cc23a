"""3×3 convolutions with fewer multiplications (Winograd; Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2015), on channels-last tensors: what winograd1d.py (bfloat16) and winograd2d.py (float32) share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

# Transformed input that is worked on at once: small enough for the last cache, large enough that threads are not
# started for little and the weights, which are read anew for each band, do not weigh. Measured from 3 to 24 MiB on the
# finest level of a ResNet-50's pyramid: 12 takes a few percent less time than 3 in bfloat16, a quarter less than 4 in
# float32.
BAND_BYTES = 12 << 20


def pays(x: Tensor, outputs: int) -> bool:
    """Whether a convolution of x [B, C, H, W] to `outputs` channels on the CPU is quicker this way.

    A rule and no timing at start, so that two replicas on like machines give the same answer: docs/engine.md has the
    measurements behind it. Where the processor multiplies bfloat16 matrices by AMX, a direct convolution has no equal.
    """
    channels, height, width = (int(n) for n in x.shape[1:])
    area = height * width
    if min(channels, outputs) < 128 or area < 49 or height < 4:  # a tile has four rows or more
        return False
    if x.dtype == torch.float32:
        return True
    # Small maps are those of RoIs, which come by the dozen. It does not matter by how many: the rule must not depend on
    # what else was found.
    enough = area <= 14 * 14 or area * channels * outputs >= 50_000_000
    # To such widths oneDNN has one layout of the weights for all sizes. To 96, 192 or 384 it has several, and with the
    # wrong one takes up to 60 times as long.
    one_layout = outputs.bit_count() == 1
    return one_layout and enough and not torch.cpu._is_amx_tile_supported()  # noqa: SLF001 (no public name)


class Winograd(ABC):
    """A 3×3 convolution with stride 1 and padding 1: relu(convolution(x) + bias + onto), each part as wanted."""

    def __init__(self, depth: int, side: int, *, relu: bool) -> None:
        """depth: the channels that it gives. side: rows of a tile of the result, which take two more of the input."""
        self._side, self._reach = side, side + 2
        self._depth, self._relu = depth, relu

    def __call__(self, x: Tensor, onto: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """[B, K, H, W], in `out` if given, from x [B, C, H, W], channels last. `onto` [B, K, H, W] is overwritten."""
        rows = x.permute(0, 2, 3, 1)
        if onto is not None:
            if out is not None:
                raise ValueError("the result goes onto `onto` or into `out`, not both")
            out = onto
        batch, height, width, _ = rows.shape
        result = x.new_empty((batch, height, width, self._depth)) if out is None else out.permute(0, 2, 3, 1)
        for images, top, bottom in self._bands(x):
            self._band(rows[images], top, bottom, result[images, top:bottom], add=onto is not None)
        return result.permute(0, 3, 1, 2)

    def through(self, x: Tensor, pointwise: Callable[[Tensor], Tensor], depth: int) -> Tensor:
        """pointwise(self(x)) [B, depth, H, W] of something that computes every cell for itself, a band at a time: while
        it is in the cache, and without memory for all of it.
        """
        rows = x.permute(0, 2, 3, 1)
        batch, height, width, _ = rows.shape
        result = x.new_empty((batch, height, width, depth))
        for images, top, bottom in self._bands(x):
            some = rows[images]
            band = x.new_empty((len(some), bottom - top, width, self._depth))
            self._band(some, top, bottom, band, add=False)
            result[images, top:bottom] = pointwise(band.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return result.permute(0, 3, 1, 2)

    def _bands(self, x: Tensor) -> Iterator[tuple[slice, int, int]]:
        batch, channels, height, width = (int(n) for n in x.shape)
        return bands(batch, height, self._tile_row(width, channels) * x.element_size(), self._side)

    @abstractmethod
    def _tile_row(self, width: int, channels: int) -> int:
        """How many numbers a row of tiles, as wide as the image, is transformed to."""

    @abstractmethod
    def _band(self, x: Tensor, top: int, bottom: int, result: Tensor, *, add: bool) -> None:
        """Compute rows top … bottom - 1, of images x [B, H, W, C], in `result` [B, bottom - top, W, K].

        add: to what is there.
        """


def bands(batch: int, height: int, tile_row: int, side: int) -> Iterator[tuple[slice, int, int]]:
    """Images, first row and last row + 1 of what is worked on at once: rows of one image, or whole small images.

    tile_row: bytes that a row of tiles is transformed to. side: the rows of the image that it gives.
    """
    tiles, down = max(1, BAND_BYTES // tile_row), -(-height // side)
    if tiles >= down:
        images = tiles // down
        for first in range(0, batch, images):
            yield slice(first, first + images), 0, height
        return
    rows = side * -(-down // -(-down // tiles))  # so many bands of nearly one size
    for image in range(batch):
        for top in range(0, height, rows):
            yield slice(image, image + 1), top, min(top + rows, height)
