"""`maskserve train | evaluate`: what is wrong is said in one line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from model.data.shapes import Shapes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data"
    Shapes(seed=3, length=2, sides=(64, 96)).export(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["train", "--data", "nowhere"], "nowhere: cannot be read", id="no data"),
        pytest.param(
            ["train", "--architecture", "resnet19", "--data", "DATA"], "resnet19", id="architecture"
        ),
        pytest.param(["train", "--optimizer", "lion", "--data", "DATA"], "'sgd' or 'adamw'", id="optimizer"),
        pytest.param(["train", "--clip", "0", "--data", "DATA"], "must be above 0, not 0", id="clip"),
        pytest.param(["train", "--data", "DATA", "--pooling", "warp"], "'align' or 'pool'", id="pooling"),
        pytest.param(["train", "--data", "DATA", "--masks", "tanh"], "masks are 'sigmoid'", id="masks"),
        pytest.param(["train", "--data", "DATA", "--recipe", "paperr"], "no recipe 'paperr'", id="recipe"),
        pytest.param(
            ["train", "--data", "DATA", "--backbone", "no.safetensors"], "no such file", id="backbone"
        ),
        pytest.param(
            ["train", "--data", "DATA", "--initial", "shapes", "--backbone", "imagenet"],
            "--initial and --backbone exclude each other",
            id="two beginnings",
        ),
        pytest.param(
            ["train", "--data", "DATA", "--validate-every", "5"], "needs --validation", id="validation"
        ),
        pytest.param(
            ["train", "--data", "DATA", "--backgrounds", "DATA"],
            "is for --data shapes",
            id="backgrounds",
        ),
        pytest.param(
            ["train", "--backgrounds", "nowhere"], "nowhere: cannot be read as a folder", id="photos"
        ),
        pytest.param(
            ["train", "--data", "DATA", "--initial", "shapes", "--channels", "8"],
            "can be widened",
            id="channels",
        ),
        pytest.param(["evaluate", "shape", "--data", "DATA"], "did you mean shapes?", id="model"),
        pytest.param(["evaluate", "--data", "nowhere"], "nowhere: cannot be read", id="evaluation data"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(
    data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [str(data) if a == "DATA" else a for a in arguments]
    if filled[0] == "train":
        filled += ["--out", str(tmp_path / "run")]
    result = CliRunner().invoke(cli, filled)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["train"], "pycocotools"),
        (["train"], "matplotlib"),
        (["train"], "tensorboard"),
        (["evaluate", "shapes"], "pycocotools"),
        (["evaluate", "shapes", "--plots", "PLOTS"], "matplotlib"),
    ],
)
def test_package_that_is_not_installed_is_one_line_and_exit_code_2(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    filled = [str(tmp_path / "plots") if a == "PLOTS" else a for a in arguments]
    filled += ["--data", str(data), *(["--out", str(tmp_path / "run")] * (filled[0] == "train"))]
    result = CliRunner().invoke(cli, filled)
    assert result.exit_code == 2
    assert f"not installed: {package}, " in result.stderr
    assert "pip install '.[train]'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_evaluation_without_pictures_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(cli, ["evaluate", "shapes", "--data", "nowhere"])
    assert "nowhere: cannot be read" in result.stderr
