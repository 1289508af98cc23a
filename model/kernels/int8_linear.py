"""Heads in bytes, where the processor is not fast in bfloat16: their largest fully connected layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from model.kernels import rounding
from model.kernels.convolution import Format, Linear
from model.kernels.quantization import QuantizedWeight, QuantParams, Ranges

if TYPE_CHECKING:
    from torch import Tensor


# How the names of the convolutions begin whose results RoIAlign reads.
PYRAMID = "backbone.fpn.layer_blocks."


@dataclass(frozen=True, slots=True)
class Int8HeadFormat(Format):
    """What the heads compute in where the processor is not fast in bfloat16: float32, but for the layer with most of
    the products, which multiplies bytes.
    """

    # Of the feature pyramid.
    pooled_params: QuantParams

    @classmethod
    def from_ranges(cls, ranges: Ranges) -> Int8HeadFormat:
        """The format for a network whose convolutions' results have these ranges."""
        lows, highs = zip(*(ends for name, ends in ranges.items() if name.startswith(PYRAMID)), strict=True)
        return cls(torch.device("cpu"), torch.float32, QuantParams.from_range(min(lows), max(highs)))

    def pooled_linear(self, weight: Tensor, bias: Tensor, activation: str = "none") -> Linear:
        """See Format."""
        return Int8Linear(weight, bias, self.pooled_params, activation)


class Int8Linear(Linear):
    """A fully connected layer from floats to floats that multiplies bytes."""

    def __init__(self, weight: Tensor, bias: Tensor, x_params: QuantParams, activation: str = "none") -> None:
        """Quantise a layer's weight.

        Args:
            weight: [K, D].
            bias: [K].
            x_params: of its input.
            activation: "none" or "relu".
        """
        self._x_params = x_params
        super().__init__(weight, bias, Format(torch.device("cpu"), torch.float32), activation)

    def _prepare(self, weight: Tensor, form: Format) -> Tensor:
        del form
        quantized = QuantizedWeight.quantize(weight)
        self._scales = quantized.scales * self._x_params.scale
        self._ones, self._zeros = torch.ones_like(quantized.scales), quantized.zero_points
        laid_out: Tensor = torch.ops.onednn.qlinear_prepack(quantized.values, None)
        return laid_out

    def _multiply(self, x: Tensor) -> Tensor:
        inputs = (rounding.quantize(x, self._x_params), 1.0, self._x_params.zero_point)
        # Whole numbers first, as for convolutions.
        run = torch.ops.onednn.qlinear_pointwise
        sums: Tensor = run(
            *inputs, self._weight, self._ones, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = sums.mul_(self._scales).add_(self._bias)
        return y.relu_() if self._activation == "relu" else y
