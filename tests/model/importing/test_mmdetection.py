"""MMDetection's checkpoints in the layout that it writes: weights, configuration and classes in one file.

That the answers are MMDetection's own was measured with mmdet 3.3 (docs/importing.md); here are its rules one by one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bench.synthetic_weights import synthetic_weights
from model.images.resize import RESIZE_BYTES
from model.importing.importer import import_model
from model.importing.mmdetection_config import read_config_file, read_config_text
from model.importing.result import ImportingError
from model.inference.engine import Engine
from model.instances import Options
from model.network.architecture import V1

if TYPE_CHECKING:
    from pathlib import Path

THIN: dict[str, Any] = {
    "backbone": "resnet18",
    "classes": 4,
    "norm": "batch",
    "norm_eps": 1e-5,
    "fpn_channels": 16,
    "box_channels": 32,
    "mask_channels": 16,
    "min_size": 96,
    "max_size": 160,
}
PIXELS = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8).repeat(4, 0).repeat(4, 1)
# Our names → MMDetection's.
NAMES = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.(\w+)", r"neck.lateral_convs.\1.conv.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.(\w+)", r"neck.fpn_convs.\1.conv.\2"),
    (r"rpn\.head\.conv\.0\.0\.(\w+)", r"rpn_head.rpn_conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn_head.rpn_cls.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn_head.rpn_reg.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"roi_head.bbox_head.shared_fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"roi_head.bbox_head.shared_fcs.1.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"roi_head.bbox_head.fc_cls.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"roi_head.bbox_head.fc_reg.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", r"roi_head.mask_head.convs.\1.conv.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"roi_head.mask_head.upsample.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"roi_head.mask_head.conv_logits.\1"),
)
CONFIG = """
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        pad_mask=True, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5),
    rpn_head=dict(
        type='RPNHead', in_channels=16, feat_channels=16,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0])),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=16, featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=32, roi_feat_size=7, num_classes=3,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=16, featmap_strides=[4, 8, 16, 32]),
        mask_head=dict(type='FCNMaskHead', num_convs=4, in_channels=16, conv_out_channels=16, num_classes=3)),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5)))
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(160, 96), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'scale_factor')),
]
"""


def renamed(name: str) -> str:
    for ours, theirs in NAMES:
        if re.fullmatch(ours, name):
            return re.sub(ours, theirs, name)
    raise KeyError(name)


def state() -> dict[str, torch.Tensor]:
    """Weights that find much in PIXELS, as MMDetection lays them out: background last, and without boxes."""
    image = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255
    network = synthetic_weights(replace(V1, **THIN), image)
    tensors = {renamed(name): tensor for name, tensor in network.state_dict().items()}
    for part in ("weight", "bias"):
        for name, begin in (("bbox_head.fc_reg", 4), ("mask_head.conv_logits", 1)):
            tensors[f"roi_head.{name}.{part}"] = tensors[f"roi_head.{name}.{part}"][begin:].clone()
        tensors[f"roi_head.bbox_head.fc_cls.{part}"] = tensors[f"roi_head.bbox_head.fc_cls.{part}"].roll(
            -1, 0
        )
    return tensors


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return state()


def saved(tmp_path: Path, tensors: dict[str, torch.Tensor], text: str = CONFIG, **meta: Any) -> Path:
    path = tmp_path / "epoch_12.pth"
    known = {"mmdet_version": "3.3.0", "cfg": text, "dataset_meta": {"classes": ("bolt", "nut", "gear")}}
    torch.save({"meta": known | meta, "state_dict": tensors, "message_hub": {}, "optimizer": {}}, path)
    return path


def test_everything_is_in_the_checkpoint(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    imported = import_model(saved(tmp_path, tensors))
    assert imported.model.origin == "MMDetection"
    assert [c.name for c in imported.model.categories] == ["bolt", "nut", "gear"]
    assert not imported.report.assumed
    rules = imported.model.architecture.conventions
    assert (rules.resize, rules.paste, rules.level_rule) == ("mmdetection", "detectron2", "mmdetection")
    assert rules.rpn_sigmoid
    assert rules.clamp_both
    assert rules.box_aligned
    assert rules.anchor_levels[0] == (32.0,)
    engine = Engine(imported.network, imported.model, torch.device("cpu"))
    (found,) = engine.segment([PIXELS], [Options(score_threshold=0.05)])
    assert len(found) > 3
    assert found.pasting == "detectron2"


def test_version_two_says_it_in_the_pipeline(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    config = re.sub(
        r"    data_preprocessor=dict\(.*?\),\n    backbone", "    backbone", CONFIG, flags=re.DOTALL
    )
    pipeline = """
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(160, 96), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'),
        dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False),
        dict(type='Pad', size_divisor=32), dict(type='ImageToTensor', keys=['img'])]),
]
"""
    config = config[: config.index("test_pipeline")] + pipeline
    path = saved(tmp_path, tensors, cfg=None, config=config, mmdet_version="2.25.0", CLASSES=("a", "b", "c"))
    imported = import_model(path)
    assert [c.name for c in imported.model.categories] == ["a", "b", "c"]
    architecture = imported.model.architecture
    assert architecture.conventions.pixel_mean == (123.675, 116.28, 103.53)
    assert architecture.conventions.pixel_std == (1.0, 1.0, 1.0)
    assert (architecture.min_size, architecture.max_size) == (96, 160)
    first = imported.network.state_dict()["backbone.body.conv1.weight"]
    assert torch.equal(first, tensors["backbone.conv1.weight"].flip(1))


def test_a_configuration_beside_the_checkpoint_is_read_and_not_run(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "base.py").write_text(CONFIG)
    (tmp_path / "own.py").write_text(
        f"import os\nos.mkdir({str(trace)!r})\n_base_ = ['./base.py']\n"
        "model = dict(test_cfg=dict(rcnn=dict(score_thr=0.3)))\nwork_dir = os.getcwd()\n"
    )
    imported = import_model(saved(tmp_path, tensors, cfg=None), config=tmp_path / "own.py")
    assert imported.model.architecture.conventions.score_threshold == 0.3
    assert imported.model.architecture.conventions.nms == 0.5
    assert not trace.exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        pytest.param("type='FPN'", "type='PAFPN'", r"model\.neck\.type: 'PAFPN' is not supported", id="neck"),
        pytest.param("num_outs=5", "num_outs=6", r"model\.neck\.num_outs: 6", id="levels"),
        pytest.param("num_outs=5", "num_outs=5, turbo=True", r"model\.neck\.turbo", id="unknown"),
        pytest.param("style='pytorch'", "style='other'", r"model\.backbone\.style: 'other'", id="style"),
        pytest.param("keep_ratio=True", "keep_ratio=False", "Resize without keep_ratio", id="ratio"),
        pytest.param("mask_thr_binary=0.5", "mask_thr_binary=0.4", "mask_thr_binary", id="mask threshold"),
        pytest.param(
            "type='nms', iou_threshold=0.5", "type='soft_nms', iou_threshold=0.5", "soft_nms", id="nms"
        ),
        pytest.param("pad_size_divisor=32", "pad_size_divisor=1", "multiples of 1 ", id="padding"),
        pytest.param("test_pipeline = [", "pipeline = [", "no test_pipeline", id="no pipeline"),
        pytest.param("model = dict(", "model = build(", "which is no plain value", id="code"),
        pytest.param("StandardRoIHead", "CascadeRoIHead", "'CascadeRoIHead' is not supported", id="cascade"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], before: str, after: str, message: str
) -> None:
    assert before in CONFIG
    with pytest.raises(ImportingError, match=message):
        import_model(saved(tmp_path, tensors, CONFIG.replace(before, after)))


def test_old_versions_and_missing_configurations_are_said(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ImportingError, match=r"of MMDetection 1\.2\.0, which counted classes"):
        import_model(saved(tmp_path, tensors, mmdet_version="1.2.0"))
    with pytest.raises(ImportingError, match="does not hold its configuration: --config"):
        import_model(saved(tmp_path, tensors, cfg=None))


def test_tables_of_a_base_are_merged_unless_deleted(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("a = dict(b=1, c=dict(d=2, e=3))\nf = [1, -2.5]")
    (tmp_path / "own.py").write_text("_base_ = './base.py'\na = dict(c=dict(_delete_=True, g=4))")
    assert read_config_file(tmp_path / "own.py") == {"a": {"b": 1, "c": {"g": 4}}, "f": [1, -2.5]}
    assert read_config_text("a = 1\nb = dict(c=a, d=(None, 'x'))", "here") == {
        "a": 1,
        "b": {"c": 1, "d": [None, "x"]},
    }


def test_bytes_are_resized_in_whole_numbers_as_opencv_does() -> None:
    """Rows and columns by cv2.resize 5.0 of [[0, 100], [200, 255]]; the double is a case of its own there."""
    pixels = np.array([[0, 100], [200, 255]], np.uint8)[:, :, None].repeat(3, 2)
    resized = RESIZE_BYTES["mmdetection"](pixels, (3, 4))[:, :, 0].tolist()
    assert resized == [[0, 25, 75, 100], [100, 119, 158, 178], [200, 214, 241, 255]]
    halved = RESIZE_BYTES["mmdetection"](pixels, (1, 1))[0, 0].tolist()
    assert halved == [139, 139, 139]
