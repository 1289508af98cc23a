"""Feature extraction in bytes: an instruction makes four products where bfloat16 has two (AVX512-VNNI), and float32
one; with AVX2 three instructions do what it does. Where there is a kernel for it, 3×3 convolutions go by Winograd
instead, with products of 16 bits.

Static quantisation of a trained network (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2): weights have a scale for each output channel, activations one scale and
zero point for the whole tensor, from the ranges that model/inference/calibration.py measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from model.kernels import rounding
from model.kernels.convolution import Format, Layer, fold
from model.kernels.processor import has_avx2
from model.kernels.quantization import IDENTITY, QuantizedWeight, QuantParams, Ranges
from model.kernels.winograd import Winograd, kernel_of_channels, should_use_winograd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from model.kernels.convolution import Step

# Input shapes that a weight is laid out for, each for half the memory that it takes in bfloat16.
PACKED_SHAPES = 4


def is_supported() -> bool:
    """Whether the processor has the instructions for it, and torch the kernels."""
    ops = torch.ops.onednn
    names = ("qconv_prepack", "qconv2d_pointwise", "qlinear_prepack", "qlinear_pointwise")
    return has_avx2() and all(hasattr(ops, name) for name in names)


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A quantised tensor."""

    values: Tensor  # [B, C, H, W] uint8, channels last
    params: QuantParams

    @property
    def shape(self) -> torch.Size:
        """[B, C, H, W]."""
        return self.values.shape

    @classmethod
    def quantize(cls, x: Tensor, params: QuantParams) -> QuantizedTensor:
        """Of x [B, C, H, W] float32, channels last; what lies beyond the range becomes its end."""
        return cls(rounding.quantize(x, params), params)


@dataclass(frozen=True, slots=True)
class Int8Format(Format):
    """Convolutions on quantised tensors; `dtype` is what the heads behind them compute in."""

    # Of the normalised image.
    input_params: QuantParams
    # Of each convolution's result.
    output_params: Mapping[nn.Module, QuantParams] = field(default_factory=dict)

    @classmethod
    def from_ranges(cls, network: Any, ranges: Ranges, dtype: torch.dtype) -> Int8Format:
        """The format for a network.

        Args:
            network: torchvision's detector, or a skeleton of it.
            ranges: by the names of its convolutions.
            dtype: what the heads compute in.
        """
        mean, deviation = (np.array(v) for v in (network.transform.image_mean, network.transform.image_std))
        input_params = QuantParams.from_range(
            float((-mean / deviation).min()), float(((1 - mean) / deviation).max())
        )
        modules = dict(network.named_modules())
        output_params = {
            modules[name]: QuantParams.from_range(*ends) for name, ends in ranges.items() if name in modules
        }
        return cls(torch.device("cpu"), dtype, input_params, output_params)

    def conv(self, conv: nn.Conv2d, norm: nn.Module | None = None, activation: str = "none") -> Layer:
        """A convolution, and the norm and activation behind it, prepared. Raises KeyError if it was not calibrated.

        Args:
            conv: of the trained network.
            norm: as for Format.conv.
            activation: as for Format.conv.
        """
        return Int8Conv(conv, self.output_params[conv], norm=norm, activation=activation)

    def output_conv(self, conv: nn.Conv2d) -> Layer:
        """A convolution of quantised tensors that gives a float32 tensor."""
        return Int8Conv(conv, None)

    def elementwise(self, step: Step) -> Step:
        """A step on tensors as one on quantised tensors, whose scale and zero point stay."""
        return lambda x: QuantizedTensor(step(x.values), x.params)

    def quantize_input(self, images: Tensor) -> QuantizedTensor:
        """A batch [B, 3, H, W] float32 of normalised images, quantised."""
        return QuantizedTensor.quantize(images, self.input_params)


