"""Recipes: which settings are refused, and the learning rate and image sizes of each step."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from model.data.appearance import Appearance
from model.data.augment import Augmentation
from model.data.shapes import Shapes
from model.training.recipe import RECIPES, Recipe, TrainingError
from model.training.train import train
from tests.model.thin import MODEL, RECIPE


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
        ({"flip_vertical": -0.1}, "flip vertical must be from 0 to 1"),
        ({"rotate": 2.0}, "rotate must be from 0 to 1"),
        ({"grey": float("nan")}, "grey must be from 0 to 1"),
        ({"invert": 1.1}, "invert must be from 0 to 1"),
        ({"gamma": 5.0}, "strength of gamma must be from 0 to 4"),
        ({"brightness": -0.5}, "strength of brightness"),
        ({"contrast": float("inf")}, "strength of contrast"),
        ({"saturation": float("nan")}, "strength of saturation"),
        ({"stain": 4.5}, "strength of stain"),
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


def test_every_setting_of_augmentation_reaches_the_images() -> None:
    values = {f.name: 0.25 for f in fields(Appearance)} | {"flip": 0.1, "flip_vertical": 0.2, "rotate": 0.3}
    made = Recipe(**values, jitter=(0.5, 2.0), jitter_side=64, copy_paste=0.4).augmentation()
    assert made == Augmentation(
        0.1, 0.2, 0.3, Appearance(*[0.25] * len(fields(Appearance))), (0.5, 2.0), 64, 0.4
    )
    assert Recipe().augmentation() == Augmentation()


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
