"""`maskserve train`: from a labelled folder, drawn scenes or another model to a weights file with its card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from app.cli.main import cli
from app.commands import evaluate as cli_evaluate
from app.commands import report as run_report
from app.commands import train as cli_train
from app.commands.network import NetworkOptions, choose_architecture
from app.commands.source import Source
from app.commands.train import run_training
from model.data.shapes import Shapes, photos_in
from model.inference.calibration import is_calibrated
from model.inference.engine import Engine
from model.instances import Options
from model.network.architecture import C4, SMALL, ArchitectureError
from model.training.recipe import TrainingError
from model.training.run_folder import claim
from model.zoo import model_file
from tests.app.commands.training import QUICK, as_arguments

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Trained:
    """A run of two steps, validated after each. Tests do not change its files."""

    # Labelled data: four drawn scenes in COCO's format.
    data: Path
    # The run folder.
    run: Path
    # What the command printed on stdout.
    output: str

    @property
    def path(self) -> Path:
        """The best weights."""
        return self.run / "best.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_networks: None) -> Trained:
    """Train as a user would."""
    folder = tmp_path_factory.mktemp("trained")
    data, run = folder / "data", folder / "run"
    Shapes(seed=3, length=4, sides=(64, 96)).export(data)
    arguments = ["train", "--data", str(data), "--validation", str(data), "--out", str(run)]
    result = CliRunner().invoke(cli, [*arguments, *as_arguments(QUICK), "--validate-every", "1"])
    assert result.exit_code == 0, result.output
    return Trained(data, run, result.stdout)


@pytest.fixture
def folder(trained: Trained, tmp_path: Path, no_plots: None) -> Path:
    """A folder with a copy of the labelled data."""
    shutil.copytree(trained.data, tmp_path / "data")
    return tmp_path


def edit(folder: Path, change: Any) -> None:
    """Change the annotations of the data in a folder."""
    path = folder / "data" / "instances.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def run(
    folder: Path, *, network: NetworkOptions | None = None, data: str | None = None, **changes: Any
) -> int:
    """Train for two steps in `folder`/run."""
    source = Source(data or str(folder / "data"), **changes)
    return run_training(source, folder / "run", network or NetworkOptions(), "cpu", QUICK)


def test_labelled_folder_becomes_a_model_that_segments(trained: Trained) -> None:
    assert f"maskserve serve --model {trained.path}" in trained.output
    network, model = model_file.read(trained.path)
    assert model.name == "run"
    assert [c.name for c in model.categories] == [c.name for c in Shapes.categories]
    assert set(model.ap) == {"box", "box50", "mask", "mask50"}
    assert model.ap_source == f"measured on {trained.data}"
    # It can be served in int8 at once.
    assert is_calibrated(network, model.ranges)
    # The images are resized to a shorter side of `min_size`, so their own size does not count.
    labels = json.loads((trained.data / "instances.json").read_text())
    shorter = {image["id"]: min(image["height"], image["width"]) for image in labels["images"]}
    extents = [max(object_["bbox"][2:]) / shorter[object_["image_id"]] for object_ in labels["annotations"]]
    assert model.object_extent == round(float(np.quantile(extents, 0.9)), 2)
    engine = Engine.load(str(trained.path), device="cpu")
    (found,) = engine.segment([np.zeros((80, 64, 3), np.uint8)], [Options()])
    assert found.size == (80, 64)


def test_best_model_of_a_run_has_figures_and_samples(trained: Trained) -> None:
    lines = [json.loads(line) for line in (trained.run / "validation.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in lines] == [1, 2]
    assert sorted(path.name for path in (trained.run / "samples").iterdir()) == ["000001.jpg", "000002.jpg"]
    assert model_file.read(trained.path)[1].ap["mask"] == max(line["mask"] for line in lines)


def test_card_and_pictures_are_beside_the_model(trained: Trained) -> None:
    card = trained.path.with_suffix(".md").read_text()
    for name in ("training.png", "precision_recall.png", "samples.jpg"):
        assert f"({name})" in card
        with Image.open(trained.run / name) as picture:
            assert picture.width > 300
    assert "2 steps of 2 images, adamw" in card
    assert "| IoU 0.5 | IoU 0.6 | IoU 0.7 | IoU 0.8 | IoU 0.9 | mean of IoU 0.5 to 0.95 |" in card
    assert "\n| TP/(TP+FP+FN), mean over images | " in card
    for row in ("box", "mask", *(c.name for c in Shapes.categories)):
        assert f"\n| {row} | " in card


def test_training_starts_from_a_model(
    trained: Trained, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = {**QUICK, "learning_rate": 0.0}
    source, out = Source(str(folder / "data")), folder / "run"
    start = NetworkOptions("resnet50", initial=str(trained.path))
    assert run_training(source, out, start, "cpu", still) == 0
    (before, old), (after, new) = (
        model_file.read(path) for path in (trained.path, out / "model.safetensors")
    )
    # The architecture of the model, not the one that was named with it.
    assert new.architecture == old.architecture
    assert new.training["initial"]["sha256"] == old.sha256
    weights = after.state_dict()
    # Only the statistics of norms follow the images.
    for name, tensor in before.named_parameters():
        assert torch.allclose(weights[name], tensor, atol=1e-3), name
    # A run with other initial weights is another run.
    assert run_training(source, out, NetworkOptions(), "cpu", still) == 1
    assert "the initial" in capsys.readouterr().err


def test_training_for_other_categories_keeps_those_with_the_same_name(
    trained: Trained, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder, lambda document: document["categories"][0].update(name="wheel"))
    source, still = Source(str(folder / "data")), {**QUICK, "learning_rate": 0.0}
    start = NetworkOptions(initial=str(trained.path), detections=120)
    assert run_training(source, folder / "run", start, "cpu", still) == 0
    assert "has 9 of the 10 categories; these start from random weights: wheel" in capsys.readouterr().err
    after, model = model_file.read(folder / "run" / "model.safetensors")
    assert model.categories[0].name == "wheel"
    assert model.max_instances == 120
    networks: list[Any] = [model_file.read(trained.path)[0], after]
    old, new = (n.roi_heads.box_predictor.cls_score.weight for n in networks)
    assert torch.allclose(new[2:], old[2:], atol=1e-3)
    assert not torch.allclose(new[1], old[1], atol=1e-3)


def test_initial_model_that_does_not_exist_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, network=NetworkOptions(initial="no-such.safetensors")) == 1
    assert "no such file" in capsys.readouterr().err


def test_initial_model_is_widened(trained: Trained, folder: Path) -> None:
    assert run(folder, network=NetworkOptions(initial=str(trained.path), channels=24)) == 0
    wider = model_file.read(folder / "run" / "model.safetensors")[1].architecture
    before = model_file.read(trained.path)[1].architecture
    assert wider == replace(before, fpn_channels=24, mask_channels=24)


def test_training_without_validation_claims_no_figures(folder: Path) -> None:
    assert run(folder) == 0
    assert model_file.read(folder / "run" / "model.safetensors")[1].ap == {}
    assert "## Figures" not in (folder / "run" / "model.md").read_text()


def test_drawn_scenes_on_photos_are_evaluated_on_held_out_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (90, 90)).save(folder / "photos" / name)
    scenes = partial(Shapes, seed=1, length=4, sides=(64, 96))
    monkeypatch.setattr(cli_train, "training_scenes", lambda photos: scenes(photos=photos_in(photos)))
    monkeypatch.setattr(cli_evaluate, "held_out_scenes", lambda: Shapes(seed=2, length=2, sides=(64, 96)))
    assert run(folder, data="shapes", backgrounds=folder / "photos", network=NetworkOptions(channels=12)) == 0
    model = model_file.read(folder / "run" / "model.safetensors")[1]
    assert model.name == "shapes"
    assert model.ap_source == f"measured on {run_report.HELD_OUT_SCENES}"
    assert model.training["backgrounds"] == "2 photos"
    assert (model.architecture.fpn_channels, model.architecture.mask_channels) == (12, 12)
    card = (folder / "run" / "model.md").read_text()
    assert "the first 4 scenes of seed 1 that `model/data/shapes.py` draws, 40 % of them on 2 photos" in card


def test_run_folder_that_cannot_be_created_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "run").write_text("a file")
    assert run(folder) == 1
    assert capsys.readouterr().err == f"{folder / 'run'}: cannot create the run folder: File exists\n"


def test_one_process_trains_in_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claim(folder / "run"):
        assert run(folder) == 1
    path = folder / "run"
    assert (
        capsys.readouterr().err
        == f"{path}: another process is training here; wait until it ends, or choose another folder\n"
    )
    assert not (path / "log.jsonl").exists()
    # The lock is free again.
    with claim(path):
        pass


def test_damaged_annotations_stop_the_start_or_are_skipped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder, lambda document: document["annotations"][0].update(category_id=99))
    assert run(folder) == 1
    assert "unknown category: 1" in capsys.readouterr().err
    assert run(folder, skip_damaged=True) == 0


def test_training_does_not_start_on_what_no_model_file_can_hold(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder, lambda document: document["categories"].append({"id": -1, "name": "nothing"}))
    assert run(folder) == 1
    assert "its category ids are not all from 0" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_network_without_masks_learns_boxes_only(folder: Path) -> None:
    edit(folder, lambda document: [a.pop("segmentation") for a in document["annotations"]])
    data = str(folder / "data")
    assert run(folder, validation=data, network=NetworkOptions(masks="none")) == 0
    path = folder / "run"
    assert set(model_file.read(path / "model.safetensors")[1].ap) == {"box", "box50"}
    assert "A Faster R-CNN, without masks" in (path / "model.md").read_text()


def test_pretrained_backbone_keeps_its_norms_and_its_first_stage(folder: Path) -> None:
    torch.manual_seed(1)
    classifier: Any = torchvision.models.resnet18(weights=None)
    save_file(classifier.state_dict(), folder / "resnet18.safetensors")
    assert run(folder, network=NetworkOptions(backbone=str(folder / "resnet18.safetensors"))) == 0
    network: Any
    network, model = model_file.read(folder / "run" / "model.safetensors")
    assert model.architecture.norm == "frozen"
    assert model.training["recipe"]["frozen_stages"] == 1
    assert model.training["backbone"]["file"] == "resnet18.safetensors"
    saved = network.backbone.body.layer1[0].conv1.weight
    assert torch.equal(saved, classifier.layer1[0].conv1.weight.half().float())


def test_scales_surround_the_input_size_of_the_architecture() -> None:
    assert cli_train.scales(SMALL) == (288, 320, 352, 384, 416)
    assert cli_train.scales(replace(SMALL, max_size=384)) == (288, 320, 352, 384, 384)


def test_sizes_may_change_during_the_run() -> None:
    assert cli_train.sizes_by_step([], (384,)) == {"min_sizes": (384,), "later_sizes": ()}
    texts = ["300:256", "100:128,160", "192"]
    expected = {"min_sizes": (192,), "later_sizes": ((100, (128, 160)), (300, (256,)))}
    assert cli_train.sizes_by_step(texts, (384,)) == expected
    with pytest.raises(TrainingError, match="not '10:big'"):
        cli_train.sizes_by_step(["10:big"], (384,))


def test_any_backbone_can_be_named() -> None:
    assert choose_architecture(NetworkOptions("vgg16"), 4).backbone == "vgg16"
    assert choose_architecture(NetworkOptions("resnet50-c4"), 4) == replace(C4, classes=4, norm="batch")
    assert choose_architecture(NetworkOptions("small", masks="none"), 4).mask_convs == 0
    assert choose_architecture(NetworkOptions("resnet50", backbone="imagenet"), 4).norm == "frozen"
    assert choose_architecture(NetworkOptions("resnet50"), 9, "cityscapes").max_size == 2048
    crowded = choose_architecture(NetworkOptions("small", detections=300), 4)
    assert (crowded.conventions.detections, crowded.proposals) == (300, 600)
    assert choose_architecture(NetworkOptions("resnet50", detections=300), 4).proposals == 1000
    with pytest.raises(ArchitectureError, match="one of small, resnet18"):
        choose_architecture(NetworkOptions("alexnet"), 4)
