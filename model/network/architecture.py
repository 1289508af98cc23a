"""What a Mask R-CNN is, in plain values, so that a weights file can carry it; build.py makes the modules."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from model.network.conventions import TORCHVISION_NUMBERS, ConventionError, Conventions, coerce

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


# Of a cascade, which has three.
MOST_STAGES = 8
# Both sides of the padded input are multiples of the coarsest level's stride.
DIVISIBLE = 32


class ArchitectureError(ValueError):
    """The description names something that cannot be built."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Mask R-CNN, described by plain values. The defaults are torchvision's V1, with a Feature Pyramid Network."""

    backbone: str = "resnet50"
    # Categories and one for background.
    classes: int = 91
    # Backbone and, in V2, the rest: "frozen" (constants) or "batch" (BatchNorm).
    norm: str = "frozen"
    # 0.0 is what torchvision's COCO_V1 weights were made with.
    norm_eps: float = 0.0
    fpn_channels: int = 256
    # V2: BatchNorm after every convolution of the FPN.
    fpn_norm: bool = False
    rpn_convs: int = 1
    # One for each of P2 … P6, pixels.
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    # Height / width.
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    # Kept for the second stage.
    proposals: int = 1000
    # V2: 4 convolutions with BatchNorm before one fully connected layer.
    box_convs: int = 0
    # Width of the box head's fully connected layers.
    box_channels: int = 1024
    # Width of the mask head.
    mask_channels: int = 256
    # 0: no mask branch, a Faster R-CNN. In a C4, whose res5 takes their place, 0 or 1.
    mask_convs: int = 4
    # V2: BatchNorm in the mask head.
    mask_norm: bool = False
    # The shorter image side is scaled to this, pixels …
    min_size: int = 800
    # … unless the longer one would exceed this.
    max_size: int = 1333
    # What follows came later: files without it mean the defaults, and files with the defaults do without it.
    # False: one map of stride 16, and res5 in the heads (Mask R-CNN, Table 2a, "C4").
    pyramid: bool = True
    # RoIAlign, or "pool": RoIPool (Table 2c).
    pooling: str = "align"
    # A mask for each class, or "softmax": classes compete (Table 2b), "agnostic": one mask.
    masks: str = "sigmoid"
    # Other frameworks' ResNets, pyramids and heads. 0 or (): as the backbone's name and the widths above say.
    stem_channels: int = 0
    # That the first stage gives; each next one gives twice as many.
    res2_channels: int = 0
    # Of the 3×3 convolutions between 1×1 ones, in the first stage.
    bottleneck_channels: int = 0
    # Of the 3×3 convolutions.
    groups: int = 0
    # A stage's stride is in its first 1×1 convolution, as in the paper, not in the 3×3.
    stride_in_1x1: bool = False
    # In place of a pyramid, with stride 16: "c4", res5 being in the heads, or "dc5", res5 dilated.
    single_map: str = ""
    # Of each of the RPN's convolutions.
    rpn_channels: tuple[int, ...] = ()
    # Fully connected layers of the box head; -1: none, and its predictors read `box_channels` numbers of the last map.
    box_fcs: int = 0
    # Box heads that each begin from the boxes of the one before (Cascade R-CNN).
    box_stages: int = 1
    box_conv_channels: int = 0
    # Where FPN and heads have a norm: BatchNorm, or "group": GroupNorm of 32 groups.
    head_norm: str = "batch"
    # Behind the box head's convolutions, where it has some.
    box_norm: bool = True
    # Of each instance, for which a heatmap each is computed (section 5); 0: no keypoint branch.
    keypoints: int = 0
    keypoint_convs: int = 8
    # Width of the keypoint head.
    keypoint_channels: int = 512
    conventions: Conventions = field(default_factory=Conventions)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is resized to, as its framework computes it (in double precision).

        One pixel where torchvision rounds down to none and fails: images over 1333 times as long as wide.
        """
        if self.conventions.resize == "detectron2":
            return self._nearest(self.min_size / min(height, width), height, width)
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        if self.conventions.resize == "mmdetection":
            return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        return max(1, int(height * scale)), max(1, int(width * scale))

    def _nearest(self, scale: float, height: int, width: int) -> tuple[int, int]:
        """Detectron2's rule, in its order of roundings: the shorter side exactly, then both down if need be."""
        shorter = float(self.min_size)
        high, wide = (shorter, scale * width) if height < width else (scale * height, shorter)
        if max(high, wide) > self.max_size:
            again = self.max_size / max(high, wide)
            high, wide = high * again, wide * again
        return max(1, int(high + 0.5)), max(1, int(wide + 0.5))

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for an image."""
        h, w = self.input_size(height, width)
        unit = self.conventions.divisor
        return -(-h // unit) * unit, -(-w // unit) * unit

    @property
    def is_standard(self) -> bool:
        """Whether the prepared engine computes it; a C4, RoIPool, softmax and agnostic masks are torchvision's."""
        return self.pyramid and self.pooling == "align" and self.masks == "sigmoid"

    @property
    def mask_side(self) -> int:
        """Of the masks' maps, cells: twice that of the features, which res5 has halved in a C4."""
        return self.conventions.mask_bins * (1 if self.single_map == "c4" else 2)

    @property
    def is_torchvision(self) -> bool:
        """Whether torchvision's own modules compute it: numbers may differ from their defaults, rules may not."""
        rules = self.conventions
        numbers = {name: getattr(rules, name) for name in TORCHVISION_NUMBERS}
        usual = all(getattr(self, name) == getattr(V1, name) for name in _FOREIGN)
        return usual and rules == replace(Conventions(), **numbers)

    def validate(self) -> None:
        """Raise ArchitectureError for a description that cannot be built."""
        if self.backbone not in BACKBONES:
            raise ArchitectureError(
                f"no such backbone: {self.backbone!r:.60}; there are {', '.join(BACKBONES)}"
            )
        if self.norm not in ("frozen", "batch"):
            raise ArchitectureError(f"norm is 'frozen' or 'batch', not {self.norm!r:.60}")
        if not (math.isfinite(self.norm_eps) and self.norm_eps >= 0):
            raise ArchitectureError(f"norm_eps is a number from 0 up, not {self.norm_eps}")
        if len(self.anchor_sizes) != 5 or min(self.anchor_sizes) < 1:
            raise ArchitectureError(
                f"five anchor sizes are needed, one for each of P2 to P6: {self.anchor_sizes!s:.100}"
            )
        if not self.anchor_ratios or not all(
            math.isfinite(ratio) and ratio > 0 for ratio in self.anchor_ratios
        ):
            raise ArchitectureError(
                f"anchor ratios are positive numbers, at least one: {self.anchor_ratios!s:.100}"
            )
        widths = (
            self.fpn_channels,
            self.box_channels,
            self.mask_channels,
            self.rpn_convs,
            self.proposals,
            self.min_size,
        )
        if (
            min(widths) < 1
            or min(self.box_convs, self.mask_convs) < 0
            or self.max_size < self.min_size
            or self.classes < 2
        ):
            raise ArchitectureError(f"sizes and widths of the architecture must be positive: {self}")
        if self.pooling not in ("align", "pool"):
            raise ArchitectureError(f"pooling is 'align' or 'pool', not {self.pooling!r:.60}")
        if self.masks not in ("sigmoid", "softmax", "agnostic"):
            raise ArchitectureError(f"masks are 'sigmoid', 'softmax' or 'agnostic', not {self.masks!r:.60}")
        if self.head_norm not in ("batch", "group"):
            raise ArchitectureError(f"head_norm is 'batch' or 'group', not {self.head_norm!r}")
        if self.box_fcs < -1 or (self.box_fcs == -1 and not self.box_convs):
            raise ArchitectureError("a box head has fully connected layers, or convolutions and -1 of them")
        other = (self.stem_channels, self.res2_channels, self.bottleneck_channels, self.groups)
        if min(*other, self.box_conv_channels, *self.rpn_channels) < 0:
            raise ArchitectureError(f"sizes and widths of the architecture must be positive: {self}")
        if self.single_map not in ("", "c4", "dc5"):
            raise ArchitectureError(f"single_map is 'c4', 'dc5' or nothing, not {self.single_map!r:.60}")
        if (self.single_map != "") != (self.conventions.first_stride == 16):
            raise ArchitectureError("a single map has a stride of 16, and a pyramid begins with one of 4")
        if self.single_map and (self.backbone not in RESNETS[2:5] or self.box_stages > 1 or self.fpn_norm):
            raise ArchitectureError("a single map is of a ResNet of 50, 101 or 152 layers, without a cascade")
        if min(self.keypoints, self.keypoint_convs - 1, self.keypoint_channels - 1) < 0:
            raise ArchitectureError(f"sizes and widths of the keypoint head must be positive: {self}")
        if self.keypoints and not (self.is_standard and not self.single_map):
            raise ArchitectureError(
                "keypoints need a pyramid, RoIAlign and, beside masks, one for each class"
            )
        if not 1 <= self.box_stages <= MOST_STAGES:
            raise ArchitectureError(f"box_stages are 1 to {MOST_STAGES}, not {self.box_stages}")
        if self.rpn_channels and len(self.rpn_channels) != self.rpn_convs:
            raise ArchitectureError(
                f"{self.rpn_convs} convolutions of an RPN have {len(self.rpn_channels)} widths"
            )
        levels = 1 if self.single_map else len(self.anchor_sizes)
        if len(self.conventions.anchor_levels or [()] * levels) != levels:
            raise ArchitectureError(f"anchor_levels are {levels}, not {self.conventions.anchor_levels}")
        try:
            self.conventions.validate()
        except ConventionError as error:
            raise ArchitectureError(str(error)) from None
        if not self.pyramid and (
            self.backbone not in RESNETS or self.box_convs or self.fpn_norm or self.mask_convs > 1
        ):
            raise ArchitectureError(
                "a C4 has a ResNet's or ResNeXt's stages for heads: no box convolutions, no norm of a pyramid, "
                f"and 0 or 1 mask convolutions: {self}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata."""
        values = asdict(self) | {"conventions": self.conventions.to_dict()}
        defaults = {name: getattr(V1, name) for name in _LATER} | {"conventions": {}}
        return {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """The inverse of `to_dict`; ArchitectureError on unknown or missing names and values of the wrong type."""
        if not isinstance(values, dict):
            raise ArchitectureError(f"an architecture is a table of names and values, not {values!r}")
        known = {f.name: getattr(V1, f.name) for f in fields(cls)}
        values = {**{name: known[name] for name in _LATER}, **values}
        if not isinstance(values["conventions"], Conventions):
            try:
                values["conventions"] = Conventions.from_dict(values["conventions"])
            except ConventionError as error:
                raise ArchitectureError(str(error)) from None
        for kind, names in ("unknown", set(values) - set(known)), ("missing", set(known) - set(values)):
            if names:
                raise ArchitectureError(f"{kind} architecture fields: {', '.join(sorted(map(str, names)))}")
        typed = {}
        for name, example in known.items():
            try:
                typed[name] = coerce(values[name], example)
            except TypeError as error:
                raise ArchitectureError(f"architecture field {name}: {error}") from None
        return cls(**typed)


_FOREIGN = (
    "single_map", "stem_channels", "res2_channels", "bottleneck_channels", "groups", "stride_in_1x1", "rpn_channels",
    "box_fcs",
    "box_stages", "box_conv_channels", "head_norm", "box_norm",
)  # fmt: skip
_KEYPOINTS = ("keypoints", "keypoint_convs", "keypoint_channels")
_LATER = ("pyramid", "pooling", "masks", *_FOREIGN, *_KEYPOINTS, "conventions")
V1 = Architecture()
# Li et al., "Benchmarking Detection Transfer Learning with Vision Transformers", as torchvision builds it.
V2 = Architecture(norm="batch", norm_eps=1e-5, fpn_norm=True, rpn_convs=2, box_convs=4, mask_norm=True)
# Section 5's, as torchvision builds it: boxes and keypoints of people, without masks.
KEYPOINTS = Architecture(classes=2, mask_convs=0, keypoints=17)
# 13.5 million parameters; the bundled models are this, widened to 96 channels.
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
)
# The paper's ResNet-50-C4 (section 3.1: 300 proposals at test time).
C4 = Architecture(norm_eps=1e-5, pyramid=False, mask_convs=1, proposals=300)
