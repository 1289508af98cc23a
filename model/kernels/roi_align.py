"""RoIAlign over all levels and images as one gather (Mask R-CNN, section 3, "RoIAlign"; FPN, equation 1).

Every output bin is a weighted sum of feature vectors: 16 for 2×2 samples, each bilinear between 4 cells. With features
laid out as one row per cell, that is an embedding bag, which torch runs vectorised and on all cores, where
torchvision's CPU kernel walks NCHW planes one number at a time. Its gradient is an embedding bag over the transposed
taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

# Per bin and axis, as torchvision's and the paper's "four regularly sampled locations".
SAMPLES = 2
# Samples: one for each cell that a bin spans.
ADAPTIVE = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Where RoIAlign samples. The defaults are torchvision's."""

    # Of the output, per side.
    bins: int
    # Per bin and axis, or ADAPTIVE.
    samples: int = SAMPLES
    # A cell's centre lies half a cell from its corner (Detectron2's ROIAlignV2).
    aligned: bool = False
    # See `level_of`.
    level_rule: str = "torchvision"
    # Of the first level.
    stride: int = 4


def level_of(boxes: Tensor, levels: int, rule: str = "torchvision") -> Tensor:
    """[R] int64: the pyramid level of each box, 0 for P2 (FPN, equation 1: a box of 224² belongs to P4).

    Args:
        boxes: [R, 4] xyxy, input pixels.
        levels: how many there are.
        rule: "torchvision", "detectron2" or "mmdetection". They differ in the small number that decides boxes which
            lie exactly between two levels.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    if rule == "detectron2":
        level = torch.floor(4 + torch.log2(side / 224 + 1e-8))
    elif rule == "mmdetection":
        level = torch.floor(torch.log2(side / 56 + 1e-6)) + 2
    else:
        level = torch.floor(4 + torch.log2(side / 224) + 1e-6)
    return level.clamp(2, levels + 1).to(torch.int64) - 2


def _axis(start: Tensor, length: Tensor, bins: int, limit: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Cells and weights along one axis: [R, bins, 2 * samples] int64 and float32; limit: [R] cells of the level."""
    step = length / (bins * samples)
    ticks = torch.arange(bins * samples, dtype=torch.float32, device=start.device) + 0.5
    position = start[:, None] + ticks * step[:, None]  # [R, bins * samples]
    last = (limit - 1)[:, None].to(torch.float32)
    inside = (position >= -1) & (position <= last + 1)
    position = position.clamp(min=0)
    low = torch.minimum(position.floor(), last)
    high = torch.minimum(low + 1, last)
    part = torch.where(low >= last, 0.0, position - low)
    weights = torch.stack([(1 - part) * inside, part * inside], 2) / samples
    cells = torch.stack([low, high], 2).to(torch.int64)
    shape = (len(start), bins, 2 * samples)
    return cells.view(shape), weights.view(shape)


