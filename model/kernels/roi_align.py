"""RoIAlign over all levels and images as one gather (Mask R-CNN, section 3, "RoIAlign"; FPN, equation 1).

Every output bin is a weighted sum of 16 feature vectors: 2×2 samples, each bilinear between 4 cells. With features laid
out as one row per cell, that is an embedding bag, which torch runs vectorised and on all cores, where torchvision's
CPU kernel walks NCHW planes one number at a time. Its gradient is an embedding bag over the transposed taps.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLES = 2  # per bin and axis, as torchvision's and the paper's "four regularly sampled locations"
TAPS = (2 * SAMPLES) ** 2


def level_of(boxes: Tensor, levels: int) -> Tensor:
    """[R] int64: the pyramid level of each box, 0 for P2 (FPN, equation 1: a box of 224² belongs to P4)."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    # The 1e-6 is torchvision's, and decides boxes that lie exactly between two levels.
    level = torch.floor(4 + torch.log2(side / 224) + 1e-6)
    return level.clamp(2, levels + 1).to(torch.int64) - 2


def _axis(start: Tensor, length: Tensor, bins: int, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Cells and weights along one axis: [R, bins, 4] int64 and float32; limit: [R] cells of the box's level."""
    step = length / (bins * SAMPLES)
    ticks = torch.arange(bins * SAMPLES, dtype=torch.float32, device=start.device) + 0.5
    position = start[:, None] + ticks * step[:, None]  # [R, bins * 2]
    last = (limit - 1)[:, None].to(torch.float32)
    inside = (position >= -1) & (position <= last + 1)
    position = position.clamp(min=0)
    low = torch.minimum(position.floor(), last)
    high = torch.minimum(low + 1, last)
    part = torch.where(low >= last, 0.0, position - low)
    weights = torch.stack([(1 - part) * inside, part * inside], 2) / SAMPLES
    cells = torch.stack([low, high], 2).to(torch.int64)
    shape = (len(start), bins, 2 * SAMPLES)
    return cells.view(shape), weights.view(shape)


@lru_cache(maxsize=64)
def _levels(shapes: tuple[tuple[int, int], ...], batch: int, device: torch.device) -> Tensor:
    """[3, levels]: height, width and first row of each level. Kept, because a GPU's host would wait for the upload."""
    sizes = [batch * h * w for h, w in shapes]
    columns = [(h, w, sum(sizes[:n])) for n, (h, w) in enumerate(shapes)]
    return torch.tensor(columns, device=device).T.contiguous()


def taps(
    boxes: Tensor, images: Tensor, shapes: Sequence[tuple[int, int]], batch: int, bins: int
) -> tuple[Tensor, Tensor]:
    """Which feature rows make up each bin, and with what weights: [R * bins², 16] int64 and float32.

    boxes: [R, 4] xyxy in input pixels. images: [R] int64, the image of each. shapes: (height, width) of each level's
    features, P2 first, whose strides are 4, 8, 16, …; a level's rows begin after those of all images of the levels
    before it.
    """
    level = level_of(boxes, len(shapes))
    heights, widths, first = _levels(tuple(shapes), batch, boxes.device)[:, level]
    scaled = boxes * (0.25 / 2.0**level)[:, None]
    lengths = (scaled[:, 2:] - scaled[:, :2]).clamp(min=1)
    x, x_weights = _axis(scaled[:, 0], lengths[:, 0], bins, widths)
    y, y_weights = _axis(scaled[:, 1], lengths[:, 1], bins, heights)
    y = (first + images * heights * widths)[:, None, None] + y * widths[:, None, None]
    rows = y[:, :, None, :, None] + x[:, None, :, None, :]  # [R, bins, bins, 4, 4]
    weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
    return rows.reshape(-1, TAPS), weights.reshape(-1, TAPS)


class _Gather(torch.autograd.Function):
    """[cells, C] features and taps → [bags, C]; only the features get a gradient, as in torchvision."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.cells = len(features)
        return functional.embedding_bag(rows, features, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        rows, weights = ctx.saved_tensors
        flat = rows.reshape(-1)
        # NumPy's stable sort finds the runs that taps come in, and is 4 to 8 times faster than torch's here.
        order = (
            torch.from_numpy(np.argsort(flat.numpy(), kind="stable"))
            if flat.device.type == "cpu"
            else flat.argsort()
        )
        counts = torch.bincount(flat, minlength=ctx.cells)
        gradient = functional.embedding_bag(
            order // TAPS,
            gradients[0].contiguous(),
            counts.cumsum(0) - counts,
            per_sample_weights=weights.reshape(-1)[order],
            mode="sum",
        )
        return gradient, None, None


def pooled(
    table: Tensor, shapes: Sequence[tuple[int, int]], boxes: Tensor, images: Tensor, bins: int
) -> Tensor:
    """[R, bins, bins, C] from features laid out as `taps` counts them: [cells, C]. Arguments as for `taps`."""
    batch = len(table) // sum(height * width for height, width in shapes)
    rows, weights = taps(boxes.float(), images, shapes, batch, bins)
    bags: Tensor = _Gather.apply(table, rows, weights.to(table.dtype))
    return bags.view(len(boxes), bins, bins, table.shape[1])


class PyramidRoIAlign(nn.Module):
    """Takes the place of torchvision's MultiScaleRoIAlign (4 levels, 2×2 samples, `aligned=False`)."""

    def __init__(self, bins: int, levels: Sequence[str] = ("0", "1", "2", "3")) -> None:
        """bins: per side of the output. levels: names of the feature maps, P2 first."""
        super().__init__()
        self.bins, self.levels = bins, tuple(levels)
        self.output_size = (bins, bins)

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], _image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """[R, C, bins, bins], channels last. features: [B, C, H, W] each; boxes: per image [R_i, 4] input pixels."""
        maps = [features[name] for name in self.levels]
        channels = maps[0].shape[1]
        table = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, channels) for m in maps])
        counts = torch.tensor([len(b) for b in boxes], device=table.device)
        images = torch.repeat_interleave(torch.arange(len(boxes), device=table.device), counts)
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        return pooled(table, shapes, torch.cat(boxes), images, self.bins).permute(0, 3, 1, 2)
