"""Architecture → torchvision module: backbone, FPN or C4, RPN and RoI heads (Mask R-CNN, sections 3 and 3.1)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.network import other_frameworks
from model.network.architecture import MOBILENETS, ArchitectureError
from model.network.c4 import BINS, STRIDE, c4
from model.network.conventions import of_one
from model.network.mask_variants import AgnosticPredictor, MaskLossHeads, SoftmaxPredictor
from model.network.other_frameworks import Anchors
from model.network.roi_pool import PyramidRoIPool
from model.network.skeleton import has_skeleton

if TYPE_CHECKING:
    from model.network.architecture import Architecture


def build(architecture: Architecture, *, rpn_training: tuple[int, int] = (2000, 2000)) -> nn.Module:
    """The torchvision module, on the CPU, in evaluation mode, with random weights.

    rpn_training: proposals before and after suppression while training, for each level and image.
    Raises ArchitectureError for a description that cannot be built.
    """
    a, rules = architecture, architecture.conventions
    a.validate()
    if a.box_stages > 1:
        raise ArchitectureError(
            f"a cascade (here of {a.box_stages} stages) can be served and calibrated, but not trained, because the "
            "training has one box head: train it in its own framework and import the result, or start from a model "
            "without a cascade"
        )
    if not a.is_torchvision and not has_skeleton(a):
        raise ArchitectureError(
            f"a {a.backbone} that computes as another framework does cannot be trained; a ResNet or ResNeXt with "
            "RoIAlign and a mask for each class can"
        )
    other: dict[str, Any] = {}
    shared: nn.Module | None = None
    box_head: nn.Module | None = None
    backbone: Any
    sizes = rules.anchor_levels or tuple((size,) for size in a.anchor_sizes)
    strides: tuple[int, ...] = (4, 8, 16, 32)
    bins, width = (7, 14), a.box_channels
    if not a.is_torchvision:
        other = other_frameworks.parts(a)
        backbone, box_head = other["backbone"], other["box_head"]
        if a.single_map:
            sizes = rules.anchor_levels or (a.anchor_sizes,)
            strides = (rules.first_stride,)
            shared = other["mask_head"] if a.single_map == "c4" else None
    elif a.pyramid:
        backbone = _backbone(a)
    else:
        backbone, box_head, shared, width = c4(a.backbone, _norm(a))
        sizes, strides, bins = (a.anchor_sizes,), (STRIDE,), (BINS, BINS)
    anchors = Anchors(sizes, a.anchor_ratios, rules)
    per_cell = anchors.num_anchors_per_location()[0]
    rpn_head = (
        other_frameworks.rpn_head(a, per_cell)
        if other
        else RPNHead(backbone.out_channels, per_cell, conv_depth=a.rpn_convs)
    )
    # After the RPN's, so that a seed gives the weights that it always gave.
    box_head = _box_head(a) if box_head is None else box_head
    pools = [MultiScaleRoIAlign([str(n) for n in range(len(strides))], side, 2) for side in bins]
    settings: dict[str, Any] = {
        "min_size": a.min_size,
        "max_size": a.max_size,
        "rpn_anchor_generator": anchors,
        "rpn_head": rpn_head,
        "rpn_pre_nms_top_n_train": rpn_training[0],
        "rpn_post_nms_top_n_train": rpn_training[1],
        "rpn_pre_nms_top_n_test": rules.candidates or a.proposals,
        "rpn_post_nms_top_n_test": a.proposals,
        "image_mean": of_one(rules.pixel_mean),
        "image_std": of_one(rules.pixel_std),
        "rpn_nms_thresh": rules.rpn_nms,
        "box_score_thresh": rules.score_threshold,
        "box_nms_thresh": rules.nms,
        "box_detections_per_img": rules.detections,
        "box_roi_pool": pools[0],
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(width, a.classes),
    }
    if a.mask_convs == 0:
        network: Any = FasterRCNN(backbone, **settings)
    else:
        mask_head = other["mask_head"] if other else _mask_head(a) if shared is None else shared
        predictor = {"sigmoid": MaskRCNNPredictor, "softmax": SoftmaxPredictor, "agnostic": AgnosticPredictor}
        network = MaskRCNN(
            backbone,
            mask_roi_pool=pools[1],
            mask_head=mask_head,
            mask_predictor=predictor[a.masks](
                a.mask_channels if shared is None else width, a.mask_channels, a.classes
            ),
            **settings,
        )
    # torchvision's constructors insist on RoIAlign.
    if a.pooling == "pool":
        network.roi_heads.box_roi_pool = PyramidRoIPool(bins[0], strides)
        if a.mask_convs:
            network.roi_heads.mask_roi_pool = PyramidRoIPool(bins[1], strides)
    if a.keypoints:
        network.roi_heads.keypoint_roi_pool = MultiScaleRoIAlign([str(n) for n in range(4)], 14, 2)
        network.roi_heads.keypoint_head = KeypointRCNNHeads(
            a.fpn_channels, [a.keypoint_channels] * a.keypoint_convs
        )
        network.roi_heads.keypoint_predictor = KeypointRCNNPredictor(a.keypoint_channels, a.keypoints)
    softmax, centred = a.masks == "softmax", rules.paste == "detectron2"
    if a.mask_convs and (softmax or centred):
        network.roi_heads = MaskLossHeads.like(network.roi_heads, softmax=softmax, centred=centred)
    if other:
        other_frameworks.apply(network, a)
    made: nn.Module = network.eval()
    return made


def build_uninitialized(architecture: Architecture) -> nn.Module:
    """As `build`, but leaves weights uninitialized, to be filled from a file: 0.03 s for a ResNet-50 instead of 0.4 s.

    Raises ArchitectureError.
    """
    with _Uninitialized():
        return build(architecture)


class _Uninitialized(TorchFunctionMode):
    """Tensors keep what is in their memory where they would be filled with random numbers."""

    RANDOM_FILLS = frozenset({"normal_", "uniform_", "kaiming_uniform_"})

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(function, "__name__", "") in self.RANDOM_FILLS:
            return args[0] if args else given["tensor"]
        return function(*args, **given)


def _box_head(a: Architecture) -> nn.Module:
    if not a.box_convs:
        return TwoMLPHead(a.fpn_channels * 7 * 7, a.box_channels)  # type: ignore[no-any-return]
    return FastRCNNConvFCHead(  # type: ignore[no-any-return]
        (a.fpn_channels, 7, 7),
        [a.fpn_channels] * a.box_convs,
        [a.box_channels],
        norm_layer=nn.BatchNorm2d,
    )


def _mask_head(a: Architecture) -> nn.Module:
    norm = nn.BatchNorm2d if a.mask_norm else None
    head: nn.Module = MaskRCNNHeads(
        a.fpn_channels, [a.mask_channels] * a.mask_convs, dilation=1, norm_layer=norm
    )
    return head


def _norm(a: Architecture) -> Any:
    return partial(FrozenBatchNorm2d if a.norm == "frozen" else nn.BatchNorm2d, eps=a.norm_eps)


def _backbone(a: Architecture) -> BackboneWithFPN:
    body: Any
    # It has no norm of its own: "frozen" is the plain network.
    if a.backbone == "vgg16":
        # Not torchvision.models.vgg16, which makes 124 million numbers of a classifier first, only to drop them.
        body = make_layers(cfgs["D"], batch_norm=a.norm == "batch")
        for conv in body.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        # C2 … C5 are the outputs of poolings 2 … 5, whose strides are 4, 8, 16 and 32.
        pools = [n for n, layer in enumerate(body) if isinstance(layer, nn.MaxPool2d)]
        layers = {str(n): str(level) for level, n in enumerate(pools[1:])}
        channels = [width for width, layer in pairwise(cfgs["D"]) if layer == "M"][1:]
    elif a.backbone in MOBILENETS:
        norm = _norm(a)
        body = torchvision.models.get_model(a.backbone, weights=None, norm_layer=norm).features
        # C2 … C5 are the last outputs of strides 4, 8, 16 and 32. What halves the sides is the first layer and every
        # block that torchvision marks so.
        halves = [n for n, block in enumerate(body) if n == 0 or getattr(block, "_is_cn", False)]
        last = [*(n - 1 for n in halves[2:]), len(body) - 1]
        layers = {str(n): str(level) for level, n in enumerate(last)}
        channels = [int(body[n].out_channels) for n in last]
    else:
        norm = _norm(a)
        body = torchvision.models.get_model(a.backbone, weights=None, norm_layer=norm)
        layers = {f"layer{n}": str(n - 1) for n in (1, 2, 3, 4)}
        channels = [body.inplanes // 8 * 2**n for n in range(4)]
    return BackboneWithFPN(
        body,
        layers,
        channels,
        a.fpn_channels,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=nn.BatchNorm2d if a.fpn_norm else None,
    )


def has_masks(network: nn.Module) -> bool:
    """Whether the module is a Mask R-CNN rather than a Faster R-CNN."""
    return getattr(getattr(network, "roi_heads", None), "mask_predictor", None) is not None


def has_keypoints(network: nn.Module) -> bool:
    """Whether the module has a keypoint branch."""
    return getattr(getattr(network, "roi_heads", None), "keypoint_predictor", None) is not None


def parameters(network: nn.Module) -> int:
    """How many numbers were learned."""
    frozen = [m for m in network.modules() if isinstance(m, FrozenBatchNorm2d)]
    numbers = [*network.parameters(), *(b for m in frozen for b in (m.weight, m.bias))]
    return sum(int(tensor.numel()) for tensor in numbers)
