"""Training with keypoints: the term of the loss, and networks whose keypoints change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from app.commands.network import NetworkOptions, initialize
from model.data.figures import CATEGORIES, Figures
from model.data.person import PERSON_KEYPOINTS
from model.data.shapes import Shapes
from model.network.architecture import ArchitectureError
from model.network.build import build
from model.training.initial import exchange_keypoints
from model.training.recipe import TrainingError
from model.training.run_folder import record_settings
from model.training.train import read_log, train
from model.zoo import model_file
from tests.app.commands.training import tiny_networks
from tests.model.thin import FIVE, RECIPE, THIN

if TYPE_CHECKING:
    from pathlib import Path

PEOPLE = Figures(seed=5, length=2, sides=(64, 96))
ARCHITECTURE = replace(THIN, classes=2, keypoints=17, keypoint_convs=1, keypoint_channels=8)
SIX = FIVE | {"L_kp"}


@pytest.mark.parametrize("paste", ["torchvision", "detectron2"])
@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_the_loss_has_a_term_of_keypoints(tmp_path: Path, paste: str, precision: str) -> None:
    rules = replace(ARCHITECTURE.conventions, paste=paste)
    model = model_file.describe(
        "people", replace(ARCHITECTURE, conventions=rules), CATEGORIES, keypoints=PERSON_KEYPOINTS
    )
    path = train(PEOPLE, model, replace(RECIPE, steps=1, precision=precision), tmp_path / "run")
    (record,) = read_log(tmp_path / "run" / "log.jsonl")
    assert all(record[name] > 0 for name in SIX)
    assert record["L"] == pytest.approx(sum(record[name] for name in SIX), rel=1e-5)
    # The logarithm of 56 × 56 places is 8, and nothing is known about them yet.
    assert 6 < record["L_kp"] < 20
    read = model_file.read(path)[1]
    assert read.keypoints == PERSON_KEYPOINTS
    assert read.architecture.keypoints == 17


def test_a_run_is_not_continued_with_other_names(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", replace(RECIPE, steps=1)
    model = model_file.describe("people", ARCHITECTURE, CATEGORIES, keypoints=PERSON_KEYPOINTS)
    train(PEOPLE, model, recipe, run)
    nose, left_eye, *others = PERSON_KEYPOINTS.names
    exchanged = replace(model, keypoints=replace(PERSON_KEYPOINTS, names=(left_eye, nose, *others)))
    with pytest.raises(TrainingError, match=r"other settings \(the keypoints\)"):
        record_settings(run, exchanged, recipe)
    record_settings(run, model, recipe)
    # Runs of before say nothing of them.
    settings = json.loads((run / "settings.json").read_text())
    del settings["keypoints"]
    (run / "settings.json").write_text(json.dumps(settings))
    record_settings(run, exchanged, recipe, write=False)


def test_another_branch_starts_anew_and_all_else_stays() -> None:
    torch.manual_seed(1)
    network = build(ARCHITECTURE)
    changed = exchange_keypoints(network, replace(ARCHITECTURE, keypoints=4))
    old, new = network.state_dict(), changed.state_dict()
    assert new["roi_heads.keypoint_predictor.kps_score_lowres.weight"].shape[1] == 4
    assert all(torch.equal(new[name], old[name]) for name in old if "keypoint" not in name)
    without = exchange_keypoints(network, replace(ARCHITECTURE, keypoints=0)).state_dict()
    assert without.keys() == {name for name in old if "keypoint" not in name}


def test_a_network_has_the_datas_keypoints_unless_told_otherwise(tmp_path: Path) -> None:
    def keypoints(data: Any, **options: Any) -> int:
        return initialize(NetworkOptions(**options), data, "small")[0].keypoints

    shapes = Shapes(seed=1, length=1)
    with tiny_networks():
        assert keypoints(PEOPLE) == 17
        assert keypoints(PEOPLE, keypoints=False) == 0
        assert keypoints(shapes) == 0
        # A model to start from gets and loses them.
        file = tmp_path / "people.safetensors"
        described = model_file.describe("people", ARCHITECTURE, CATEGORIES, keypoints=PERSON_KEYPOINTS)
        model_file.save(file, build(ARCHITECTURE), described)
        assert keypoints(PEOPLE, initial=str(file)) == 17
        assert keypoints(shapes, initial=str(file)) == 0
        with pytest.raises(ArchitectureError, match="--keypoints none trains without them"):
            keypoints(PEOPLE, masks="softmax")
