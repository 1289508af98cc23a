"""Detectron2's Mask R-CNN: its configuration and weights in our terms.

What is only another way of writing the same function is rewritten: channels from BGR to RGB in the first convolution,
background from last to first, one box or mask for all classes to the same one for each, box weights into predictors.
What is another function is a convention of the architecture (model/network/conventions.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from model.importing.categories import choose_categories, choose_keypoints
from model.importing.checkpoint import DETECTRON2
from model.importing.detectron2_names import as_pyramid, is_cascade, kind_of, translate_name
from model.importing.detectron2_supported import POOLERS, of_levels, refuse
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

# Pixels. Detectron2 keeps boxes larger than 0, our networks those of at least a size.
LEAST = 1e-30
FROZEN_EPS = 1e-5

# What its files hold besides: anchors and statistics that are recomputed, and counters of norms that are frozen here.
_UNUSED = re.compile(
    r"proposal_generator\.anchor_generator\.|pixel_mean$|pixel_std$"
    r"|(?:backbone|roi_heads)\.(?:bottom_up\.)?(?:stem|res\d)\..*num_batches_tracked$"
)
_MAPS = {"": "with an FPN", "c4": "C4", "dc5": "DC5"}


def convert(
    checkpoint: Checkpoint, settings: dict[str, Any], categories: tuple[Category, ...] | None
) -> Imported:
    """The model in a checkpoint of Detectron2's with all its settings.

    Args:
        checkpoint: of Detectron2.
        settings: as detectron2_config.read_config gives them.
        categories: in the order of its classes, if they are known.

    Raises ImportingError for what is not supported, by the name of the setting.
    """
    refuse(settings)
    report = Report([*checkpoint.notes])
    masks, keypoints = bool(settings["MODEL.MASK_ON"]), bool(settings["MODEL.KEYPOINT_ON"])
    unused = [name for name, on in (("mask", masks), ("keypoint", keypoints)) if not on]
    dropped = tuple(f"roi_heads.{name}_head." for name in unused)
    source = {
        as_pyramid(name, settings): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.tensors.items()
        if not _UNUSED.match(name) and not name.startswith(dropped)
    }
    _with_statistics(source, report)
    architecture = _architecture(settings, source)
    tensors = {translate_name(name, settings): tensor for name, tensor in source.items()}
    if architecture.single_map == "c4":
        res5 = "backbone.body.layer4."
        tensors = {name.replace(res5, "roi_heads.box_head.res5."): tensor for name, tensor in tensors.items()}
    _rewrite(tensors, settings)
    named = choose_categories(architecture.classes - 1, categories, report)
    parts = ["Mask"] * masks + ["Keypoint"] * keypoints
    kind = f"{'Cascade ' if is_cascade(settings) else ''}{' and '.join(parts) or 'Faster'} R-CNN"
    report.recognised.insert(
        0, f"Detectron2's {kind}, {architecture.backbone} {_MAPS[architecture.single_map]}"
    )
    report.taken.append(
        f"from its configuration: {settings['INPUT.FORMAT']}, images scaled to {architecture.min_size}/"
        f"{architecture.max_size}, score threshold {architecture.conventions.score_threshold:g}, NMS "
        f"{architecture.conventions.nms:g}, at most {architecture.conventions.detections} detections, "
        f"{architecture.proposals} proposals, {settings['MODEL.ROI_BOX_HEAD.POOLER_TYPE']}"
    )
    labels = tuple(range(1, architecture.classes))
    points = choose_keypoints(architecture.keypoints, report)
    return Imported(DETECTRON2, architecture, tensors, named, labels, report, points)


def _architecture(settings: dict[str, Any], tensors: dict[str, Tensor]) -> Architecture:
    def model(name: str) -> Any:
        return settings[f"MODEL.{name}"]

    depth = depth_of(tensors, "backbone.bottom_up.", "res")
    if depth != model("RESNETS.DEPTH"):
        raise ImportingError(f"MODEL.RESNETS.DEPTH is {model('RESNETS.DEPTH')}, but the weights' is {depth}")
    basic = depth < 50
    groups, width = model("RESNETS.NUM_GROUPS"), model("RESNETS.WIDTH_PER_GROUP")
    single = kind_of(settings)
    levels = _anchor_levels(settings, "SIZES", 1 if single else 5)
    mask_convs = max(model("ROI_MASK_HEAD.NUM_CONV"), int(single == "c4")) if model("MASK_ON") else 0
    # Channels of res5.
    deepest = 8 * model("RESNETS.RES2_OUT_CHANNELS")
    channels = {"": model("FPN.OUT_CHANNELS"), "c4": deepest // 2, "dc5": deepest}[single]
    rpn = _rpn_channels(model("RPN.CONV_DIMS"), channels)
    box_channels = deepest if single == "c4" else model("ROI_BOX_HEAD.FC_DIM")
    if single != "c4" and not model("ROI_BOX_HEAD.NUM_FC"):
        box_channels = model("ROI_BOX_HEAD.CONV_DIM") * model("ROI_BOX_HEAD.POOLER_RESOLUTION") ** 2
    norms = {model("FPN.NORM"), model("ROI_BOX_HEAD.NORM"), model("ROI_MASK_HEAD.NORM")}
    return Architecture(
        backbone=f"resnet{depth}",
        classes=model("ROI_HEADS.NUM_CLASSES") + 1,
        norm="frozen",
        norm_eps=FROZEN_EPS,
        fpn_channels=channels,
        fpn_norm=bool(model("FPN.NORM")) and not single,
        rpn_convs=len(rpn),
        anchor_ratios=_anchor_levels(settings, "ASPECT_RATIOS", 1 if single else 5)[0],
        proposals=model("RPN.POST_NMS_TOPK_TEST"),
        box_convs=model("ROI_BOX_HEAD.NUM_CONV"),
        box_channels=box_channels,
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
        single_map=single,
        rpn_channels=() if all(n == channels for n in rpn) else rpn,
        box_fcs=0 if single == "c4" else model("ROI_BOX_HEAD.NUM_FC") or -1,
        box_stages=len(model("ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS")) if is_cascade(settings) else 1,
        box_conv_channels=model("ROI_BOX_HEAD.CONV_DIM") if model("ROI_BOX_HEAD.NUM_CONV") else 0,
        head_norm="group" if "GN" in norms else "batch",
        box_norm=bool(model("ROI_BOX_HEAD.NORM")),
        **(_keypoint_head(settings) if model("KEYPOINT_ON") else {}),
        conventions=_conventions(settings, levels),
    )


def _keypoint_head(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of Architecture that describe it."""
    widths = settings["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS"]
    count = settings["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"]
    return {"keypoints": count, "keypoint_convs": len(widths), "keypoint_channels": widths[0]}


