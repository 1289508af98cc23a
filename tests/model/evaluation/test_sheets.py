"""Sheets of images show what a model found, with the lines between keypoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from model.data import Category, Keypoints, Sample
from model.evaluation.confusion import ImageScore
from model.evaluation.sheets import sample_sheet, worst_images
from model.instances import Instances

if TYPE_CHECKING:
    from pathlib import Path

CATEGORIES = (Category(1, "stick"),)


@pytest.mark.parametrize("name", ["samples", "worst"])
@pytest.mark.parametrize("skeleton", [(), ((0, 1),)])
def test_keypoints_are_joined_as_the_model_says(
    tmp_path: Path, name: str, skeleton: tuple[tuple[int, int], ...]
) -> None:
    sample = Sample(
        1,
        np.full((200, 200, 3), 90, np.uint8),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros((0, 200, 200), np.uint8),
    )
    found = Instances(
        (200, 200),
        torch.tensor([[10.0, 10, 190, 190]]),
        torch.tensor([0.9]),
        torch.tensor([1]),
        None,
        keypoints=torch.tensor([[[30.0, 100, 1], [170, 100, 1]]]),
        keypoint_scores=torch.ones(1, 2),
    )
    keypoints, file = Keypoints(("top", "end"), skeleton), tmp_path / "sheet.jpg"
    if name == "samples":
        sample_sheet([(sample, found)], CATEGORIES, file, keypoints=keypoints)
        # In the middle of its place.
        middle = (210, 210)
    else:
        worst_images([(ImageScore(0, 0.0, 0, 0, 0, 1), sample, found)], CATEGORIES, file, keypoints=keypoints)
        # Predictions are right of the annotations, which have 520 pixels and a gap, and below a line of text.
        middle = (22 + 100, 528 + 100)
    with Image.open(file) as sheet:
        shown = np.asarray(sheet)[middle].astype(int)
    assert (abs(shown - 90).max() > 40) == bool(skeleton)
