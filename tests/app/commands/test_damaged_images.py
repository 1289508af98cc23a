"""Images that are damaged in any way end no run and are left out everywhere: the whole cycle over folders of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from app.commands import train as cli_train
from app.commands.network import NetworkOptions
from app.commands.source import Source
from model.data.check import check
from model.data.shapes import Shapes
from model.zoo import model_file
from tests.app.commands.training import QUICK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

pytestmark = pytest.mark.usefixtures("tiny_networks")
VALIDATED = {**QUICK, "batch_size": 3, "steps": 4, "validate_every": 2}


def cut(file: Path, rng: np.random.Generator) -> None:
    """The header stays whole, the pixels do not: only decoding tells."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 + int(rng.integers(len(content) // 4))])


def shorten(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(file.read_bytes()[: int(rng.integers(0, 20))])


def replace_by_text(file: Path, _rng: np.random.Generator) -> None:
    file.write_text("<html>404 Not Found</html>")


def grow(file: Path, _rng: np.random.Generator) -> None:
    with Image.open(file) as image:
        image.resize((image.width + 10, image.height)).save(file)


def remove(file: Path, _rng: np.random.Generator) -> None:
    file.unlink()


def replace_by_folder(file: Path, _rng: np.random.Generator) -> None:
    file.unlink()
    file.mkdir()


def flip_bytes(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    for place in rng.integers(len(content) // 4, len(content), 20).tolist():
        content[place] ^= 0xFF
    file.write_bytes(bytes(content))


DAMAGES: tuple[Callable[[Path, np.random.Generator], None], ...] = (
    cut, shorten, replace_by_text, grow, remove, replace_by_folder, flip_bytes,
)  # fmt: skip


def damage(folder: Path, part: float, seed: int) -> int:
    """Damage a part of a folder's images at random, each in another way; how many."""
    rng = np.random.default_rng(seed)
    files = sorted((folder / "images").iterdir())
    chosen = rng.permutation(len(files))[: max(1, round(part * len(files)))].tolist()
    for number, index in enumerate(chosen):
        DAMAGES[(number + seed) % len(DAMAGES)](files[index], rng)
    return len(chosen)


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), arguments
    return result


@pytest.mark.parametrize("seed", range(2))
def test_damaged_images_end_no_part_of_the_cycle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, seed: int
) -> None:
    pictures = {"confusion.png", "worst.jpg", "samples.jpg", "training.png"}
    if seed:
        # Plots take half of the time.
        request.getfixturevalue("no_plots")
        pictures = set()
    Shapes(seed=seed, length=12, sides=(64, 96)).export(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "val")
    for folder in ("data", "val"):
        damage(tmp_path / folder, 0.6, seed + 3 * (folder == "val"))
    data, run = tmp_path / "data", tmp_path / "run"
    assert invoke("data", "check", data, "--pixels").exit_code == 1
    source = Source(str(data), validation=str(tmp_path / "val"), skip_damaged=True)
    assert cli_train.run_training(source, run, NetworkOptions(), "cpu", VALIDATED) == 0, (
        capsys.readouterr().err
    )
    for made in {"best.safetensors", "best.md"} | pictures:
        assert (run / made).is_file(), made
    _, model = model_file.read(run / "best.safetensors")
    assert model.ranges
    assert "left out: " in (run / "best.md").read_text()
    plots = ["--plots", tmp_path / "plots"] if pictures else []
    result = invoke("evaluate", run / "best.safetensors", "--data", tmp_path / "val", "--skip-damaged", *plots,
                    "--device", "cpu", "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert 1 <= json.loads(result.stdout)["images"] < 12
    assert invoke("data", "take", data, tmp_path / "few", "--count", "3").exit_code == 0
    assert check(tmp_path / "few").errors == 0
    result = invoke("calibrate", run / "best.safetensors", data, "--out", tmp_path / "int8.safetensors")
    assert result.exit_code == 0, result.stderr


@pytest.mark.usefixtures("no_plots")
def test_one_image_of_another_size_is_left_out_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Shapes(seed=3, length=4, sides=(64, 96)).export(tmp_path)
    grow(sorted((tmp_path / "images").iterdir())[2], np.random.default_rng(0))
    source = Source(str(tmp_path), validation=str(tmp_path))
    assert (
        cli_train.run_training(source, tmp_path / "run", NetworkOptions(), "cpu", {**VALIDATED, "steps": 2})
        == 1
    )
    assert "image of another size than annotated: 1" in capsys.readouterr().err
    source = replace(source, skip_damaged=True)
    assert (
        cli_train.run_training(source, tmp_path / "run", NetworkOptions(), "cpu", {**VALIDATED, "steps": 2})
        == 0
    )
    captured = capsys.readouterr()
    assert "learning from 3 images" in captured.err
    assert "left out: image of another size than annotated × 1" in captured.err
    assert "3 images" in captured.out


@pytest.mark.usefixtures("no_plots")
def test_image_that_is_damaged_while_the_run_goes_on_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Shapes(seed=3, length=4, sides=(64, 96)).export(tmp_path)
    first = min((tmp_path / "images").iterdir())

    def check_and_damage(*arguments: Any, **options: Any) -> list[str]:
        lines = check_evaluation_data(*arguments, **options)
        cut(first, np.random.default_rng(0))
        return lines

    check_evaluation_data = cli_train.check_evaluation_data
    monkeypatch.setattr(cli_train, "check_evaluation_data", check_and_damage)
    source = Source(str(tmp_path), validation=str(tmp_path))
    assert (
        cli_train.run_training(source, tmp_path / "run", NetworkOptions(), "cpu", {**VALIDATED, "steps": 2})
        == 0
    )
    assert "1 of its images could not be read" in (tmp_path / "run" / "best.md").read_text()
    assert f"skipped: {first}" in capsys.readouterr().err
