"""Other ways of writing the same function, rewritten in ours: weights change, and no answer does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.importing.names import take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# Of our box coder, which multiplies deltas by them.
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def rgb_first(tensors: dict[str, Tensor]) -> None:
    """A first convolution of images in RGB, from one of images in BGR."""
    first = "backbone.body.conv1.weight"
    tensors[first] = take(tensors, first).flip(1)


def fuse_by_sum(tensors: dict[str, Tensor]) -> None:
    """A pyramid whose levels are sums, from one whose levels are means of lateral and upper level.

    P4's sum is twice its mean, and P3's four times if its lateral is doubled, and so on; what reads them is scaled
    back. All are powers of two, so that no bit changes.
    """
    for above in (1, 2, 3):
        level = 3 - above
        lateral, output = (f"backbone.fpn.{kind}_blocks.{level}" for kind in ("inner", "layer"))
        layer = 1 if f"{lateral}.1.weight" in tensors else 0
        for part in ("weight", "bias"):
            tensors[f"{lateral}.{layer}.{part}"] = take(tensors, f"{lateral}.{layer}.{part}") * 2 ** (
                above - 1
            )
        tensors[f"{output}.0.weight"] = take(tensors, f"{output}.0.weight") / 2**above


def background_first(tensors: dict[str, Tensor], classes: int, heads: str = "roi_heads") -> None:
    """Predictors with a row, or four, for each of the classes and the background first, from one where it is last.

    Its boxes and masks, which other frameworks do not have, are zeros that nothing reads. One box or mask for all
    classes becomes the same one for each.

    Args:
        tensors: of the model, by name; changed in place.
        classes: without background.
        heads: what the names of the predictors begin with.
    """
    for part in ("weight", "bias"):
        scores = f"{heads}.box_predictor.cls_score.{part}"
        tensors[scores] = take(tensors, scores).roll(1, 0).contiguous()
        for name, rows in (
            (f"{heads}.box_predictor.bbox_pred.{part}", 4),
            (f"{heads}.mask_predictor.mask_fcn_logits.{part}", 1),
        ):
            if name not in tensors and rows == 1:
                continue
            own = take(tensors, name)
            if len(own) == rows and classes > 1:
                own = own.repeat(classes, *([1] * (own.ndim - 1)))
            tensors[name] = torch.cat([torch.zeros_like(own[:rows]), own])


def scale_deltas(tensors: dict[str, Tensor], name: str, weights: Sequence[float]) -> None:
    """A box predictor whose deltas are multiplied by our weights in place of its own.

    Args:
        tensors: of the model, by name; changed in place.
        name: of the predictor.
        weights: [4] of its framework's box coder.
    """
    if tuple(weights) == BOX_WEIGHTS:
        return
    factor = torch.tensor([ours / theirs for ours, theirs in zip(BOX_WEIGHTS, weights, strict=True)])
    for part in ("weight", "bias"):
        own = take(tensors, f"{name}.{part}")
        rows = factor.repeat(len(own) // 4).view(-1, *([1] * (own.ndim - 1)))
        tensors[f"{name}.{part}"] = own * rows


def widen_mask_head(tensors: dict[str, Tensor], width: int) -> None:
    """A mask head and predictor of one width, from narrower ones: what is added is zeros, and gives zeros."""
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        first = name.startswith("roi_heads.mask_head.0.0")
        if name.startswith("roi_heads.mask_head.") and shape:
            shape[: 1 if first else 2] = [width] * len(shape[: 1 if first else 2])
        elif name.startswith("roi_heads.mask_predictor.conv5_mask."):
            shape[:2] = [width] * len(shape[:2])
        elif name == "roi_heads.mask_predictor.mask_fcn_logits.weight":
            shape[1] = width
        # The variance of what is always 0.
        wide = tensor.new_full(shape, 1.0 if name.endswith("running_var") else 0.0)
        wide[tuple(slice(side) for side in tensor.shape)] = tensor
        if wide.shape != tensor.shape:
            tensors[name] = wide
