"""Matching of anchors: the same matches as torchvision's, for few objects and for hundreds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from model.network.anchors import cell_anchors
from model.training import anchor_matching
from model.training.anchor_matching import AnchorMatcher


def grid(side: int, strides: tuple[int, ...] = (4, 8, 16)) -> torch.Tensor:
    """[A, 4] anchors of twice the stride in an image of side × side pixels, level by level, row by row."""
    levels = []
    for stride in strides:
        cells = torch.arange(0, side, stride, dtype=torch.float32)
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        corners = torch.stack([x, y, x, y], 2)[:, :, None]
        levels.append((corners + cell_anchors([2 * stride], [0.5, 1.0, 2.0])).reshape(-1, 4))
    return torch.cat(levels)


def draw(count: int, side: int, seed: int) -> torch.Tensor:
    """[count, 4] boxes inside the image, with whole numbers, so that some overlap anchors equally."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, side - 4, (count, 2), generator=generator).float()
    sides = torch.randint(3, side // 2, (count, 2), generator=generator).float()
    return torch.cat([corner, (corner + sides).clamp(max=side)], 1)


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor_matching, "RUN", 200)


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 30), seed=st.integers(0, 1000))
def test_matches_are_those_of_torchvision(count: int, seed: int) -> None:
    anchors, boxes = grid(96), draw(count, 96, seed)
    theirs = Matcher(0.7, 0.3, allow_low_quality_matches=True)(box_iou(boxes, anchors))
    assert torch.equal(AnchorMatcher(0.3, 0.7)(AnchorMatcher.pair(boxes, anchors)), theirs)


def test_hundreds_of_small_objects_each_have_an_anchor() -> None:
    corner = torch.cartesian_prod(torch.arange(0, 200, 10.0), torch.arange(0, 200, 10.0)) + 1
    boxes = torch.cat([corner, corner + torch.tensor([5.0, 7.0])], 1)  # [400, 4]
    anchors = grid(200)
    matches = AnchorMatcher(0.3, 0.7)((boxes, anchors))
    assert torch.equal(matches, Matcher(0.7, 0.3, allow_low_quality_matches=True)(box_iou(boxes, anchors)))
    assert set(matches[matches >= 0].tolist()) == set(range(400))


def test_object_outside_of_all_anchors_takes_none() -> None:
    anchors = grid(32)
    matches = AnchorMatcher(0.3, 0.7)((torch.tensor([[500.0, 500.0, 510.0, 510.0]]), anchors))
    assert (matches == AnchorMatcher.BELOW_LOW_THRESHOLD).all()
