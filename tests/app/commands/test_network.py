"""The network to train: input sides, anchors and numbers, from options and from the recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.commands.network import NETWORKS, NetworkOptions, adapt, choose_architecture, parse_anchors
from model.network.architecture import SMALL, ArchitectureError
from model.network.build import build
from model.network.conventions import Conventions
from model.training.recipe import RECIPES


@pytest.mark.parametrize("text", ["8", "8,16,32,64,128"])
def test_anchors_are_doubled_from_level_to_level_unless_all_are_given(text: str) -> None:
    assert parse_anchors(text) == (8, 16, 32, 64, 128)
    assert parse_anchors("9,20,40,80,150") == (9, 20, 40, 80, 150)


@pytest.mark.parametrize("text", ["", "8,16", "0", "8,16,32,64,-1", "big", "8.5", "8,16,32,64,128,256"])
def test_other_anchors_are_refused(text: str) -> None:
    with pytest.raises(ArchitectureError, match="--anchors takes 5 sizes in pixels, such as 8,16,32,64,128"):
        parse_anchors(text)


def test_options_replace_what_the_architecture_says_and_nothing_else() -> None:
    options = NetworkOptions(input=(256, 320), anchors="12", detections=400)
    made = adapt(SMALL, options, "small")
    assert made == replace(
        SMALL,
        min_size=256,
        max_size=320,
        anchor_sizes=(12, 24, 48, 96, 192),
        proposals=800,
        conventions=Conventions(detections=400),
    )
    assert adapt(SMALL, NetworkOptions(), "small") == SMALL
    made.validate()
    assert made.is_torchvision


def test_recipe_sets_what_the_options_leave_open() -> None:
    made = choose_architecture(NetworkOptions(detections=200), 2, "nuclei")
    assert made.anchor_sizes == (8, 16, 32, 64, 128)
    assert made.conventions.detections == 200
    assert (made.min_size, made.max_size) == NETWORKS["nuclei"].input
    assert made.conventions.paste == "detectron2"
    assert made.conventions.nms == 0.3
    assert choose_architecture(NetworkOptions(nms=0), 2, "nuclei").conventions.nms == 0
    assert build(made).roi_heads.detections_per_img == 200


def test_recipes_of_networks_have_names() -> None:
    assert NETWORKS.keys() <= RECIPES.keys()


def test_anchors_of_a_model_with_its_own_levels_stay() -> None:
    levels = ((8.0, 10.0),) * 5
    imported = replace(SMALL, conventions=Conventions(anchor_levels=levels))
    with pytest.raises(ArchitectureError, match="leave it out"):
        adapt(imported, NetworkOptions(anchors="8"), "small")


def test_pasting_is_chosen_for_new_models_and_for_those_that_training_goes_on_from() -> None:
    options = NetworkOptions(paste="detectron2")
    assert choose_architecture(options, 3).conventions == Conventions(paste="detectron2")
    assert adapt(SMALL, options, "small").conventions.paste == "detectron2"
    with pytest.raises(ArchitectureError, match="--paste is torchvision or detectron2, not 'mine'"):
        adapt(SMALL, NetworkOptions(paste="mine"), "small")
