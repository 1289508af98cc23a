"""Networks that compute as Detectron2 or MMDetection does, as modules that can be trained.

They are torchvision's detectors in which the parts that other frameworks compute otherwise are replaced, so that a
training step sees the boxes, features and masks that the trained model will be served with.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes, resize_keypoints
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.images.resize import RESIZE_BYTES
from model.kernels.roi_align import PyramidRoIAlign, Sampling
from model.network.anchors import cell_anchors
from model.network.c4 import SharedStage
from model.network.resnet import ResNetBody
from model.network.skeleton import box_head, conv_block, head_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.network.architecture import Architecture
    from model.network.conventions import Conventions


class Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors where a framework puts them. In float32 at least: bfloat16 would move them by up to 7 pixels."""

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], rules: Conventions) -> None:
        """sizes: of each level, pixels. ratios: height / width, the same at each level."""
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        by_size, whole = rules.anchor_order == "size", rules.anchor_rounding
        self.cell_anchors = [cell_anchors(level, ratios, by_size=by_size, whole=whole) for level in sizes]
        self._offset, self._first = rules.anchor_offset, rules.first_stride
        self._by_level = rules.anchor_strides == "level"

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """As torchvision's, in float32 where features are narrower."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """As torchvision's, of each level [cells * A, 4]."""
        if self._by_level:
            strides = [[torch.full_like(s, self._first << n) for s in pair] for n, pair in enumerate(strides)]
        levels: list[Tensor] = super().grid_anchors(grid_sizes, strides)
        if not self._offset:
            return levels
        shifts = [torch.stack([right, down, right, down]) * self._offset for down, right in strides]
        return [anchors + shift for anchors, shift in zip(levels, shifts, strict=True)]


class _ByteTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Images resized as bytes by a framework's rule, and normalised after that."""

    def __init__(self, like: Any, architecture: Architecture) -> None:
        divisor = architecture.conventions.divisor
        super().__init__(like.min_size, like.max_size, like.image_mean, like.image_std, divisor)
        self._architecture = architecture
        self._resize_bytes = RESIZE_BYTES[architecture.conventions.resize]

    def normalize(self, image: Tensor) -> Tensor:
        """Nothing yet: `resize` does it."""
        return image

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """image: [3, H, W], bytes as parts of one."""
        before = (int(image.shape[1]), int(image.shape[2]))
        wanted = replace(self._architecture, min_size=int(self.min_size[0]), max_size=int(self.max_size))
        size = wanted.input_size(*before)
        pixels = (image * 255).round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()
        resized = self._resize_bytes(pixels, size).to(image.device, image.dtype)
        made: Tensor = super().normalize(resized.permute(2, 0, 1) / 255)
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], before, size)
            if "keypoints" in target:
                target["keypoints"] = resize_keypoints(target["keypoints"], before, size)
        return made, target


class _ClampedBoxCoder(BoxCoder):  # type: ignore[misc]  # torchvision has no types
    """A delta shrinks a box no further than it could enlarge one."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """As torchvision's."""
        least = torch.full_like(rel_codes[:1], -torch.inf)
        for n in (2, 3):
            least[:, n::4] = -self.bbox_xform_clip * self.weights[n]
        decoded: Tensor = super().decode_single(rel_codes.maximum(least), boxes)
        return decoded


class _ProbabilityRpn(RegionProposalNetwork):  # type: ignore[misc]  # torchvision has no types
    """Anchors are ranked by probabilities, of which the highest are all 1 and come in their order."""

    @classmethod
    def like(cls, rpn: Any) -> _ProbabilityRpn:
        """The same from the same modules, with the thresholds that torchvision's detectors have."""
        limits = rpn._pre_nms_top_n, rpn._post_nms_top_n  # noqa: SLF001 - of the class that this one extends
        return cls(rpn.anchor_generator, rpn.head, 0.7, 0.3, 256, 0.5, *limits, rpn.nms_thresh)

    def _get_top_n_idx(self, objectness: Tensor, num_anchors_per_level: list[int]) -> Tensor:
        found, before = [], 0
        for level in torch.split(objectness.sigmoid(), num_anchors_per_level, 1):
            order = level.sort(dim=1, descending=True, stable=True).indices
            found.append(order[:, : self.pre_nms_top_n()] + before)
            before += level.shape[1]
        return torch.cat(found, 1)


