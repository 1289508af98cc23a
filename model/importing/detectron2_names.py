"""Detectron2's names of tensors in ours, and the kinds of its networks that they depend on."""

from __future__ import annotations

import re
from typing import Any

from model.importing.result import ImportingError

CASCADE = "CascadeROIHeads"
_STAGE = re.compile(r"roi_heads\.(box_head|box_predictor)\.(\d+)\.(.+)$")
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
        (r"roi_heads\.keypoint_head\.conv_fcn(\d+)\.(\w+)$", r"roi_heads.keypoint_head.().\2"),
        (
            r"roi_heads\.keypoint_head\.score_lowres\.(\w+)$",
            r"roi_heads.keypoint_predictor.kps_score_lowres.\1",
        ),
        (r"roi_heads\.mask_head\.deconv\.(\w+)$", r"roi_heads.mask_predictor.conv5_mask.\1"),
        (r"roi_heads\.mask_head\.predictor\.(\w+)$", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    )
]
_BOX_HEAD = re.compile(r"roi_heads\.box_head\.(conv|fc)(\d+)\.(norm\.)?(\w+)$")


def kind_of(settings: dict[str, Any]) -> str:
    """What our architecture calls the single map: "c4" or "dc5", or nothing for a pyramid."""
    if settings["MODEL.BACKBONE.NAME"] != "build_resnet_backbone":
        return ""
    return "c4" if settings["MODEL.ROI_HEADS.NAME"] == "Res5ROIHeads" else "dc5"


def is_cascade(settings: dict[str, Any]) -> bool:
    """Whether its box heads stand in a row."""
    return bool(settings["MODEL.ROI_HEADS.NAME"] == CASCADE)


def as_pyramid(name: str, settings: dict[str, Any]) -> str:
    """A name as it would be with a pyramid: without, the ResNet is the backbone, and res5 may be in the heads."""
    if not kind_of(settings):
        return name
    return re.sub(r"^(?:backbone|roi_heads)\.(stem|res\d)\.", r"backbone.bottom_up.\1.", name)


def translate_name(name: str, settings: dict[str, Any]) -> str:
    """Our name of a tensor. Raises ImportingError for one that is not of a Mask R-CNN."""
    if is_cascade(settings) and (stage := _STAGE.match(name)) is not None:
        first = translate_name(f"roi_heads.{stage[1]}.{stage[3]}", settings)
        number = int(stage[2])
        return first.replace("roi_heads", f"roi_heads.cascade.{number - 1}", 1) if number else first
    if (found := _BOX_HEAD.match(name)) is not None:
        return _box_head_name(found, settings)
    for pattern, to in _NAMES:
        found = pattern.match(name)
        if found is not None:
            ours = found.expand(to)
            # res2 is our layer1; the blocks of P2 are our first.
            if "{}" in ours or "[]" in ours:
                number = int(found[1])
                return ours.replace("{}", str(number - 1)).replace("[]", str(number - 2))
            # Ours counts each convolution and its ReLU.
            if "()" in ours:
                return ours.replace("()", str(2 * (int(found[1]) - 1)))
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
