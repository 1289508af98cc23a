import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

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
from app.commands.source import Source
from app.commands.train import NetworkOptions
from model.data.shapes import Shapes, photos_in
from model.evaluation.coco import CATEGORY_FIGURES
from model.inference.calibration import is_calibrated
from model.inference.engine import Engine
from model.instances import Options
from model.network.architecture import C4, SMALL, ArchitectureError
from model.training.recipe import TrainingError
from model.training.run_folder import claim
from model.zoo import model_file

TINY = replace(
    SMALL,
    fpn_channels=16,
    box_channels=16,
    mask_channels=16,
    mask_convs=1,
    proposals=20,
    min_size=64,
    max_size=96,
    anchor_sizes=(8, 16, 32, 64, 128),
)
QUICK = {"steps": 2, "batch_size": 2, "workers": 0, "precision": "float32", "sizes": ["64"], "warmup": 1}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_train, "SMALL", TINY)
    Shapes(seed=3, length=4, sides=(64, 96)).export(tmp_path / "data")
    return tmp_path


def trained(folder, *, data=None, validation=None):
    source = Source(str(data or folder / "data"), validation=validation)
    return cli_train.run_training(source, folder / "run", NetworkOptions(), "cpu", QUICK)


def test_labelled_folder_becomes_a_model_that_segments(folder, capsys):
    assert trained(folder, validation=str(folder / "data")) == 0
    assert "maskserve serve --model" in capsys.readouterr().out
    path = folder / "run" / "model.safetensors"
    network, model = model_file.read(path)
    assert network is not None
    assert model.name == "run"
    assert [c.name for c in model.categories] == [c.name for c in Shapes.categories]
    assert set(model.ap) == {"box", "box50", "mask", "mask50"}
    assert model.ap_source == f"measured on {folder / 'data'}"
    assert is_calibrated(network, model.ranges)  # so that it can be served in int8 at once
    engine = Engine.load(str(path), device="cpu")
    (found,) = engine.segment([np.zeros((80, 64, 3), np.uint8)], [Options()])
    assert found.size == (80, 64)


def test_training_goes_on_from_a_model(folder, capsys):
    assert trained(folder) == 0
    first = folder / "run" / "model.safetensors"
    source = Source(str(folder / "data"))
    still = {**QUICK, "learning_rate": 0.0}
    code = cli_train.run_training(
        source, folder / "more", NetworkOptions("resnet50", initial=str(first)), "cpu", still
    )
    assert code == 0
    (before, old), (after, new) = (
        model_file.read(first),
        model_file.read(folder / "more" / "model.safetensors"),
    )
    assert new.architecture == old.architecture  # the model's, not the one named beside it
    assert new.training["initial"]["sha256"] == old.sha256
    weights = after.state_dict()
    for name, tensor in before.named_parameters():  # statistics of norms follow the images all the same
        assert torch.allclose(weights[name], tensor, atol=1e-3), name
    # A run from another model is another run.
    code = cli_train.run_training(source, folder / "more", NetworkOptions(), "cpu", still)
    assert code == 1
    assert "the initial" in capsys.readouterr().err


def test_training_goes_on_with_other_categories_from_those_known_by_name(folder, capsys):
    assert trained(folder) == 0
    document = json.loads((folder / "data" / "instances.json").read_text())
    document["categories"][0]["name"] = "wheel"
    (folder / "data" / "instances.json").write_text(json.dumps(document))
    source, first = Source(str(folder / "data")), str(folder / "run" / "model.safetensors")
    still = {**QUICK, "learning_rate": 0.0}
    capsys.readouterr()
    assert cli_train.run_training(source, folder / "more", NetworkOptions(initial=first), "cpu", still) == 0
    assert "has 9 of the 10 categories; these start from random weights: wheel" in capsys.readouterr().err
    (before, _), (after, model) = (
        model_file.read(Path(first)),
        model_file.read(folder / "more" / "model.safetensors"),
    )
    assert model.categories[0].name == "wheel"
    old, new = (n.roi_heads.box_predictor.cls_score.weight for n in (before, after))
    assert torch.allclose(new[2:], old[2:], atol=1e-3)
    assert not torch.allclose(new[1], old[1], atol=1e-3)
    missing = NetworkOptions(initial="no-such.safetensors")
    assert cli_train.run_training(source, folder / "more", missing, "cpu", QUICK) == 1
    assert "no such file" in capsys.readouterr().err


def test_card_and_pictures_stand_beside_the_model(folder):
    assert trained(folder, validation=str(folder / "data")) == 0
    run = folder / "run"
    card = (run / "model.md").read_text()
    for name in ("training.png", "precision_recall.png", "samples.jpg"):
        assert f"({name})" in card
        with Image.open(run / name) as picture:
            assert picture.width > 300
    assert "2 steps of 2 images, adamw" in card
    for row in ("box", "mask", *(c.name for c in Shapes.categories)):
        assert f"\n| {row} | " in card