class Int8Conv(Layer):
    """activation(convolution(x) + bias + residual) in one kernel, rounded once: directly, summed in 32-bit integers,
    or where `should_use_winograd` says so by Winograd. A result of floats is made of the sums afterwards, without a
    residual.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        output_params: QuantParams | None,
        *,
        norm: nn.Module | None = None,
        activation: str = "none",
    ) -> None:
        """Quantise a convolution's weights.

        Args:
            conv: the convolution.
            output_params: of the result; None for one of float32.
            norm: the BatchNorm behind it, which is folded in.
            activation: "none" or "relu".
        """
        if activation not in ("none", "relu") or (output_params is None and activation != "none"):
            raise TypeError(f"no way to prepare a convolution with {activation} in int8")
        super().__init__(conv, activation)
        weight, bias = fold(conv, norm)
        self._weight = QuantizedWeight.quantize(weight)
        self._bias, self._output_params = bias.float(), output_params
        # By shape of the input; see `_packed_for`.
        self._packed: dict[torch.Size, Tensor] = {}
        self._winograd: Winograd | None = None
        if self.can_use_winograd and output_params is not None:
            kernel = kernel_of_channels(torch.uint8, self.in_channels, self.out_channels)
            if kernel is not None:
                relu = activation == "relu"
                self._winograd = Winograd(
                    weight, bias, kernel, torch.uint8, relu=relu, output_params=output_params
                )
        # What fails does so now, not at the first image.
        rounding.kernel()

    def __call__(
        self, x: QuantizedTensor, residual: QuantizedTensor | None = None, out: Tensor | None = None
    ) -> Any:
        """A quantised tensor [B, K, H', W'] from x [B, C, H, W]. `residual` [B, K, H', W'] is overwritten.

        out: [B, K, H', W'], where the result is put as floats besides.
        """
        params = self._output_params
        if params is None:
            if residual is not None or out is not None:
                raise ValueError(
                    "a convolution that gives floats takes no residual and no place for its result"
                )
            return self._float_conv(x)
        if self._winograd is not None and should_use_winograd(x.values, self.out_channels):
            values = self._winograd(
                x.values,
                residual.values if residual else None,
                x_params=x.params,
                residual_params=residual.params if residual else IDENTITY,
            )
        else:
            values = self._direct_conv(x, residual, params)
        if out is not None:
            rounding.dequantize(values, params, out)
        return QuantizedTensor(values, params)

    def _float_conv(self, x: QuantizedTensor) -> Tensor:
        # Whole numbers first: scaled by oneDNN they differ in the last bits on one thread and on several (AMX).
        ones = torch.ones_like(self._weight.scales)
        packed = (self._packed_for(x), ones, self._weight.zero_points)
        inputs = (x.values, 1.0, x.params.zero_point, *packed, None)
        run = torch.ops.onednn.qconv2d_pointwise
        sums: Tensor = run(*inputs, *self._geometry(), 1.0, 0, torch.float32, "none", [], "")
        scales = (self._weight.scales * x.params.scale)[:, None, None]
        return sums.mul_(scales).add_(self._bias[:, None, None])

    def _direct_conv(
        self, x: QuantizedTensor, residual: QuantizedTensor | None, params: QuantParams
    ) -> Tensor:
        packed = (self._packed_for(x), self._weight.scales, self._weight.zero_points)
        inputs = (x.values, x.params.scale, x.params.zero_point, *packed)
        geometry = self._geometry()
        result = (params.scale, params.zero_point, torch.uint8)
        run = torch.ops.onednn.qconv2d_pointwise
        values: Tensor
        if residual is None:
            values = run(*inputs, self._bias, *geometry, *result, self.activation, [], "")
        else:
            sum_of = (residual.params.scale, residual.params.zero_point, "sum", 1.0)
            values = run.binary(
                *inputs, residual.values, self._bias, *geometry, *result, *sum_of, self.activation, [], ""
            )
        return values

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return self.stride, self.padding, self.dilation, self.groups

    def _packed_for(self, x: QuantizedTensor) -> Tensor:
        """The weight in the layout that oneDNN's kernel for an input shape reads. That of another shape gives the same
        result in more time, and is what shapes beyond the first few get.
        """
        if x.shape not in self._packed:
            if len(self._packed) >= PACKED_SHAPES:
                # In one step, because other threads may add to them meanwhile.
                return tuple(self._packed.values())[0]  # noqa: RUF015
            self._packed[x.shape] = torch.ops.onednn.qconv_prepack(
                self._weight.values,
                self._weight.scales,
                x.params.scale,
                x.params.zero_point,
                *self._geometry(),
                list(x.shape),
            )
        return self._packed[x.shape]
