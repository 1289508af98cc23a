"""torchvision's fine-tunes: recognised in every wrapper, told from their shapes, answered as torchvision answers."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNPredictor

from bench.synthetic_weights import synthetic_weights
from model.data import Category
from model.importing.importer import ImportedModel, import_model
from model.importing.result import ImportingError
from model.inference.engine import Engine
from model.instances import Options
from model.network.architecture import SMALL, V1, V2
from model.network.build import build
from model.network.conventions import Conventions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model.instances import Instances
    from model.network.architecture import Architecture

CPU = torch.device("cpu")


PIXELS = np.random.default_rng(1).integers(0, 256, (31, 43, 3), np.uint8).repeat(4, 0).repeat(4, 1)
SIZES = {"min_size": 160, "max_size": 240}
# Of 1000 proposals and 100 detections, torchvision's numbers, the heads would take most of the time.
FEW = SIZES | {"proposals": 50, "conventions": Conventions(detections=15)}
CHANGES = SIZES | {"proposals": 50, "detections": 15}
FEW_OF_TORCHVISION = SIZES | {
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 50,
    "box_detections_per_img": 15,
}


def lively(network: Any, architecture: Architecture) -> Any:
    """The network with weights that find much in PIXELS and decide it clearly."""
    image = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255
    network.load_state_dict(synthetic_weights(architecture, image).state_dict())
    return network.eval()


def tutorial(classes: int) -> Any:
    """What torchvision's fine-tuning tutorial builds: new predictors on the COCO network, without its download."""
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **FEW_OF_TORCHVISION)
    features = network.roi_heads.box_predictor.cls_score.in_features
    network.roi_heads.box_predictor = FastRCNNPredictor(features, classes)
    channels = network.roi_heads.mask_predictor.conv5_mask.in_channels
    network.roi_heads.mask_predictor = MaskRCNNPredictor(channels, 256, classes)
    return network


@functools.cache
def small() -> dict[str, torch.Tensor]:
    """The state dict of a network with thin heads, where only names and shapes matter: 45 MB instead of 180."""
    return build(replace(SMALL, classes=5, fpn_channels=16, box_channels=32, mask_channels=16)).state_dict()


def saved(tmp_path: Path, document: Any, name: str = "model.pth") -> Path:
    path = tmp_path / name
    torch.save(document, path)
    return path


def assert_alike(found: Instances, expected: dict[str, torch.Tensor]) -> None:
    """The same instances; of equal scores, which random weights give, the order is not compared."""
    assert len(found) == len(expected["scores"])
    left = set(range(len(found)))
    for box, score, label in zip(
        expected["boxes"], expected["scores"], expected["labels"].tolist(), strict=True
    ):
        same = [n for n in left if int(found.labels[n]) == label]
        nearest = min(same, key=lambda n: float((found.boxes[n] - box).abs().max()))
        torch.testing.assert_close(found.boxes[nearest], box, atol=0.05, rtol=0)
        torch.testing.assert_close(found.scores[nearest], score, atol=2e-3, rtol=0)
        left.remove(nearest)