def _conventions(settings: dict[str, Any], levels: tuple[tuple[float, ...], ...]) -> Conventions:
    def model(name: str) -> Any:
        return settings[f"MODEL.{name}"]

    # Means are given in the order of the channels, and the first convolution is turned to RGB.
    turn = -1 if settings["INPUT.FORMAT"] == "BGR" else 1
    # A C4's boxes and masks have one pooler.
    mask_head = "ROI_BOX_HEAD" if kind_of(settings) == "c4" else "ROI_MASK_HEAD"
    return Conventions(
        divisor=1 if kind_of(settings) else 32,
        first_stride=16 if kind_of(settings) else 4,
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
        box_aligned=POOLERS[model("ROI_BOX_HEAD.POOLER_TYPE")],
        mask_bins=model(f"{mask_head}.POOLER_RESOLUTION"),
        mask_samples=model(f"{mask_head}.POOLER_SAMPLING_RATIO"),
        mask_aligned=POOLERS.get(model(f"{mask_head}.POOLER_TYPE"), True),
        **(_keypoint_conventions(settings) if model("KEYPOINT_ON") else {}),
        score_threshold=model("ROI_HEADS.SCORE_THRESH_TEST"),
        nms=model("ROI_HEADS.NMS_THRESH_TEST"),
        detections=settings["TEST.DETECTIONS_PER_IMAGE"],
        box_min_size=0.0,
        drop_empty=True,
        paste="detectron2",
    )


