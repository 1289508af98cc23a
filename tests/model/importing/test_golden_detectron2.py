"""Detectron2's own answers (../shared/data/golden, its README says how to compare): resized shape, normalised input,
feature maps, proposals, boxes, scores and masks, in this order, so that the first that differs names the convention.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

from model.images.decode import decode as decode_image
from model.importing.importer import import_model
from model.inference.engine import Engine
from model.instances import Options
from model.masks.paste import decode, paste
from model.masks.rle import Rle
from model.network.skeleton import skeleton
from model.zoo.model_file import fill

if TYPE_CHECKING:
    from model.importing.importer import ImportedModel
    from model.instances import Instances

GOLDEN = Path(__file__).parents[4] / "shared/data/golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden data is not here")

# Folder, description in it, checkpoint.
MODELS = [
    ("r50_fpn", "model.json", "model_final.pth"),
    ("r50_fpn", "model.json", "model_final.pkl"),
    ("r50_fpn", "model.json", "model_final_py2.pkl"),
    ("r50_fpn", "model_stride_in_3x3.json", "model_final.pth"),
    ("r50_fpn_rgb", "model.json", "model_final.pth"),
    ("cls_agnostic", "model.json", "model_final.pth"),
    ("shapes", "model.json", "model_final.pth"),
    ("shapes", "model_roialign1.json", "model_final.pth"),
    ("odd", "model.json", "model_final.pth"),
    ("x101_fpn", "model.json", "model_final.pkl"),
    ("gn_heads", "model.json", "model_0004999.pth"),
    ("keypoint", "model.json", "model_final.pth"),
    ("cascade", "model.json", "model_final.pth"),
    ("r50_c4", "model.json", "model_final.pth"),
    ("r50_dc5", "model.json", "model_final.pth"),
]
IMAGES = ("dog_241x407.png", "scene_000012.jpg", "panorama_701x203.png")
NOISE = ("again", "two threads", "no oneDNN", "float64")
ANYTHING = Options(score_threshold=0.0, max_instances=1000)
DOUBTFUL = 1e-3  # how near to a half a probability is that may fall on either side


class Case(NamedTuple):
    """A model, an image, and what Detectron2 made of it."""

    engine: Engine
    pixels: np.ndarray
    arrays: Any
    masks: list[Rle]
    box: float  # how far a box may be off, pixels of the image
    score: float


@functools.cache
def engine(folder: str, description: str, checkpoint: str) -> Engine:
    where = GOLDEN / "detectron2" / folder
    known = json.loads((where / description).read_text())
    imported = import_model(where / checkpoint, config=where / known["config"])
    return Engine(imported.network, imported.model, torch.device("cpu"))


@pytest.fixture(params=MODELS, ids=" ".join)
def model(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    chosen: tuple[str, str, str] = request.param
    return chosen


@pytest.fixture(params=IMAGES)
def case(request: pytest.FixtureRequest, model: tuple[str, str, str]) -> Case:
    where = GOLDEN / "detectron2" / model[0]
    known = json.loads((where / model[1]).read_text())
    answer = where / known["outputs"] / Path(request.param).stem
    noise = {what: 10 * max(known["noise"][kind][what] for kind in NOISE) for what in ("box", "score")}
    found = json.loads(answer.with_suffix(".json").read_text())["detections"]
    return Case(
        engine(*model),
        decode_image((GOLDEN / "images" / request.param).read_bytes()),
        np.load(answer.with_suffix(".npz")),
        [Rle.from_coco(detection["rle"]) for detection in found if "rle" in detection],
        **noise,
    )


def match(found: Instances, case: Case) -> list[int]:
    """The instance that is nearest to each of Detectron2's, of its class."""
    labels = [int(case.engine.model.categories[int(c)].id) for c in case.arrays["classes"]]
    left, rows = set(range(len(found))), []
    for box, label in zip(case.arrays["boxes"], labels, strict=True):
        same = [n for n in left if int(found.labels[n]) == label]
        assert same, "an instance was not found"
        rows.append(min(same, key=lambda n: float(np.abs(found.boxes[n].numpy() - box).max())))
        left.remove(rows[-1])
    return rows


