"""Detectron2's Mask R-CNN: its configuration and weights in our terms.

What is only another way of writing the same function is rewritten: channels from BGR to RGB in the first convolution,
background from last to first, one box or mask for all classes to the same one for each, box weights into predictors.
What is another function is a convention of the architecture (model/network/conventions.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from model.importing.categories import numbered_categories
from model.importing.checkpoint import DETECTRON2
from model.importing.names import depth_of
from model.importing.result import Imported, ImportingError, Report
from model.importing.rewriting import background_first, fuse_by_sum, rgb_first, scale_deltas
from model.network.architecture import Architecture
from model.network.conventions import Conventions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.data import Category
    from model.importing.checkpoint import Checkpoint

LEAST = 1e-30  # pixels: "larger than 0", for what is compared by "at least"
FROZEN_EPS = 1e-5

# Names in order; the first that matches is the one.
_NAMES = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)$", r"backbone.body.bn1.\1"),
        (r"backbone\.bottom_up\.stem\.conv1\.(\w+)$", r"backbone.body.conv1.\1"),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)$", r"backbone.body.layer{}.\2.bn\3.\4"),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.(\w+)$", r"backbone.body.layer{}.\2.conv\3.\4"),
        (
            r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.(\w+)$",
            r"backbone.body.layer{}.\2.downsample.1.\3",
        ),
        (
            r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.(\w+)$",
            r"backbone.body.layer{}.\2.downsample.0.\3",
        ),
        (r"backbone\.fpn_lateral(\d)\.norm\.(\w+)$", r"backbone.fpn.inner_blocks.[].1.\2"),
        (r"backbone\.fpn_lateral(\d)\.(\w+)$", r"backbone.fpn.inner_blocks.[].0.\2"),
        (r"backbone\.fpn_output(\d)\.norm\.(\w+)$", r"backbone.fpn.layer_blocks.[].1.\2"),
        (r"backbone\.fpn_output(\d)\.(\w+)$", r"backbone.fpn.layer_blocks.[].0.\2"),
        (r"proposal_generator\.rpn_head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
        (r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.(\w+)$", r"rpn.head.conv.\1.0.\2"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)$", r"rpn.head.cls_logits.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)$", r"rpn.head.bbox_pred.\1"),
        (r"roi_heads\.box_predictor\.(\w+)\.(\w+)$", r"roi_heads.box_predictor.\1.\2"),
        (r"roi_heads\.mask_head\.mask_fcn(\d+)\.norm\.(\w+)$", r"roi_heads.mask_head.<>.1.\2"),
        (r"roi_heads\.mask_head\.mask_fcn(\d+)\.(\w+)$", r"roi_heads.mask_head.<>.0.\2"),
        (r"roi_heads\.mask_head\.deconv\.(\w+)$", r"roi_heads.mask_predictor.conv5_mask.\1"),
        (r"roi_heads\.mask_head\.predictor\.(\w+)$", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    )
]
_BOX_HEAD = re.compile(r"roi_heads\.box_head\.(conv|fc)(\d+)\.(norm\.)?(\w+)$")
# What its files hold besides: anchors and statistics that are made anew, and the keypoint head.
_UNUSED = re.compile(
    r"(proposal_generator\.anchor_generator\.|pixel_mean$|pixel_std$|roi_heads\.keypoint_head\.|.*num_batches_tracked$)"
)
# Settings of which only one value is supported, and what it is.
_ONLY = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
}
CASCADE = "CascadeROIHeads"
_STAGE = re.compile(r"roi_heads\.(box_head|box_predictor)\.(\d+)\.(.+)$")
_POOLERS = {"ROIAlignV2": True, "ROIAlign": False}


def convert(
    checkpoint: Checkpoint, settings: dict[str, Any], categories: tuple[Category, ...] | None
) -> Imported:
    """The model in a checkpoint of Detectron2's with all its settings (detectron2_config.read_config).

    Raises ImportingError for what is not supported, by the name of the setting.
    """
    _refuse(settings)
    report = Report([*checkpoint.notes])
    masks = bool(settings["MODEL.MASK_ON"])
    source = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.tensors.items()
        if not _UNUSED.match(name) and (masks or not name.startswith("roi_heads.mask_head."))
    }
    architecture = _architecture(settings, source)
    tensors = {_renamed(name, settings): tensor for name, tensor in source.items()}
    _rewrite(tensors, settings)
    named = numbered_categories(architecture.classes - 1, categories, report)
    kind = f"{'Cascade' if _is_cascade(settings) else ''} {'Mask' if masks else 'Faster'} R-CNN".strip()
    report.recognised.insert(0, f"Detectron2's {kind}, {architecture.backbone} with an FPN")
    report.taken.append(
        f"from its configuration: {settings['INPUT.FORMAT']}, images scaled to {architecture.min_size}/"
        f"{architecture.max_size}, score threshold {architecture.conventions.score_threshold:g}, NMS "
        f"{architecture.conventions.nms:g}, at most {architecture.conventions.detections} detections, "
        f"{architecture.proposals} proposals, {settings['MODEL.ROI_BOX_HEAD.POOLER_TYPE']}"
    )
    if settings["MODEL.KEYPOINT_ON"]:
        report.assumed.append("its keypoints are left out: only boxes and masks are served")
    return Imported(DETECTRON2, architecture, tensors, named, tuple(range(1, architecture.classes)), report)


def _refuse(settings: dict[str, Any]) -> None:
    """Raise ImportingError for settings that name something which is not supported."""
    if _is_cascade(settings) and not settings["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"]:
        raise ImportingError("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: False is not supported in a cascade")
    if settings["MODEL.BACKBONE.NAME"] == "build_resnet_backbone":
        raise ImportingError(
            "MODEL.BACKBONE.NAME build_resnet_backbone: C4 and DC5 models of Detectron2 are not supported yet; those "
            "with an FPN are"
        )
    for name, only in _ONLY.items():
        if name.startswith("MODEL.ROI_MASK_HEAD.") and not settings["MODEL.MASK_ON"]:
            continue
        if settings[name] != only:
            raise ImportingError(f"{name}: {settings[name]!r} is not supported; {only!r} is")
    for name, values in (
        ("INPUT.FORMAT", ("BGR", "RGB")),
        ("MODEL.ROI_HEADS.NAME", ("StandardROIHeads", CASCADE)),
        ("MODEL.FPN.FUSE_TYPE", ("sum", "avg")),
        ("MODEL.FPN.NORM", ("", "GN")),
        ("MODEL.ROI_BOX_HEAD.NORM", ("", "GN")),
        ("MODEL.ROI_MASK_HEAD.NORM", ("", "GN")),
        ("MODEL.RESNETS.NORM", ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN")),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", tuple(_POOLERS)),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", tuple(_POOLERS)),
    ):
        if settings[name] not in values and not ("ROI_MASK_HEAD" in name and not settings["MODEL.MASK_ON"]):
            raise ImportingError(
                f"{name}: {settings[name]!r} is not supported; {', '.join(map(repr, values))} are"
            )
    ratios = settings["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"]
    if any(each != ratios[0] for each in ratios):
        raise ImportingError(
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS: other ratios at each level are not supported"
        )


def _is_cascade(settings: dict[str, Any]) -> bool:
    return bool(settings["MODEL.ROI_HEADS.NAME"] == CASCADE)


def _architecture(settings: dict[str, Any], tensors: dict[str, Tensor]) -> Architecture:
    def model(name: str) -> Any:
        return settings[f"MODEL.{name}"]

    depth = depth_of(tensors, "backbone.bottom_up.", "res")
    if depth != model("RESNETS.DEPTH"):
        raise ImportingError(f"MODEL.RESNETS.DEPTH is {model('RESNETS.DEPTH')}, but the weights' is {depth}")
    basic = depth < 50
    groups, width = model("RESNETS.NUM_GROUPS"), model("RESNETS.WIDTH_PER_GROUP")
    levels = _anchor_levels(model("ANCHOR_GENERATOR.SIZES"))
    mask_convs = model("ROI_MASK_HEAD.NUM_CONV") if model("MASK_ON") else 0
    if model("MASK_ON") and not mask_convs:
        raise ImportingError("MODEL.ROI_MASK_HEAD.NUM_CONV: 0 is not supported with an FPN")
    rpn = _rpn_channels(model("RPN.CONV_DIMS"), model("FPN.OUT_CHANNELS"))
    norms = {model("FPN.NORM"), model("ROI_BOX_HEAD.NORM"), model("ROI_MASK_HEAD.NORM")}
    return Architecture(
        backbone=f"resnet{depth}",
        classes=model("ROI_HEADS.NUM_CLASSES") + 1,
        norm="frozen",
        norm_eps=FROZEN_EPS,
        fpn_channels=model("FPN.OUT_CHANNELS"),
        fpn_norm=bool(model("FPN.NORM")),
        rpn_convs=len(rpn),
        anchor_ratios=tuple(float(ratio) for ratio in model("ANCHOR_GENERATOR.ASPECT_RATIOS")[0]),
        proposals=model("RPN.POST_NMS_TOPK_TEST"),
        box_convs=model("ROI_BOX_HEAD.NUM_CONV"),
        box_channels=model("ROI_BOX_HEAD.FC_DIM"),
        mask_channels=model("ROI_MASK_HEAD.CONV_DIM"),
        mask_convs=mask_convs,
        mask_norm=bool(model("ROI_MASK_HEAD.NORM")),
        min_size=settings["INPUT.MIN_SIZE_TEST"],
        max_size=settings["INPUT.MAX_SIZE_TEST"],
        stem_channels=_unless(model("RESNETS.STEM_OUT_CHANNELS"), 64),
        res2_channels=_unless(model("RESNETS.RES2_OUT_CHANNELS"), 64 if basic else 256),
        bottleneck_channels=0 if basic else _unless(groups * width, 64),
        groups=_unless(groups, 1),
        stride_in_1x1=bool(model("RESNETS.STRIDE_IN_1X1")) and not basic,
        rpn_channels=() if all(n == model("FPN.OUT_CHANNELS") for n in rpn) else rpn,
        box_fcs=model("ROI_BOX_HEAD.NUM_FC"),
        box_stages=len(model("ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS")) if _is_cascade(settings) else 1,
        box_conv_channels=model("ROI_BOX_HEAD.CONV_DIM") if model("ROI_BOX_HEAD.NUM_CONV") else 0,
        head_norm="group" if "GN" in norms else "batch",
        box_norm=bool(model("ROI_BOX_HEAD.NORM")),
        conventions=_conventions(settings, levels),
    )


def _conventions(settings: dict[str, Any], levels: tuple[tuple[float, ...], ...]) -> Conventions:
    def model(name: str) -> Any:
        return settings[f"MODEL.{name}"]

    # Means are given in the order of the channels, and the first convolution is turned to RGB.
    turn = -1 if settings["INPUT.FORMAT"] == "BGR" else 1
    return Conventions(
        pixel_mean=tuple(float(value) for value in model("PIXEL_MEAN")[::turn]),
        pixel_std=tuple(float(value) for value in model("PIXEL_STD")[::turn]),
        resize="detectron2",
        anchor_levels=levels,
        anchor_order="size",
        anchor_offset=model("ANCHOR_GENERATOR.OFFSET"),
        anchor_rounding=False,
        anchor_strides="level",
        candidates=model("RPN.PRE_NMS_TOPK_TEST"),
        rpn_nms=model("RPN.NMS_THRESH"),
        rpn_min_size=above(model("PROPOSAL_GENERATOR.MIN_SIZE")),
        level_rule="detectron2",
        box_bins=model("ROI_BOX_HEAD.POOLER_RESOLUTION"),
        box_samples=model("ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"),
        box_aligned=_POOLERS[model("ROI_BOX_HEAD.POOLER_TYPE")],
        mask_bins=model("ROI_MASK_HEAD.POOLER_RESOLUTION"),
        mask_samples=model("ROI_MASK_HEAD.POOLER_SAMPLING_RATIO"),
        mask_aligned=_POOLERS.get(model("ROI_MASK_HEAD.POOLER_TYPE"), True),
        score_threshold=model("ROI_HEADS.SCORE_THRESH_TEST"),
        nms=model("ROI_HEADS.NMS_THRESH_TEST"),
        detections=settings["TEST.DETECTIONS_PER_IMAGE"],
        box_min_size=0.0,
        drop_empty=True,
        paste="detectron2",
    )


def above(least: float) -> float:
    """The next number above in float32: Detectron2 keeps what is larger, and we keep what is at least so large."""
    if not least:
        return LEAST
    return float(torch.nextafter(torch.tensor(float(least)), torch.tensor(torch.inf)))


def _unless(value: int, usual: int) -> int:
    return 0 if value == usual else value


def _anchor_levels(sizes: list[Any]) -> tuple[tuple[float, ...], ...]:
    levels = [level if isinstance(level, list) else [level] for level in sizes]
    if len(levels) == 1:
        levels *= 5
    if len(levels) != 5:
        raise ImportingError(f"MODEL.ANCHOR_GENERATOR.SIZES: {len(levels)} levels are not supported; 5 are")
    return tuple(tuple(float(size) for size in level) for level in levels)


def _rpn_channels(dims: Sequence[int], channels: int) -> tuple[int, ...]:
    return tuple(channels if dim == -1 else int(dim) for dim in dims)


def _renamed(name: str, settings: dict[str, Any]) -> str:
    """Our name of a tensor. Raises ImportingError for one that is not of a Mask R-CNN."""
    if _is_cascade(settings) and (stage := _STAGE.match(name)) is not None:
        first = _renamed(f"roi_heads.{stage[1]}.{stage[3]}", settings)
        number = int(stage[2])
        return first.replace("roi_heads", f"roi_heads.cascade.{number - 1}", 1) if number else first
    if (found := _BOX_HEAD.match(name)) is not None:
        return _box_head_name(found, settings)
    for pattern, to in _NAMES:
        found = pattern.match(name)
        if found is not None:
            ours = found.expand(to)
            if "{}" in ours or "[]" in ours:  # res2 is layer1; P2's blocks are the first
                number = int(found[1])
                return ours.replace("{}", str(number - 1)).replace("[]", str(number - 2))
            return ours.replace("<>", str(int(found[1]) - 1)) if "<>" in ours else ours
    raise ImportingError(f"the file has a tensor that is no part of a Mask R-CNN: {name}")


def _box_head_name(found: re.Match[str], settings: dict[str, Any]) -> str:
    convs, layers = settings["MODEL.ROI_BOX_HEAD.NUM_CONV"], settings["MODEL.ROI_BOX_HEAD.NUM_FC"]
    kind, number, norm, what = found[1], int(found[2]), found[3], found[4]
    if kind == "conv":
        return f"roi_heads.box_head.{number - 1}.{1 if norm else 0}.{what}"
    if convs == 0 and layers == 2:
        return f"roi_heads.box_head.fc{number + 5}.{what}"
    # torchvision's head: convolutions, one module that flattens, then each layer and its ReLU.
    return f"roi_heads.box_head.{convs + 1 + 2 * (number - 1)}.{what}"


def _rewrite(tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """What is the same function in our terms: see the head of the file."""
    if settings["INPUT.FORMAT"] == "BGR":
        rgb_first(tensors)
    if settings["MODEL.FPN.FUSE_TYPE"] == "avg":
        fuse_by_sum(tensors)
    weights = [settings["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"]]
    if _is_cascade(settings):
        weights = settings["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"]
    for stage, each in enumerate(weights):
        heads = f"roi_heads.cascade.{stage - 1}" if stage else "roi_heads"
        background_first(tensors, settings["MODEL.ROI_HEADS.NUM_CLASSES"], heads)
        scale_deltas(tensors, f"{heads}.box_predictor.bbox_pred", each)
    ones = [10.0 * w for w in settings["MODEL.RPN.BBOX_REG_WEIGHTS"][:2]]
    ones += [5.0 * w for w in settings["MODEL.RPN.BBOX_REG_WEIGHTS"][2:]]
    scale_deltas(tensors, "rpn.head.bbox_pred", ones)
