"""Plots whose categories have names in any script, or that matplotlib would take for formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from model.data import Category
from model.evaluation.coco import Evaluation, Scores
from model.evaluation.confusion import Confusion
from model.evaluation.plots import confusion_matrix, precision_recall_by_category
from model.images import text

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NAMES = ("猫", "вода 🍎", "a$\\foo$", "\U00013000")


def draw(names: tuple[str, ...], folder: Path) -> list[np.ndarray]:
    """Both plots of categories with these names. Warnings about missing glyphs are errors."""
    confusion = Confusion([Category(id=number, name=name) for number, name in enumerate(names, 1)])
    per_category = {name: {"AP": 0.5} for name in names}
    scores = Scores({"AP": 0.5}, per_category, np.full((10, 101, len(names)), 0.5))
    folder.mkdir()
    confusion_matrix(confusion, folder / "confusion.png")
    precision_recall_by_category(Evaluation(1, 1, scores, scores, confusion), folder / "curves.png")
    return [np.asarray(Image.open(folder / name).convert("L")) for name in ("confusion.png", "curves.png")]


def test_names_in_any_script_are_drawn_and_none_is_a_formula(tmp_path: Path) -> None:
    for picture, empty in zip(
        draw(NAMES, tmp_path / "a"), draw(("#1", "#2", "#3", "#4"), tmp_path / "b"), strict=True
    ):
        assert picture.shape != empty.shape or (picture != empty).mean() > 0.001


def test_name_that_no_font_has_is_the_id(tmp_path: Path) -> None:
    for picture, numbered in zip(
        draw(("\U00013000",), tmp_path / "a"), draw(("#1",), tmp_path / "b"), strict=True
    ):
        assert (picture == numbered).all()


def test_letters_in_plots_are_those_of_the_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = draw(("猫",), tmp_path / "a")
    blank = text.picture_of("猫", 40) * 0
    monkeypatch.setattr("model.evaluation.plots.picture_of", lambda *_: blank)
    for picture, without in zip(before, draw(("猫",), tmp_path / "b"), strict=True):
        assert (picture != without).any()


def test_a_matrix_of_many_categories_is_a_picture_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.evaluation.plots.MOST_INCHES", 5.0)
    picture, _ = draw(tuple(f"kind {number}" for number in range(30)), tmp_path / "a")
    assert picture.shape == (550, 550)
