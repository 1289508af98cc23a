"""Training: the paper's five terms, runs that resume exactly, and runs that stop for a reason they give."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model.data import Category, DatasetError, Sample
from model.data.shapes import CATEGORIES, Shapes
from model.network.architecture import C4, SMALL
from model.network.build import build
from model.training import run_folder
from model.training import train as module
from model.training.parallel import Group
from model.training.recipe import RECIPES, Recipe, TrainingError
from model.training.step import freeze, start
from model.training.train import read_log, train
from model.zoo import model_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THIN = replace(
    SMALL,
    anchor_sizes=(8, 16, 32, 64, 128),
    fpn_channels=16,
    box_channels=32,
    mask_channels=16,
    min_size=64,
    max_size=128,
)
MODEL = model_file.describe("thin", THIN, CATEGORIES, training={"data": "two scenes"})
RECIPE = Recipe(
    steps=3,
    batch_size=2,
    warmup=2,
    min_sizes=(64, 80),
    max_size=128,
    rois=16,
    proposals=(40, 20),
    precision="float32",
    workers=0,
)
FIVE = {"L_cls", "L_box", "L_mask", "L_rpn_cls", "L_rpn_box"}


@pytest.fixture(scope="module")
def scenes() -> Shapes:
    return Shapes(seed=6, length=2, sides=(64, 80))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run's folder, removed at once: a checkpoint is 180 MB."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path)


# A run


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_run_logs_the_papers_terms_and_leaves_a_model(scenes: Shapes, run: Path, precision: str) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    recipe = replace(RECIPE, precision=precision)
    path = train(scenes, MODEL, recipe, run, on_step=lambda step, losses: seen.append((step, losses)))
    log = read_log(run / "log.jsonl")
    assert [record["step"] for record in log] == [step for step, _ in seen] == [0, 1, 2]
    for record, (step, losses) in zip(log, seen, strict=True):
        assert set(losses) == FIVE | {"L"}
        assert set(record) == FIVE | {"L", "step", "lr", "seconds"}
        assert all(value > 0 for value in losses.values())
        assert losses["L"] == pytest.approx(sum(losses[name] for name in FIVE), rel=1e-4)
        assert record["L"] == pytest.approx(losses["L"], abs=1e-6)
        assert record["lr"] == pytest.approx(recipe.rate(step), abs=1e-6)
    assert path == run / "model.safetensors"
    network, model = model_file.read(path)
    assert (model.name, model.categories, model.architecture) == ("thin", CATEGORIES, THIN)
    assert model.training["data"] == "two scenes"
    assert model.training["recipe"]["precision"] == precision
    fresh = build(THIN).state_dict()
    assert all(tensor.shape == fresh[name].shape for name, tensor in network.state_dict().items())


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


def test_two_scenes_are_learned_by_heart(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=30, warmup=5, learning_rate=2e-3, min_sizes=(64,), flip=0.0, ema=0.0)
    train(scenes, MODEL, recipe, run)
    losses = [record["L"] for record in read_log(run / "log.jsonl")]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]  # 5.0 falls to 2.1


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


# Resuming


class _Interrupted(Exception):  # noqa: N818 - not an error of ours
    pass


def interrupt_at(last: int) -> Any:
    def on_step(step: int, _: dict[str, float]) -> None:
        if step == last:
            raise _Interrupted

    return on_step


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_interrupted_run_ends_as_if_it_had_not_been(
    scenes: Shapes, tmp_path: Path, run: Path, optimizer: str
) -> None:
    recipe = replace(RECIPE, steps=4, checkpoint_every=2, optimizer=optimizer, learning_rate=1e-3)
    whole = train(scenes, MODEL, recipe, tmp_path / "whole")
    with pytest.raises(_Interrupted):
        train(scenes, MODEL, recipe, run, on_step=interrupt_at(2))
    assert [record["step"] for record in read_log(run / "log.jsonl")] == [0, 1, 2]
    steps: list[int] = []
    resumed = train(scenes, MODEL, recipe, run, on_step=lambda step, _: steps.append(step))
    assert steps == [2, 3]
    theirs = load_file(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in load_file(resumed).items())
    ends = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (tmp_path / "whole", run)]
    for part in ("network", "average"):
        assert all(torch.equal(tensor, ends[1][part][name]) for name, tensor in ends[0][part].items())
    logs = [read_log(folder / "log.jsonl") for folder in (tmp_path / "whole", run)]
    for record in (*logs[0], *logs[1]):
        del record["seconds"]
    assert logs[0] == logs[1]


def test_finished_run_is_left_as_it_is(scenes: Shapes, run: Path) -> None:
    path = train(scenes, MODEL, replace(RECIPE, steps=1), run)
    before = path.read_bytes()
    again = train(scenes, MODEL, replace(RECIPE, steps=1), run, on_step=interrupt_at(0))
    assert again == path
    assert path.read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=1)
    train(scenes, MODEL, recipe, run)
    settings = (run / "settings.json").read_bytes()
    others = [
        (MODEL, replace(recipe, learning_rate=0.5), "learning_rate 0.0007 → 0.5"),
        (MODEL, replace(recipe, min_sizes=(96,)), "min_sizes"),
        (replace(MODEL, architecture=replace(THIN, box_channels=48)), recipe, "the architecture"),
        (replace(MODEL, categories=(*CATEGORIES[:-1], Category(10, "moon"))), recipe, "the categories"),
        (replace(MODEL, training={"data": "other scenes"}), recipe, "the data"),
    ]
    for model, changed, named in others:

        class Other(Shapes):
            categories = model.categories

        with pytest.raises(TrainingError, match=named):
            train(Other(6, 2, (64, 80)), model, changed, run)
    assert (run / "settings.json").read_bytes() == settings


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        pytest.param(lambda run: cut(run / "checkpoint.pt"), "checkpoint is damaged; delete it", id="half"),
        pytest.param(
            lambda run: (run / "checkpoint.pt").write_bytes(b""),
            "checkpoint is damaged; delete it",
            id="empty",
        ),
        pytest.param(
            lambda run: torch.save([], run / "checkpoint.pt"), "checkpoint is damaged; delete it", id="a list"
        ),
        pytest.param(
            lambda run: torch.save({"step": 1}, run / "checkpoint.pt"),
            "checkpoint is damaged; delete it",
            id="no weights",
        ),
        pytest.param(
            lambda run: (run / "settings.json").unlink(), "settings.json: missing", id="no settings"
        ),
        pytest.param(
            lambda run: (run / "settings.json").write_text(""), "settings.json: damaged", id="empty settings"
        ),
        pytest.param(
            lambda run: (run / "settings.json").write_text("[]"),
            "settings.json: damaged",
            id="settings in a list",
        ),
        pytest.param(
            lambda run: (run / "settings.json").write_text('{"recipe": {"momentum": 0.9}}'),
            "unexpected keyword argument 'momentum'",
            id="unknown field",
        ),
        pytest.param(
            lambda run: (run / "environment.json").write_text("["),
            "environment.json: damaged",
            id="environment",
        ),
    ],
)
def test_damaged_run_folder_is_one_line_that_says_what_to_do(
    run: Path, damage: Callable[[Path], object], named: str
) -> None:
    recipe = replace(RECIPE, steps=2)
    run.mkdir()
    run_folder.record_settings(run, MODEL, recipe)
    run_folder.record_environment(run, "cpu", 1)
    state = start(MODEL, recipe, "cpu", None, Group())
    document = {"network": state.network.state_dict(), "optimizer": state.optimizer.state_dict()}
    run_folder.save_checkpoint(run, {"step": 1, "average": state.average, **document})
    damage(run)
    with pytest.raises(TrainingError) as caught:
        train(Shapes(6, 2, (64, 80)), MODEL, recipe, run)
    text = str(caught.value)
    assert named in text
    assert "delete" in text
    assert "\n" not in text


def test_interruption_between_model_and_checkpoint_loses_nothing(
    scenes: Shapes, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_save_checkpoint", full)
        with pytest.raises(OSError, match="No space left"):
            train(scenes, MODEL, replace(RECIPE, steps=1), run)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_model", full)
        with pytest.raises(OSError, match="No space left"):
            train(scenes, MODEL, replace(RECIPE, steps=1), run)
    assert not (run / "checkpoint.pt").exists()  # or the run would count as finished, without its model
    assert train(scenes, MODEL, replace(RECIPE, steps=1), run).exists()


def test_a_cut_off_last_line_of_the_log_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text('{"step": 0, "L": 2.5}\n{"step": 1, "L"')
    assert read_log(path) == [{"step": 0, "L": 2.5}]


# Stopping for a reason


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


def test_dataset_without_images_is_refused(run: Path) -> None:
    with pytest.raises(TrainingError, match="no images"):
        train(Shapes(1, 0), MODEL, RECIPE, run)


def test_dataset_of_other_categories_is_refused(scenes: Shapes, run: Path) -> None:
    model = model_file.describe("few", replace(THIN, classes=3), CATEGORIES[:2])
    with pytest.raises(TrainingError, match=r"lacks categories of the dataset: .*'crescent'"):
        train(scenes, model, RECIPE, run)


# Recipes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": "adam"}, "optimizer"),
        ({"schedule": "constant"}, "schedule"),
        ({"precision": "float16"}, "precision"),
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"rois": 0}, "at least 1"),
        ({"proposals": (400, 0)}, "at least 1"),
        ({"checkpoint_every": 0}, "at least 1"),
        ({"min_sizes": ()}, "at least 1"),
        ({"min_sizes": (64, 0)}, "at least 1"),
        ({"later_sizes": ((10, ()),)}, "at least 1"),
        ({"max_size": 0}, "at least 1"),
        ({"warmup": -1}, "warm-up"),
        ({"workers": -1}, "workers"),
        ({"ema": 1.0}, "ema"),
        ({"box_weight": -1.0}, "weight of L_box"),
        ({"box_weight": float("nan")}, "weight of L_box"),
        ({"drops": ()}, "drops"),
        ({"drops": (0.9, 0.5)}, "drops"),
        ({"drops": (0.5, 0.5)}, "rising"),
        ({"drops": (0.5, 1.5)}, "from 0 to 1"),
        ({"drops": (float("nan"),)}, "from 0 to 1"),
        ({"learning_rate": float("nan")}, "learning rate must be a number of at least 0"),
        ({"learning_rate": float("inf")}, "learning rate must be a number of at least 0"),
        ({"learning_rate": -1e-3}, "learning rate must be a number of at least 0"),
        ({"weight_decay": -1.0}, "weight decay must be a number of at least 0"),
        ({"clip": 0.0}, "must be above 0"),
        ({"clip": -1.0}, "must be above 0"),
        ({"clip": float("nan")}, "must be above 0"),
        ({"positives": 1.5}, "from 0 to 1"),
        ({"flip": 1.5}, "from 0 to 1"),
        ({"flip": float("nan")}, "from 0 to 1"),
        ({"max_size": 72}, "limit of the longer one, 72: 80"),
        ({"later_sizes": ((10, (256,)),)}, "limit of the longer one, 128: 256"),
        ({"frozen_stages": 5}, "from 0 to 4"),
        ({"jitter": (2.0, 0.1)}, "jitter must be"),
        ({"copy_paste": 0.5}, "needs jitter"),
        ({"patience": 2}, "patience counts"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=named):
        train(Shapes(1, 1), MODEL, replace(RECIPE, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_have_a_name_make_sense(name: str) -> None:
    RECIPES[name].check()


def test_documentation_says_of_all_recipes_only_what_all_of_them_do() -> None:
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    common = text.partition("In all of them:")[2].partition(". ")[0]
    assert "linear warm-up" in common
    assert ("--clip" in common) == all(recipe.clip < 1e9 for recipe in RECIPES.values())
    assert ("--ema" in common) == all(recipe.ema for recipe in RECIPES.values())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 50: 1.0, 60: 1.0, 80: 0.5, 99: 0.025}),
        ("step", {0: 0.1, 9: 1.0, 10: 1.0, 59: 1.0, 60: 0.1, 89: 0.1, 90: 0.01, 99: 0.01}),
        ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.505, 100: 0.01}),
    ],
)
def test_learning_rate_warms_up_and_falls(schedule: str, expected: dict[int, float]) -> None:
    recipe = Recipe(steps=100, warmup=10, learning_rate=2.0, schedule=schedule, drops=(0.6, 0.9))
    rates = {step: recipe.rate(step) / 2.0 for step in expected}
    assert rates == pytest.approx(expected)


def test_there_may_be_no_warm_up() -> None:
    assert Recipe(warmup=0, learning_rate=0.5).rate(0) == 0.5


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


def test_sizes_change_from_the_step_that_is_named() -> None:
    recipe = Recipe(min_sizes=(64,), later_sizes=((10, (96, 128)), (20, (256,))))
    assert [recipe.sizes(step) for step in (0, 9, 10, 19, 20, 99)] == [
        (64,), (64,), (96, 128), (96, 128), (256,), (256,),
    ]  # fmt: skip


def test_a_run_may_be_lengthened_until_its_learning_rate_has_fallen() -> None:
    recipe = Recipe(steps=100, warmup=10, drops=(0.6,))
    longer = replace(recipe, steps=200, workers=4, checkpoint_every=7)
    assert longer.matches_until(recipe, 60)
    assert not longer.matches_until(recipe, 62)
    assert not replace(recipe, steps=200, schedule="cosine").matches_until(
        replace(recipe, schedule="cosine"), 20
    )
    assert not replace(recipe, seed=1).matches_until(recipe, 0)


def test_sizes_to_come_may_change() -> None:
    recipe = Recipe(min_sizes=(64,))
    assert replace(recipe, later_sizes=((50, (96,)),)).matches_until(recipe, 50)
    assert not replace(recipe, later_sizes=((50, (96,)),)).matches_until(recipe, 51)


def test_settings_of_a_run_are_those_it_was_started_with(scenes: Shapes, run: Path) -> None:
    train(scenes, MODEL, replace(RECIPE, steps=1), run)
    settings = json.loads((run / "settings.json").read_text())
    assert settings["architecture"] == json.loads(json.dumps(THIN.to_dict()))
    assert settings["recipe"]["batch_size"] == 2
    assert settings["categories"][0] == {"id": 1, "name": "circle"}


# Validation


def scripted(scores: list[float], seen: list[tuple[str, int]]) -> Any:
    """A `validate` that returns these scores one after the other, and records its calls."""

    def validate(path: Path, steps: int) -> float:
        seen.append((path.name, steps))
        return scores[len(seen) - 1]

    return validate


def test_best_model_so_far_is_kept(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=4, validate_every=1)
    seen: list[tuple[str, int]] = []
    kept: list[bytes] = []

    def validate(path: Path, steps: int) -> float:
        kept.append(path.read_bytes())
        return float(scripted([0.1, 0.4, 0.3, 0.2], seen)(path, steps))

    path = train(scenes, MODEL, recipe, run, validate=validate)
    assert seen == [("model.safetensors", step) for step in (1, 2, 3, 4)]
    assert path == run / "best.safetensors"
    assert path.read_bytes() == kept[1]
    assert (run / "model.safetensors").read_bytes() == kept[3] != kept[1]


def test_run_ends_when_nothing_gets_better_and_stays_ended(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=9, validate_every=1, patience=2)
    seen: list[tuple[str, int]] = []
    train(scenes, MODEL, recipe, run, validate=scripted([0.2, 0.1, 0.2, 0.9], seen))
    assert [steps for _, steps in seen] == [1, 2, 3]
    assert len(read_log(run / "log.jsonl")) == 3
    train(scenes, MODEL, recipe, run, validate=scripted([], []), on_step=interrupt_at(3))


def test_patience_outlives_an_interruption(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=9, validate_every=1, patience=2)
    with pytest.raises(_Interrupted):
        train(scenes, MODEL, recipe, run, validate=scripted([0.2, 0.1], []), on_step=interrupt_at(2))
    seen: list[tuple[str, int]] = []
    path = train(scenes, MODEL, recipe, run, validate=scripted([0.1], seen))
    assert [steps for _, steps in seen] == [3]
    assert path.name == "best.safetensors"


# What a step does with an image


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


def test_damaged_image_does_not_end_a_run(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Damaged(Shapes):
        def __getitem__(self, index: int) -> Sample:
            if index == 1:
                raise DatasetError("000001.jpg: cut short")
            return super().__getitem__(index)

    train(Damaged(seed=6, length=3, sides=(64, 80)), MODEL, replace(RECIPE, steps=4), run)
    assert len(read_log(run / "log.jsonl")) == 4
    assert [record.getMessage() for record in caplog.records] == ["skipped: 000001.jpg: cut short"]


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


def test_events_for_tensorboard_and_environment_are_kept(scenes: Shapes, run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(scenes, MODEL, replace(RECIPE, validate_every=3), run, validate=lambda *_: 0.25)
    events = EventAccumulator(str(run / "events"))
    events.Reload()
    log = read_log(run / "log.jsonl")
    scalars = events.Scalars("loss/L")
    assert [event.step for event in scalars] == [0, 1, 2]
    assert [event.value for event in scalars] == pytest.approx([record["L"] for record in log])
    assert [(event.step, event.value) for event in events.Scalars("validation/AP")] == [(2, 0.25)]
    assert "run/lr" in events.Tags()["scalars"]
    (environment,) = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__


def test_faster_rcnn_c4_and_the_ablations_train_one_step(scenes: Shapes, run: Path) -> None:
    few = {"min_size": 64, "max_size": 128, "anchor_sizes": (8, 16, 32, 64, 128), "mask_channels": 16}
    c4 = replace(C4, backbone="resnet18", norm="batch", classes=11, **few)
    variants = {"c4": c4, "pool": replace(THIN, pooling="pool"), "softmax": replace(THIN, masks="softmax")}
    for name, architecture in variants.items():
        train(scenes, replace(MODEL, architecture=architecture), replace(RECIPE, steps=1), run / name)
        assert model_file.read(run / name / "model.safetensors")[1].architecture == architecture
        (run / name / "checkpoint.pt").unlink()
