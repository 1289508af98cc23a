"""Keypoints against torchvision's own, and how many are computed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from model.inference.engine import Engine
from model.inference.keypoint_head import locate
from tests.model.inference.networks import (
    CPU,
    THIN_SMALL,
    Calls,
    described,
    engine_of,
    network,
    photo,
    segment,
)

if TYPE_CHECKING:
    from model.network.architecture import Architecture

BOTH = replace(THIN_SMALL, keypoints=5, keypoint_convs=3, keypoint_channels=32)
ALONE = replace(BOTH, mask_convs=0, keypoint_channels=20)


@pytest.mark.parametrize("architecture", [BOTH, ALONE], ids=["with masks", "alone"])
@pytest.mark.parametrize("size", [(96, 128), (201, 50)])
def test_keypoints_are_torchvisions(architecture: Architecture, size: tuple[int, int]) -> None:
    image = photo(*size)
    with torch.inference_mode():
        (theirs,) = network(architecture)([torch.from_numpy(image).permute(2, 0, 1) / 255])
    ours = segment(engine_of(architecture), image)
    assert len(ours) == len(theirs["scores"]) >= 5
    assert ours.keypoints is not None
    assert (ours.probabilities is not None) == bool(architecture.mask_convs)
    torch.testing.assert_close(ours.boxes, theirs["boxes"], atol=0.01, rtol=0)
    torch.testing.assert_close(ours.keypoints, theirs["keypoints"], atol=0.01, rtol=0)
    torch.testing.assert_close(ours.keypoint_scores, theirs["keypoints_scores"], atol=1e-4, rtol=0)


def test_places_in_boxes_of_any_size_are_torchvisions() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[3.2, 4.7, 3.3, 4.9], [0.0, 0.0, 61.3, 12.0], [10.5, 20.25, 410.75, 600.0]])
    heatmaps = torch.randn(3, 4, 56, 56)
    places, scores = heatmaps_to_keypoints(heatmaps, boxes)
    for n, box in enumerate(boxes):
        found, values = locate(heatmaps[n], box, as_probability=False)
        torch.testing.assert_close(found, places[n, :, :2], atol=1e-4, rtol=0)
        torch.testing.assert_close(values, scores[n], atol=1e-6, rtol=0)


def test_they_are_computed_only_of_what_is_returned_and_where_they_are_wanted() -> None:
    engine, image = engine_of(BOTH), photo(96, 128)
    with Calls(engine._keypoint_head, "heatmaps") as calls:
        found = segment(engine, image, max_instances=3)
        without = segment(engine, image, keypoints=False)
    assert [len(boxes) for _, boxes, _ in calls] == [3]
    assert found.keypoints is not None
    assert found.keypoints.shape == (3, 5, 3)
    assert without.keypoints is None
    assert without.keypoint_scores is None
    assert len(without) > 3


def test_where_nothing_is_found_there_are_no_keypoints() -> None:
    found = segment(engine_of(BOTH), photo(96, 128), score_threshold=1.0)
    assert found.keypoints is not None
    assert found.keypoints.shape == (0, 5, 3)


def test_in_bfloat16_most_keypoints_stay_where_they_are() -> None:
    image = photo(96, 128)
    exact = segment(engine_of(BOTH), image, max_instances=5)
    coarse = segment(Engine(network(BOTH), described(BOTH), CPU, "bfloat16"), image, max_instances=50)
    assert exact.keypoints is not None
    assert coarse.keypoints is not None
    near = []
    for box, own in zip(exact.boxes, exact.keypoints, strict=True):
        twin = (coarse.boxes - box).abs().amax(1).argmin()
        near += ((coarse.keypoints[twin] - own)[:, :2].abs().amax(1) < 2).tolist()
    assert sum(near) / len(near) > 0.7
