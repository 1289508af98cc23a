"""One convolution or fully connected layer of a trained network, prepared for inference: BatchNorm folded in, weights
laid out once, and bias, activation and residual sum inside the same kernel where the device has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from model.kernels import amx_linear, onednn
from model.kernels.openmp import one_thread
from model.kernels.processor import has_amx
from model.kernels.winograd import Winograd, kernel_for, should_use_winograd

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    # What one part of the network makes of the other's: tensors [B, C, H, W], or in int8 quantised ones (int8.py).
    Step = Callable[[Any], Any]

ACTIVATIONS = {nn.ReLU: "relu", nn.Hardswish: "hardswish"}
# A landscape and a portrait: each costs the weight's memory once more.
PACKED_SHAPES = 2


@dataclass(frozen=True, slots=True)
class Format:
    """Where the network runs, and in which numbers."""

    device: torch.device
    dtype: torch.dtype

    def copy(self, tensor: Tensor) -> Tensor:
        """A tensor's values where and as the network computes, in memory of their own: a model's may be a file's."""
        return tensor.detach().to(self.device, self.dtype, copy=True)

    def fuses(self) -> bool:
        """Whether oneDNN's kernels run it: they take bias, activation and a sum along."""
        if self.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False
        return self.dtype != torch.bfloat16 or onednn.has_bfloat16()

    def conv(self, conv: nn.Conv2d, norm: nn.Module | None = None, activation: str = "none") -> Layer:
        """A convolution, and the norm and activation behind it, prepared.

        Args:
            conv: of the trained network.
            norm: a BatchNorm, frozen or not, is folded in; a GroupNorm is computed.
            activation: "none" or a value of ACTIVATIONS.
        """
        if isinstance(norm, nn.GroupNorm):
            return GroupNormConv(conv, self, norm, activation)
        return Conv(conv, self, norm=norm, activation=activation)

    def output_conv(self, conv: nn.Conv2d) -> Layer:
        """A convolution whose result is tensors whatever the others take and give."""
        return self.conv(conv)

    def pooled_linear(self, weight: Tensor, bias: Tensor, activation: str = "none") -> Linear:
        """A fully connected layer on features that RoIAlign has pooled: see Linear."""
        return Linear(weight, bias, self, activation)

    def elementwise(self, step: Step) -> Step:
        """A step that picks or moves values and computes none, for what the convolutions give and take."""
        return step

    def quantize_input(self, images: Tensor) -> Any:
        """A batch [B, 3, H, W] of normalised images as the convolutions take it."""
        return images


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm. Frozen ones, torchvision's or skeleton.py's, go by the name of their class."""
    return isinstance(module, nn.BatchNorm2d | nn.GroupNorm) or type(module).__name__ == "FrozenBatchNorm2d"


def fold(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that stands for a convolution and the norm behind it, in float64."""
    weight = conv.weight.detach().to(torch.float64, copy=True)
    bias = torch.zeros(len(weight), dtype=torch.float64) if conv.bias is None else conv.bias.detach().double()
    if norm is None:
        return weight, bias
    if not is_norm(norm) or isinstance(norm, nn.GroupNorm):
        raise TypeError(f"no way to fold {type(norm).__name__} into a convolution")
    trained: Any = norm
    mean, variance = trained.running_mean, trained.running_var
    if mean is None or variance is None:
        raise TypeError("a norm without running statistics cannot be folded")
    scale = trained.weight.detach().double() / (variance.double() + trained.eps).sqrt()
    shift = trained.bias.detach().double() + (bias - mean.double()) * scale
    return weight.mul_(scale[:, None, None, None]), shift


class Layer:
    """What every kind of prepared convolution keeps of its module."""

    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise TypeError(f"no way to prepare a convolution with padding {conv.padding_mode!r}")
        self.stride, self.padding, self.dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self.groups, self.activation = conv.groups, activation
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        three = conv.kernel_size == (3, 3) and conv.groups == 1
        ones = (conv.stride, conv.padding, conv.dilation) == ((1, 1), (1, 1), (1, 1))
        self.can_use_winograd = three and ones and activation in ("none", "relu")

    def __call__(self, x: Any, residual: Any = None, out: Tensor | None = None) -> Any:
        """See Conv."""
        raise NotImplementedError


