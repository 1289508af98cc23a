"""The branch for GPUs on a GPU without numbers (fake_gpu.py): devices, dtypes, shapes, and what the host waits for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model.data import Category
from model.inference.cuda_graphs import CudaGraphCache
from model.inference.engine import Engine
from model.instances import Options
from model.network.architecture import SMALL, V1, Architecture
from model.network.build import build
from model.network.conventions import Conventions
from model.network.skeleton import has_skeleton, skeleton
from model.zoo import model_file

from .fake_gpu import GPU, fake_gpu
from .networks import THIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

DETECTRON2 = Conventions(
    resize="detectron2", anchor_order="size", anchor_offset=0.5, anchor_rounding=False, anchor_strides="level",
    level_rule="detectron2", box_aligned=True, mask_aligned=True, box_min_size=0.0, drop_empty=True, paste="detectron2",
)  # fmt: skip
MMDETECTION = Conventions(resize="mmdetection", level_rule="mmdetection", rpn_sigmoid=True, clamp_both=True)
ONE_MAP = {"divisor": 1, "first_stride": 16, "anchor_levels": ((32, 64, 128),)}
SMALL_THIN = replace(SMALL, **THIN)
# All find their instances at once.
ARCHITECTURES = {
    "FPN": replace(V1, **THIN, backbone="resnet18"),
    "MMDetection's FPN": replace(SMALL_THIN, conventions=MMDETECTION),
    "Detectron2's FPN": replace(SMALL_THIN, conventions=DETECTRON2),
    "Detectron2's C4": replace(
        SMALL_THIN,
        backbone="resnet50",
        stem_channels=8,
        res2_channels=32,
        bottleneck_channels=8,
        single_map="c4",
        fpn_channels=128,
        box_channels=256,
        mask_convs=1,
        conventions=replace(DETECTRON2, **ONE_MAP, box_bins=14),
    ),
    "GroupNorm": replace(
        SMALL_THIN, fpn_norm=True, fpn_channels=32, mask_norm=True, mask_channels=32, head_norm="group"
    ),
}
BOTH = ("FPN", "Detectron2's FPN", "Detectron2's C4")
CASES = [(kind, precision) for kind in BOTH for precision in ("bfloat16", "float16")]
CASES += [("MMDetection's FPN", "float16"), ("GroupNorm", "bfloat16")]
SIZES = [(96, 128), (90, 116)]
IMAGES = [np.zeros((*size, 3), np.uint8) for size in SIZES]
OPTIONS = [Options(score_threshold=0.05, categories=frozenset({10})), Options(max_instances=7, masks=False)]


def network(architecture: Architecture) -> nn.Module:
    """Its modules, whose numbers do not matter."""
    if not has_skeleton(architecture):
        return build(architecture)
    empty = skeleton(architecture)
    state = {name: torch.zeros(x.shape, dtype=x.dtype) for name, x in empty.state_dict().items()}
    empty.load_state_dict(state, assign=True)
    return empty


def engine(architecture: Architecture, precision: str) -> Engine:
    categories = tuple(Category(10 * n, f"kind {n}") for n in range(1, architecture.classes))
    model = model_file.describe("fake", architecture, categories)
    return Engine(network(architecture), model, GPU, precision)


def assert_made(
    found: list[Any], architecture: Architecture, images: Sequence[np.ndarray] = tuple(IMAGES)
) -> None:
    """What is made of the ones that come back has the right shapes and dtypes."""
    for image, instances, options in zip(images, found, OPTIONS, strict=True):
        assert instances.size == image.shape[:2]
        assert instances.boxes.shape == (len(instances), 4)
        assert (instances.boxes.dtype, instances.scores.dtype) == (torch.float32, torch.float32)
        # torchvision's C4 halves them.
        side = architecture.mask_side if architecture.pyramid else 14
        has_masks = options.masks and architecture.mask_convs > 0
        assert (instances.probabilities is not None) == has_masks
        if has_masks:
            assert instances.probabilities.shape == (len(instances), side, side)
            assert instances.probabilities.dtype == torch.float32


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_the_host_waits_for_detections_and_for_masks_alone(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = ARCHITECTURES[kind]
    with fake_gpu(monkeypatch) as gpu:
        made = engine(architecture, precision)
        gpu.waits = []
        # Without padding only images of one size share a batch.
        images = IMAGES if architecture.conventions.divisor > 1 else IMAGES[:1] * 2
        found = made.segment(images, OPTIONS)
    cache: Any = made._extract
    assert isinstance(cache, CudaGraphCache)
    (recording,) = cache._recordings.values()
    maps = recording.maps
    # The limits go up before anything else is queued, and the levels' sizes once for a shape.
    assert gpu.waits == ["upload", "upload", "download", "download"]
    # Scores and boxes are computed in float32.
    assert gpu.dtypes == {torch.float32, getattr(torch, precision)}
    assert {x.device for x in (maps.table, *maps.objectness, *maps.deltas)} == {GPU}
    assert maps.table.dtype == getattr(torch, precision)
    assert {x.dtype for x in maps.objectness} == {torch.float32}
    assert_made(found, architecture, images)


OTHERS = {
    "torchvision's C4": replace(SMALL_THIN, pyramid=False, mask_convs=1),
    "adaptive sampling": replace(SMALL_THIN, conventions=replace(DETECTRON2, box_samples=0, mask_samples=0)),
}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("torchvision's C4", "float16"),
        ("adaptive sampling", "bfloat16"),
    ],
)
def test_what_waits_more_often_mixes_no_devices_either(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu(monkeypatch) as gpu:
        found = engine(OTHERS[kind], precision).segment(IMAGES, OPTIONS)
    assert len(gpu.waits) > 3
    assert getattr(torch, precision) in gpu.dtypes
    assert_made(found, OTHERS[kind])


def test_the_way_that_takes_over_mixes_no_devices_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the fixed sizes do not do, and for cascades."""
    with fake_gpu(monkeypatch):
        made = engine(SMALL_THIN, "float16")
        monkeypatch.setattr("model.inference.engine.detect_without_sync", lambda *_: None)
        assert_made(made.segment(IMAGES, OPTIONS), SMALL_THIN)
        cascade = replace(SMALL_THIN, box_stages=3)
        assert_made(engine(cascade, "float16").segment(IMAGES, OPTIONS), cascade)


def test_a_fake_gpu_refuses_what_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch) as gpu, torch.inference_mode():
        there = torch.zeros(3, 4, device=GPU, dtype=torch.float16)
        with pytest.raises(AssertionError, match="on the CPU among those on the GPU"):
            there + torch.zeros(4)
        with pytest.raises(AssertionError, match="of"):
            torch.nn.functional.linear(there, torch.zeros(2, 4, device=GPU))
        assert gpu.waits == []
        there.new_tensor([1.0, 2.0])
        assert there.sum().item() == 1
        assert gpu.waits == ["upload", "_local_scalar_dense"]
        with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph():
            there.cpu()