def _merge_taps(cells: Tensor, weights: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """The same taps [R, bins, 2 * samples] with each cell once: [R, bins, samples + 1].

    For samples that lie no more than a cell apart.
    """
    count = cells.shape[2] // 2 + 1
    first = cells[:, :, :1]
    together = weights.new_zeros((*cells.shape[:2], count))
    together.scatter_add_(2, (cells - first).clamp(max=count - 1), weights)
    cells = first + torch.arange(count, device=cells.device)
    return torch.minimum(cells, (limit - 1)[:, None, None]), together


@lru_cache(maxsize=64)
def _levels(shapes: tuple[tuple[int, int], ...], batch: int, device: torch.device) -> Tensor:
    """[3, levels]: height, width and first row of each level. Kept, because a GPU's host would wait for the upload."""
    sizes = [batch * h * w for h, w in shapes]
    columns = [(h, w, sum(sizes[:n])) for n, (h, w) in enumerate(shapes)]
    return torch.tensor(columns, device=device).T.contiguous()


def taps(
    boxes: Tensor, images: Tensor, shapes: Sequence[tuple[int, int]], batch: int, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Which feature rows make up each bin, and with what weights: [R * bins², taps] int64 and float32.

    Args:
        boxes: [R, 4] xyxy in input pixels.
        images: [R] int64, the image of each.
        shapes: (height, width) of each level's features, P2 first, whose strides are 4, 8, 16, …; a level's rows begin
            after those of all images of the levels before it.
        batch: how many images there are.
        sampling: with a fixed number of samples; see `_adaptive` for the other.
    """
    placed = _place(boxes, shapes, sampling)
    return _taps(
        placed, images, _levels(tuple(shapes), batch, boxes.device), sampling, (sampling.samples,) * 2
    )


def _place(
    boxes: Tensor, shapes: Sequence[tuple[int, int]], sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor]:
    """Each box's level [R], and its corner and its sides in cells of that level: [R, 2] x and y each."""
    level = level_of(boxes, len(shapes), sampling.level_rule)
    scaled = boxes * ((1 / sampling.stride) / 2.0**level)[:, None]
    if sampling.aligned:
        scaled = scaled - 0.5
        return level, scaled[:, :2], scaled[:, 2:] - scaled[:, :2]
    return level, scaled[:, :2], (scaled[:, 2:] - scaled[:, :2]).clamp(min=1)


def _taps(
    placed: tuple[Tensor, Tensor, Tensor],
    images: Tensor,
    levels: Tensor,
    sampling: Sampling,
    samples: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """As `taps`, of boxes that are placed, with so many samples along x and y."""
    level, corner, sides = placed
    heights, widths, first = levels[:, level]
    x, x_weights = _axis(corner[:, 0], sides[:, 0], sampling.bins, widths, samples[0])
    y, y_weights = _axis(corner[:, 1], sides[:, 1], sampling.bins, heights, samples[1])
    if sampling.samples == ADAPTIVE:
        x, x_weights = _merge_taps(x, x_weights, widths)
        y, y_weights = _merge_taps(y, y_weights, heights)
        # A box of no length has no samples.
        y_weights = y_weights * (sides > 0).all(1)[:, None, None]
    y = (first + images * heights * widths)[:, None, None] + y * widths[:, None, None]
    rows = y[:, :, None, :, None] + x[:, None, :, None, :]  # [R, bins, bins, taps of y, taps of x]
    weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
    return rows.flatten(3).flatten(0, 2), weights.flatten(3).flatten(0, 2)


class _Gather(torch.autograd.Function):
    """[cells, C] features and taps → [bags, C]; only the features get a gradient, as in torchvision."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.cells, ctx.taps = len(features), rows.shape[1]
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
            order // ctx.taps,
            gradients[0].contiguous(),
            counts.cumsum(0) - counts,
            per_sample_weights=weights.reshape(-1)[order],
            mode="sum",
        )
        return gradient, None, None


def roi_align(
    table: Tensor, shapes: Sequence[tuple[int, int]], boxes: Tensor, images: Tensor, sampling: Sampling
) -> Tensor:
    """Features of regions: [R, bins, bins, C].

    Args:
        table: [cells, C] features, in the order in which `taps` counts cells.
        shapes: (height, width) of each level.
        boxes: [R, 4] xyxy, input pixels.
        images: [R] int64, the number of the image that each is in.
        sampling: bins, samples and rules.
    """
    batch = len(table) // sum(height * width for height, width in shapes)
    bins = sampling.bins
    if sampling.samples == ADAPTIVE:
        return _adaptive(table, shapes, boxes.float(), images, sampling)
    rows, weights = taps(boxes.float(), images, shapes, batch, sampling)
    bags: Tensor = _Gather.apply(table, rows, weights.to(table.dtype))
    return bags.view(len(boxes), bins, bins, table.shape[1])


def _adaptive(
    table: Tensor, shapes: Sequence[tuple[int, int]], boxes: Tensor, images: Tensor, sampling: Sampling
) -> Tensor:
    """The same with a sample for each cell that a bin spans: boxes that need equally many go together."""
    batch, bins = len(table) // sum(height * width for height, width in shapes), sampling.bins
    levels = _levels(tuple(shapes), batch, boxes.device)
    level, corner, sides = _place(boxes, shapes, sampling)
    samples = (sides / bins).ceil().clamp(min=1).to(torch.int64)  # [R, 2]
    made = table.new_empty((len(boxes), bins * bins, table.shape[1]))
    kinds, kind = torch.unique(samples, dim=0, return_inverse=True)
    order = kind.argsort(stable=True)
    counts = torch.bincount(kind, minlength=len(kinds)).tolist()
    for (along_x, along_y), chosen in zip(kinds.tolist(), order.split(counts), strict=True):
        placed = level[chosen], corner[chosen], sides[chosen]
        rows, weights = _taps(placed, images[chosen], levels, sampling, (along_x, along_y))
        bags: Tensor = _Gather.apply(table, rows, weights.to(table.dtype))
        made[chosen] = bags.view(len(chosen), bins * bins, table.shape[1])
    return made.view(len(boxes), bins, bins, table.shape[1])


class PyramidRoIAlign(nn.Module):
    """Takes the place of torchvision's MultiScaleRoIAlign, with what other frameworks' sampling has besides."""

    def __init__(self, sampling: Sampling, levels: Sequence[str] = ("0", "1", "2", "3")) -> None:
        """levels: names of the feature maps, P2 first."""
        super().__init__()
        self.sampling, self.levels = sampling, tuple(levels)
        self.output_size, self.sampling_ratio = (sampling.bins, sampling.bins), sampling.samples

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], _image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """[R, C, bins, bins], channels last.

        Args:
            features: [B, C, H, W] each.
            boxes: of each image [R_i, 4] xyxy, input pixels.
            _image_sizes: torchvision's interface passes them.
        """
        maps = [features[name] for name in self.levels]
        channels = maps[0].shape[1]
        table = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, channels) for m in maps])
        counts = torch.tensor([len(b) for b in boxes], device=table.device)
        images = torch.repeat_interleave(torch.arange(len(boxes), device=table.device), counts)
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        return roi_align(table, shapes, torch.cat(boxes), images, self.sampling).permute(0, 3, 1, 2)
