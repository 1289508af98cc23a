"""The model card names how images were changed while training."""

from __future__ import annotations

from dataclasses import asdict, replace

from model.data.appearance import Appearance
from model.evaluation.card import CHANGES, card
from model.training.recipe import Recipe
from tests.model.thin import MODEL


def written(recipe: Recipe) -> str:
    model = replace(MODEL, training={"recipe": asdict(recipe)})
    text = card(model, None, [], command="maskserve train", data="scenes", measured_on="nothing")
    return next(line for line in text.splitlines() if line.startswith("- Augmentation"))


def test_card_names_every_change_that_is_turned_on() -> None:
    assert set(Appearance.__dataclass_fields__) < set(CHANGES)
    recipe = Recipe(flip=0.5, flip_vertical=0.25, stain=0.15, invert=0.1, jitter=(0.75, 2.0), jitter_side=512)
    assert written(recipe) == (
        "- Augmentation: flip 0.5, flip vertical 0.25, stain 0.15, invert 0.1, "
        "scales of 0.75 to 2 on a canvas of 512 pixels a side."
    )
    assert written(Recipe(flip=0.0)) == "- Augmentation: none."