def _keypoint_conventions(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of Conventions that only a network with keypoints has."""
    head = "MODEL.ROI_KEYPOINT_HEAD."
    return {
        "keypoint_bins": settings[f"{head}POOLER_RESOLUTION"],
        "keypoint_samples": settings[f"{head}POOLER_SAMPLING_RATIO"],
        "keypoint_aligned": POOLERS[settings[f"{head}POOLER_TYPE"]],
        "keypoint_scores": "probability",
    }


def above(least: float) -> float:
    """The next number above in float32: Detectron2 keeps what is larger, and we keep what is at least so large."""
    if not least:
        return LEAST
    return float(torch.nextafter(torch.tensor(float(least)), torch.tensor(torch.inf)))


def _unless(value: int, usual: int) -> int:
    return 0 if value == usual else value


def _anchor_levels(settings: dict[str, Any], what: str, count: int) -> tuple[tuple[float, ...], ...]:
    """Anchors' sizes or ratios, of each of `count` levels."""
    name = f"MODEL.ANCHOR_GENERATOR.{what}"
    levels = of_levels(settings[name], name)
    if len(levels) == 1:
        levels = levels * count
    if len(levels) != count:
        raise ImportingError(f"{name}: {len(levels)} levels are not supported; {count} are")
    return tuple(tuple(float(value) for value in level) for level in levels)


def _rpn_channels(dims: Sequence[int], channels: int) -> tuple[int, ...]:
    """Of each convolution: -1 is as many as the one before gives."""
    widths: list[int] = []
    for dim in dims:
        widths.append((widths[-1] if widths else channels) if dim == -1 else dim)
    return tuple(widths)


def _with_statistics(tensors: dict[str, Tensor], report: Report) -> None:
    """Frozen norms of old files have only weights and biases; Detectron2 takes a mean of 0 and a variance of 1."""
    weights = {
        name: tensor
        for name, tensor in tensors.items()
        if re.match(r"backbone\.bottom_up\..*norm\.weight$", name)
    }
    absent = [name for name in weights if name.replace("weight", "running_var") not in tensors]
    for name in absent:
        tensors[name.replace("weight", "running_mean")] = torch.zeros_like(weights[name])
        tensors[name.replace("weight", "running_var")] = torch.ones_like(weights[name])
    if absent:
        report.assumed.append(
            f"{len(absent)} norms have no statistics: a mean of 0 and a variance of 1, as in Detectron2"
        )


def _rewrite(tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """What is the same function in our terms: see the head of the file."""
    if settings["INPUT.FORMAT"] == "BGR":
        rgb_first(tensors)
    if settings["MODEL.FPN.FUSE_TYPE"] == "avg":
        fuse_by_sum(tensors)
    weights = [settings["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"]]
    if is_cascade(settings):
        weights = settings["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"]
    for stage, each in enumerate(weights):
        heads = f"roi_heads.cascade.{stage - 1}" if stage else "roi_heads"
        background_first(tensors, settings["MODEL.ROI_HEADS.NUM_CLASSES"], heads)
        scale_deltas(tensors, f"{heads}.box_predictor.bbox_pred", each)
    ones = [10.0 * w for w in settings["MODEL.RPN.BBOX_REG_WEIGHTS"][:2]]
    ones += [5.0 * w for w in settings["MODEL.RPN.BBOX_REG_WEIGHTS"][2:]]
    scale_deltas(tensors, "rpn.head.bbox_pred", ones)