@torch.inference_mode()
def test_equals_detectron2(case: Case) -> None:
    engine, expected = case.engine, case.arrays
    height, width = case.pixels.shape[:2]
    size, padded = engine.input_size(height, width), engine.padded_shape(height, width)
    assert size == tuple(expected["resized"])
    assert padded == tuple(expected["input_shape"][1:])

    images = engine._preprocess([case.pixels], [size], padded)
    y, x = expected["input_patch_at"]
    patch = images[0, :, y : y + 8, x : x + 8].numpy()
    # The first convolution was turned to RGB; Detectron2's input is in the order of the configuration.
    alike = [np.abs(p - expected["input_patch"]).max() for p in (patch, patch[::-1])]
    assert min(alike) < 1e-4

    maps = engine._extract(images)
    cells = torch.split(maps.table, [h * w for h, w in maps.shapes[:4]])
    names = sorted({key.rpartition("_")[0] for key in expected if key.startswith("feature_")})
    for name, features in zip(names, cells, strict=False):  # P6 is none of the heads'
        np.testing.assert_allclose(features.mean(0), expected[f"{name}_mean"], atol=1e-4)
        np.testing.assert_allclose(features.std(0), expected[f"{name}_std"], rtol=1e-3)

    (proposals,) = engine._propose(maps, padded, [size])
    assert len(proposals) == expected["proposal_count"]
    np.testing.assert_allclose(proposals[:20], expected["proposals"], atol=0.05)

    (found,) = engine.segment([case.pixels], [ANYTHING])
    assert len(found) == len(expected["scores"])
    rows = match(found, case)
    np.testing.assert_allclose(found.boxes[rows], expected["boxes"], atol=case.box)
    np.testing.assert_allclose(found.scores[rows], expected["scores"], atol=case.score)
    if "keypoints" in expected:
        assert found.keypoints is not None
        assert found.keypoint_scores is not None
        ours = torch.cat([found.keypoints[rows][..., :2], found.keypoint_scores[rows, :, None]], 2).numpy()
        off = np.abs(ours - expected["keypoints"])
        # The middle of one of a heatmap's pixels: in a flat one, noise decides between neighbours.
        assert (off[..., :2].max(2) <= case.box + 0.01).mean() > 0.98
        np.testing.assert_allclose(ours[..., 2], expected["keypoints"][..., 2], atol=case.score)
    if not case.masks:
        return
    assert found.probabilities is not None
    probabilities = found.probabilities[rows]
    stored = len(expected["mask_probs"])
    np.testing.assert_allclose(probabilities[:stored], expected["mask_probs"], atol=5e-3)
    pasted = paste(probabilities, found.boxes[rows], found.size, rule=found.pasting)
    low, high = (
        paste(probabilities, found.boxes[rows], found.size, threshold, found.pasting)
        for threshold in (0.5 + DOUBTFUL, 0.5 - DOUBTFUL)
    )
    for ours, theirs, least, most in zip(pasted, case.masks, low, high, strict=True):
        unlike = int(np.sum(decode(ours) != decode(theirs)))
        doubtful = int(np.sum(decode(least) != decode(most)))
        assert unlike <= doubtful + 4


WRONG = [
    pytest.param({"box_aligned": False}, id="RoIAlign of boxes"),
    pytest.param({"mask_aligned": False}, id="RoIAlign of masks"),
    pytest.param({"box_samples": 2}, id="samples"),
    pytest.param({"pixel_std": (1.0, 1.0, 1.0)}, id="deviation"),
    pytest.param({"pixel_mean": (103.53, 116.28, 123.675)}, id="channels of the mean"),
    pytest.param({"anchor_offset": 0.5}, id="offset of anchors"),
    pytest.param({"anchor_rounding": True}, id="rounding of anchors"),
    pytest.param({"resize": "torchvision"}, id="resize"),
    pytest.param({"resize": "mmdetection"}, id="OpenCV's resize"),
    pytest.param({"paste": "torchvision"}, id="pasting"),
    pytest.param({"score_threshold": 0.5}, id="threshold"),
]


@functools.cache
def shapes_model() -> ImportedModel:
    return import_model(
        GOLDEN / "detectron2/shapes/model_final.pth", config=GOLDEN / "detectron2/shapes/config.yaml"
    )


@functools.cache
def found_by_shapes(name: str) -> Instances:
    """What the model with the right conventions finds in an image."""
    right = engine("shapes", "model.json", "model_final.pth")
    return right.segment([decode_image((GOLDEN / "images" / name).read_bytes())], [ANYTHING])[0]


def find_otherwise(conventions: dict[str, Any]) -> bool:
    """Whether the trained weights, with which nothing is only noise, find something else with these conventions."""
    imported = shapes_model()
    architecture = imported.model.architecture
    changed = replace(architecture, conventions=replace(architecture.conventions, **conventions))
    state = imported.network.state_dict()
    other = Engine(
        fill(skeleton(changed), state), replace(imported.model, architecture=changed), torch.device("cpu")
    )
    for name in ("scene_000012.jpg", "truck_640x480.png"):
        ours = found_by_shapes(name)
        (theirs,) = other.segment([decode_image((GOLDEN / "images" / name).read_bytes())], [ANYTHING])
        if len(ours) != len(theirs):
            return True
        masks = [
            paste(each.probabilities, each.boxes, each.size, rule=each.pasting)
            for each in (ours, theirs)
            if each.probabilities is not None
        ]
        pixels_off = sum(int(np.sum(decode(a) != decode(b))) for a, b in zip(*masks, strict=True))
        if max(float((ours.boxes - theirs.boxes).abs().max()), pixels_off / 10) > 0.05:
            return True
    return False


@pytest.mark.parametrize("wrong", WRONG)
def test_one_wrong_convention_is_noticed(wrong: dict[str, Any]) -> None:
    assert find_otherwise(wrong)


def test_the_right_conventions_find_the_same() -> None:
    assert not find_otherwise({})
