"""`maskserve evaluate`: figures as JSON and as tables, and plots."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from model.data.shapes import Shapes
from model.evaluation.coco import CATEGORY_FIGURES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.app.commands.training import Trained

PICTURES = [
    "confusion.png",
    "precision_recall.png",
    "precision_recall_by_category.png",
    "samples.jpg",
    "worst.jpg",
]


def test_evaluation_prints_all_figures_as_json_and_draws_plots(trained: Trained, tmp_path: Path) -> None:
    arguments = ["evaluate", str(trained.path), "--data", str(trained.data), "--json", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*arguments, "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["images"] == 4
    assert len(document["box"]["figures"]) == len(document["mask"]["figures"]) == 12
    assert set(document["mask"]["per_category"]) == {c.name for c in Shapes.categories}
    assert set(document["box"]["per_category"]["circle"]) == set(CATEGORY_FIGURES)
    assert len(document["confusion"]["matrix"]) == len(Shapes.categories) + 1
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == PICTURES
    for name in PICTURES:
        with Image.open(tmp_path / "plots" / name) as picture:
            assert min(picture.size) > 100
