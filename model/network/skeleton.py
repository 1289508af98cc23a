"""The usual networks as modules that hold weights and cannot run: the engine is prepared from these.

Modules and tensors have torchvision's names, so that a weights file fits both. Importing torchvision takes 1.3 to 2 s,
nearly all of it for `torch._dynamo`, which starting a service does not need. Training, and the networks that are not
here, use torchvision's own modules (build.py).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.network.anchors import cell_anchors
from model.network.architecture import RESNETS
from model.network.conventions import of_one
from model.network.resnet import ResNetBody

if TYPE_CHECKING:
    from model.network.architecture import Architecture
    from model.network.resnet import Norm

# Of a GroupNorm, as in every framework.
GROUPS = 32


def has_skeleton(architecture: Architecture) -> bool:
    """Whether `skeleton` can make it."""
    return architecture.backbone in RESNETS and architecture.is_standard


def skeleton(architecture: Architecture) -> nn.Module:
    """The network's modules on the meta device, without memory: fill them by `load_state_dict(…, assign=True)`.

    They have the attributes of torchvision's MaskRCNN that the engine reads, with its constants.
    Raises ArchitectureError for a description that cannot be built, ValueError for one that has no skeleton.
    """
    architecture.validate()
    if not has_skeleton(architecture):
        raise ValueError(f"no skeleton for {architecture}")
    with torch.device("meta"):
        network = Group(
            transform=Group(
                image_mean=of_one(architecture.conventions.pixel_mean),
                image_std=of_one(architecture.conventions.pixel_std),
            ),
            backbone=_backbone(architecture),
            rpn=_Rpn(architecture),
            roi_heads=_roi_heads(architecture),
        )
    return network.eval()


class Group(nn.Module):
    """Modules and plain values under names."""

    def __init__(self, **members: Any) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)


class FrozenBatchNorm2d(nn.Module):
    """The tensors of torchvision's class of this name: a BatchNorm whose parameters are constants."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(channels))


def _backbone(a: Architecture) -> Group:
    body = ResNetBody(a, _body_norm(a))
    if a.single_map:
        last = "layer3" if a.single_map == "c4" else "layer4"
        body.return_layers = {last: "0"}
        if a.single_map == "c4":
            # The box head has it: `box_head`.
            del body.layer4
        return Group(body=body)
    fpn_norm = head_norm(a) if a.fpn_norm else None
    fpn = Group(
        inner_blocks=nn.ModuleList(conv_block(c, a.fpn_channels, 1, norm=fpn_norm) for c in body.channels),
        layer_blocks=nn.ModuleList(
            conv_block(a.fpn_channels, a.fpn_channels, 3, norm=fpn_norm) for _ in body.channels
        ),
    )
    return Group(body=body, fpn=fpn)


def _body_norm(a: Architecture) -> Norm:
    return partial(FrozenBatchNorm2d if a.norm == "frozen" else nn.BatchNorm2d, eps=a.norm_eps)


def head_norm(a: Architecture) -> Norm:
    """What makes the norms of FPN and heads."""
    return partial(nn.GroupNorm, GROUPS) if a.head_norm == "group" else nn.BatchNorm2d


