"""`maskserve evaluate`: figures as JSON and as tables, and plots."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from model.data.shapes import Shapes
from model.evaluation.coco import CATEGORY_FIGURES
from model.evaluation.matching import METRICS
from model.network.build import build
from model.zoo import model_file
from tests.model.thin import THIN, thin_backbones

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PICTURES = [
    "confusion.png",
    "matching.png",
    "precision_recall.png",
    "precision_recall_by_category.png",
    "samples.jpg",
    "worst.jpg",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model that has random weights, and four labelled scenes."""
    path = tmp_path_factory.mktemp("evaluation")
    Shapes(seed=3, length=4, sides=(64, 96)).export(path / "data")
    torch.manual_seed(0)
    architecture = replace(THIN, proposals=20, max_size=96)
    with thin_backbones():
        model = model_file.describe("random", architecture, Shapes.categories)
        model_file.save(path / "random.safetensors", build(architecture), model, half=True)
        yield path


def test_evaluation_prints_all_figures_as_json_and_draws_plots(folder: Path, tmp_path: Path) -> None:
    model, data = str(folder / "random.safetensors"), str(folder / "data")
    arguments = ["evaluate", model, "--data", data, "--json", "--device", "cpu"]
    result = CliRunner().invoke(
        cli, [*arguments, "--score-threshold", "0.05", "--plots", str(tmp_path / "plots")]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["images"] == 4
    assert len(document["box"]["figures"]) == len(document["mask"]["figures"]) == 12
    assert set(document["mask"]["per_category"]) == {c.name for c in Shapes.categories}
    assert set(document["box"]["per_category"]["circle"]) == set(CATEGORY_FIGURES)
    assert len(document["confusion"]["matrix"]) == len(Shapes.categories) + 1
    assert document["score_threshold"] == document["matching"]["score_threshold"] == 0.05
    assert document["detections_per_image"] == 100
    assert document["matching"]["iou_thresholds"][::9] == [0.5, 0.95]
    assert set(document["matching"]["by_image"]) == set(document["matching"]["pooled"]) == set(METRICS)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == PICTURES
    for name in PICTURES:
        with Image.open(tmp_path / "plots" / name) as picture:
            assert min(picture.size) > 100


def test_a_model_of_more_detections_is_evaluated_with_as_many(folder: Path, tmp_path: Path) -> None:
    network, model = model_file.read(folder / "random.safetensors")
    rules = replace(model.architecture.conventions, detections=150)
    crowded = replace(model, architecture=replace(model.architecture, conventions=rules, proposals=60))
    path = tmp_path / "crowded.safetensors"
    model_file.save(path, network, crowded)
    arguments = ["evaluate", str(path), "--data", str(folder / "data"), "--device", "cpu"]
    result = CliRunner().invoke(cli, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "AR 150" in result.stdout
    assert "up to 150 instances in an image, and AP counts as many" in result.stdout
    document = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert document["detections_per_image"] == 150
    assert list(document["mask"]["figures"])[-1] == "AR 150"


def test_evaluation_prints_tables(folder: Path) -> None:
    model, data = str(folder / "random.safetensors"), str(folder / "data")
    result = CliRunner().invoke(
        cli, ["evaluate", model, "--data", data, "--device", "cpu"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    for text in ("AR 100", "mask, by category", "TP/(TP+FP+FN), by image", "panoptic quality", "0.95"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        pytest.param([], "shapes", id="drawn scenes"),
        pytest.param(["--data", "folder"], "auto", id="a folder"),
        pytest.param(["mine.safetensors"], "mine.safetensors", id="named"),
    ],
)
def test_without_a_name_the_model_is_one_for_the_data(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], model: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "app.commands.evaluate.run_evaluation", lambda name, *_, **__: asked.append(name) or 0
    )
    assert CliRunner().invoke(cli, ["evaluate", *arguments]).exit_code == 0
    assert asked == [model]
