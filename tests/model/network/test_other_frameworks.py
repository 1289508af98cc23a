"""Parts of training that other frameworks compute otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from bench.synthetic_weights import synthetic_weights
from model.data import Category
from model.inference.engine import Engine
from model.instances import Options
from model.masks.paste import decode, paste
from model.network.architecture import SMALL, V1, ArchitectureError
from model.network.build import build
from model.network.conventions import Conventions
from model.network.mask_variants import centred_targets
from model.network.other_frameworks import Anchors
from model.zoo import model_file

NARROW = replace(V1, backbone="resnet18", classes=3, fpn_channels=8, box_channels=8, mask_channels=8)


def test_targets_of_masks_are_the_inverse_of_detectron2s_pasting() -> None:
    """Cells are wider than pixels, so that a mask is off by a part of one; over many boxes that cancels out."""
    object_ = np.zeros((48, 64), np.uint8)
    object_[10:38, 13:41] = 1
    around = torch.tensor([4.0, 2.0, 56.0, 44.0])
    boxes = around + 4 * torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    targets = centred_targets(torch.from_numpy(object_)[None], boxes, torch.zeros(60, dtype=torch.int64), 28)
    assert set(targets.unique().tolist()) == {0.0, 1.0}
    pasted = paste(targets, boxes, (48, 64), rule="detectron2")
    centres = np.array([np.argwhere(decode(rle)).mean(0) for rle in pasted]) - [23.5, 26.5]
    # Sampled as torchvision does, they lie half a pixel aside.
    np.testing.assert_allclose(centres.mean(0), 0, atol=0.15)


@pytest.mark.parametrize("width", [torch.float32, torch.bfloat16], ids=str)
def test_anchors_are_exact_where_features_are_narrow(width: torch.dtype) -> None:
    """In bfloat16 a cell at 300 pixels would be moved by up to one, and one at 1,000 by up to four."""
    rules = Conventions(anchor_rounding=False, anchor_offset=0.5, anchor_strides="level", anchor_order="size")
    anchors = Anchors([[30.0], [60.0]], (1.0,), rules)
    images = ImageList(torch.zeros(1, 3, 8, 1000), [(8, 1000)])
    (boxes,) = anchors(images, [torch.zeros(1, 1, 2, 250).to(width), torch.zeros(1, 1, 1, 125).to(width)])
    # The offset is half of each level's own stride.
    assert boxes[249].tolist() == [249 * 4 + 2 - 15, 2 - 15, 249 * 4 + 2 + 15, 2 + 15]
    assert boxes[-1].tolist() == [124 * 8 + 4 - 30, 4 - 30, 124 * 8 + 4 + 30, 4 + 30]


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        pytest.param(
            replace(NARROW, box_stages=3),
            "a cascade .here of 3 stages. can be served.*not trained",
            id="cascade",
        ),
        pytest.param(
            replace(SMALL, backbone="vgg16", conventions=Conventions(resize="detectron2")),
            "a vgg16 that computes as another framework does cannot be trained",
            id="no ResNet",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(architecture: object, message: str) -> None:
    assert isinstance(architecture, type(V1))
    with pytest.raises(ArchitectureError, match=message):
        build(architecture)


def test_a_box_head_of_convolutions_alone_is_computed_as_torchvisions_modules_compute_it() -> None:
    # Of Detectron2, NUM_CONV: 2 and NUM_FC: 0.
    architecture = replace(
        NARROW,
        box_convs=2,
        box_fcs=-1,
        box_channels=8 * 7**2,
        box_norm=False,
        proposals=60,
        min_size=96,
        max_size=128,
    )
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    pixels = (image * 255).round().to(torch.uint8)
    network = synthetic_weights(architecture, pixels / 255)
    model = model_file.describe("convolutions", architecture, (Category(1, "bolt"), Category(2, "nut")))
    engine = Engine(network, model, torch.device("cpu"))
    (found,) = engine.segment([pixels.permute(1, 2, 0).numpy()], [Options(score_threshold=0.05)])
    with torch.inference_mode():
        (expected,) = network([pixels / 255])
    assert len(found) == len(expected["scores"]) > 3
    torch.testing.assert_close(found.scores, expected["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes, expected["boxes"], atol=1e-2, rtol=0)
    with pytest.raises(ArchitectureError, match="fully connected layers, or convolutions"):
        replace(architecture, box_convs=0).validate()