def test_training_without_validation_makes_no_claim(folder):
    assert trained(folder) == 0
    assert model_file.read(folder / "run" / "model.safetensors")[1].ap == {}
    assert "## Figures" not in (folder / "run" / "model.md").read_text()


def test_drawn_scenes_are_measured_on_held_out_ones(folder, monkeypatch):
    monkeypatch.setattr(cli_train, "training", lambda _photos: Shapes(seed=1, length=4, sides=(64, 96)))
    monkeypatch.setattr(cli_evaluate, "held_out", lambda: Shapes(seed=2, length=2, sides=(64, 96)))
    assert trained(folder, data="shapes") == 0
    model = model_file.read(folder / "run" / "model.safetensors")[1]
    assert model.name == "shapes"
    assert model.ap_source == f"measured on {run_report.HELD_OUT_SCENES}"


def test_scenes_on_photos_are_noted_in_model_and_card(folder, monkeypatch):
    (folder / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (90, 90)).save(folder / "photos" / name)
    scenes = partial(Shapes, seed=1, length=4, sides=(64, 96))
    monkeypatch.setattr(cli_train, "training", lambda photos: scenes(photos=photos_in(photos)))
    monkeypatch.setattr(cli_evaluate, "held_out", lambda: Shapes(seed=2, length=2, sides=(64, 96)))
    source = Source("shapes", backgrounds=folder / "photos")
    assert cli_train.run_training(source, folder / "run", NetworkOptions(channels=12), "cpu", QUICK) == 0
    model = model_file.read(folder / "run" / "model.safetensors")[1]
    assert model.training["backgrounds"] == "2 photos"
    assert (model.architecture.fpn_channels, model.architecture.mask_channels) == (12, 12)
    card = (folder / "run" / "model.md").read_text()
    assert "the first 4 scenes of seed 1 that `model/data/shapes.py` draws, 40 % of them on 2 photos" in card


def test_model_to_go_on_from_is_widened(folder):
    assert trained(folder) == 0
    first = folder / "run" / "model.safetensors"
    start = NetworkOptions(initial=str(first), channels=24)
    source = Source(str(folder / "data"))
    assert cli_train.run_training(source, folder / "wider", start, "cpu", QUICK) == 0
    assert model_file.read(folder / "wider" / "model.safetensors")[1].architecture == replace(
        model_file.read(first)[1].architecture, fpn_channels=24, mask_channels=24
    )


def test_evaluation_prints_all_figures_as_json(folder, capsys):
    assert trained(folder) == 0
    capsys.readouterr()
    source = Source(str(folder / "data"))
    model = str(folder / "run" / "model.safetensors")
    code = cli_evaluate.run_evaluation(
        model, source, "cpu", "float32", folder, as_json=True, plots=folder / "plots"
    )
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 4
    assert len(document["box"]["figures"]) == len(document["mask"]["figures"]) == 12
    assert set(document["mask"]["per_category"]) == {c.name for c in Shapes.categories}
    assert set(document["box"]["per_category"]["circle"]) == set(CATEGORY_FIGURES)
    assert len(document["confusion"]["matrix"]) == len(Shapes.categories) + 1
    pictures = [
        "confusion.png",
        "precision_recall.png",
        "precision_recall_by_category.png",
        "samples.jpg",
        "worst.jpg",
    ]
    assert sorted(path.name for path in (folder / "plots").iterdir()) == pictures
    for name in pictures:
        with Image.open(folder / "plots" / name) as picture:
            assert min(picture.size) > 100


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
def test_what_cannot_be_done_is_one_line_and_exit_code_1(folder, arguments, message):
    filled = [str(folder / "data") if a == "DATA" else a for a in arguments]
    if filled[0] == "train":
        filled += ["--out", str(folder / "run")]
    result = CliRunner().invoke(cli, filled)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_run_folder_that_cannot_be_made_is_one_line(folder, capsys):
    (folder / "run").write_text("a file")
    assert trained(folder) == 1
    assert capsys.readouterr().err == f"{folder / 'run'}: cannot create the run folder: File exists\n"


def test_one_process_trains_in_a_folder(folder, capsys):
    with claim(folder / "run"):
        assert trained(folder) == 1
    told = capsys.readouterr().err
    assert (
        told
        == f"{folder / 'run'}: another process is training here; wait until it ends, or choose another folder\n"
    )
    assert not (folder / "run" / "log.jsonl").exists()
    assert trained(folder) == 0


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
def test_package_that_is_not_installed_is_one_line_and_exit_code_2(folder, monkeypatch, arguments, package):
    monkeypatch.setitem(sys.modules, package, None)
    filled = [str(folder / "plots") if a == "PLOTS" else a for a in arguments]
    filled += ["--data", str(folder / "data"), *(["--out", str(folder / "run")] * (filled[0] == "train"))]
    result = CliRunner().invoke(cli, filled)
    assert result.exit_code == 2
    assert f"not installed: {package}; " in result.stderr
    assert "pip install 'maskserve[train]'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_evaluation_without_pictures_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(cli, ["evaluate", "shapes", "--data", "nowhere"])
    assert "nowhere: cannot be read" in result.stderr


