"""Random weights that behave like trained ones, for benchmarks and tests that have no trained ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from model.network.build import build, build_uninitialized, has_keypoints, has_masks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.network.architecture import Architecture


@torch.inference_mode()
def synthetic_weights(architecture: Architecture, image: Tensor, seed: int = 0) -> nn.Module:
    """A network that finds many instances in an image with clear scores, though none of them is there.

    Every BatchNorm has the statistics of the image, so activations keep their scale at any depth. The outputs of the
    heads are spread like those of a trained network. image: [3, H, W] float32 in 0 to 1.
    """
    torch.manual_seed(seed)
    with_norms = replace(architecture, norm="batch", norm_eps=1e-5)
    normed: Any = build(with_norms)
    norms = [module for module in normed.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    transform = normed.transform
    # Nobody looks at the instances, and to paste the masks of a thousand would take half of the time.
    transform.postprocess = lambda found, *_: found
    # Large enough that the coarsest level has more than a handful of cells to take statistics from.
    transform.min_size, transform.max_size = (
        (max(320, architecture.min_size),),
        max(640, architecture.max_size),
    )
    normed([image])
    transform.min_size, transform.max_size = (architecture.min_size,), architecture.max_size
    for norm in norms:
        # Some channels are zero everywhere in the image.
        norm.running_var.clamp_(min=1e-3)
        norm.momentum = 0.1
        norm.eval()
    heads = normed.roi_heads
    spread = {normed.rpn.head.cls_logits: 2.0, normed.rpn.head.bbox_pred: 0.3}
    spread |= {heads.box_predictor.cls_score: 2.0, heads.box_predictor.bbox_pred: 1.0}
    if has_masks(normed):
        spread[heads.mask_predictor.mask_fcn_logits] = 3.0
    if has_keypoints(normed):
        spread[heads.keypoint_predictor.kps_score_lowres] = 3.0

    def rescale(module: Any, _: object, output: Tensor) -> Tensor:
        factor = spread.pop(module) / float(output.std()) if module in spread else 1.0
        module.weight.mul_(factor)
        module.bias.mul_(factor)
        return output * factor

    hooks = [module.register_forward_hook(rescale) for module in spread]
    normed([image])
    for hook in hooks:
        hook.remove()
    del transform.postprocess
    if architecture == with_norms:
        return normed.requires_grad_(requires_grad=False)
    network = build_uninitialized(architecture)
    missing, _ = network.load_state_dict(normed.state_dict(), strict=False)
    if missing:
        raise ValueError(f"an architecture whose weights depend on its norms: {missing[0]} is left over")
    return network.requires_grad_(False)
