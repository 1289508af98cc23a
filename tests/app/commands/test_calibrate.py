"""`maskserve calibrate` as a person meets it: a file and some images in, a file for `--precision int8` out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from app.cli.main import cli
from app.commands import calibrate as cli_calibrate
from model.data import Category
from model.data.shapes import CATEGORIES, Shapes
from model.inference.calibration import is_calibrated
from model.kernels import int8
from model.network.architecture import SMALL
from model.network.build import build
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from typer.testing import Result

pytestmark = pytest.mark.usefixtures("tiny_networks")
THIN = replace(
    SMALL, fpn_channels=16, box_channels=16, mask_channels=16, proposals=20, min_size=64, max_size=96
)
ANIMALS = tuple(Category(n, f"animal {n}") for n in range(1, 11))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that knows no shapes, and a folder with two photos and a text."""
    torch.manual_seed(0)
    model_file.save(
        tmp_path / "model.safetensors", build(THIN), model_file.describe("animals", THIN, ANIMALS), half=True
    )
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.JPG"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["calibrate", *map(str, arguments)])


def ready(path: Path) -> bool:
    network, model = model_file.read(path)
    return is_calibrated(network, model.ranges)


def test_a_model_file_is_calibrated_in_place_and_keeps_its_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    before = load_file(path)
    assert not ready(path)
    result = calibrate(path, folder / "photos")
    assert result.exit_code == 0, result.output
    assert f"wrote {path}, calibrated on 2 images" in result.stdout
    assert f"maskserve serve --model {path} --precision int8" in result.stdout
    assert ready(path)
    after = load_file(path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_images_give_the_same_file(folder: Path) -> None:
    first, second = folder / "first.safetensors", folder / "second.safetensors"
    for out in (first, second):
        images = (folder / "photos" / name for name in ("a.png", "b.JPG"))
        assert calibrate(folder / "model.safetensors", *images, "--out", out).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert not ready(folder / "model.safetensors")


@pytest.mark.skipif(not int8.is_supported(), reason="the processor has no AVX2")
def test_what_was_written_answers_in_int8_and_what_was_not_says_the_command(folder: Path) -> None:
    path, photo = folder / "model.safetensors", folder / "photos" / "a.png"
    segment = ["segment", str(photo), "--model", str(path), "--precision", "int8"]
    refused = CliRunner().invoke(cli, segment)
    assert refused.exit_code == 1
    assert "animals has not been calibrated for int8; `maskserve calibrate MODEL IMAGE…`" in refused.stderr
    assert calibrate(path, photo).exit_code == 0
    assert CliRunner().invoke(cli, segment).exit_code == 0


def test_a_model_of_drawn_shapes_needs_no_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "shapes.safetensors"
    model_file.save(path, build(THIN), model_file.describe("shapes", THIN, CATEGORIES))
    monkeypatch.setattr(cli_calibrate, "training_scenes", lambda: Shapes(seed=1, length=2, sides=(64, 96)))
    result = calibrate(path)
    assert result.exit_code == 0, result.output
    assert ready(path)


def test_a_coco_model_gets_a_file_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    described = model_file.describe("maskrcnn_resnet50_fpn", THIN, ANIMALS)
    monkeypatch.setattr(zoo, "load", lambda *_, **__: (build(THIN), described))
    result = calibrate("maskrcnn_resnet50_fpn", "photos")
    assert result.exit_code == 0, result.output
    assert ready(Path("maskrcnn_resnet50_fpn.safetensors"))


def test_a_bundled_model_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = folder / "bundled" / "shapes.safetensors"
    bundled.parent.mkdir()
    model_file.save(bundled, build(THIN), model_file.describe("shapes", THIN, CATEGORIES))
    before = bundled.read_bytes()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(zoo, "load", lambda *_, **__: model_file.read(bundled))
    monkeypatch.setattr(zoo, "file_of", lambda _: bundled)
    result = calibrate("shapes", "photos")
    assert result.exit_code == 0, result.output
    assert ready(Path("shapes.safetensors"))
    assert bundled.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["auto", "photos"], 2, "name a model", id="auto"),
        pytest.param(["model.safetensors"], 2, "calibrate model.safetensors IMAGE…", id="no images"),
        pytest.param(["model.safetensors", "empty"], 2, "no images in empty", id="a folder without images"),
        pytest.param(["model.safetensors", "none.jpg"], 1, "none.jpg: No such file", id="a missing image"),
        pytest.param(["model.safetensors", "photos/notes.txt"], 1, "photos/notes.txt: ", id="no image"),
        pytest.param(["none.safetensors", "photos"], 1, "there is no such file", id="a missing model"),
        pytest.param(
            ["model.safetensors", "photos", "--out", "none/x.safetensors"], 1, "No such file", id="no folder"
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    folder: Path, arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    result = calibrate(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not ready(folder / "model.safetensors")


def test_mobilenets_are_refused_by_name(folder: Path) -> None:
    architecture = replace(THIN, backbone="mobilenet_v3_small")
    path = folder / "mobile.safetensors"
    model_file.save(path, build(architecture), model_file.describe("mobile", architecture, ANIMALS))
    result = calibrate(path, folder / "photos")
    assert result.exit_code == 1
    assert "mobilenet_v3_small cannot run in int8" in result.stderr
