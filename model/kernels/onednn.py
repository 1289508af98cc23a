"""oneDNN's kernels, which take bias, activation and a sum along, and the layouts in which they read weights.

torch calls them from the code that its compiler makes and has no public name for them. This is the one place that knows
the private ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Padding, stride, dilation, groups.
Geometry = tuple[list[int], list[int], list[int], int]
_POINTWISE: Geometry = ([0, 0], [1, 1], [1, 1], 1)
_OPS: Any = torch.ops.mkldnn


def has_bfloat16() -> bool:
    """Whether it computes in bfloat16 here: with AVX-512 or AVX-NE-CONVERT, native or not."""
    return bool(_OPS._is_mkldnn_bf16_supported())


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(convolution(x) + bias + residual): [B, K, H', W'], channels last.

    Args:
        x: [B, C, H, W], channels last.
        weight: [K, C / groups, h, w], or what `convolution_weight` made of it.
        bias: [K].
        geometry: padding, stride, dilation, groups.
        activation: "none", "relu" or "hardswish".
        residual: [B, K, H', W'], which the result replaces.
    """
    if residual is None:
        made: Tensor = _OPS._convolution_pointwise(x, weight, bias, *geometry, activation, [], "")
        return made
    unary = None if activation == "none" else activation
    _OPS._convolution_pointwise_.binary(residual, x, weight, bias, *geometry, "add", 1.0, unary, [], "")
    return residual


def convolution_weight(weight: Tensor, geometry: Geometry, shape: list[int]) -> Tensor:
    """A weight in the layout that the kernel for inputs of one shape reads, and would otherwise make on each call.

    Args:
        weight: [K, C / groups, h, w].
        geometry: padding, stride, dilation, groups.
        shape: of the input, [B, C, H, W].
    """
    padding, stride, dilation, groups = geometry
    laid_out: Tensor = _OPS._reorder_convolution_weight(weight, padding, stride, dilation, groups, shape)
    return laid_out


def linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """activation(x weightᵀ + bias): [..., K].

    Args:
        x: [..., D].
        weight: from `linear_weight`.
        bias: [K].
        activation: "none" or "relu".
    """
    made: Tensor = _OPS._linear_pointwise(x, weight, bias, activation, [], "")
    return made


def pointwise(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """As `linear`, as a convolution 1×1.

    Args:
        x: [R, D].
        weight: from `pointwise_weight`.
        bias: [K].
        activation: "none" or "relu".
    """
    image = x[None, :, None].permute(0, 3, 1, 2)
    return convolution(image, weight, bias, _POINTWISE, activation=activation)[0, :, :, 0].T


def pointwise_weight(weight: Tensor, rows: int = 1000) -> Tensor:
    """A weight [K, D] as `pointwise` reads it for so many rows, and nearly always for any number of them."""
    kernel = weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
    return convolution_weight(kernel, _POINTWISE, [1, weight.shape[1], rows, 1])


def linear_weight(weight: Tensor) -> Tensor:
    """A weight [K, D] as the kernel reads it."""
    laid_out: Tensor = _OPS._reorder_linear_weight(weight)
    return laid_out
