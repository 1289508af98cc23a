"""The dense part in bytes: an instruction makes four products where bfloat16 has two (AVX512-VNNI). Where there is a
kernel for it, 3×3 convolutions go by Winograd instead, with products in bfloat16.

Static quantisation of a trained network (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2): weights have a step for each output channel, activations one step and
zero for the whole tensor, from the ranges that model/inference/calibration.py measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from model.kernels.convolution import Format, Layer, folded
from model.kernels.quantization import QuantParams, Ranges
from model.kernels.winograd import Winograd, kernel_for, should_use_winograd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from model.kernels.convolution import Step

PACKED_SHAPES = (
    4  # input shapes that a weight is laid out for, each for half the memory that it takes in bfloat16
)


def usable() -> bool:
    """Whether the processor has the instructions for it, and torch the kernels."""
    ops = torch.ops.onednn
    names = ("qconv_prepack", "qconv2d_pointwise")
    return bool(torch.cpu._is_vnni_supported()) and all(hasattr(ops, name) for name in names)  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A quantised tensor."""

    values: Tensor  # [B, C, H, W] uint8, channels last
    scale: QuantParams

    @property
    def shape(self) -> torch.Size:
        """[B, C, H, W]."""
        return self.values.shape

    @classmethod
    def nearest(cls, x: Tensor, scale: QuantParams) -> QuantizedTensor:
        """Of x [B, C, H, W] float32, channels last; what lies beyond the scale becomes its end."""
        values = x.mul(1 / scale.step).add_(scale.zero).round_().clamp_(0, 255)
        return cls(values.to(torch.uint8), scale)


@dataclass(frozen=True, slots=True)
class Int8Format(Format):
    """Convolutions on Bytes; `dtype` is what the heads behind them compute in."""

    entrance: QuantParams  # of the normalised image
    scales: Mapping[nn.Module, QuantParams] = field(default_factory=dict)  # of each convolution's result

    @classmethod
    def of(cls, network: Any, ranges: Ranges, dtype: torch.dtype) -> Int8Format:
        """network: a torchvision detector. ranges: by the names of its convolutions."""
        mean, deviation = (np.array(v) for v in (network.transform.image_mean, network.transform.image_std))
        entrance = QuantParams.covering(
            float((-mean / deviation).min()), float(((1 - mean) / deviation).max())
        )
        modules = dict(network.named_modules())
        scales = {
            modules[name]: QuantParams.covering(*ends) for name, ends in ranges.items() if name in modules
        }
        return cls(torch.device("cpu"), dtype, entrance, scales)

    def conv(self, conv: nn.Conv2d, norm: nn.Module | None = None, activation: str = "none") -> Layer:
        """A convolution, and the norm and activation behind it, prepared. KeyError if it was not calibrated."""
        return Int8Conv(conv, self.scales[conv], norm=norm, activation=activation)

    def output_conv(self, conv: nn.Conv2d) -> Layer:
        """A convolution of Bytes that gives a float32 tensor."""
        return Int8Conv(conv, None)

    def elementwise(self, step: Step) -> Step:
        """A step on tensors as one on Bytes, whose scale stays what it is."""
        return lambda x: QuantizedTensor(step(x.values), x.scale)

    def quantize_input(self, images: Tensor) -> QuantizedTensor:
        """A batch [B, 3, H, W] float32 of normalised images, quantised."""
        return QuantizedTensor.nearest(images, self.entrance)


class Int8Conv(Layer):
    """activation(convolution(x) + bias + onto) in one kernel, rounded once: directly, summed in 32-bit integers,
    or where `should_use_winograd` says so by Winograd, in bfloat16 and float32.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        scale: QuantParams | None,
        *,
        norm: nn.Module | None = None,
        activation: str = "none",
    ) -> None:
        """scale: of the result, which is a float32 tensor without one."""
        if activation not in ("none", "relu"):
            raise TypeError(f"no way to prepare a convolution with {activation} in int8")
        super().__init__(conv, activation)
        weight, bias = folded(conv, norm)
        steps = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        self._weight = (weight / steps[:, None, None, None]).round().to(torch.int8)
        self._steps, self._zeros = steps.float(), torch.zeros(len(steps), dtype=torch.int32)
        self._bias, self._scale = bias.float(), scale
        self._packed: dict[torch.Size, Tensor] = {}  # by shape of the input; see `_weight_for`
        self._winograd: Winograd | None = None  # made when first needed
        if self.may_go_by_winograd:
            kernel_for(torch.uint8)  # fails now, not at the first image

    def __call__(
        self, x: QuantizedTensor, residual: QuantizedTensor | None = None, out: Tensor | None = None
    ) -> Any:
        """Bytes [B, K, H', W'] from x [B, C, H, W]. `residual` [B, K, H', W'] is overwritten.

        out: [B, K, H', W'], where the result is put as floats besides.
        """
        scale = self._scale
        if scale is not None and self.may_go_by_winograd and should_use_winograd(x.values, self.depth):
            values = self._by_winograd(x, residual, scale)
        else:
            values = self._directly(x, residual)
        if scale is None:
            return values
        if out is not None:  # in two steps, so that the difference, a whole number, is exact in bfloat16 too
            torch.sub(values, torch.tensor(scale.zero, dtype=out.dtype), out=out).mul_(scale.step)
        return QuantizedTensor(values, scale)

    def _by_winograd(
        self, x: QuantizedTensor, residual: QuantizedTensor | None, scale: QuantParams
    ) -> Tensor:
        if self._winograd is None:
            kernel = kernel_for(torch.uint8)
            if kernel is None:
                raise RuntimeError("there is no kernel for bytes")
            weight = self._weight * self._steps[:, None, None, None]
            relu = self.activation == "relu"
            self._winograd = Winograd(weight, self._bias, kernel, torch.uint8, relu=relu, scale=scale)
        if residual is None:
            return self._winograd(x.values, x_scale=x.scale)
        return self._winograd(x.values, residual.values, x_scale=x.scale, residual_scale=residual.scale)

    def _directly(self, x: QuantizedTensor, residual: QuantizedTensor | None) -> Tensor:
        inputs = (x.values, x.scale.step, x.scale.zero, self._weight_for(x), self._steps, self._zeros)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        scale = self._scale
        result = (1.0, 0, torch.float32) if scale is None else (scale.step, scale.zero, torch.uint8)
        run = torch.ops.onednn.qconv2d_pointwise
        values: Tensor
        if residual is None:
            values = run(*inputs, self._bias, *geometry, *result, self.activation, [], "")
        else:
            sum_of = (residual.scale.step, residual.scale.zero, "sum", 1.0)
            values = run.binary(
                *inputs, residual.values, self._bias, *geometry, *result, *sum_of, self.activation, [], ""
            )
        return values

    def _weight_for(self, x: QuantizedTensor) -> Tensor:
        """The weight in the layout that oneDNN's kernel for an input shape reads. That of another shape gives the same
        result in more time, and is what shapes beyond the first few get.
        """
        if x.shape not in self._packed:
            if len(self._packed) >= PACKED_SHAPES:
                return next(iter(self._packed.values()))
            self._packed[x.shape] = torch.ops.onednn.qconv_prepack(
                self._weight,
                self._steps,
                x.scale.step,
                x.scale.zero,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                list(x.shape),
            )
        return self._packed[x.shape]
