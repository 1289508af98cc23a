"""What training and evaluation say of people's data before and after: what is used, what is left out, or why not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from app.cli.main import cli
from app.commands import train as cli_train
from app.commands.datasets import describe_mirroring
from app.commands.network import NetworkOptions
from app.commands.source import Source
from model.data import Category, Keypoints
from model.network.build import build
from model.training.recipe import Recipe
from model.zoo import model_file
from tests.app.commands.training import QUICK, TINY
from tests.model.data.folders import OUTLINE, picture, sound, write

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("tiny_networks", "no_plots")
ONE_STEP = {**QUICK, "steps": 1}


def train(data: Path, run: Path, **options: Any) -> int:
    network = NetworkOptions(masks=options.pop("masks", "sigmoid"))
    overrides = ONE_STEP | options.pop("overrides", {})
    return cli_train.run_training(Source(str(data), **options), run, network, "cpu", overrides)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small network with random weights that finds boxes and lids."""
    torch.manual_seed(0)
    architecture = replace(TINY, classes=3)
    described = model_file.describe("boxes", architecture, (Category(1, "box"), Category(2, "lid")))
    model_file.save(tmp_path / "model.safetensors", build(architecture), described)
    return tmp_path / "model.safetensors"


def evaluate(model: Path, data: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the figures and what was said."""
    result = CliRunner().invoke(
        cli, ["evaluate", str(model), "--data", str(data), "--device", "cpu", "--json", *options]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, json.loads(result.stdout) if result.exit_code == 0 else {}, result.stderr


def change_annotations(document: dict[str, Any], **values: Any) -> dict[str, Any]:
    document["annotations"] = [{**annotation, **values} for annotation in document["annotations"]]
    return document


NOTHING = [
    pytest.param(change_annotations(sound(), iscrowd=1), "4 annotations are crowds", id="crowds"),
    pytest.param(change_annotations(sound(), segmentation=[]), "--masks none", id="boxes"),
    pytest.param(sound() | {"annotations": []}, "the label file has no annotations", id="no annotations"),
    pytest.param(sound() | {"categories": [], "annotations": []}, "lists no categories", id="no categories"),
]


@pytest.mark.parametrize(("document", "reason"), NOTHING)
def test_nothing_is_trained_on_nothing(
    tmp_path: Path,
    document: dict[str, Any],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(write(tmp_path / "data", document), tmp_path / "run") == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_says_before_the_first_step_what_it_learns_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = sound()
    document["annotations"][0]["iscrowd"] = 1
    root = {"id": 0, "name": "things", "supercategory": "none"}
    document["categories"] = [root, {"id": 1, "name": "box", "supercategory": "things"}]
    data = write(tmp_path / "data", document)
    assert train(data, tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "learning from 4 images with 3 objects and 3 masks (1 image without objects)" in said
    assert "left out category 'things'" in said
    assert "learning from 4 images" in (tmp_path / "run" / "model.md").read_text()


@pytest.mark.parametrize(
    ("names", "flips", "says"),
    [
        (("a", "b"), {"flip": 0.5}, "as they are: --flip 0 if some"),
        (("a", "b"), {"flip": 0.5, "flip_vertical": 0.5}, "as they are: --flip 0 --flip-vertical 0 if some"),
        (("a", "b"), {"flip": 0.0}, None),
        (("left_hand", "right_hand"), {"flip": 0.5}, None),
        (("a",), {"flip": 0.5}, None),
        ((), {"flip": 0.5}, None),
    ],
)
def test_keypoints_that_mirrored_images_keep_are_said(
    names: tuple[str, ...], flips: dict[str, float], says: str | None
) -> None:
    said = describe_mirroring(Keypoints(names) if names else None, Recipe(**flips))
    assert len(said) == (says is not None)
    assert says is None or says in said[0]


def test_a_training_says_that_mirrored_images_keep_keypoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = change_annotations(sound(), keypoints=[45, 35, 2, 50, 40, 2])
    document["categories"][0]["keypoints"] = ["a", "b"]
    assert train(write(tmp_path / "data", document), tmp_path / "run") == 0
    assert "no two keypoints are named as the left and the right one" in capsys.readouterr().err


def test_boxes_alone_are_trained_on_without_masks(tmp_path: Path) -> None:
    data = write(tmp_path / "data", change_annotations(sound(), segmentation=None))
    assert train(data, tmp_path / "run", masks="none") == 0


def test_changed_labels_are_noticed_when_the_same_command_is_typed_again(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = write(tmp_path / "data", sound())
    options: dict[str, Any] = {"validation": str(data), "overrides": {"validate_every": 1}}
    assert train(data, tmp_path / "run", **options) == 0
    assert train(data, tmp_path / "run", **options) == 0
    assert "nothing is trained, the run is over after 1 steps" in caplog.text
    # The same labels, spelt otherwise, are the same.
    spelt = change_annotations(sound(), iscrowd="0", segmentation=OUTLINE[0], image_id="1")
    for annotation, number in zip(spelt["annotations"], "1234", strict=True):
        annotation["image_id"] = number
    write(data, spelt)
    assert train(data, tmp_path / "run", **options) == 0
    corrected = change_annotations(sound(), segmentation=[[40, 30, 70, 30, 70, 50, 40, 50]])
    write(data, corrected)
    capsys.readouterr()
    assert train(data, tmp_path / "run", **options) == 1
    said = capsys.readouterr().err
    assert "holds a run with other settings (the labels, the validation labels)" in said
    assert "to start over" in said


def test_validation_that_measures_nothing_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", sound())
    crowds = write(tmp_path / "crowds", change_annotations(sound(), iscrowd=1))
    assert train(data, tmp_path / "run", validation=str(crowds)) == 1
    assert "there is nothing to measure on" in capsys.readouterr().err
    other = write(tmp_path / "other", sound() | {"categories": [{"id": 1, "name": "Box"}]})
    assert train(data, tmp_path / "run", validation=str(other)) == 1
    assert "'Box' is like 'box'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_validation_has_its_own_images_folder(tmp_path: Path) -> None:
    for name in ("train", "other"):
        write(tmp_path / name, sound(), images=f"../{name}_photos")
    for folder in ("train_photos", "other_photos"):
        assert (tmp_path / folder / "0001.png").is_file()
    options: dict[str, Any] = {
        "images": tmp_path / "train_photos",
        "validation": str(tmp_path / "other" / "instances.json"),
        "validation_images": tmp_path / "other_photos",
    }
    assert train(tmp_path / "train" / "instances.json", tmp_path / "run", **options) == 0


def test_train_and_val_of_one_export_are_used_each_for_its_purpose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 3), ("valid", 2)):
        document = sound(count)
        (tmp_path / "data" / part).mkdir(parents=True)
        (tmp_path / "data" / part / "_annotations.coco.json").write_text(json.dumps(document))
        for image in document["images"]:
            picture(tmp_path / "data" / part / image["file_name"])
    data = tmp_path / "data"
    assert train(data, tmp_path / "run", validation=str(data)) == 0
    captured = capsys.readouterr()
    assert "learning from 3 images" in captured.err
    assert "2 images, 2 objects" in captured.out


SPELLINGS = [
    pytest.param({"area": None}, id="area null"),
    pytest.param({"area": -400}, id="area negative"),
    pytest.param({"iscrowd": "0"}, id="iscrowd text"),
    pytest.param({"iscrowd": None}, id="iscrowd null"),
    pytest.param({"category_id": "1"}, id="category id text"),
    pytest.param({"bbox": None}, id="no box"),
]


def test_odd_labels_are_measured_as_the_sound_ones(tmp_path: Path, model: Path) -> None:
    expected = evaluate(model, write(tmp_path / "sound", sound()))
    assert expected[0] == 0
    assert expected[1]["objects"] == 4
    assert min(expected[1]["box"]["figures"][name] for name in ("AP", "AP small", "AR 100")) >= 0
    for n, case in enumerate(SPELLINGS):
        odd = change_annotations(sound(), **case.values[0])  # type: ignore[dict-item]
        assert evaluate(model, write(tmp_path / str(n), odd))[:2] == expected[:2], case.id


def test_categories_that_differ_by_capitals_are_named_and_can_be_taken_for_the_same(
    tmp_path: Path, model: Path
) -> None:
    expected = evaluate(model, write(tmp_path / "sound", sound()))[1]
    capital = write(tmp_path / "capital", sound() | {"categories": [{"id": 1, "name": "Box"}]})
    code, _, said = evaluate(model, capital)
    assert code == 1
    assert "share no category" in said
    assert "'Box' is like 'box': --loose-names" in said
    code, figures, _ = evaluate(model, capital, "--loose-names")
    assert (code, figures) == (0, expected)


def test_category_that_the_model_does_not_know_is_named(tmp_path: Path, model: Path) -> None:
    document = sound() | {"categories": [{"id": 1, "name": "box"}, {"id": 2, "name": "lids"}]}
    code, figures, said = evaluate(model, write(tmp_path / "data", document))
    assert code == 0
    assert "the model does not know 'lids'" in said
    assert "did you mean lid?" in said
    assert figures["box"]["figures"]["AP"] >= 0


def test_masks_are_not_measured_where_objects_have_only_boxes(tmp_path: Path, model: Path) -> None:
    code, figures, said = evaluate(
        model, write(tmp_path / "data", change_annotations(sound(), segmentation=[]))
    )
    assert code == 0
    assert "4 of 4 objects have no outline, so masks are not measured" in said
    assert "mask" not in figures


def test_data_without_objects_are_refused(tmp_path: Path, model: Path) -> None:
    code, _, said = evaluate(model, write(tmp_path / "data", sound() | {"annotations": []}))
    assert code == 1
    assert "nothing to measure on" in said
