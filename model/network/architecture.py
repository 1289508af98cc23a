"""Architecture → torchvision module: backbone, FPN or C4, RPN and RoI heads (Mask R-CNN, sections 3 and 3.1).

A description made of plain values builds the module, so that a weights file can carry it; weights are in model/zoo/.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.network.c4 import BINS, STRIDE, c4
from model.network.mask_variants import AgnosticPredictor, SoftmaxHeads, SoftmaxPredictor
from model.network.roi_pool import PyramidRoIPool

RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
)
MOBILENETS = ("mobilenet_v3_large", "mobilenet_v3_small")
BACKBONES = (*RESNETS, "vgg16", *MOBILENETS)


DIVISIBLE = 32  # both sides of the padded input are multiples of the coarsest level's stride


class ArchitectureError(ValueError):
    """The description names something that cannot be built."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Mask R-CNN, described by plain values. The defaults are torchvision's V1, with a Feature Pyramid Network."""

    backbone: str = "resnet50"
    classes: int = 91  # categories and one for background
    norm: str = "frozen"  # backbone and, in V2, the rest: "frozen" (constants) or "batch" (BatchNorm)
    norm_eps: float = 0.0  # 0.0 is what torchvision's COCO_V1 weights were made with
    fpn_channels: int = 256
    fpn_norm: bool = False  # V2: BatchNorm after every convolution of the FPN
    rpn_convs: int = 1
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)  # one for each of P2 … P6, pixels
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    proposals: int = 1000  # kept for the second stage
    box_convs: int = 0  # V2: 4 convolutions with BatchNorm before one fully connected layer
    box_channels: int = 1024  # width of the box head's fully connected layers
    mask_channels: int = 256  # width of the mask head
    mask_convs: int = 4  # 0: no mask branch, a Faster R-CNN. In a C4, whose res5 takes their place, 0 or 1
    mask_norm: bool = False  # V2: BatchNorm in the mask head
    min_size: int = 800  # the shorter image side is scaled to this, pixels …
    max_size: int = 1333  # … unless the longer one would exceed this
    # What follows came later: files without it mean the defaults, and files with the defaults do without it.
    pyramid: bool = True  # False: one map of stride 16, and res5 in the heads (Mask R-CNN, Table 2a, "C4")
    pooling: str = "align"  # RoIAlign, or "pool": RoIPool (Table 2c)
    masks: str = (
        "sigmoid"  # a mask for each class, or "softmax": classes compete (Table 2b), "agnostic": one mask
    )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is resized to, as torchvision computes it (in double precision).

        One pixel where torchvision rounds down to none and fails: images over 1333 times as long as wide.
        """
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return max(1, int(height * scale)), max(1, int(width * scale))

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for an image."""
        h, w = self.input_size(height, width)
        return -(-h // DIVISIBLE) * DIVISIBLE, -(-w // DIVISIBLE) * DIVISIBLE

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata."""
        return {k: v for k, v in asdict(self).items() if k not in _LATER or v != getattr(V1, k)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """The inverse of `to_dict`; ArchitectureError on unknown or missing names and values of the wrong type."""
        if not isinstance(values, dict):
            raise ArchitectureError(f"an architecture is a table of names and values, not {values!r}")
        known = {f.name: getattr(V1, f.name) for f in fields(cls)}
        values = {**{name: known[name] for name in _LATER}, **values}
        for kind, names in ("unknown", set(values) - set(known)), ("missing", set(known) - set(values)):
            if names:
                raise ArchitectureError(f"{kind} architecture fields: {', '.join(sorted(map(str, names)))}")
        return cls(**{name: _typed(name, values[name], example) for name, example in known.items()})


def _typed(name: str, value: Any, example: Any) -> Any:
    """The value in the example's type; JSON has no tuples, and writes 1.0 as it likes."""
    if isinstance(example, tuple) and isinstance(value, list | tuple):
        return tuple(_typed(name, item, example[0]) for item in value)
    if isinstance(example, float) and type(value) is int:
        return float(value)
    if type(value) is not type(example):
        raise ArchitectureError(f"architecture field {name}: {value!r} is no {type(example).__name__}")
    return value


_LATER = ("pyramid", "pooling", "masks")
V1 = Architecture()
V2 = Architecture(
    norm="batch", norm_eps=1e-5, fpn_norm=True, rpn_convs=2, box_convs=4, mask_norm=True
)  # Li et al., "Benchmarking Detection Transfer Learning with Vision Transformers", as torchvision builds it
SMALL = Architecture(
    backbone="resnet18",
    classes=11,
    norm="batch",
    norm_eps=1e-5,
    fpn_channels=64,
    anchor_sizes=(16, 32, 64, 128, 256),
    proposals=300,
    box_channels=512,
    mask_channels=64,
    min_size=384,
    max_size=768,
)  # 13.5 million parameters; the bundled model is this, widened to 96 channels
C4 = Architecture(
    norm_eps=1e-5, pyramid=False, mask_convs=1, proposals=300
)  # the paper's ResNet-50-C4 (section 3.1: 300 proposals at test time)


def build(architecture: Architecture, *, rpn_training: tuple[int, int] = (2000, 2000)) -> nn.Module:
    """The torchvision module, on the CPU, in evaluation mode, with random weights.

    rpn_training: proposals before and after suppression while training, for each level and image.
    Raises ArchitectureError for a description that cannot be built.
    """
    a = architecture
    _check(a)
    shared: nn.Module | None = None
    stage: nn.Module | None = None
    backbone: Any
    sizes: tuple[tuple[int, ...], ...]
    strides: tuple[int, ...]
    if a.pyramid:
        backbone, width = _backbone(a), a.box_channels
        sizes = tuple((size,) for size in a.anchor_sizes)
        strides, bins = (4, 8, 16, 32), (7, 14)
    else:
        backbone, stage, shared, width = c4(a.backbone, _norm(a))
        sizes, strides, bins = (a.anchor_sizes,), (STRIDE,), (BINS, BINS)
    anchors = AnchorGenerator(sizes, (a.anchor_ratios,) * len(sizes))
    rpn_head = RPNHead(backbone.out_channels, anchors.num_anchors_per_location()[0], conv_depth=a.rpn_convs)
    box_head = _box_head(a) if stage is None else stage
    pools = [MultiScaleRoIAlign([str(n) for n in range(len(strides))], side, 2) for side in bins]
    settings: dict[str, Any] = {
        "min_size": a.min_size,
        "max_size": a.max_size,
        "rpn_anchor_generator": anchors,
        "rpn_head": rpn_head,
        "rpn_pre_nms_top_n_train": rpn_training[0],
        "rpn_post_nms_top_n_train": rpn_training[1],
        "rpn_pre_nms_top_n_test": a.proposals,
        "rpn_post_nms_top_n_test": a.proposals,
        "box_roi_pool": pools[0],
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(width, a.classes),
    }
    if a.mask_convs == 0:
        network: Any = FasterRCNN(backbone, **settings)
    else:
        mask_head = _mask_head(a) if shared is None else shared
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
    if a.pooling == "pool":  # torchvision's constructors insist on RoIAlign
        network.roi_heads.box_roi_pool = PyramidRoIPool(bins[0], strides)
        if a.mask_convs:
            network.roi_heads.mask_roi_pool = PyramidRoIPool(bins[1], strides)
    if a.mask_convs and a.masks == "softmax":
        network.roi_heads = SoftmaxHeads.like(network.roi_heads)
    made: nn.Module = network.eval()
    return made


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


def _check(a: Architecture) -> None:
    if a.backbone not in BACKBONES:
        raise ArchitectureError(f"no such backbone: {a.backbone!r}; there are {', '.join(BACKBONES)}")
    if a.norm not in ("frozen", "batch"):
        raise ArchitectureError(f"norm is 'frozen' or 'batch', not {a.norm!r}")
    if not (math.isfinite(a.norm_eps) and a.norm_eps >= 0):
        raise ArchitectureError(f"norm_eps is a number from 0 up, not {a.norm_eps}")
    if len(a.anchor_sizes) != 5 or min(a.anchor_sizes) < 1:
        raise ArchitectureError(f"five anchor sizes are needed, one for each of P2 to P6: {a.anchor_sizes}")
    if not a.anchor_ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in a.anchor_ratios):
        raise ArchitectureError(f"anchor ratios are positive numbers, at least one: {a.anchor_ratios}")
    widths = (a.fpn_channels, a.box_channels, a.mask_channels, a.rpn_convs, a.proposals, a.min_size)
    if min(widths) < 1 or min(a.box_convs, a.mask_convs) < 0 or a.max_size < a.min_size or a.classes < 2:
        raise ArchitectureError(f"sizes and widths of the architecture must be positive: {a}")
    if a.pooling not in ("align", "pool"):
        raise ArchitectureError(f"pooling is 'align' or 'pool', not {a.pooling!r}")
    if a.masks not in ("sigmoid", "softmax", "agnostic"):
        raise ArchitectureError(f"masks are 'sigmoid', 'softmax' or 'agnostic', not {a.masks!r}")
    if not a.pyramid and (a.backbone not in RESNETS or a.box_convs or a.fpn_norm or a.mask_convs > 1):
        raise ArchitectureError(
            "a C4 has a ResNet's or ResNeXt's stages for heads: no box convolutions, no norm of a pyramid, and 0 or 1 "
            f"mask convolutions: {a}"
        )


def _backbone(a: Architecture) -> BackboneWithFPN:
    body: Any
    if a.backbone == "vgg16":  # has no norm of its own: "frozen" is the plain network
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
        channels = [128, 256, 512, 512]
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


def parameters(network: nn.Module) -> int:
    """How many numbers were learned."""
    frozen = [m for m in network.modules() if isinstance(m, FrozenBatchNorm2d)]
    numbers = [*network.parameters(), *(b for m in frozen for b in (m.weight, m.bias))]
    return sum(int(tensor.numel()) for tensor in numbers)