def assert_same_answers(network: Any, imported: ImportedModel, threshold: float = 0.05) -> None:
    """The engine finds what torchvision finds."""
    engine = Engine(imported.network, imported.model, CPU)
    (found,) = engine.segment([PIXELS], [Options(score_threshold=threshold)])
    with torch.inference_mode():
        (expected,) = network([torch.from_numpy(PIXELS).permute(2, 0, 1) / 255])
    assert len(expected["scores"]) > 10
    assert_alike(found, expected)


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="bare"),
        pytest.param(lambda state: {"model": state, "optimizer": {}, "epoch": 7}, id="model"),
        pytest.param(lambda state: {"model_state_dict": state, "loss": 0.1}, id="model_state_dict"),
        pytest.param(
            lambda state: {
                "state_dict": {f"model.{k}": v for k, v in state.items()},
                "pytorch-lightning_version": "2",
            },
            id="Lightning",
        ),
        pytest.param(lambda state: {f"module.{k}": v for k, v in state.items()}, id="DataParallel"),
        pytest.param(lambda state: {f"_orig_mod.{k}": v for k, v in state.items()}, id="torch.compile"),
        pytest.param(
            lambda state: {
                "model": {k: torch.zeros_like(v) for k, v in state.items()},
                "model_ema": {"n_averaged": torch.tensor(9)} | {f"module.{k}": v for k, v in state.items()},
            },
            id="EMA beside the plain weights",
        ),
        pytest.param(
            lambda state: {"state_dict": {f"mask_rcnn.net.{k}": v for k, v in state.items()}}, id="own module"
        ),
        pytest.param(
            lambda state: {
                **{f"model.{k}": torch.zeros_like(v) for k, v in state.items()},
                **{f"model_ema.module.{k}": v for k, v in state.items()},
            },
            id="EMA in the same state dict",
        ),
    ],
)
def test_every_wrapper_is_opened(tmp_path: Path, wrap: Callable[[dict[str, Any]], Any]) -> None:
    state = small()
    imported = import_model(saved(tmp_path, wrap(state)))
    loaded = imported.network.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[name]), name
    assert imported.model.architecture.classes == 5
    assert imported.model.origin == "torchvision"


def test_two_networks_in_a_file_are_refused(tmp_path: Path) -> None:
    both = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in small().items()}
    with pytest.raises(
        ImportingError, match=r"several networks, whose names begin with 'student\.', 'teacher\.'"
    ):
        import_model(saved(tmp_path, both))


@pytest.mark.parametrize("hidden", [8, 24])
def test_a_mask_predictor_of_another_width_computes_the_same(tmp_path: Path, hidden: int) -> None:
    state = dict(small())
    shapes = {"conv5_mask.weight": (16, hidden, 2, 2), "conv5_mask.bias": (hidden,)}
    shapes |= {"mask_fcn_logits.weight": (5, hidden, 1, 1)}
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        state[f"roi_heads.mask_predictor.{name}"] = torch.randn(shape, generator=generator)
    imported = import_model(saved(tmp_path, state))
    features = torch.rand(2, 16, 14, 14, generator=generator)

    def logits(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        x = features
        for n in range(4):
            x = torch.conv2d(
                x, *(tensors[f"roi_heads.mask_head.{n}.0.{part}"] for part in ("weight", "bias")), padding=1
            )
            x = x.relu()
        up, last = (
            [tensors[f"roi_heads.mask_predictor.{name}.{part}"] for part in ("weight", "bias")]
            for name in ("conv5_mask", "mask_fcn_logits")
        )
        return torch.conv2d(torch.conv_transpose2d(x, *up, stride=2).relu(), *last)

    assert imported.model.architecture.mask_channels == max(16, hidden)
    torch.testing.assert_close(logits(imported.network.state_dict()), logits(state))


def test_box_heads_of_other_layers_are_told_from_their_shapes(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in small().items() if ".box_head." not in name}
    # FastRCNNConvFCHead(…, [12, 12], [32, 32]) without norms.
    shapes = {"0.0": (12, 16, 3, 3), "1.0": (12, 12, 3, 3), "3": (32, 12 * 49), "5": (32, 32)}
    for name, shape in shapes.items():
        state[f"roi_heads.box_head.{name}.weight"] = torch.rand(shape)
        state[f"roi_heads.box_head.{name}.bias"] = torch.rand(shape[0])
    imported = import_model(saved(tmp_path, state))
    architecture = imported.model.architecture
    assert (architecture.box_convs, architecture.box_conv_channels, architecture.box_fcs) == (2, 12, 2)
    assert (architecture.box_norm, architecture.box_channels) == (False, 32)
    assert torch.equal(
        imported.network.state_dict()["roi_heads.box_head.5.weight"], state["roi_heads.box_head.5.weight"]
    )


def test_a_fine_tune_of_the_tutorial_answers_as_torchvision(tmp_path: Path) -> None:
    named = tuple(Category(n, name) for n, name in enumerate(("bolt", "nut", "gear", "pin"), start=1))
    # BatchNorm, because the tutorial's network was built without the downloaded backbone.
    tuned = lively(tutorial(5), replace(V1, **FEW, classes=5, norm="batch", norm_eps=1e-5))
    imported = import_model(saved(tmp_path, tuned.state_dict()), categories=named, changes=CHANGES)
    assert [c.name for c in imported.model.categories] == ["bolt", "nut", "gear", "pin"]
    assert_same_answers(tuned, imported)


def test_frozen_norms_are_told_from_the_file_and_begin_from_coco_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    network = MaskRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), 3, **FEW_OF_TORCHVISION)
    lively(network, replace(V1, **FEW, classes=3))
    for module in network.modules():
        if type(module).__name__ == "FrozenBatchNorm2d":
            module.eps = 0.0  # as torchvision sets it for COCO_V1
    path = saved(tmp_path, network.state_dict())
    imported = import_model(path, changes=CHANGES)
    assert (imported.model.architecture.norm, imported.model.architecture.norm_eps) == ("frozen", 0.0)
    assert any("norm_eps 0" in line for line in imported.report.assumed)
    assert_same_answers(network, imported)
    assert import_model(path, changes={"norm_eps": 1e-5}).model.architecture.norm_eps == 1e-5