class Conv(Layer):
    """activation(convolution(x) + bias), or with `residual`: activation(convolution(x) + bias + residual).

    Takes and gives channels-last tensors. `residual` may be overwritten, and must not be used again; `out` is where the
    result goes, if given.
    """

    def __init__(
        self, conv: nn.Conv2d, form: Format, *, norm: nn.Module | None = None, activation: str = "none"
    ) -> None:
        super().__init__(conv, activation)
        weight, bias = fold(conv, norm)
        self.bias = bias.to(form.device, form.dtype)
        self.weight = weight.to(form.device, form.dtype, memory_format=torch.channels_last)
        # By shape of the input; see `_weight_for`.
        self._packed: dict[torch.Size, Tensor] = {}
        self._fuses = form.fuses()
        # Made when first needed.
        self._winograd: Winograd | None = None
        if self._fuses and self.can_use_winograd:
            # Fails now, not at the first image.
            kernel_for(form.dtype)

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """[B, K, H', W'] from x [B, C, H, W]; residual, out: [B, K, H', W']."""
        winograd = self._winograd_for(x)
        if winograd is not None:
            return winograd(x, residual, out)
        y = self._run_fused(x, residual) if self._fuses else self._run_unfused(x, residual)
        return y if out is None else out.copy_(y)

    def _winograd_for(self, x: Tensor) -> Winograd | None:
        """What computes the convolution of x [B, C, H, W] by Winograd; None if that does not pay."""
        if not (self._fuses and self.can_use_winograd and should_use_winograd(x, self.out_channels)):
            return None
        if self._winograd is None and (kernel := kernel_for(x.dtype)) is not None:
            relu = self.activation == "relu"
            self._winograd = Winograd(self.weight.float(), self.bias.float(), kernel, x.dtype, relu=relu)
        return self._winograd

    def _run_unfused(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y = functional.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        if residual is not None:
            y += residual
        if self.activation == "relu":
            return y.relu_()
        return functional.hardswish(y, inplace=True) if self.activation == "hardswish" else y

    def _run_fused(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return onednn.convolution(
            x,
            self._weight_for(x.shape),
            self.bias,
            self._geometry(),
            activation=self.activation,
            residual=residual,
        )

    def _geometry(self) -> onednn.Geometry:
        return self.padding, self.stride, self.dilation, self.groups

    def _weight_for(self, shape: torch.Size) -> Tensor:
        """The weight in the layout that oneDNN's kernel for an input shape reads, which it would else make on each
        call. Kept for the first few shapes: a layout made for another shape can take a kernel eight times as long.
        """
        if shape not in self._packed:
            if len(self._packed) >= PACKED_SHAPES:
                return self.weight
            self._packed[shape] = onednn.convolution_weight(self.weight, self._geometry(), list(shape))
        return self._packed[shape]


class GroupNormConv(Layer):
    """activation(group_norm(convolution(x) + bias) + residual): the norm depends on the image and cannot be folded."""

    def __init__(self, conv: nn.Conv2d, form: Format, norm: nn.GroupNorm, activation: str) -> None:
        super().__init__(conv, activation)
        if activation not in ("none", "relu"):
            raise TypeError(f"no way to prepare a GroupNorm with {activation}")
        self._conv = Conv(conv, form)
        self._count, self._eps = norm.num_groups, norm.eps
        self._weight, self._bias = form.copy(norm.weight), form.copy(norm.bias)

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """[B, K, H', W'] from x [B, C, H, W]; residual, out: [B, K, H', W']."""
        y = self._conv(x)
        with one_thread():
            y = functional.group_norm(y, self._count, self._weight, self._bias, self._eps)
        y = y.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            y += residual
        if self.activation == "relu":
            y.relu_()
        return y if out is None else out.copy_(y)


class Linear:
    """x weightᵀ + bias, or with activation="relu": relu(x weightᵀ + bias).

    oneDNN computes it on a CPU, in float32 too. MKL, which torch would ask, sums in an order that depends on the number
    of threads, and takes 8 to 20 % longer (2-core Zen 4). With AMX oneDNN's order depends on it too, but for
    convolutions: there linear.c computes it, or else a convolution, which can take twice as long.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, form: Format, activation: str = "none", *, rows: int = 50
    ) -> None:
        """Prepare a layer.

        Args:
            weight: [K, D].
            bias: [K].
            form: where it runs, and in which numbers.
            activation: "none" or "relu".
            rows: oneDNN is given multiples of so many. For each number of rows it compiles a kernel that it keeps,
                0.3 to 2.4 ms and 0.1 to 1 MB, and nearly every image has another one. Of fewer than 32, the last bits
                may depend on the number of threads.
        """
        self._activation, self._rows = activation, rows
        self._fuses = form.fuses()
        self._run: Callable[[Tensor, Tensor, Tensor, str], Tensor] = onednn.linear
        self._weight, self._bias = self._prepare(weight, form), form.copy(bias)

    def _prepare(self, weight: Tensor, form: Format) -> Tensor:
        """Choose the kernel that runs it; the weight [K, D] in that kernel's layout."""
        weight = form.copy(weight)
        if not self._fuses:
            return weight
        if form.dtype != torch.bfloat16 or not has_amx():
            return onednn.linear_weight(weight)
        if amx_linear.can_run(*weight.shape):
            self._run, self._rows = amx_linear.linear, 1
            return amx_linear.lay_out(weight)
        self._run = onednn.pointwise
        return onednn.pointwise_weight(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., K] from x [..., D]."""
        if not self._fuses:
            y = functional.linear(x, self._weight, self._bias)
            return y.relu_() if self._activation == "relu" else y
        flat = x.flatten(0, -2)
        rows = len(flat)
        if spare := -rows % self._rows:
            flat = functional.pad(flat, (0, 0, 0, spare))
        if not rows:
            return x.new_empty((*x.shape[:-1], len(self._bias)))
        y = self._multiply(flat)
        return y[:rows].view(*x.shape[:-1], y.shape[-1])

    def _multiply(self, x: Tensor) -> Tensor:
        """[R, K] from x [R, D]."""
        return self._run(x, self._weight, self._bias, self._activation)
