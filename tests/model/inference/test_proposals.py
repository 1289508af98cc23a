"""Proposals against torchvision's RPN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from model.inference.features import FeatureMaps
from model.inference.proposals import ProposalGenerator, are_large, clip_boxes, decode_boxes

ANCHORS = ((8,), (16,), (32,), (64,), (128,))


def network(before: int, after: int) -> Any:
    anchors = AnchorGenerator(ANCHORS, ((0.5, 1.0, 2.0),) * 5)
    counts = {"training": before, "testing": before}, {"training": after, "testing": after}
    return RegionProposalNetwork(
        anchors,
        RPNHead(4, 3),
        0.7,
        0.3,
        256,
        0.5,
        pre_nms_top_n=counts[0],
        post_nms_top_n=counts[1],
        nms_thresh=0.7,
    ).eval()


def maps(height: int, width: int, batch: int, seed: int) -> tuple[FeatureMaps, Any]:
    """Random objectness and deltas, ours and as torchvision's head lays them out."""
    torch.manual_seed(seed)
    shapes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64)]
    # All different, also as probabilities, by which torchvision sorts them.
    counts = [h * w * 3 for h, w in shapes]
    every = torch.linspace(-4, 4, sum(counts))
    scores = [
        s.clone()
        for s in torch.stack([every[torch.randperm(len(every))] for _ in range(batch)]).split(counts, 1)
    ]
    deltas = [torch.randn(batch, h * w * 3, 4) * 0.4 for h, w in shapes]
    theirs = (
        [s.view(batch, h, w, 3).permute(0, 3, 1, 2) for s, (h, w) in zip(scores, shapes, strict=True)],
        [d.view(batch, h, w, 12).permute(0, 3, 1, 2) for d, (h, w) in zip(deltas, shapes, strict=True)],
    )
    return FeatureMaps(torch.zeros(0, 4), shapes, scores, deltas), theirs


@pytest.mark.parametrize(("before", "after"), [(1000, 1000), (60, 60), (100, 40)])
@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [(192, 256, [(192, 256)]), (96, 160, [(96, 131), (90, 160), (96, 160)]), (800, 96, [(777, 96)])],
)
def test_proposals_are_torchvisions(
    before: int, after: int, height: int, width: int, sizes: list[tuple[int, int]]
) -> None:
    rpn = network(before, after)
    ours, (objectness, deltas) = maps(height, width, len(sizes), seed=before)
    rpn.head.forward = lambda _: (objectness, deltas)
    images = ImageList(torch.empty(len(sizes), 3, height, width), sizes)
    features = {str(n): torch.empty(len(sizes), 4, h, w) for n, (h, w) in enumerate(ours.shapes)}
    with torch.no_grad():
        expected, _ = rpn(images, features)
    found = ProposalGenerator(rpn, torch.device("cpu"))(ours, (height, width), sizes)
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert 0 < len(other) <= after
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-5)


def test_rpn_with_a_score_threshold_is_refused() -> None:
    rpn = network(10, 10)
    rpn.score_thresh = 0.5
    with pytest.raises(TypeError, match="threshold"):
        ProposalGenerator(rpn, torch.device("cpu"))


@settings(deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4),
    st.sampled_from([(1, 1, 1, 1), (10, 10, 5, 5)]),
)
def test_boxes_are_decoded_as_torchvision_does(deltas: list[float], weights: tuple[float, ...]) -> None:
    boxes = torch.tensor([[3.0, 4.0, 33.5, 20.0], [0.0, 0.0, 0.0, 0.0], [-5.0, 2.0, 900.0, 3.0]])
    codes = torch.tensor([deltas]).expand(3, 4)
    expected = BoxCoder(weights).decode_single(codes, boxes)
    torch.testing.assert_close(decode_boxes(codes, boxes, weights), expected, atol=1e-4, rtol=1e-5)


def test_boxes_are_cut_and_sorted_out_as_torchvision_does() -> None:
    torch.manual_seed(0)
    boxes = torch.randn(500, 4) * 60
    boxes[:50, 2:] = boxes[:50, :2] + 1e-3
    cut = clip_boxes(boxes, (40, 70))
    assert torch.equal(cut, clip_boxes_to_image(boxes, (40, 70)))
    assert are_large(cut, 1e-2).nonzero()[:, 0].tolist() == remove_small_boxes(cut, 1e-2).tolist()
