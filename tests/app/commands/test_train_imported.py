"""Training goes on from models of other frameworks, by their conventions."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from app.commands.network import NetworkOptions
from app.commands.source import Source
from app.commands.train import run_training
from model.data.shapes import Shapes
from model.importing.importer import import_model
from model.inference.engine import Engine
from model.instances import Options
from model.network.build import build
from model.training.parallel import Group
from model.training.recipe import Recipe
from model.training.step import start
from model.training.train import read_log
from model.zoo import model_file, zoo
from tests.app.commands.training import QUICK
from tests.model.importing import detectron2_layout, mmdetection_layout
from tests.model.importing.narrow import PIXELS, narrow_weights
from tests.model.thin import FIVE

if TYPE_CHECKING:
    from pathlib import Path

    from model.instances import Instances

# Of a size that is no multiple of the input's.
PHOTO = PIXELS.repeat(2, 0).repeat(2, 1)[:170, :220].copy()
DETECTRON2 = detectron2_layout.CONFIG | {
    "MODEL": detectron2_layout.CONFIG["MODEL"]
    | {
        "PIXEL_STD": [57.375, 57.12, 58.395],
        "ANCHOR_GENERATOR": {"SIZES": [[24, 40]] * 5, "OFFSET": 0.5, "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]},
        "ROI_BOX_HEAD": {"FC_DIM": 32, "POOLER_SAMPLING_RATIO": 1, "BBOX_REG_WEIGHTS": "(20, 20, 10, 10)"},
    }
}


def detectron2_file(folder: Path) -> Path:
    """Other than the defaults: two anchor sizes a level, their offset, samples and box weights."""
    tensors = detectron2_layout.layout(narrow_weights())
    for name in ("objectness_logits", "anchor_deltas"):
        for part in ("weight", "bias"):
            head = f"proposal_generator.rpn_head.{name}.{part}"
            tensors[head] = torch.cat([tensors[head], tensors[head].flip(0)])
    return detectron2_layout.saved(folder, tensors, DETECTRON2)


def mmdetection_file(folder: Path) -> Path:
    return mmdetection_layout.saved(folder, mmdetection_layout.layout(narrow_weights()))


@pytest.fixture(params=[detectron2_file, mmdetection_file], ids=["Detectron2", "MMDetection"])
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = import_model(request.param(tmp_path))
    model_file.save(tmp_path / "imported.safetensors", made.network, made.model)
    return tmp_path / "imported.safetensors"


@functools.cache
def scenes() -> Shapes:
    return Shapes(seed=3, length=4, sides=(64, 96))


def answers(engine: Engine) -> Instances:
    (found,) = engine.segment([PHOTO], [Options(score_threshold=0.05)])
    return found


def training_network(network: torch.nn.Module, model: model_file.Model) -> Any:
    """What a step of training runs, in evaluation mode."""
    return start(model, Recipe(), "cpu", network, Group()).network.eval()


def distance(network: Any, found: Instances) -> float:
    """How far a network's boxes and scores are off, at most; 1 for another number of instances."""
    with torch.no_grad():
        (own,) = network([torch.from_numpy(PHOTO).permute(2, 0, 1) / 255])
    if len(own["scores"]) != len(found):
        return 1.0
    ours = torch.cat([found.boxes, found.scores[:, None], found.labels[:, None]], 1)
    theirs = torch.cat([own["boxes"], own["scores"][:, None], own["labels"][:, None]], 1)
    # Scores that are equal but for the last bit may come in any order.
    return float(torch.cdist(ours, theirs, torch.inf).amin(1).max())


def test_a_training_step_sees_what_the_engine_answers(imported: Path, tmp_path: Path) -> None:
    network, model = zoo.load(str(imported), tmp_path)
    found = answers(Engine.load(str(imported), device="cpu"))
    assert len(found) > 3
    assert distance(training_network(network, model), found) < 1e-3
    rules = model.architecture.conventions
    for wrong in (
        {"box_aligned": not rules.box_aligned},
        {"box_samples": 2},
        {"anchor_rounding": True, "anchor_offset": 0.25},
        {"resize": "torchvision"},
        {"pixel_std": (50.0, 58.0, 58.0)},
    ):
        other = replace(model.architecture, conventions=replace(rules, **wrong))
        state = build(other)
        state.load_state_dict(network.state_dict())
        assert distance(training_network(state, replace(model, architecture=other)), found) > 1e-2, wrong


def test_training_goes_on_and_its_result_keeps_the_conventions(imported: Path, tmp_path: Path) -> None:
    scenes().export(tmp_path / "scenes")
    options = QUICK | {"seed": 1, "rois": 32}
    out = tmp_path / "run"
    code = run_training(
        Source(str(tmp_path / "scenes")), out, NetworkOptions(initial=str(imported)), "cpu", options
    )
    assert code == 0
    for record in read_log(out / "log.jsonl"):
        assert all(0 < record[name] < 100 for name in FIVE)
    _, before = model_file.read(imported, runnable=False)
    _, after = model_file.read(out / "model.safetensors", runnable=False)
    assert after.architecture == replace(before.architecture, classes=len(after.categories) + 1)
    assert after.training["initial"]["origin"] == before.origin
    engine = Engine.load(str(out / "model.safetensors"), device="cpu")
    assert answers(engine).pasting == "detectron2"
