"""Detectron2's layout of weights, for tests: its names, its order of classes, and the configuration beside them."""

from __future__ import annotations

import pickle
import re
from typing import TYPE_CHECKING, Any

import torch
import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Our names → Detectron2's.
NAMES = (
    (r"backbone\.body\.conv1\.(\w+)", r"backbone.bottom_up.stem.conv1.\1"),
    (r"backbone\.body\.bn1\.(\w+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
    (r"backbone\.body\.layer(\d)\.(\d)\.conv(\d)\.(\w+)", r"backbone.bottom_up.res<\1>.\2.conv\3.\4"),
    (r"backbone\.body\.layer(\d)\.(\d)\.bn(\d)\.(\w+)", r"backbone.bottom_up.res<\1>.\2.conv\3.norm.\4"),
    (r"backbone\.body\.layer(\d)\.(\d)\.downsample\.0\.(\w+)", r"backbone.bottom_up.res<\1>.\2.shortcut.\3"),
    (
        r"backbone\.body\.layer(\d)\.(\d)\.downsample\.1\.(\w+)",
        r"backbone.bottom_up.res<\1>.\2.shortcut.norm.\3",
    ),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.(\w+)", r"backbone.fpn_lateral<<\1>>.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.(\w+)", r"backbone.fpn_output<<\1>>.\2"),
    (r"rpn\.head\.conv\.0\.0\.(\w+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"roi_heads.box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"roi_heads.box_head.fc2.\1"),
    (r"roi_heads\.box_predictor\.(.+)", r"roi_heads.box_predictor.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", r"roi_heads.mask_head.mask_fcn<\1>.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"roi_heads.mask_head.predictor.\1"),
)
CONFIG: dict[str, Any] = {
    "_BASE_": "../Base-RCNN-FPN.yaml",
    "MODEL": {
        "MASK_ON": True,
        "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 8, "STEM_OUT_CHANNELS": 8},
        "FPN": {"OUT_CHANNELS": 16},
        "ROI_HEADS": {"NUM_CLASSES": 3},
        "ROI_BOX_HEAD": {"FC_DIM": 32},
        "ROI_MASK_HEAD": {"CONV_DIM": 16},
    },
    "INPUT": {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 160},
    "SOLVER": {"STEPS": "(60000, 80000)"},
}


def rename(name: str) -> str:
    for ours, theirs in NAMES:
        if re.fullmatch(ours, name):
            name = re.sub(ours, theirs, name)
            name = re.sub(r"<<(\d)>>", lambda m: str(int(m[1]) + 2), name)
            return re.sub(r"<(\d)>", lambda m: str(int(m[1]) + 1), name)
    raise KeyError(name)


def layout(ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors as Detectron2 lays them out: background last, and without boxes and masks."""
    named = {
        rename(name): tensor for name, tensor in ours.items() if not name.endswith("num_batches_tracked")
    }
    for part in ("weight", "bias"):
        for name, begin in (("box_predictor.bbox_pred", 4), ("mask_head.predictor", 1)):
            named[f"roi_heads.{name}.{part}"] = named[f"roi_heads.{name}.{part}"][begin:].clone()
        scores = f"roi_heads.box_predictor.cls_score.{part}"
        named[scores] = named[scores].roll(-1, 0)
    return named


def saved(
    tmp_path: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any] = CONFIG,
    name: str = "model_final.pth",
) -> Path:
    path = tmp_path / name
    if name.endswith(".pkl"):
        arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    else:
        torch.save({"model": tensors, "optimizer": {}, "iteration": 89999}, path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return path
