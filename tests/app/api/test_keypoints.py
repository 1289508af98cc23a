"""Keypoints in the answer, in /model and on the picture."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.data import Category, Keypoints
from model.network.architecture import KEYPOINTS
from model.zoo.model_file import describe
from tests.app.fakes import FakeEngine, ask, picture, post

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.instances import Instances, Options

NAMED = Keypoints(("head", "left_hand", "right_hand"), ((0, 1), (0, 2)))
# Of the second keypoint the score is too low to be shown.
SCORES = [7.123456, -1.5, 2.5]


class Pointing(FakeEngine):
    """Finds a person with three keypoints, and no masks."""

    def __init__(self) -> None:
        super().__init__()
        person = (Category(1, "person"),)
        self.model = describe("fake", replace(KEYPOINTS, keypoints=3), person, keypoints=NAMED)

    def instances(self, image: NDArray[np.uint8], wanted: Options) -> Instances:
        found = super().instances(image, replace(wanted, masks=False, categories=frozenset({1})))
        if not wanted.keypoints:
            return found
        places = torch.tensor([[[60.123456, 100.0, 1.0], [150.0, 40.0, 1.0], [120.0, 100.0, 1.0]]])
        return replace(found, keypoints=places, keypoint_scores=torch.tensor([SCORES]), keypoints_from=2.0)


def answer(query: str = "") -> dict[str, Any]:
    (instance,) = post(query, engine=Pointing()).json()["instances"]
    found: dict[str, Any] = instance
    return found


def test_instances_have_them_in_cocos_form() -> None:
    instance = answer()
    assert instance["keypoints"] == [60.12, 100.0, 1, 150.0, 40.0, 1, 120.0, 100.0, 1]
    assert instance["keypoint_scores"] == [7.1235, -1.5, 2.5]


def test_they_can_be_left_out_and_other_values_are_refused() -> None:
    assert not {"keypoints", "keypoint_scores"} & answer("?keypoints=none").keys()
    refused = post("?keypoints=all", engine=Pointing())
    assert refused.status_code == 422
    assert refused.json()["detail"] == 'keypoints must be one of coco, none, not "all".'


def test_the_model_names_them_with_the_skeleton_as_coco_counts() -> None:
    model = ask("GET", "/model", Pointing()).json()
    assert model["categories"] == [
        {"id": 1, "name": "person", "keypoints": list(NAMED.names), "skeleton": [[1, 2], [1, 3]]}
    ]
    assert model["keypoints"] == {"scores": "logit", "shown_from": 2.0}
    without = ask("GET", "/model").json()
    assert without["keypoints"] is None
    assert without["categories"][0] == {"id": 1, "name": "person"}


@pytest.mark.parametrize("query", ["", "?keypoints=none"])
def test_the_picture_shows_those_that_score_enough_and_the_lines_between_them(query: str) -> None:
    headers = {"accept": "image/png", "content-type": "image/png"}
    photo = picture("PNG", 200, 150)
    drawn = ask("POST", f"/segment{query}", Pointing(), content=photo, headers=headers)
    before, after = (
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        for content in (photo, drawn.content)
    )
    changed = (before != after).any(2)
    # In the middle between head and right hand is the line; between it and the left hand there is none.
    assert changed[98:102, 90].any() == (not query)
    assert not changed[65:75, 100:110].any()
