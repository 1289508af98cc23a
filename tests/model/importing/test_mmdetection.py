"""MMDetection's checkpoints in the layout that it writes: weights, configuration and classes in one file.

That the answers are MMDetection's own was measured with mmdet 3.3 (docs/importing.md); here are its rules one by one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from model.images.resize import RESIZE_BYTES
from model.importing.importer import import_model
from model.importing.mmdetection_config import read_config_file, read_config_text
from model.importing.result import ImportingError
from model.inference.engine import Engine
from model.instances import Options
from tests.model.importing.mmdetection_layout import CONFIG, layout, saved
from tests.model.importing.narrow import PIXELS, narrow_weights

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return layout(narrow_weights())


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
        pytest.param(
            "StandardRoIHead", "CascadeRoIHead", "'CascadeRoIHead' is not supported: answers", id="cascade"
        ),
        pytest.param(
            "type='MaskRCNN'", "type='CascadeRCNN'", "'CascadeRCNN' is not supported: answers", id="type"
        ),
        pytest.param(
            "type='StandardRoIHead'",
            "type='StandardRoIHead', shared_head=dict(type='ResLayer')",
            r"model\.roi_head\.shared_head: a C4 or DC5 is not supported",
            id="C4",
        ),
        pytest.param("neck=dict(", "other=dict(", r"model\.neck: a C4 or DC5 is not supported", id="DC5"),
        pytest.param("iou_threshold=0.7", "iou_threshold=0.7, max_num=9", r"rpn\.nms\.max_num", id="NMS"),
        pytest.param(
            "iou_threshold=0.5", "iou_threshold=0.5, class_agnostic=True", "nms.class_agnostic", id="agnostic"
        ),
        pytest.param(
            "type='FCNMaskHead'",
            "type='FCNMaskHead', predictor_cfg=dict(type='NormedConv2d')",
            "mask_head.predictor_cfg",
            id="mask predictor",
        ),
        pytest.param("num_convs=4", "num_convs=0", r"mask_head\.num_convs: 0 is", id="mask convolutions"),
        pytest.param(
            "'Shared2FCBBoxHead'",
            "'ConvFCBBoxHead', num_shared_convs=1",
            r"num_shared_fcs: 0 is not supported",
            id="no layers",
        ),
        pytest.param(
            "'Shared2FCBBoxHead'",
            "'Shared2FCBBoxHead', cls_predictor_cfg=dict(type='NormedLinear')",
            "cls_predictor_cfg",
            id="box predictor",
        ),
        pytest.param(
            "type='RPNHead'",
            "type='RPNHead', loss_cls=dict(use_sigmoid=False)",
            "rpn_head.loss_cls.use_sigmoid",
            id="RPN's softmax",
        ),
        pytest.param(
            "dict(type='Resize'", "dict(type='CenterCrop'), dict(type='Resize'", "CenterCrop", id="step"
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], before: str, after: str, message: str
) -> None:
    assert before in CONFIG
    with pytest.raises(ImportingError, match=message):
        import_model(saved(tmp_path, tensors, CONFIG.replace(before, after)))


def test_the_norms_number_is_the_configurations(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    config = CONFIG.replace(
        "dict(type='BN', requires_grad=True)", "dict(type='BN', requires_grad=True, eps=0.001)"
    )
    assert import_model(saved(tmp_path, tensors, config)).model.architecture.norm_eps == 0.001
    assert import_model(saved(tmp_path, tensors)).model.architecture.norm_eps == 1e-5


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