def conv_block(
    inputs: int, outputs: int, side: int, *, norm: Norm | None = None, relu: bool = False
) -> nn.Sequential:
    """Convolution, norm and ReLU as torchvision's Conv2dNormActivation: only without a norm there is a bias.

    Args:
        inputs: channels.
        outputs: channels.
        side: of the kernel, odd.
        norm: makes the norm of a number of channels, if there is one.
        relu: whether a ReLU follows.
    """
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, side, 1, side // 2, bias=norm is None)]
    if norm is not None:
        layers.append(norm(outputs))
    if relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class _Rpn(nn.Module):
    """A RegionProposalNetwork's head, anchors and constants."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        rules = a.conventions
        cells = [
            cell_anchors(
                sizes, a.anchor_ratios, by_size=rules.anchor_order == "size", whole=rules.anchor_rounding
            )
            for sizes in rules.anchor_levels or level_sizes(a)
        ]
        anchors = len(cells[0])
        widths = [a.fpn_channels, *(a.rpn_channels or [a.fpn_channels] * a.rpn_convs)]
        hidden = [conv_block(i, o, 3, relu=True) for i, o in pairwise(widths)]
        self.head = Group(
            conv=nn.Sequential(*hidden),
            cls_logits=nn.Conv2d(widths[-1], anchors, 1),
            bbox_pred=nn.Conv2d(widths[-1], 4 * anchors, 1),
        )
        self.anchor_generator = Group(cell_anchors=cells)
        self.box_coder = Group(weights=(1.0, 1.0, 1.0, 1.0))
        self.nms_thresh, self.score_thresh, self.min_size = rules.rpn_nms, 0.0, rules.rpn_min_size
        self._candidates, self._proposals = rules.candidates or a.proposals, a.proposals

    def pre_nms_top_n(self) -> int:
        """Anchors that are looked at, on each level."""
        return self._candidates

    def post_nms_top_n(self) -> int:
        """Proposals that are kept."""
        return self._proposals


def _roi_heads(a: Architecture) -> Group:
    rules = a.conventions
    members: dict[str, Any] = {
        "box_roi_pool": Group(output_size=(rules.box_bins,) * 2, sampling_ratio=rules.box_samples),
        "box_head": box_head(a),
        "box_predictor": _box_predictor(a),
        "box_coder": Group(weights=(10.0, 10.0, 5.0, 5.0)),
        "score_thresh": rules.score_threshold,
        "nms_thresh": rules.nms,
        "detections_per_img": rules.detections,
    }
    if a.box_stages > 1:
        stages = [
            Group(box_head=box_head(a), box_predictor=_box_predictor(a)) for _ in range(a.box_stages - 1)
        ]
        members["cascade"] = nn.ModuleList(stages)
    if a.mask_convs:
        norm = head_norm(a) if a.mask_norm else None
        inputs = a.box_channels if a.single_map == "c4" else a.fpn_channels
        widths = [inputs, *[a.mask_channels] * (0 if a.single_map == "c4" else a.mask_convs)]
        convs = [conv_block(i, o, 3, norm=norm, relu=True) for i, o in pairwise(widths)]
        members["mask_roi_pool"] = Group(
            output_size=(rules.mask_bins,) * 2, sampling_ratio=rules.mask_samples
        )
        members["mask_head"] = nn.Sequential(*convs)
        members["mask_predictor"] = Group(
            conv5_mask=nn.ConvTranspose2d(widths[-1], a.mask_channels, 2, 2),
            mask_fcn_logits=nn.Conv2d(a.mask_channels, a.classes, 1),
        )
    if a.keypoints:
        members["keypoint_roi_pool"] = Group(
            output_size=(rules.keypoint_bins,) * 2, sampling_ratio=rules.keypoint_samples
        )
        widths = [a.fpn_channels, *[a.keypoint_channels] * a.keypoint_convs]
        layers = [(nn.Conv2d(i, o, 3, 1, 1), nn.ReLU()) for i, o in pairwise(widths)]
        members["keypoint_head"] = nn.Sequential(*(layer for pair in layers for layer in pair))
        members["keypoint_predictor"] = Group(
            kps_score_lowres=nn.ConvTranspose2d(a.keypoint_channels, a.keypoints, 4, 2, 1)
        )
    return Group(**members)


def level_sizes(a: Architecture) -> list[tuple[float, ...]]:
    """Anchor sizes of each level where the conventions have none."""
    return [a.anchor_sizes] if a.single_map else [(size,) for size in a.anchor_sizes]


def _box_predictor(a: Architecture) -> Group:
    return Group(
        cls_score=nn.Linear(a.box_channels, a.classes), bbox_pred=nn.Linear(a.box_channels, 4 * a.classes)
    )


def box_head(a: Architecture) -> nn.Module:
    """The box head: a C4's and one of two fully connected layers hold weights and cannot run."""
    if a.single_map == "c4":
        return Group(res5=ResNetBody(a, _body_norm(a)).layer4)
    layers = max(0, a.box_fcs) if a.box_fcs else 1 if a.box_convs else 2
    convs = [a.fpn_channels, *[a.box_conv_channels or a.fpn_channels] * a.box_convs]
    pooled = convs[-1] * a.conventions.box_bins**2
    if not a.box_convs and layers == 2:
        return Group(fc6=nn.Linear(pooled, a.box_channels), fc7=nn.Linear(a.box_channels, a.box_channels))
    norm = head_norm(a) if a.box_norm else None
    modules: list[nn.Module] = [conv_block(i, o, 3, norm=norm, relu=True) for i, o in pairwise(convs)]
    modules.append(nn.Flatten())
    for inputs, outputs in pairwise([pooled, *[a.box_channels] * layers]):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules)
