"""A step: the terms of the loss, what it changes, and how it fails."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model.data.shapes import Shapes
from model.network.architecture import C4
from model.network.build import build
from model.training.recipe import TrainingError
from model.training.step import freeze
from model.training.train import read_log, train
from model.zoo import model_file
from tests.model.thin import FIVE, MODEL, RECIPE, THIN

if TYPE_CHECKING:
    from pathlib import Path

    from model.data import Sample


def test_boxes_and_their_targets_are_exact_in_bfloat16_too(
    scenes: Shapes, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    select = RoIHeads.select_training_samples

    def selecting(self: RoIHeads, proposals: list[Tensor], targets: Any) -> Any:
        chosen = select(self, proposals, targets)
        seen.extend([*proposals, *chosen[0], *chosen[3]])
        return chosen

    monkeypatch.setattr(RoIHeads, "select_training_samples", selecting)
    train(scenes, MODEL, replace(RECIPE, steps=1, precision="bfloat16"), run)
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    assert any((tensor != tensor.bfloat16()).any() for tensor in seen)


@pytest.mark.parametrize(
    "changes", [{"pooling": "pool"}, {"masks": "softmax"}, {"masks": "agnostic"}], ids=str
)
@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_variants_train_in_every_precision(
    scenes: Shapes, run: Path, changes: dict[str, str], precision: str
) -> None:
    model = replace(MODEL, architecture=replace(THIN, **changes))
    train(scenes, model, replace(RECIPE, steps=1, precision=precision), run)
    (record,) = read_log(run / "log.jsonl")
    assert all(record[name] > 0 for name in FIVE)


def test_the_box_term_weighs_as_much_as_the_recipe_says(scenes: Shapes, tmp_path: Path) -> None:
    first: dict[float, dict[str, float]] = {}
    for weight in (1.0, 2.0, 0.0):
        recipe = replace(RECIPE, steps=1, box_weight=weight)
        train(scenes, MODEL, recipe, tmp_path / str(weight))
        (first[weight],) = read_log(tmp_path / str(weight) / "log.jsonl")
        shutil.rmtree(tmp_path / str(weight))
    assert first[2.0]["L_box"] == pytest.approx(2 * first[1.0]["L_box"], rel=1e-5)
    assert first[2.0]["L"] == pytest.approx(first[1.0]["L"] + first[1.0]["L_box"], rel=1e-5)
    assert first[0.0]["L_box"] == 0
    assert first[2.0]["L_cls"] == first[1.0]["L_cls"]


def test_scenes_without_objects_can_be_trained_on(run: Path) -> None:
    class Empty(Shapes):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return replace(sample, boxes=sample.boxes[:0], labels=sample.labels[:0], masks=sample.masks[:0])

    train(Empty(seed=6, length=2, sides=(64, 80)), MODEL, replace(RECIPE, steps=1), run)
    (record,) = read_log(run / "log.jsonl")
    assert record["L_mask"] == record["L_box"] == record["L_rpn_box"] == 0
    assert record["L_cls"] > 0


def test_network_without_masks_has_four_terms(scenes: Shapes, run: Path) -> None:
    model = replace(MODEL, architecture=replace(THIN, mask_convs=0))
    train(scenes, model, replace(RECIPE, steps=1), run)
    (record,) = read_log(run / "log.jsonl")
    assert set(record) == FIVE - {"L_mask"} | {"L", "step", "lr", "seconds"}


def test_loss_that_is_not_finite_stops_the_run_and_names_the_images(scenes: Shapes, run: Path) -> None:
    poisoned: Any = build(THIN)
    with torch.no_grad():
        poisoned.roi_heads.box_predictor.cls_score.weight[0, 0] = float("nan")
    with pytest.raises(
        TrainingError, match=r"loss of step 0 is not finite .*L_cls nan.*images \[(0, 1|1, 0)\]"
    ):
        train(scenes, MODEL, RECIPE, run, initial=poisoned)
    assert not (run / "checkpoint.pt").exists()


def test_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(
    scenes: Shapes, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped: list[object] = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: stepped.append(_))
    with pytest.raises(TrainingError, match=r"gradient of step 0 is not finite; images \["):
        train(scenes, MODEL, RECIPE, run)
    assert stepped == []


def test_learning_rate_of_each_step_reaches_the_optimizer(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, optimizer="sgd", schedule="step", drops=(0.5,), warmup=1, learning_rate=1e-3)
    rates: list[list[float]] = []
    real = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *args: Any, **options: Any) -> Any:
        assert {group["momentum"] for group in self.param_groups} == {0.9}
        decays = [group["weight_decay"] for group in self.param_groups]
        shapes = [{p.ndim > 1 for p in group["params"]} for group in self.param_groups]
        assert (decays, shapes) == ([recipe.weight_decay, 0.0], [{True}, {False}])
        rates.append([group["lr"] for group in self.param_groups])
        return real(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", noted)
        train(scenes, MODEL, recipe, run)
    assert rates == [[pytest.approx(rate)] * 2 for rate in (1e-3, 1e-3, 1e-4)]


def test_the_image_that_spoils_the_loss_is_named(run: Path) -> None:
    class Poisoned(Shapes):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            if index == 1:
                sample.boxes[0, 2] = float("inf")
            return sample

        def name(self, index: int) -> str:
            return f"scene-{index}.jpg"

    with pytest.raises(TrainingError, match=r"not finite.*; alone, the cause is scene-1\.jpg$"):
        train(Poisoned(seed=6, length=2, sides=(64, 80)), MODEL, replace(RECIPE, flip=0.0), run)


def test_frozen_stages_stay_as_they_are(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=2, frozen_stages=2, ema=0.0, warmup=0)
    start = build(THIN)
    train(scenes, MODEL, recipe, run, initial=start)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)["network"]
    same = {name for name, tensor in start.state_dict().items() if torch.equal(tensor, saved[name])}
    body = {name for name in saved if name.startswith("backbone.body.")}
    frozen = {name for name in body if name.split(".")[2] in ("conv1", "bn1", "layer1", "layer2")}
    assert same & body == frozen


def test_stages_of_a_c4_are_frozen_in_the_same_order() -> None:
    network: Any = build(replace(C4, backbone="resnet18", classes=3))
    freeze(network, 1)
    frozen = {name.split(".")[2] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}  # its norms are constants


def test_jitter_and_copy_paste_train_on_a_square_canvas(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, jitter=(0.5, 2.0), jitter_side=96, copy_paste=1.0)
    seen: list[tuple[int, ...]] = []
    real = GeneralizedRCNNTransform.batch_images

    def noted(self: Any, images: list[torch.Tensor], size_divisible: int = 32) -> torch.Tensor:
        seen.extend(tuple(image.shape[1:]) for image in images)
        made: torch.Tensor = real(self, images, size_divisible)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneralizedRCNNTransform, "batch_images", noted)
        train(scenes, MODEL, recipe, run)
    assert set(seen) == {(96, 96)}


def test_c4_trains_one_step(scenes: Shapes, run: Path) -> None:
    few = {"min_size": 64, "max_size": 128, "anchor_sizes": (8, 16, 32, 64, 128), "mask_channels": 16}
    architecture = replace(C4, backbone="resnet18", norm="batch", classes=11, **few)
    path = train(scenes, replace(MODEL, architecture=architecture), replace(RECIPE, steps=1), run)
    assert model_file.read(path)[1].architecture == architecture


@pytest.mark.parametrize("decay", [0.999, 0.05])
def test_saved_weights_are_the_moving_average_with_a_rising_decay(
    scenes: Shapes, run: Path, decay: float
) -> None:
    names = ("roi_heads.box_predictor.cls_score.weight", "backbone.body.bn1.running_mean")
    seen: list[list[Tensor]] = []
    update = AveragedModel.update_parameters

    def noted(self: AveragedModel, network: torch.nn.Module) -> None:
        seen.append([network.state_dict()[name].clone() for name in names])
        update(self, network)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AveragedModel, "update_parameters", noted)
        train(scenes, MODEL, replace(RECIPE, ema=decay), run)
    average = torch.load(run / "checkpoint.pt", weights_only=True)["average"]
    for column, name in enumerate(names):
        expected = seen[0][column]
        for count, weights in enumerate(seen[1:], start=1):
            expected = expected.lerp(weights[column], 1 - min(decay, (1 + count) / (10 + count)))
        torch.testing.assert_close(average[name], expected)


def test_without_averaging_the_last_weights_are_saved(scenes: Shapes, run: Path) -> None:
    path = train(scenes, MODEL, replace(RECIPE, steps=2, ema=0.0), run)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    assert checkpoint["average"] is None
    assert all(torch.equal(t, checkpoint["network"][n].to(t.dtype)) for n, t in load_file(path).items())
