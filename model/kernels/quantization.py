"""How bytes stand for real numbers: affine quantisation with one scale and one zero point for a tensor, and a scale for
each channel of the result for a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from model.kernels.processor import has_vnni

if TYPE_CHECKING:
    from torch import Tensor

# A convolution's name in the network → lowest and highest of its results.
Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class QuantParams:
    """A byte q stands for scale × (q - zero_point)."""

    scale: float
    zero_point: int

    @classmethod
    def from_range(cls, low: float, high: float) -> QuantParams:
        """The finest for numbers from low to high, and for 0, which is always exact: convolutions pad with it."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-9) / 255
        return cls(scale, round(-low / scale))


# Of a tensor that is not quantised.
IDENTITY = QuantParams(1.0, 0)


def largest_weight() -> int:
    """The largest whole number that a weight becomes.

    Without VNNI, oneDNN's kernels sum two products in 16 bits, which 2 × 255 × 64 fit and 2 × 255 × 127 do not.
    """
    return 127 if has_vnni() else 64


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A quantised weight, with a scale for each channel of the result."""

    values: Tensor  # [K, …] int8
    scales: Tensor  # [K] float32
    zero_points: Tensor  # [K] int32, all 0

    @classmethod
    def quantize(cls, weight: Tensor) -> QuantizedWeight:
        """Of a weight [K, …]."""
        scales = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / largest_weight()
        values = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8)
        return cls(values, scales.float(), torch.zeros(len(scales), dtype=torch.int32))
