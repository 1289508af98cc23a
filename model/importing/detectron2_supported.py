"""Which settings of Detectron2's can be imported; all others are refused by their names."""

from __future__ import annotations

import math
from typing import Any

from model.importing.detectron2_names import CASCADE, is_cascade, kind_of
from model.importing.result import ImportingError
from model.instances import MOST_INSTANCES
from model.network.bounds import MOST_KEYPOINTS
from model.network.conventions import MOST_SAMPLES

# Kinds of RoIAlign, and whether cells' centres lie half a cell from their corners.
POOLERS = {"ROIAlignV2": True, "ROIAlign": False}
_BATCH_NORMS = ("BN", "SyncBN", "nnSyncBN", "naiveSyncBN")
_NORMED = ("MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")
# Settings of which only one value is supported, and what it is.
_ONLY = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_KEYPOINT_HEAD.NAME": "KRCNNConvDeconvUpsampleHead",
}
# What the three kinds of networks have in common, by what our architecture calls them.
_KINDS: dict[str, dict[str, Any]] = {
    "": {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.RESNETS.RES5_DILATION": 1,
    },
    "c4": {
        "MODEL.RPN.IN_FEATURES": ["res4"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
        "MODEL.RESNETS.RES5_DILATION": 1,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    },
    "dc5": {
        "MODEL.RPN.IN_FEATURES": ["res5"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["res5"],
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    },
}
# Settings whose values have limits: the least and the most. No image is scaled where MIN_SIZE_TEST is 0, and all
# detections are kept where DETECTIONS_PER_IMAGE is negative.
_LIMITS: dict[str, tuple[float, float]] = {
    "INPUT.MIN_SIZE_TEST": (1, math.inf),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (0, 1),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (0, math.inf),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0, math.inf),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (0, math.inf),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": (1, 64),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": (0, MOST_SAMPLES),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": (0, 1),
    "MODEL.ROI_HEADS.NUM_CLASSES": (1, math.inf),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": (0, 1),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": (1, MOST_KEYPOINTS),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": (1, 64),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": (0, MOST_SAMPLES),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": (1, math.inf),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": (1, 64),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": (0, MOST_SAMPLES),
    "MODEL.RPN.NMS_THRESH": (0, 1),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (1, math.inf),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (1, math.inf),
    "TEST.DETECTIONS_PER_IMAGE": (1, MOST_INSTANCES),
}
# A C4 has none of these: res5 takes the place of layers, and masks are pooled as boxes are.
_NOT_IN_C4 = ("MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_BOX_HEAD.NUM_CONV", "MODEL.ROI_MASK_HEAD.")
# How many numbers above 0 each has.
_COUNTS = {
    "MODEL.PIXEL_STD": 3,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": 4,
    "MODEL.RPN.BBOX_REG_WEIGHTS": 4,
}


def refuse(settings: dict[str, Any]) -> None:
    """Raise ImportingError for settings that name something which is not supported."""
    if is_cascade(settings) and not settings["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"]:
        raise ImportingError("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: False is not supported in a cascade")
    kind = kind_of(settings)
    if kind and is_cascade(settings):
        raise ImportingError(f"MODEL.ROI_HEADS.NAME: {CASCADE!r} is supported with an FPN, not with one map")
    for name, only in (_ONLY | _KINDS[kind]).items():
        if settings[name] != only and not _is_off(name, settings):
            raise ImportingError(f"{name}: {settings[name]!r} is not supported; {only!r} is")
    for name, values in (
        ("INPUT.FORMAT", ("BGR", "RGB")),
        ("MODEL.ROI_HEADS.NAME", ("Res5ROIHeads",) if kind == "c4" else ("StandardROIHeads", CASCADE)),
        ("MODEL.FPN.FUSE_TYPE", ("sum", "avg")),
        *((name, ("", "GN", *_BATCH_NORMS)) for name in _NORMED),
        ("MODEL.RESNETS.NORM", ("FrozenBN", *_BATCH_NORMS)),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", tuple(POOLERS)),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", tuple(POOLERS)),
        ("MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", tuple(POOLERS)),
    ):
        if settings[name] not in values and not _is_off(name, settings):
            raise ImportingError(
                f"{name}: {settings[name]!r} is not supported; {', '.join(map(repr, values))} are"
            )
    norms = {settings[name]: name for name in _NORMED if settings[name]}
    if "GN" in norms and len(norms) > 1:
        raise ImportingError(f"{norms['GN']}: 'GN' is not supported beside the norms of another kind")
    _check_numbers(settings)


def _is_off(name: str, settings: dict[str, Any]) -> bool:
    """Whether a setting is of a branch that the network has not."""
    branches = ("MODEL.ROI_MASK_HEAD.", "MODEL.MASK_ON"), ("MODEL.ROI_KEYPOINT_HEAD.", "MODEL.KEYPOINT_ON")
    return any(name.startswith(head) and not settings[switch] for head, switch in branches)


def _check_numbers(settings: dict[str, Any]) -> None:
    single = kind_of(settings)
    limits = _LIMITS | {"INPUT.MAX_SIZE_TEST": (settings["INPUT.MIN_SIZE_TEST"], math.inf)}
    if settings["MODEL.ROI_BOX_HEAD.NUM_FC"] == 0:
        # Detectron2 has no head without either.
        limits["MODEL.ROI_BOX_HEAD.NUM_CONV"] = (1, math.inf)
    for name, (least, most) in limits.items():
        if (single == "c4" and name.startswith(_NOT_IN_C4)) or _is_off(name, settings):
            continue
        if not least <= settings[name] <= most:
            allowed = f"{least} to {most} are" if math.isfinite(most) else f"{least} and more are"
            raise ImportingError(f"{name}: {settings[name]} is not supported; {allowed}")
    widths = settings["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS"]
    if settings["MODEL.KEYPOINT_ON"] and len(set(widths)) != 1:
        raise ImportingError(
            f"MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS: {list(widths)} is not supported; widths that are all the same are"
        )
    rows = {name: (settings[name], count) for name, count in _COUNTS.items()}
    if is_cascade(settings):
        weights = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
        rows |= {f"{weights}[{n}]": (row, 4) for n, row in enumerate(settings[weights])}
    for name, (values, count) in rows.items():
        if not isinstance(values, list) or len(values) != count or min(values) <= 0:
            raise ImportingError(f"{name}: {values} is not supported; {count} numbers above 0 are")
    if len(settings["MODEL.PIXEL_MEAN"]) != 3:
        raise ImportingError(
            f"MODEL.PIXEL_MEAN: {settings['MODEL.PIXEL_MEAN']} is not supported; 3 numbers are"
        )
    ratios = of_levels(
        settings["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
    )
    if any(each != ratios[0] for each in ratios):
        raise ImportingError(
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS: other ratios at each level are not supported"
        )


def of_levels(values: list[Any], name: str) -> list[list[float]]:
    """Values of each level, or of all where there is one list. Numbers without lists are of all levels."""
    if values and not any(isinstance(value, list) for value in values):
        return [values]
    if not values or not all(isinstance(level, list) and level for level in values):
        raise ImportingError(f"{name}: {values} is not supported; a list of numbers for each level is")
    return values