def test_scales_surround_the_size_that_the_network_is_used_at():
    assert cli_train.scales(SMALL) == (288, 320, 352, 384, 416)
    assert cli_train.scales(replace(SMALL, max_size=384)) == (288, 320, 352, 384, 384)


def test_sizes_may_change_on_the_way():
    assert cli_train.sizes_by_step([], (384,)) == {"min_sizes": (384,), "later_sizes": ()}
    texts = ["300:256", "100:128,160", "192"]
    expected = {"min_sizes": (192,), "later_sizes": ((100, (128, 160)), (300, (256,)))}
    assert cli_train.sizes_by_step(texts, (384,)) == expected
    with pytest.raises(TrainingError, match="not '10:big'"):
        cli_train.sizes_by_step(["10:big"], (384,))


def test_any_backbone_can_be_named():
    assert cli_train.choose_architecture(NetworkOptions("vgg16"), 4).backbone == "vgg16"
    assert cli_train.choose_architecture(NetworkOptions("resnet50-c4"), 4) == replace(
        C4, classes=4, norm="batch"
    )
    assert cli_train.choose_architecture(NetworkOptions("small", masks="none"), 4).mask_convs == 0
    assert cli_train.choose_architecture(NetworkOptions("resnet50", backbone="imagenet"), 4).norm == "frozen"
    assert cli_train.choose_architecture(NetworkOptions("resnet50"), 9, "cityscapes").max_size == 2048
    with pytest.raises(ArchitectureError, match="one of small, resnet18"):
        cli_train.choose_architecture(NetworkOptions("alexnet"), 4)


def test_damaged_annotations_stop_the_start_or_are_left_out(folder, capsys):
    path = folder / "data" / "instances.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(document))
    assert trained(folder) == 1
    assert "unknown category: 1" in capsys.readouterr().err
    source = Source(str(folder / "data"), skip_damaged=True)
    assert cli_train.run_training(source, folder / "run", NetworkOptions(), "cpu", QUICK) == 0


def test_training_does_not_start_on_what_no_model_file_can_hold(folder, capsys):
    path = folder / "data" / "instances.json"
    document = json.loads(path.read_text())
    document["categories"].append({"id": -1, "name": "nothing"})
    path.write_text(json.dumps(document))
    assert trained(folder) == 1
    assert "its category ids are not all from 0" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_best_model_of_a_run_has_card_samples_and_figures(folder, capsys):
    source = Source(str(folder / "data"), validation=str(folder / "data"))
    options = {**QUICK, "validate_every": 1}
    assert cli_train.run_training(source, folder / "run", NetworkOptions(), "cpu", options) == 0
    run = folder / "run"
    assert f"maskserve serve --model {run / 'best.safetensors'}" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in lines] == [1, 2]
    assert (run / "best.md").exists()
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["000001.jpg", "000002.jpg"]
    model = model_file.read(run / "best.safetensors")[1]
    assert model.ap["mask"] == max(line["mask"] for line in lines)


def test_network_without_masks_learns_boxes_alone(folder):
    path = folder / "data" / "instances.json"
    document = json.loads(path.read_text())
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(document))
    source = Source(str(folder / "data"), validation=str(folder / "data"))
    assert cli_train.run_training(source, folder / "run", NetworkOptions(masks="none"), "cpu", QUICK) == 0
    run = folder / "run"
    assert set(model_file.read(run / "model.safetensors")[1].ap) == {"box", "box50"}
    assert "A Faster R-CNN, without masks" in (run / "model.md").read_text()


def test_pretrained_backbone_keeps_its_norms_and_its_first_stage(folder):
    torch.manual_seed(1)
    classifier = torchvision.models.resnet18(weights=None)
    save_file(classifier.state_dict(), folder / "resnet18.safetensors")
    start = NetworkOptions(backbone=str(folder / "resnet18.safetensors"))
    assert cli_train.run_training(Source(str(folder / "data")), folder / "run", start, "cpu", QUICK) == 0
    network, model = model_file.read(folder / "run" / "model.safetensors")
    assert model.architecture.norm == "frozen"
    assert model.training["recipe"]["frozen_stages"] == 1
    assert model.training["backbone"]["file"] == "resnet18.safetensors"
    kept = network.backbone.body.layer1[0].conv1.weight
    assert torch.equal(kept, classifier.layer1[0].conv1.weight.half().float())