class _MapBackbone(nn.Module):
    """A ResNet that gives one map: {"0": [B, C, H / 16, W / 16]}."""

    def __init__(self, body: nn.Module, last: str, channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(body, {last: "0"})
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Of images [B, 3, H, W]."""
        maps: dict[str, Tensor] = self.body(x)
        return maps


def parts(a: Architecture) -> dict[str, Any]:
    """Backbone and heads, as arguments of torchvision's detectors; the mask head only of a C4, which shares res5."""
    norm = partial(FrozenBatchNorm2d if a.norm == "frozen" else nn.BatchNorm2d, eps=a.norm_eps)
    body: Any = ResNetBody(a, norm)
    if a.single_map == "c4":
        stage = body.layer4
        head: nn.Module = nn.Sequential(
            OrderedDict(res5=stage, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1))
        )
        return {
            "backbone": _MapBackbone(body, "layer3", a.fpn_channels),
            "box_head": head,
            "mask_head": SharedStage(stage),
        }
    if a.single_map:
        backbone: nn.Module = _MapBackbone(body, "layer4", a.fpn_channels)
    else:
        backbone = BackboneWithFPN(
            body,
            body.return_layers,
            body.channels,
            a.fpn_channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=head_norm(a) if a.fpn_norm else None,
        )
    head = box_head(a)
    if not isinstance(head, nn.Sequential):
        head = TwoMLPHead(a.fpn_channels * a.conventions.box_bins**2, a.box_channels)
    widths = [a.fpn_channels, *[a.mask_channels] * a.mask_convs]
    norms = head_norm(a) if a.mask_norm else None
    convs = [conv_block(i, o, 3, norm=norms, relu=True) for i, o in pairwise(widths)]
    return {"backbone": backbone, "box_head": head, "mask_head": nn.Sequential(*convs)}


def rpn_head(a: Architecture, anchors: int) -> RPNHead:
    """The RPN's head. anchors: of a cell."""
    widths = [a.fpn_channels, *(a.rpn_channels or [a.fpn_channels] * a.rpn_convs)]
    head = RPNHead(widths[-1], anchors)
    head.conv = nn.Sequential(*(conv_block(i, o, 3, relu=True) for i, o in pairwise(widths)))
    for layer in head.conv.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
    return head


def apply(network: Any, a: Architecture) -> None:
    """Replace what torchvision's detector computes otherwise, in place."""
    rules, heads = a.conventions, network.roi_heads
    if rules.resize in RESIZE_BYTES:
        network.transform = _ByteTransform(network.transform, a)
    network.transform.size_divisible = rules.divisor
    if rules.rpn_sigmoid:
        network.rpn = _ProbabilityRpn.like(network.rpn)
    network.rpn.min_size = rules.rpn_min_size
    if rules.clamp_both:
        for part in (network.rpn, heads):
            part.box_coder = _ClampedBoxCoder(part.box_coder.weights)
    levels = ["0"] if a.single_map else ["0", "1", "2", "3"]
    sampling = partial(Sampling, level_rule=rules.level_rule, stride=rules.first_stride)
    heads.box_roi_pool = PyramidRoIAlign(
        sampling(rules.box_bins, rules.box_samples, rules.box_aligned), levels
    )
    if a.mask_convs:
        heads.mask_roi_pool = PyramidRoIAlign(
            sampling(rules.mask_bins, rules.mask_samples, rules.mask_aligned), levels
        )
    if a.keypoints:
        heads.keypoint_roi_pool = PyramidRoIAlign(
            sampling(rules.keypoint_bins, rules.keypoint_samples, rules.keypoint_aligned), levels
        )
