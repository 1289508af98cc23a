"""Detectron2's YAML configuration: only what decides answers, with Detectron2's defaults filled in.

Settings that matter in training alone are passed over. One that is not known is refused by its name: it may belong to a
project that computes something else.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import yaml

from model.importing.result import ImportingError
from model.messages import first_line

# What inference depends on, with Detectron2's own defaults (VERSION 2).
DEFAULTS: dict[str, Any] = {
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.FPN.IN_FEATURES": [],
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.MASK_ON": False,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RESNETS.DEFORM_MODULATED": False,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, False],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": [
        [10.0, 10.0, 5.0, 5.0],
        [20.0, 20.0, 10.0, 10.0],
        [30.0, 30.0, 15.0, 15.0],
    ],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [512] * 8,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": "KRCNNConvDeconvUpsampleHead",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 17,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "MODEL.RPN.CONV_DIMS": [-1],
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}

# What changes no answer: a setting, or all settings below it.
PASSED_OVER = (
    "CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "FLOAT32_PRECISION", "GLOBAL", "OUTPUT_DIR", "SEED", "SOLVER",
    "VERSION", "VIS_PERIOD", "INPUT.CROP", "INPUT.MASK_FORMAT", "INPUT.MAX_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.RANDOM_FLIP", "MODEL.ANCHOR_GENERATOR.ANGLES",
    "MODEL.BACKBONE.FREEZE_AT", "MODEL.DEVICE", "MODEL.PANOPTIC_FPN", "MODEL.RETINANET",
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.IOU_LABELS", "MODEL.ROI_HEADS.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT", "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE",
    "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "MODEL.RPN.BBOX_REG_LOSS_WEIGHT",
    "MODEL.RPN.BOUNDARY_THRESH", "MODEL.RPN.IOU_LABELS", "MODEL.RPN.IOU_THRESHOLDS", "MODEL.RPN.LOSS_WEIGHT",
    "MODEL.RPN.POSITIVE_FRACTION", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "MODEL.RPN.SMOOTH_L1_BETA", "MODEL.SEM_SEG_HEAD", "MODEL.WEIGHTS", "TEST.AUG", "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS", "TEST.KEYPOINT_OKS_SIGMAS", "TEST.PRECISE_BN",
)  # fmt: skip

# What the configurations of its model zoo build on, where that file was not copied along.
_FPN: dict[str, Any] = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
BASES: dict[str, dict[str, Any]] = {
    "Base-RCNN-FPN.yaml": _FPN,
    "Base-RCNN-C4.yaml": {},
    "Base-RCNN-DilatedC5.yaml": {
        "MODEL.RESNETS.OUT_FEATURES": ["res5"],
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.RPN.IN_FEATURES": ["res5"],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["res5"],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    },
}
MOST_BASES = 8


class _Loader(yaml.SafeLoader):
    """Plain values, and the tuples that dumps of Python objects hold."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: loader.construct_sequence(node, deep=True),  # type: ignore[arg-type]
)


def read_config(path: Path) -> dict[str, Any]:
    """Every setting in DEFAULTS by its dotted name, from a YAML file and what it builds on (`_BASE_`).

    Raises ImportingError for a file that is none, and for settings that are not known.
    """
    if path.suffix == ".py":
        raise ImportingError(
            f"{path} is a LazyConfig, a program, which is never run here. Write what it comes to as YAML: build the "
            "same model with a `CfgNode`, or save `cfg.dump()` of the yaml configuration that it corresponds to"
        )
    given = _with_bases(path, [])
    unknown = sorted(name for name in given if name not in DEFAULTS and not _is_passed_over(name))
    if unknown:
        raise ImportingError(
            f"{path}: {', '.join(unknown[:6])}: not a setting of Detectron2 that is known here; it may change what the "
            "model computes. Remove it from a copy of the file if it does not"
        )
    settings = DEFAULTS | {name: value for name, value in given.items() if name in DEFAULTS}
    for name, value in settings.items():
        settings[name] = _coerce(path, name, value, DEFAULTS[name])
    return settings


def _with_bases(path: Path, above: list[Path]) -> dict[str, Any]:
    """Dotted names and values of a file, over those of the file that it builds on."""
    if path in above or len(above) > MOST_BASES:
        raise ImportingError(f"{path}: its _BASE_ leads back to itself")
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ImportingError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ImportingError(f"{path}: no YAML of plain values ({first_line(error):.200})") from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ImportingError(f"{path}: no configuration of Detectron2: it is no table of settings")
    if "_target_" in document or isinstance(document.get("model"), dict):
        raise ImportingError(
            f"{path}: a LazyConfig written out as YAML; its objects are named by code, which is never run here. A "
            "configuration of Detectron2's other kind is needed (`cfg.dump()`), with settings as MODEL.RESNETS.DEPTH"
        )
    base = document.pop("_BASE_", None)
    own = _flat(document)
    if own.get("VERSION", 2) != 2:
        raise ImportingError(
            f"{path}: of VERSION {own['VERSION']}; configurations of VERSION 2 are supported"
        )
    given: dict[str, Any] = {}
    for name in base if isinstance(base, list) else [] if base is None else [base]:
        below = path.parent / Path(str(name)).expanduser()
        if below.is_file():
            given |= _with_bases(below, [*above, path])
        elif below.name in BASES:
            given |= BASES[below.name]
        else:
            raise ImportingError(
                f"{path}: the file that it builds on is not there: {below}; copy it to that place"
            )
    return given | own


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _is_passed_over(name: str) -> bool:
    return any(name == known or name.startswith(f"{known}.") for known in PASSED_OVER)


def _coerce(path: Path, name: str, value: Any, example: Any) -> Any:
    """The value as Detectron2 reads it: text that spells a Python value is one, and tuples are lists."""
    if isinstance(value, str) and not isinstance(example, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ImportingError(
                f"{path}: {name}: {value!r:.60} is no value of the kind of {example!r}"
            ) from None
    value = _lists(value)
    if isinstance(example, float) and type(value) is int:
        value = float(value)
    if value is None and example == "":
        return ""
    if isinstance(example, str) and value == "":
        return ""
    kinds = _kinds(example) or {str}
    if type(value) is not type(example) or not _kinds(value) <= kinds:
        raise ImportingError(f"{path}: {name}: {value!r:.60} is no value of the kind of {example!r}")
    return value


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _kinds(value: Any) -> set[type]:
    """The types of what is in lists of lists; whole numbers are numbers."""
    if isinstance(value, list):
        return {kind for item in value for kind in _kinds(item)}
    return {float if type(value) is int else type(value)}
