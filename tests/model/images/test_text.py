"""Names of categories in pictures: every script has its letters, in their order, or the category's id stands there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import features

from model.images import text
from model.images.text import can_draw, label_name, lay_out, picture_of

NAMES = [
    "猫", "犬とネコ", "고양이", "вода", "γάτα", "Größe", "Łódź", "مرحبا",
    "گربه", "חתול", "बिल्ली", "বিড়াল", "ਬਿੱਲੀ", "બિલાડી", "ବିଲେଇ", "பூனை",
    "పిల్లి", "ಬೆಕ್ಕು", "പൂച്ച", "පූසා", "แมวน้ำ", "ແມວ", "ကြောင်", "ឆ្មា",
    "བྱི་ལ", "ድመት", "Կատու", "კატა", "🍎 apple", "👩‍🌾 ❤️ 🇩🇪", "→ ✓ ≥ ★", "قط cat",
    "猫 и dog",
]  # fmt: skip
# An Egyptian hieroglyph, a private character, a control character, right-to-left text that needs both fonts, nothing.
HOPELESS = ["\U00013000", "cat \ue000", "cat\x07", "قط 猫", "\u200d", " "]
SIZE = 24


def ink(name: str) -> np.ndarray:
    return picture_of(name, SIZE)[..., 3]


@pytest.fixture(autouse=True)
def _forget() -> None:
    can_draw.cache_clear()


def without_raqm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "raqm")
    can_draw.cache_clear()


@pytest.mark.skipif(not features.check("raqm"), reason="libfribidi is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_name_in_any_script_has_letters_and_no_boxes(name: str) -> None:
    assert label_name(name, 7) == name
    for part, font in lay_out(name, SIZE).runs:
        boxes = "\uffff" * len(part)
        mask = np.asarray(font.getmask("\uffff"))
        for character in part:
            if not text._is_ignorable(character) and character != " ":
                shape = np.asarray(font.getmask(character))
                assert shape.size
                assert shape.shape != mask.shape or (shape != mask).any(), f"{character} is drawn as a box"
        assert font.getmask(part).getbbox() is not None
        assert bytes(font.getmask(part)) != bytes(font.getmask(boxes))


@pytest.mark.parametrize("name", HOPELESS)
def test_name_that_no_font_has_is_shown_as_the_id(name: str) -> None:
    assert label_name(name, 7) == "#7"


def test_names_of_one_script_look_different() -> None:
    assert all(a.shape != b.shape or (a != b).any() for a, b in pairwise(map(ink, ["猫", "犬", "鳥", "猿"])))


@pytest.mark.skipif(not features.check("raqm"), reason="libfribidi is not installed")
def test_right_to_left_names_begin_at_the_right() -> None:
    first, both = ink("ל"), ink("לו")
    height = min(len(first), len(both))
    assert (both[:height, -first.shape[1] + 2 : -2] > 0).sum() == pytest.approx(
        (first[:, 2:-2] > 0).sum(), rel=0.15
    )


@pytest.mark.skipif(not features.check("raqm"), reason="libfribidi is not installed")
def test_letters_of_arabic_are_joined() -> None:
    assert ink("بب").shape[1] < 2 * ink("ب").shape[1] - 8


@pytest.mark.parametrize("name", ["مرحبا", "חתול", "बिल्ली", "e\u0323\u0301x"])
def test_without_raqm_what_would_be_in_disorder_is_shown_as_the_id(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_raqm(monkeypatch)
    assert label_name(name, 7) == "#7"


@pytest.mark.parametrize("name", ["猫", "вода", "🍎 apple", "👩‍🌾 ❤️", "Gro\u0308ße", "한"])
def test_without_raqm_simple_scripts_are_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_raqm(monkeypatch)
    shown = label_name(name, 7)
    assert shown != "#7"
    # No joiner is left, for which Pillow's own layout would draw a box.
    assert not any(text._is_ignorable(c) for part, _ in lay_out(shown, SIZE).runs for c in part)


def test_name_stands_on_one_line() -> None:
    assert label_name("  fire\n\thydrant ", 7) == "fire hydrant"


def test_every_font_of_a_size_is_kept_once() -> None:
    for size in range(20, 60):
        lay_out("猫 вода", size)
    assert text._load.cache_info().currsize <= 4
