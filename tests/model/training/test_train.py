"""Runs: what they write, how they resume and validate, and when they stop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from model.data import DatasetError, Sample
from model.data.shapes import CATEGORIES, Shapes
from model.network.build import build
from model.training import train as module
from model.training.recipe import TrainingError
from model.training.train import read_log, train
from model.zoo import model_file
from tests.model.thin import FIVE, MODEL, RECIPE, THIN

if TYPE_CHECKING:
    from pathlib import Path


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


def test_two_scenes_are_learned_by_heart(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=30, warmup=5, learning_rate=2e-3, min_sizes=(64,), flip=0.0, ema=0.0)
    train(scenes, MODEL, recipe, run)
    losses = [record["L"] for record in read_log(run / "log.jsonl")]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]  # 5.0 falls to 2.1


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


def test_dataset_without_images_is_refused(run: Path) -> None:
    with pytest.raises(TrainingError, match="no images"):
        train(Shapes(1, 0), MODEL, RECIPE, run)


def test_dataset_of_other_categories_is_refused(scenes: Shapes, run: Path) -> None:
    model = model_file.describe("few", replace(THIN, classes=3), CATEGORIES[:2])
    with pytest.raises(TrainingError, match=r"lacks categories of the dataset: .*'crescent'"):
        train(scenes, model, RECIPE, run)


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


@pytest.mark.parametrize("score", [0.0, -1.0, 0.3])
def test_of_models_with_the_same_score_the_last_is_the_best(scenes: Shapes, run: Path, score: float) -> None:
    recipe = replace(RECIPE, steps=3, validate_every=1, patience=9)
    path = train(scenes, MODEL, recipe, run, validate=scripted([score] * 3, []))
    assert path.read_bytes() == (run / "model.safetensors").read_bytes()


def test_run_ends_when_nothing_gets_better_and_stays_ended(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=9, validate_every=1, patience=2)
    seen: list[tuple[str, int]] = []
    train(scenes, MODEL, recipe, run, validate=scripted([0.2, 0.1, 0.2, 0.9], seen))
    assert [steps for _, steps in seen] == [1, 2, 3]
    assert len(read_log(run / "log.jsonl")) == 3
    train(scenes, MODEL, recipe, run, validate=scripted([], []), on_step=interrupt_at(3))


def test_a_finished_run_that_was_not_validated_has_its_last_model(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=1)
    last = train(scenes, MODEL, recipe, run)
    path = train(scenes, MODEL, replace(recipe, validate_every=1), run, validate=scripted([], []))
    assert path == last
    assert path.exists()


def test_patience_outlives_an_interruption(scenes: Shapes, run: Path) -> None:
    recipe = replace(RECIPE, steps=9, validate_every=1, patience=2)
    with pytest.raises(_Interrupted):
        train(scenes, MODEL, recipe, run, validate=scripted([0.2, 0.1], []), on_step=interrupt_at(2))
    seen: list[tuple[str, int]] = []
    path = train(scenes, MODEL, recipe, run, validate=scripted([0.1], seen))
    assert [steps for _, steps in seen] == [3]
    assert path.name == "best.safetensors"


def test_damaged_image_does_not_end_a_run(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Damaged(Shapes):
        def __getitem__(self, index: int) -> Sample:
            if index == 1:
                raise DatasetError("000001.jpg: cut short")
            return super().__getitem__(index)

    train(Damaged(seed=6, length=3, sides=(64, 80)), MODEL, replace(RECIPE, steps=4), run)
    assert len(read_log(run / "log.jsonl")) == 4
    assert [record.getMessage() for record in caplog.records] == ["skipped: 000001.jpg: cut short"]