def test_version_two_answers_as_torchvision(tmp_path: Path) -> None:
    built = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=4, **FEW_OF_TORCHVISION)
    network = lively(built, replace(V2, **FEW, classes=4))
    imported = import_model(saved(tmp_path, network.state_dict()), changes=CHANGES)
    assert (imported.model.architecture.box_convs, imported.model.architecture.norm_eps) == (4, 1e-5)
    assert_same_answers(network, imported)


def test_other_backbones_widths_and_anchors_answer_as_torchvision(tmp_path: Path) -> None:
    sizes = tuple((size, 1.5 * size) for size in (16, 32, 64, 128, 256))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0),) * 5)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )
    built = MaskRCNN(
        backbone,
        3,
        **FEW_OF_TORCHVISION,
        rpn_anchor_generator=anchors,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
        box_score_thresh=0.1,
        box_nms_thresh=0.4,
    )
    alike = replace(
        V1,
        **FEW,
        classes=3,
        backbone="resnet18",
        norm="batch",
        norm_eps=1e-5,
        anchor_ratios=(0.4, 0.6, 1.2, 2.0),
    )
    network = lively(built, alike)
    path = saved(tmp_path, network.state_dict())
    with pytest.raises(
        ImportingError, match=r"the ratios of its 4 anchors at each place: --set anchor_ratios"
    ):
        import_model(path)
    changes = CHANGES | {
        "anchor_ratios": [0.5, 1.0],
        "anchor_levels": [list(level) for level in sizes],
        "pixel_mean": [127.5] * 3,
        "pixel_std": [63.75] * 3,
        "score_threshold": 0.1,
        "nms": 0.4,
    }
    imported = import_model(path, changes=changes)
    assert imported.model.architecture.backbone == "resnet18"
    (found,) = Engine(imported.network, imported.model, CPU).segment([PIXELS], [Options(score_threshold=0)])
    with torch.inference_mode():
        (expected,) = network([torch.from_numpy(PIXELS).permute(2, 0, 1) / 255])
    assert len(found) == 15
    assert_alike(found, expected)


def test_a_network_without_masks_is_a_faster_rcnn(tmp_path: Path) -> None:
    network = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    imported = import_model(saved(tmp_path, network.state_dict()))
    assert imported.model.architecture.mask_convs == 0
    assert "Faster R-CNN" in imported.report.recognised[0]


