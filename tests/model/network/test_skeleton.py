"""The modules that only hold weights, against torchvision's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from model.network.architecture import C4, RESNETS, SMALL, V1, V2, Architecture, ArchitectureError
from model.network.build import build
from model.network.skeleton import has_skeleton, skeleton

if TYPE_CHECKING:
    from collections.abc import Iterator

ARCHITECTURES = {
    "v1": V1,
    "v2": V2,
    "small": SMALL,
    "boxes only": replace(SMALL, mask_convs=0),
    "keypoints": replace(SMALL, keypoints=17, keypoint_convs=8, keypoint_channels=64),
    "keypoints alone": replace(SMALL, mask_convs=0, keypoints=17, keypoint_convs=2, keypoint_channels=64),
    "odd sizes": replace(SMALL, anchor_sizes=(9, 31, 63, 128, 250), anchor_ratios=(0.3, 1.0, 1.7, 3.0)),
    **{name: replace(SMALL, backbone=name) for name in RESNETS},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_its_tensors_have_torchvisions_names_shapes_and_types(architecture: Architecture) -> None:
    with torch.device("meta"):
        theirs = build(architecture).state_dict()
    mine = skeleton(architecture).state_dict()
    assert {n: (t.shape, t.dtype) for n, t in mine.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }


def geometry(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """What the convolutions of a network are, besides their weights."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield (
                name,
                (module.kernel_size, module.stride, module.padding, module.dilation, module.groups),
            )
        elif isinstance(module, nn.BatchNorm2d):
            yield name, module.eps


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_its_convolutions_and_norms_are_torchvisions(architecture: Architecture) -> None:
    with torch.device("meta"):
        theirs = build(architecture)
    assert dict(geometry(skeleton(architecture))) == dict(geometry(theirs))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_its_constants_are_torchvisions(architecture: Architecture) -> None:
    mine: Any = skeleton(architecture)
    theirs: Any = build(replace(architecture, backbone="resnet18"))
    assert mine.transform.image_mean == theirs.transform.image_mean
    assert mine.transform.image_std == theirs.transform.image_std
    assert mine.backbone.body.return_layers == theirs.backbone.body.return_layers
    for name in ("nms_thresh", "score_thresh", "min_size"):
        assert getattr(mine.rpn, name) == getattr(theirs.rpn, name)
    assert mine.rpn.pre_nms_top_n() == theirs.rpn.pre_nms_top_n()
    assert mine.rpn.post_nms_top_n() == theirs.rpn.post_nms_top_n()
    pairs = zip(mine.rpn.anchor_generator.cell_anchors, theirs.rpn.anchor_generator.cell_anchors, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert mine.rpn.box_coder.weights == theirs.rpn.box_coder.weights
    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert getattr(mine.roi_heads, name) == getattr(theirs.roi_heads, name)
    assert mine.roi_heads.box_coder.weights == theirs.roi_heads.box_coder.weights
    for name in ("box_roi_pool", "mask_roi_pool"):
        if hasattr(mine.roi_heads, name):
            a, b = getattr(mine.roi_heads, name), getattr(theirs.roi_heads, name)
            assert (a.output_size, a.sampling_ratio) == (tuple(b.output_size), b.sampling_ratio)


def test_it_takes_no_memory_and_cannot_run() -> None:
    network = skeleton(SMALL)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    with pytest.raises(NotImplementedError):
        network(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    "architecture", [C4, replace(SMALL, backbone="vgg16"), replace(SMALL, masks="softmax")], ids=repr
)
def test_others_are_torchvisions_alone(architecture: Architecture) -> None:
    assert not has_skeleton(architecture)
    with pytest.raises(ValueError, match="no skeleton"):
        skeleton(architecture)


def test_what_cannot_be_built_has_no_skeleton_either() -> None:
    with pytest.raises(ArchitectureError, match="sizes and widths"):
        skeleton(replace(SMALL, proposals=0))
