"""Changes of pixels alone: each does what its name says, within its strength, and nothing when it is turned off."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.appearance import LUMINANCE, Appearance

EVERYTHING = Appearance(
    gamma=0.5, stain=0.3, contrast=0.5, brightness=0.5, saturation=0.5, grey=0.5, invert=0.5
)


def noise(seed: int = 0, *, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (12, 10, 3), np.uint8)


def change(pixels: np.ndarray, seed: int = 0, **strengths: float) -> np.ndarray:
    return Appearance(**strengths)(pixels, np.random.default_rng(seed))


def test_nothing_is_changed_by_default_and_nothing_is_drawn() -> None:
    pixels, rng = noise(), np.random.default_rng(1)
    assert Appearance()(pixels, rng) is pixels
    assert rng.random() == np.random.default_rng(1).random()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_everything_together_makes_an_image_of_the_same_kind_and_leaves_the_first_alone(seed: int) -> None:
    pixels = noise(seed)
    made = EVERYTHING(pixels, np.random.default_rng(seed))
    assert (made.shape, made.dtype) == (pixels.shape, np.uint8)
    assert np.array_equal(pixels, noise(seed))
    assert np.array_equal(made, EVERYTHING(pixels, np.random.default_rng(seed)))


@pytest.mark.parametrize("name", [f.name for f in fields(Appearance)])
def test_each_change_depends_on_its_own_draw(name: str) -> None:
    pixels = noise(low=60, high=200)
    made = [change(pixels, seed, **{name: 0.5}) for seed in range(8)]
    assert any(not np.array_equal(image, pixels) for image in made)
    probability = name in ("grey", "invert")
    assert len({image.tobytes() for image in made}) == (2 if probability else 8)


def test_invert_gives_the_negative() -> None:
    pixels = noise()
    assert np.array_equal(change(pixels, invert=1.0), 255 - pixels)


def test_grey_has_the_luminance_of_the_colours() -> None:
    pixels = noise()
    made = change(pixels, grey=1.0)
    assert (made == made[..., :1]).all()
    assert np.abs(made[..., 0] - pixels @ LUMINANCE).max() <= 0.51


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma", "saturation"])
def test_factors_stay_within_the_strength_and_go_both_ways(name: str) -> None:
    pixels = np.full((8, 8, 3), 100, np.uint8)
    # A pattern around 100: grey for contrast, coloured for saturation.
    pixels[::2] = (120, 120, 120) if name == "contrast" else (150, 90, 60)
    pixels[1::2] = (80, 80, 80) if name == "contrast" else (60, 110, 150)
    grey = (pixels @ LUMINANCE)[..., None]
    ratios: list[float] = []
    for seed in range(40):
        made = change(pixels, seed, **{name: 1.0}).astype(float)
        if name == "brightness":
            ratio: Any = made / pixels
        elif name == "gamma":
            ratio = np.log(made / 255) / np.log(pixels / 255)
        else:
            middle = 100 if name == "contrast" else grey
            ratio = (made - middle)[0, 0, 0] / (pixels - middle)[0, 0, 0]
        ratios.append(float(np.mean(ratio)))
    assert 0.47 < min(ratios) < 0.7
    assert 1.4 < max(ratios) < 2.1


def test_contrast_and_saturation_keep_what_they_are_measured_from() -> None:
    pixels = noise(low=100, high=150)
    assert change(pixels, contrast=0.5).mean() == pytest.approx(pixels.mean(), abs=3)
    assert np.abs(change(pixels, saturation=0.5) @ LUMINANCE - pixels @ LUMINANCE).max() <= 1
    fluorescence = np.repeat(noise()[..., :1], 3, 2)
    assert np.array_equal(change(fluorescence, saturation=0.5), fluorescence)


def test_gamma_keeps_black_and_white() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0] = 255
    assert np.array_equal(change(pixels, gamma=1.0), pixels)


def test_stain_changes_purple_tissue_in_its_colours_and_hardly_the_white_around_it() -> None:
    tissue = np.full((4, 4, 3), (140, 90, 160), np.uint8)
    made = np.array([change(tissue, seed, stain=0.2)[0, 0] for seed in range(60)], float)
    assert made.std(0).min() > 2
    # Green is what both stains absorb most; it stays the darkest.
    assert (made[:, 1] < made[:, [0, 2]].min(1)).mean() > 0.95
    white = np.array([change(np.full((4, 4, 3), 255, np.uint8), seed, stain=0.2)[0, 0] for seed in range(60)])
    assert white.min() > 200


def test_without_a_draw_densities_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    monkeypatch.setattr(Appearance, "_draw_stain", lambda _self, _rng: unit)
    pixels = noise(low=1)
    assert np.array_equal(change(pixels, stain=0.2), pixels)
