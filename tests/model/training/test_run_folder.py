"""The run folder: settings, log, events, and folders that cannot be resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from model.data import Category
from model.data.shapes import CATEGORIES, Shapes
from model.training import run_folder
from model.training.parallel import Group
from model.training.recipe import TrainingError
from model.training.step import start
from model.training.train import read_log, train
from tests.model.thin import MODEL, RECIPE, THIN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
    assert state.average is not None
    document = {"network": state.network.state_dict(), "optimizer": state.optimizer.state_dict()}
    run_folder.save_checkpoint(run, {"step": 1, "average": state.average.module.state_dict(), **document})
    damage(run)
    with pytest.raises(TrainingError) as caught:
        train(Shapes(6, 2, (64, 80)), MODEL, recipe, run)
    text = str(caught.value)
    assert named in text
    assert "delete" in text
    assert "\n" not in text


def test_a_cut_off_last_line_of_the_log_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text('{"step": 0, "L": 2.5}\n{"step": 1, "L"')
    assert read_log(path) == [{"step": 0, "L": 2.5}]


def test_settings_of_a_run_are_those_it_was_started_with(scenes: Shapes, run: Path) -> None:
    train(scenes, MODEL, replace(RECIPE, steps=1), run)
    settings = json.loads((run / "settings.json").read_text())
    assert settings["architecture"] == json.loads(json.dumps(THIN.to_dict()))
    assert settings["recipe"]["batch_size"] == 2
    assert settings["categories"][0] == {"id": 1, "name": "circle"}


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
