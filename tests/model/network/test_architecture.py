"""What architectures build, against torchvision's own builders, and which descriptions are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torchvision.models import vgg16, vgg16_bn
from torchvision.models.detection import (
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.ops import FrozenBatchNorm2d

from model.network.architecture import BACKBONES, KEYPOINTS, SMALL, V1, V2, Architecture, ArchitectureError
from model.network.build import build, has_masks, parameters

if TYPE_CHECKING:
    from collections.abc import Callable

THIN: dict[str, Any] = {
    "classes": 4,
    "fpn_channels": 8,
    "box_channels": 8,
    "mask_channels": 8,
    "proposals": 20,
    "min_size": 64,
    "max_size": 96,
}
THIN_SMALL = replace(SMALL, **THIN)
BUILDERS = {
    "v1": (V1, maskrcnn_resnet50_fpn),
    "v2": (V2, maskrcnn_resnet50_fpn_v2),
    "keypoints": (KEYPOINTS, keypointrcnn_resnet50_fpn),
}


def on_paper(architecture: Architecture) -> Any:
    """The module without its numbers: nothing is allocated."""
    with torch.device("meta"):
        return build(architecture)


def torchvisions(name: str, **changed: Any) -> nn.Module:
    made: nn.Module = BUILDERS[name][1](weights=None, weights_backbone=None, **changed)
    return made.eval()


FEW: dict[str, Any] = {"min_size": 64, "max_size": 96, "proposals": 20}


def on_paper_theirs(name: str) -> Any:
    with torch.device("meta"):
        return torchvisions(
            name,
            min_size=64,
            max_size=96,
            rpn_pre_nms_top_n_test=20,
            rpn_post_nms_top_n_test=20,
            box_score_thresh=0.0,
            box_detections_per_img=10,
        )


def materialise(network: Any, *, zero_eps: bool = False) -> None:
    """Give what is only on paper numbers of a sensible size, and the anchors their own."""
    torch.manual_seed(3)
    for module in network.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_meta:
                real = torch.empty(tensor.shape, dtype=tensor.dtype)
                if name == "num_batches_tracked":
                    real.zero_()
                elif name == "running_var" or isinstance(module, nn.BatchNorm2d):
                    real.uniform_(0.5, 1.5)
                else:
                    real.uniform_(-1, 1).mul_((3 / max(1, real[0].numel())) ** 0.5)
                if isinstance(tensor, nn.Parameter):
                    real = nn.Parameter(real)
                setattr(module, name, real)
        if zero_eps and isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    anchors = network.rpn.anchor_generator
    anchors.cell_anchors = [
        anchors.generate_anchors(sizes, ratios)
        for sizes, ratios in zip(anchors.sizes, anchors.aspect_ratios, strict=True)
    ]


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = network.state_dict().items()
    return {name: tuple(t.shape) for name, t in tensors if not name.endswith("num_batches_tracked")}


# torchvision's COCO models


@pytest.mark.parametrize("name", BUILDERS)
def test_state_dict_has_torchvisions_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvisions(name)
    ours = on_paper(BUILDERS[name][0])
    assert shapes(ours) == shapes(theirs)
    assert list(shapes(ours)) == list(shapes(theirs))


def test_v1_freezes_every_norm_with_the_eps_of_its_weights() -> None:
    norms = [m for m in on_paper(V1).modules() if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)]
    assert len(norms) == 53
    assert all(isinstance(norm, FrozenBatchNorm2d) and norm.eps == 0.0 for norm in norms)


def test_v2_has_batch_norm_in_backbone_pyramid_and_heads() -> None:
    network: Any = on_paper(V2)
    parts = (
        network.backbone.body,
        network.backbone.fpn,
        network.roi_heads.box_head,
        network.roi_heads.mask_head,
    )
    counts = [sum(isinstance(m, nn.BatchNorm2d) for m in part.modules()) for part in parts]
    assert counts == [53, 8, 4, 4]
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("v1", MaskRCNN_ResNet50_FPN_Weights.COCO_V1),
        ("v2", MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
        ("keypoints", KeypointRCNN_ResNet50_FPN_Weights.COCO_V1),
    ],
)
def test_parameters_are_as_many_as_published(name: str, published: Any) -> None:
    network = on_paper(BUILDERS[name][0])
    # What FrozenBatchNorm holds was learned too, but torchvision leaves it out.
    frozen = sum(2 * m.weight.numel() for m in network.modules() if isinstance(m, FrozenBatchNorm2d))
    assert parameters(network) - frozen == published.meta["num_params"]


# Keypoints: tests/model/inference/test_keypoints.py, on thinner networks.
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_gives_torchvisions_answers_with_the_same_weights(name: str) -> None:
    ours, theirs = on_paper(replace(BUILDERS[name][0], **FEW)), on_paper_theirs(name)
    materialise(theirs, zero_eps=name == "v1")  # as torchvision does where it loads COCO_V1
    ours.load_state_dict(theirs.state_dict(), strict=name == "v2", assign=True)  # 180 MB, once
    materialise(ours)
    ours.roi_heads.score_thresh, ours.roi_heads.detections_per_img = 0.0, 10
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (expected,), (found,) = theirs([image]), ours([image])
    assert len(expected["scores"]) == 10
    for key in ("boxes", "scores", "masks"):
        torch.testing.assert_close(found[key], expected[key], atol=1e-3, rtol=1e-3)
    assert found["labels"].tolist() == expected["labels"].tolist()


# What can be built


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_has_five_levels_of_strides_4_to_64(backbone: str, norm: str) -> None:
    network: Any = on_paper(replace(THIN_SMALL, backbone=backbone, norm=norm))
    levels = network.backbone(torch.empty(1, 3, 128, 192, device="meta"))
    assert [tuple(level.shape) for level in levels.values()] == [
        (1, 8, 128 // stride, 192 // stride) for stride in (4, 8, 16, 32, 64)
    ]
    kinds = {type(m) for m in network.backbone.body.modules()} & {FrozenBatchNorm2d, nn.BatchNorm2d}
    plain_vgg = backbone == "vgg16" and norm == "frozen"
    assert kinds == (set() if plain_vgg else {FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d})


@pytest.mark.parametrize(("norm", "builder"), [("frozen", vgg16), ("batch", vgg16_bn)])
def test_vgg_is_torchvisions(norm: str, builder: Callable[..., Any]) -> None:
    with torch.device("meta"):
        theirs = builder(weights=None).features
    ours = on_paper(replace(THIN_SMALL, backbone="vgg16", norm=norm)).backbone.body
    last = max(int(name) for name, _ in ours.named_children())
    assert shapes(ours) == shapes(theirs)
    assert str(ours) == str(theirs).replace("Sequential", "IntermediateLayerGetter", 1)
    assert last == len(theirs) - 1


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_built_network_answers_and_learns(backbone: str) -> None:
    torch.manual_seed(0)
    network = build(replace(THIN_SMALL, backbone=backbone))
    image = torch.rand(3, 64, 80)
    with torch.inference_mode():
        (found,) = network([image])
    assert set(found) == {"boxes", "labels", "scores", "masks"}
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 50.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 80, dtype=torch.uint8),
    }
    losses = network.train()([image, image], [target, target])
    assert len(losses) == 5
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_network_without_mask_convolutions_is_a_faster_rcnn() -> None:
    network: Any = on_paper(replace(THIN_SMALL, mask_convs=0))
    assert not has_masks(network)
    assert has_masks(on_paper(THIN_SMALL))
    assert not [name for name in network.state_dict() if "mask" in name]


def test_description_sets_every_part() -> None:
    network: Any = on_paper(
        replace(
            THIN_SMALL,
            fpn_norm=True,
            rpn_convs=3,
            anchor_sizes=(4, 8, 16, 32, 64),
            anchor_ratios=(0.5, 2.0),
            box_convs=2,
            mask_convs=3,
            mask_norm=True,
            norm_eps=0.25,
        )
    )
    heads, rpn = network.roi_heads, network.rpn
    assert {m.eps for m in network.backbone.body.modules() if isinstance(m, nn.BatchNorm2d)} == {0.25}
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.backbone.fpn.modules())
    assert rpn.anchor_generator.sizes == ((4,), (8,), (16,), (32,), (64,))
    assert rpn.anchor_generator.num_anchors_per_location() == [2] * 5
    assert len(rpn.head.conv) == 3
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (20, 20)
    assert sum(isinstance(m, nn.Conv2d) for m in heads.box_head.modules()) == 2
    assert sum(isinstance(m, nn.Conv2d) for m in heads.mask_head.modules()) == 3
    assert any(isinstance(m, nn.BatchNorm2d) for m in heads.mask_head.modules())
    assert tuple(heads.box_predictor.cls_score.weight.shape) == (4, 8)
    assert (network.transform.min_size, network.transform.max_size) == ((64,), 96)
    assert not network.training


def test_proposals_for_training_are_set_apart() -> None:
    with torch.device("meta"):
        rpn: Any = build(THIN_SMALL, rpn_training=(70, 30)).rpn
    rpn.train()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (70, 30)


# Descriptions


@pytest.mark.parametrize("architecture", [V1, V2, SMALL, THIN_SMALL], ids=["v1", "v2", "small", "thin"])
def test_description_survives_json(architecture: Architecture) -> None:
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture
    assert Architecture.from_dict(architecture.to_dict()) == architecture


def test_whole_numbers_may_stand_for_floats() -> None:
    read = Architecture.from_dict({**V1.to_dict(), "norm_eps": 0, "anchor_ratios": [1, 2]})
    assert (read.norm_eps, read.anchor_ratios) == (0.0, (1.0, 2.0))
    assert {type(value) for value in (read.norm_eps, *read.anchor_ratios)} == {float}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"depth": 50}, "unknown architecture fields: depth"),
        ({"backbone": 50}, "backbone: 50 is no str"),
        ({"classes": 2.0}, "classes: 2.0 is no int"),
        ({"classes": True}, "classes: True is no int"),
        ({"classes": None}, "classes: None is no int"),
        ({"fpn_norm": 1}, "fpn_norm: 1 is no bool"),
        ({"norm_eps": "0"}, "norm_eps: '0' is no float"),
        ({"norm_eps": True}, "norm_eps: True is no float"),
        ({"anchor_sizes": 32}, "anchor_sizes: 32 is no tuple"),
        ({"anchor_sizes": [8, 16, 32, 64, "128"]}, "anchor_sizes: '128' is no int"),
        ({"anchor_ratios": [1.0, [2.0]]}, r"anchor_ratios: \[2.0\] is no float"),
    ],
)
def test_descriptions_of_the_wrong_form_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ArchitectureError, match=named):
        Architecture.from_dict({**V1.to_dict(), **changes})


def test_description_without_a_field_is_refused() -> None:
    values = V1.to_dict()
    del values["norm_eps"], values["backbone"]
    with pytest.raises(ArchitectureError, match="missing architecture fields: backbone, norm_eps"):
        Architecture.from_dict(values)


@pytest.mark.parametrize("values", [None, [], "resnet50"])
def test_description_that_is_no_table_is_refused(values: Any) -> None:
    with pytest.raises(ArchitectureError, match="table of names and values"):
        Architecture.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backbone": "resnet7"}, "no such backbone: 'resnet7'; there are resnet18"),
        ({"norm": "layer"}, "'frozen' or 'batch'"),
        ({"norm_eps": -1e-5}, "norm_eps"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"anchor_sizes": (32, 64)}, "five anchor sizes"),
        ({"anchor_sizes": (0, 8, 16, 32, 64)}, "five anchor sizes"),
        ({"anchor_ratios": ()}, "anchor ratios"),
        ({"anchor_ratios": (0.0, 1.0)}, "anchor ratios"),
        ({"anchor_ratios": (float("inf"),)}, "anchor ratios"),
        ({"classes": 1}, "positive"),
        ({"fpn_channels": 0}, "positive"),
        ({"box_channels": 0}, "positive"),
        ({"mask_channels": -1}, "positive"),
        ({"rpn_convs": 0}, "positive"),
        ({"proposals": 0}, "positive"),
        ({"min_size": 0}, "positive"),
        ({"max_size": 63}, "positive"),
        ({"box_convs": -1}, "positive"),
        ({"mask_convs": -1}, "positive"),
        ({"keypoints": -1}, "keypoint head must be positive"),
        ({"keypoints": 17, "keypoint_convs": 0}, "keypoint head must be positive"),
        ({"keypoints": 17, "pooling": "pool"}, "keypoints need a pyramid, RoIAlign"),
    ],
)
def test_architectures_that_cannot_be_built_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ArchitectureError, match=named):
        on_paper(replace(THIN_SMALL, **changes))
