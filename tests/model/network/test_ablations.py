"""The paper's other networks: C4, RoIPool, softmax and class-agnostic masks; each trains, and the engine opens it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.ops import roi_pool

from model.data import Category
from model.inference import fallback
from model.inference.engine import Engine
from model.instances import Options
from model.network.architecture import C4, SMALL, Architecture, ArchitectureError
from model.network.build import build
from model.network.mask_variants import AgnosticPredictor, SoftmaxPredictor, multinomial_loss
from model.network.roi_pool import PyramidRoIPool
from model.zoo import model_file

if TYPE_CHECKING:
    from pathlib import Path

CATEGORIES = (Category(4, "cat"), Category(9, "dog"))
THIN = replace(
    SMALL, classes=3, min_size=64, max_size=96, fpn_channels=8, box_channels=16, mask_channels=8, mask_convs=1,
    proposals=30, anchor_sizes=(8, 16, 32, 64, 128),
)  # fmt: skip
THIN_C4 = replace(
    C4, backbone="resnet18", norm="batch", classes=3, min_size=64, max_size=96, mask_channels=8, proposals=30,
    anchor_sizes=(8, 16, 32, 64, 128),
)  # fmt: skip
VARIANTS = [
    pytest.param(replace(THIN, pooling="pool"), 28, id="RoIPool"),
    pytest.param(replace(THIN, masks="softmax"), 28, id="softmax masks"),
    pytest.param(replace(THIN, masks="agnostic"), 28, id="agnostic masks"),
    pytest.param(THIN_C4, 14, id="C4"),
    pytest.param(replace(THIN_C4, pooling="pool", masks="softmax"), 14, id="C4, RoIPool, softmax"),
    pytest.param(replace(THIN_C4, mask_convs=0), None, id="C4 without masks"),
]


def image() -> np.ndarray:
    return (np.random.default_rng(0).random((60, 80, 3)) * 255).astype(np.uint8)


@pytest.mark.parametrize(("architecture", "side"), VARIANTS)
def test_file_of_every_variant_opens_in_the_engine_and_answers_as_torchvision(
    tmp_path: Path, architecture: Architecture, side: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    # Fewer than there are.
    monkeypatch.setattr(fallback, "MASKS_AT_ONCE", 3)
    path = tmp_path / "model.safetensors"
    model_file.save(path, build(architecture), model_file.describe("variant", architecture, CATEGORIES))
    engine = Engine.load(str(path), device="cpu", precision="float32")
    assert engine.model.architecture == architecture
    engine.warm_up()
    (found,) = engine.segment([image()], [Options(score_threshold=0.0)])
    network: Any
    network, _ = model_file.read(path)
    grids: list[Any] = []
    # torchvision pastes them afterwards.
    network.roi_heads.register_forward_hook(lambda *called: grids.append(called[-1][0][0].get("masks")))
    with torch.inference_mode():
        (theirs,) = network([torch.from_numpy(image()).permute(2, 0, 1) / 255])
    assert len(found) == len(theirs["boxes"]) > 3
    assert torch.allclose(found.boxes, theirs["boxes"], atol=1e-2)
    assert torch.allclose(found.scores, theirs["scores"], atol=1e-4)
    if side is None:
        assert found.probabilities is None
    else:
        assert found.probabilities is not None
        assert found.probabilities.shape == (len(found), side, side)
        assert 0 <= found.probabilities.min() < found.probabilities.max() <= 1
        assert torch.allclose(found.probabilities, grids[0][:, 0], atol=1e-4)


def test_options_hold_for_variants_too() -> None:
    torch.manual_seed(0)
    architecture = replace(THIN, masks="agnostic")
    engine = Engine(
        build(architecture),
        model_file.describe("x", architecture, CATEGORIES),
        torch.device("cpu"),
        "bfloat16",
    )
    few, dogs, boxes = (
        engine.segment([image()], [options])[0]
        for options in (
            Options(score_threshold=0.0, max_instances=2),
            Options(score_threshold=0.0, categories=frozenset({9})),
            Options(score_threshold=0.0, masks=False),
        )
    )
    assert len(few) == 2
    assert set(dogs.labels.tolist()) == {9}
    assert boxes.probabilities is None


@pytest.mark.parametrize(("architecture", "_side"), VARIANTS)
def test_every_parameter_of_every_variant_learns(architecture: Architecture, _side: int | None) -> None:
    torch.manual_seed(0)
    network: Any = build(architecture).train()
    network.roi_heads.fg_bg_sampler.batch_size_per_image = 16  # of 512, to be done sooner
    target = {
        "boxes": torch.tensor([[5.0, 5, 60, 50]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 60, 80, dtype=torch.uint8),
    }
    losses = network([torch.from_numpy(image()).permute(2, 0, 1) / 255], [target])
    assert ("loss_mask" in losses) is (architecture.mask_convs > 0)
    sum(losses.values()).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert still == []


def test_papers_c4_has_fifteen_anchors_and_a_shared_fifth_stage_of_stride_one() -> None:
    with torch.device("meta"):
        network: Any = build(C4)
    assert network.rpn.head.cls_logits.out_channels == 15
    assert network.backbone.out_channels == 1024
    res5 = network.roi_heads.box_head.res5
    assert {m.stride for m in res5.modules() if isinstance(m, torch.nn.Conv2d)} == {(1, 1)}
    assert network.roi_heads.mask_predictor.conv5_mask.in_channels == 2048
    names = [name for name in network.state_dict() if "res5" in name or "mask_head" in name]
    assert names
    assert all(name.startswith("roi_heads.box_head.res5") for name in names)  # stored once


def test_roi_pool_takes_each_box_from_its_level() -> None:
    torch.manual_seed(0)
    features = {str(n): torch.randn(2, 3, 64 >> n, 64 >> n) for n in range(4)}
    boxes = [torch.tensor([[0.0, 0, 30, 30], [0, 0, 200, 200]]), torch.tensor([[10.0, 20, 250, 250]])]
    pooled = PyramidRoIPool(7, (4, 8, 16, 32))(features, boxes, [(256, 256)] * 2)
    for row, (level, picture, box) in enumerate(
        [(0, 0, boxes[0][0]), (1, 0, boxes[0][1]), (2, 1, boxes[1][0])]
    ):
        alone = roi_pool(features[str(level)][picture : picture + 1], [box[None]], 7, 1 / (4 << level))
        assert torch.equal(pooled[row], alone[0])


def test_softmax_masks_in_use_are_the_softmax() -> None:
    predictor = SoftmaxPredictor(4, 4, 3).eval()
    x = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        used = predictor(x).sigmoid()
        competing = predictor.train()(x).softmax(1)
    assert torch.allclose(used, competing, atol=1e-5)


def test_multinomial_loss_is_the_cross_entropy_of_each_pixels_class() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4)
    # An object all over, and one that is hidden in its box.
    targets = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    loss = multinomial_loss(logits, torch.tensor([2, 1]), targets)
    pixels = torch.tensor([2, 0])[:, None, None].expand(2, 4, 4)
    assert torch.isclose(loss, functional.cross_entropy(logits, pixels))


def test_agnostic_masks_are_the_same_for_every_class() -> None:
    predictor = AgnosticPredictor(4, 4, 5)
    logits = predictor(torch.randn(2, 4, 3, 3))
    assert logits.shape == (2, 5, 6, 6)
    assert torch.equal(logits[:, 0], logits[:, 4])
    assert predictor.mask_fcn_logits.out_channels == 1


def test_files_of_before_mean_what_they_meant() -> None:
    assert "pooling" not in SMALL.to_dict()
    assert Architecture.from_dict(SMALL.to_dict()) == SMALL
    assert Architecture.from_dict(THIN_C4.to_dict()) == THIN_C4


@pytest.mark.parametrize(
    ("architecture", "named"),
    [
        (replace(THIN, pooling="warp"), "pooling"),
        (replace(THIN, masks="tanh"), "masks are"),
        (replace(C4, backbone="vgg16"), "a C4 has"),
        (replace(C4, mask_convs=4), "a C4 has"),
    ],
)
def test_variants_that_cannot_be_built_are_refused(architecture: Architecture, named: str) -> None:
    with pytest.raises(ArchitectureError, match=named):
        build(architecture)
