"""`maskserve import` as a person meets it: a stranger's checkpoint in, a model file and what is known of it out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from app.commands.import_model import _as_file
from model.inference.engine import Engine
from model.instances import Options
from model.network.architecture import SMALL
from model.network.build import build
from model.zoo import model_file

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

THIN = replace(
    SMALL,
    classes=4,
    fpn_channels=16,
    box_channels=16,
    mask_channels=16,
    proposals=1000,
    min_size=800,
    max_size=1333,
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["import", *map(str, arguments)])


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a training script saved, in the folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save({"model": build(THIN).state_dict(), "epoch": 9}, tmp_path / "epoch_9.pth")
    return tmp_path / "epoch_9.pth"


def test_a_checkpoint_becomes_a_model_file_that_says_where_it_is_from(checkpoint: Path) -> None:
    result = run(checkpoint, "--categories", "bolt, nut,gear", "--set", "min_size=64", "--set", "max_size=96")
    assert result.exit_code == 0, result.output
    assert "recognised: torchvision's Mask R-CNN (V1), resnet18 with an FPN" in result.output
    assert "recognised: weights from its entry 'model'" in result.output
    assert "taken: min_size = 64, as told" in result.output
    assert "assumed: torchvision's defaults" in result.output
    assert "maskserve serve --model epoch_9.safetensors" in result.output
    _, model = model_file.read(checkpoint.with_name("epoch_9.safetensors"))
    assert (model.name, model.origin) == ("epoch_9", "torchvision")
    assert [(c.id, c.name) for c in model.categories] == [(1, "bolt"), (2, "nut"), (3, "gear")]
    assert (model.architecture.min_size, model.architecture.max_size) == (64, 96)


def test_names_come_from_a_file_too_and_ids_from_annotations(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("bolt\nnut\ngear\n")
    assert run(checkpoint, "--categories", "names.txt", "--out", "a.safetensors").exit_code == 0
    (tmp_path / "coco.json").write_text(
        '{"categories": [{"id": 9, "name": "gear"}, {"id": 2, "name": "bolt"}, {"id": 5, "name": "nut"}]}'
    )
    assert run(checkpoint, "--categories", "coco.json", "--out", "b.safetensors").exit_code == 0
    _, named = model_file.read(tmp_path / "a.safetensors")
    _, numbered = model_file.read(tmp_path / "b.safetensors")
    assert [c.name for c in named.categories] == ["bolt", "nut", "gear"]
    # More letters than a file's name may have.
    assert _as_file(",".join(f"category {n}" for n in range(80))) is None
    assert [(c.id, c.name) for c in numbered.categories] == [(2, "bolt"), (5, "nut"), (9, "gear")]


def test_an_image_is_tried_at_once(checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "black.png")
    result = run(checkpoint, "--set", "min_size=64", "--set", "max_size=96", "--check", "black.png")
    assert result.exit_code == 0, result.output
    assert "black.png: 60 × 40" in result.output
    (tmp_path / "text.png").write_text("no image")
    result = run(checkpoint, "--check", "text.png", "--check", "absent.png")
    assert result.exit_code == 1
    assert "text.png" in result.stderr
    assert "absent.png: No such file" in result.stderr


def test_a_checkpoint_is_served_as_it_is_and_says_what_was_assumed(checkpoint: Path) -> None:
    engine = Engine.load(str(checkpoint), device="cpu")
    assert engine.model.origin == "torchvision"
    assert "Assumed: names for its categories" in (engine.model.notice or "")
    (found,) = engine.segment([np.zeros((40, 60, 3), np.uint8)], [Options()])
    assert len(found) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["--set", "minsize=3"], 2, "did you mean min_size?", id="misspelt"),
        pytest.param(["--set", "min_size"], 2, "write NAME=VALUE", id="no value"),
        pytest.param(["--set", "min_size=large"], 1, "min_size: 'large' is no int", id="no number"),
        pytest.param(
            ["--set", "paste=glue"], 1, "paste is one of torchvision, detectron2, not 'glue'", id="no rule"
        ),
        pytest.param(["--categories", "a,a,b"], 2, "categories of the same name: a", id="twice"),
        pytest.param(["--categories", "absent.txt"], 2, "absent.txt: No such file", id="no file"),
        pytest.param(
            ["--categories", "a,b"], 1, "2 categories were given for a network that tells 3", id="few"
        ),
        pytest.param(
            ["--config", "c.yaml"], 1, "torchvision, which has no configuration", id="configuration"
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    checkpoint: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run(checkpoint, *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not checkpoint.with_suffix(".safetensors").exists()


def test_the_imported_file_is_not_written_over(checkpoint: Path) -> None:
    result = run(checkpoint, "--out", checkpoint)
    assert result.exit_code == 2
    assert "say --out another one" in result.stderr
