"""The forward pass of architectures that the fast parts are not made for: C4, RoIPool, softmax and agnostic masks.

torchvision's own modules compute them, one after the other, so that whatever `maskserve train` writes can be served.
They are the paper's ablations, not what people deploy.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torchvision.models.detection.image_list import ImageList

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from model.inference.roi_heads import Detections
    from model.instances import Options
    from model.kernels.convolution import Format

# Instances whose masks are computed at once: a C4's features take 0.8 MB each.
MASKS_AT_ONCE = 64


class TorchvisionFallback:
    """A torchvision detector on a device, from normalised images to detections and their masks."""

    def __init__(self, network: nn.Module, form: Format) -> None:
        """network: in evaluation mode, on the CPU; what is kept is a copy."""
        self._form = form
        self._network: Any = copy.deepcopy(network).to(form.device, torch.float32).eval()
        heads: Any = self._network.roi_heads
        # RoI pooling, head and predictor.
        self._mask_branch: tuple[Any, Any, Any] | None = None
        if heads.has_mask():
            self._mask_branch = heads.mask_roi_pool, heads.mask_head, heads.mask_predictor
        # The heads then leave the masks to `_grids`, which computes those that are wanted, some at a time.
        heads.mask_roi_pool = None

    def __call__(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        allowed: Tensor,
        options: Sequence[Options],
    ) -> tuple[list[Detections], list[Tensor | None]]:
        """Detections of each image by falling score, in input pixels, and [N, M, M] probabilities where wanted.

        Args:
            images: [B, 3, H, W] normalised.
            sizes: (height, width) of each image in it.
            allowed: [B, classes] bool, for each image the network's outputs that may be found.
            options: of each image.
        """
        network, form = self._network, self._form
        half = form.dtype != torch.float32
        with torch.autocast(form.device.type, form.dtype if half else None, enabled=half):
            features = network.backbone(images.float())
        # Boxes and masks in float32 whatever the features were computed in.
        features = {name: feature.float() for name, feature in features.items()}
        proposals, _ = network.rpn(ImageList(images.float(), list(sizes)), features)
        found, _ = network.roi_heads(features, proposals, list(sizes))
        detections: list[Detections] = []
        grids: list[Tensor | None] = []
        for n, (result, own, wanted) in enumerate(zip(found, allowed, options, strict=True)):
            kept = own[result["labels"]] & (result["scores"] >= wanted.score_threshold)
            (rows,) = torch.where(kept)
            rows = rows[: wanted.limit]
            boxes, labels = result["boxes"][rows], result["labels"][rows]
            detections.append((boxes, result["scores"][rows], labels))
            branch = self._mask_branch if wanted.masks else None
            grids.append(branch and _grids(branch, features, (boxes, labels), n, sizes))
        return detections, grids


def _grids(
    branch: tuple[Any, Any, Any],
    features: dict[str, Tensor],
    found: tuple[Tensor, Tensor],
    image: int,
    sizes: Sequence[tuple[int, int]],
) -> Tensor:
    """[N, M, M] probabilities of the masks of one image, of their own classes, on the CPU.

    Args:
        branch: RoI pooling, head and predictor.
        features: of the batch.
        found: [N, 4] boxes in input pixels, and [N] network classes.
        image: its number in the batch.
        sizes: (height, width) of each image of the batch.
    """
    pool, head, predictor = branch
    parts = []
    for boxes, labels in zip(*(torch.split(x, MASKS_AT_ONCE) for x in found), strict=True):
        of_all = [boxes if n == image else boxes[:0] for n in range(len(sizes))]
        logits = predictor(head(pool(features, of_all, list(sizes))))
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        parts.append(own.sigmoid().float().cpu())
    return torch.cat(parts)