def test_names_before_torchvision_0_14_are_translated(tmp_path: Path) -> None:
    state = {
        name.replace("inner_blocks.0.0", "inner_blocks.0")
        .replace("rpn.head.conv.0.0", "rpn.head.conv")
        .replace("mask_head.0.0", "mask_head.mask_fcn1"): tensor
        for name, tensor in small().items()
    }
    imported = import_model(saved(tmp_path, state))
    assert torch.equal(
        imported.network.state_dict()["roi_heads.mask_head.0.0.weight"],
        small()["roi_heads.mask_head.0.0.weight"],
    )


def test_coco_categories_are_assumed_for_91_classes(tmp_path: Path) -> None:
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    imported = import_model(saved(tmp_path, network.state_dict()))
    assert len(imported.model.categories) == 80
    assert (imported.model.categories[-1].name, imported.model.labels[-1]) == ("toothbrush", 90)
    most = {network.rpn._pre_nms_top_n["testing"], network.rpn._post_nms_top_n["testing"]}
    assert most == {imported.model.architecture.proposals}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda s: s.pop("roi_heads.box_predictor.bbox_pred.bias"), "1 tensors missing", id="missing"
        ),
        pytest.param(
            lambda s: s.update({"backbone.body.layer1.0.conv1.weight": torch.ones(7, 64, 1, 1)}),
            "1 of another shape",
            id="shape",
        ),
        pytest.param(
            lambda s: s["backbone.body.conv1.weight"].fill_(float("nan")), "not finite", id="not finite"
        ),
        pytest.param(
            lambda s: [s.pop(n) for n in list(s) if "layer4.1" in n],
            "stages of 2, 2, 2, 1 blocks",
            id="a shorter stage",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_what_does_not(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    state = {name: tensor.clone() for name, tensor in small().items()}
    change(state)
    with pytest.raises(ImportingError, match=message):
        import_model(saved(tmp_path, state))


def test_what_is_no_detector_is_refused_by_its_names(tmp_path: Path) -> None:
    with pytest.raises(
        ImportingError, match=r"not the weights of a Mask R-CNN .* its tensors are fc\.weight"
    ):
        import_model(saved(tmp_path, {"fc.weight": torch.ones(2, 2)}))
    with pytest.raises(ImportingError, match="holds no state dict: its entries are epoch"):
        import_model(saved(tmp_path, {"epoch": 3}))


def test_too_many_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportingError, match="1 categories were given for a network that tells 4 apart"):
        import_model(saved(tmp_path, small()), categories=(Category(1, "bolt"),))


@pytest.mark.parametrize(("mask_convs", "kind"), [(0, "Keypoint R-CNN"), (4, "Mask and Keypoint R-CNN")])
def test_keypoints_are_imported_with_and_without_masks(tmp_path: Path, mask_convs: int, kind: str) -> None:
    thin = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "mask_convs": mask_convs}
    built = build(replace(SMALL, classes=2, keypoints=17, keypoint_convs=8, keypoint_channels=24, **thin))
    state = built.state_dict()
    imported = import_model(saved(tmp_path, {"model": state}))
    assert f"torchvision's {kind} (V1), resnet18" in imported.report.recognised[0]
    architecture = imported.model.architecture
    assert (architecture.keypoints, architecture.keypoint_convs, architecture.keypoint_channels) == (
        17,
        8,
        24,
    )
    assert [category.name for category in imported.model.categories] == ["person"]
    assert imported.model.keypoints is not None
    assert imported.model.keypoints.names[:2] == ("nose", "left_eye")
    loaded = imported.network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items() if "keypoint" in name)


def test_keypoints_of_another_number_are_numbered(tmp_path: Path) -> None:
    thin = {"fpn_channels": 16, "box_channels": 32, "mask_convs": 0}
    built = build(replace(SMALL, classes=3, keypoints=2, keypoint_convs=1, keypoint_channels=8, **thin))
    imported = import_model(saved(tmp_path, built.state_dict()))
    assert imported.model.keypoints is not None
    assert imported.model.keypoints.names == ("keypoint 1", "keypoint 2")
    assert [category.name for category in imported.model.categories] == ["class 1", "class 2"]
