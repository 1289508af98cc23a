"""Drawing instances on an image: which pixels change, which stay, and in which colours."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.images import text
from model.images.overlay import PALETTE, colour_of, overlay
from model.images.png import encode_png
from model.instances import Instances
from model.masks.paste import Crop
from model.masks.runs import rectangles

GREY = 100


def photo(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def instances_of(
    size: tuple[int, int],
    boxes: list[list[float]],
    labels: list[int] | None = None,
    *,
    masks: bool = True,
) -> Instances:
    count = len(boxes)
    return Instances(
        size=size,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
        scores=torch.linspace(0.99, 0.5, count),
        labels=torch.tensor(labels or [1] * count, dtype=torch.int64),
        probabilities=torch.ones(count, 28, 28) if masks else None,
    )


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=2)


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
def test_pixels_away_from_boxes_and_labels_are_untouched(masks: bool) -> None:
    before = photo(400, 600)
    after = overlay(before, instances_of((400, 600), [[300, 200, 380, 290]], masks=masks), {1: "dog"})
    touched = changed(before, after)
    # The box, and the label above it.
    touched[160:300, 290:390] = False
    assert not touched.any()


def test_input_image_is_not_changed() -> None:
    before = photo(60, 60)
    overlay(before, instances_of((60, 60), [[10, 10, 50, 50]]), {})
    assert (before == GREY).all()


def test_mask_is_tinted_with_the_colour_of_its_category() -> None:
    after = overlay(photo(300, 300), instances_of((300, 300), [[50, 50, 250, 250]], [3]), {3: "car"})
    tinted, colour = after[150, 150].astype(int), np.array(colour_of(3))
    share = (tinted - GREY) / (colour - GREY)
    assert share == pytest.approx(0.375, abs=0.03)


def test_a_mask_is_outlined_in_its_full_colour() -> None:
    after = overlay(photo(300, 300), instances_of((300, 300), [[50, 50, 250, 250]], [3]), {3: "car"})
    row = [tuple(pixel) for pixel in after[200].tolist()]
    # One pixel per side at this size.
    assert row.count(colour_of(3)) == 2
    assert row[40] == row[260] == (GREY,) * 3


def test_hole_in_a_mask_is_not_tinted() -> None:
    bitmap = np.ones((200, 200), np.bool_)
    bitmap[80:120, 80:120] = False
    before = photo(300, 300)
    after = overlay(before, instances_of((300, 300), [[50, 50, 250, 250]]), {}, [Crop(50, 50, bitmap)])
    assert not changed(before, after)[130:170, 130:170].any()
    assert changed(before, after)[60:120, 60:240].all()


def test_without_masks_only_the_frame_of_the_box_is_drawn() -> None:
    before = photo(300, 300)
    after = overlay(before, instances_of((300, 300), [[50, 50, 250, 250]], [2], masks=False), {2: "cat"})
    assert not changed(before, after)[60:240, 60:240].any()
    for row, column in ((150, 50), (150, 249), (249, 150)):
        assert tuple(after[row, column].tolist()) == colour_of(2)


def test_small_instance_is_drawn_over_a_large_one_whatever_their_scores() -> None:
    boxes = [[130, 130, 170, 170], [10, 10, 290, 290]]
    for order in ([0, 1], [1, 0]):
        both = instances_of((300, 300), [boxes[i] for i in order], [[5, 6][i] for i in order])
        alone = instances_of((300, 300), [boxes[1]], [6])
        beneath = overlay(photo(300, 300), alone, {})[150, 150].astype(int)
        seen = overlay(photo(300, 300), both, {})[150, 150].astype(int)
        assert np.abs(seen - (beneath + 0.375 * (np.array(colour_of(5)) - beneath))).max() <= 2


def test_a_category_has_the_same_colour_in_every_picture() -> None:
    alone = overlay(photo(200, 200), instances_of((200, 200), [[20, 60, 180, 180]], [7]), {})
    among = overlay(
        photo(200, 400), instances_of((200, 400), [[220, 60, 380, 180], [20, 60, 180, 180]], [2, 7]), {}
    )
    assert alone[120, 100].tolist() == among[120, 100].tolist()


@pytest.mark.parametrize("side", [1, 2, 8, 20, 64])
@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
def test_tiny_image_with_a_huge_label(side: int, masks: bool) -> None:
    found = instances_of((side, side), [[0, 0, side, side]] * 3, [1, 2, 3], masks=masks)
    after = overlay(photo(side, side), found, {1: "a very long name " * 20, 2: "", 3: "two\nlines"})
    assert after.shape == (side, side, 3)
    assert changed(photo(side, side), after).any()


@pytest.mark.parametrize("size", [(8, 300), (300, 8), (1, 50)])
def test_narrow_image(size: tuple[int, int]) -> None:
    after = overlay(photo(*size), instances_of(size, [[0, 0, size[1], size[0]]]), {1: "person"})
    assert after.shape == (*size, 3)


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
@pytest.mark.parametrize(
    "box", [[-50, -50, -10, -10], [90, 90, 500, 500], [40, 40, 40, 40], [-20, 30, 120, 31], [60, 60, 50, 50]]
)
def test_box_off_the_image_or_without_extent(box: list[float], masks: bool) -> None:
    after = overlay(photo(100, 100), instances_of((100, 100), [box], masks=masks), {1: "kite"})
    assert after.shape == (100, 100, 3)


def test_no_instances_give_the_same_pixels() -> None:
    before = photo(50, 70)
    after = overlay(before, instances_of((50, 70), []), {})
    np.testing.assert_array_equal(after, before)
    assert after is not before


def test_instances_of_another_image_are_refused() -> None:
    with pytest.raises(ValueError, match="60, 50"):
        overlay(photo(50, 60), instances_of((60, 50), [[0, 0, 9, 9]]), {})


def label_pixels(size: tuple[int, int], boxes: list[list[float]], labels: list[int], name: str) -> list[int]:
    """How many pixels of each instance's colour there are when nothing but the labels is drawn."""
    nothing = [Crop(0, 0, np.zeros((0, 0), np.bool_))] * len(boxes)
    picture = overlay(photo(*size), instances_of(size, boxes, labels), dict.fromkeys(labels, name), nothing)
    return [int((picture == colour_of(label)).all(axis=2).sum()) for label in labels]


@pytest.mark.parametrize("x", [-5, 0, 195, 370])
@pytest.mark.parametrize("y", [-5, 0, 140, 270])
def test_label_is_whole_wherever_its_box_lies(x: int, y: int) -> None:
    in_the_middle = label_pixels((300, 400), [[200, 150, 230, 180]], [1], "traffic light")
    assert label_pixels((300, 400), [[x, y, x + 30, y + 30]], [1], "traffic light") == in_the_middle


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    labels = [1, 2, 3, 4, 5, 6]
    boxes = [[100.0 + i, 100.0 + i, 140.0 + i, 140.0 + i] for i in labels]
    alone = [label_pixels((300, 300), [b], [i], "dog")[0] for b, i in zip(boxes, labels, strict=True)]
    together = label_pixels((300, 300), boxes, labels, "dog")
    # The digits of the score differ in ink.
    assert (np.array(together) > 0.93 * np.array(alone)).all()


def test_long_name_is_shortened_until_it_fits() -> None:
    short, long = (label_pixels((100, 100), [[10, 40, 90, 90]], [1], "x" * n)[0] for n in (3, 300))
    assert short < long < 100 * 20


def test_labels_cover_less_than_half_of_a_crowded_picture() -> None:
    boxes = [[x, y, x + 4.0, y + 4.0] for x in range(0, 120, 8) for y in range(0, 90, 8)]
    before = photo(96, 128)
    after = overlay(before, instances_of((96, 128), boxes, masks=False), {1: "person"})
    frames = len(boxes) * 12
    assert changed(before, after).sum() <= 0.4 * before[..., 0].size + frames


def test_a_crowded_picture_has_no_labels_that_are_larger_than_their_instance() -> None:
    small = [[x, y, x + 8.0, y + 8.0] for x in range(0, 300, 12) for y in range(0, 200, 12)]
    large = [100.0, 210.0, 250.0, 290.0]
    (alone,) = label_pixels((300, 300), [large], [1], "nucleus")
    together = label_pixels((300, 300), [large, *small], [1, *[2] * len(small)], "nucleus")
    assert together[:2] == [alone, 0]
    assert min(label_pixels((300, 300), small[:3], [2, 2, 2], "nucleus")) > 0


def test_label_grows_with_the_picture() -> None:
    small = overlay(photo(300, 300), instances_of((300, 300), [[100, 100, 101, 101]]), {})
    large = overlay(photo(1200, 1200), instances_of((1200, 1200), [[400, 400, 401, 401]]), {})
    ratio = changed(photo(1200, 1200), large).sum() / changed(photo(300, 300), small).sum()
    assert 8 < ratio < 24


def lab(colours: np.ndarray, seen_as: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB colours after a linear-light transform."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ seen_as.T
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.clip(linear, 0, 1) @ np.array(to_xyz).T / (0.95047, 1, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


# Machado, Oliveira, Fernandes: "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009,
# table 1, severity 1.0.
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.mark.parametrize("vision", VISION)
def test_first_eight_colours_are_told_apart_with_any_colour_vision(vision: str) -> None:
    seen = lab(np.array(PALETTE[:8]), VISION[vision])
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    # CIE76; 2.3 is the just noticeable difference of normal vision.
    assert min(distances) > 16


def test_no_colour_is_given_twice() -> None:
    assert len(set(PALETTE)) == len(PALETTE) == 24
    assert [colour_of(i) for i in (1, 24, 25, 0)] == [PALETTE[0], PALETTE[23], PALETTE[0], PALETTE[23]]


def test_name_in_another_script_is_drawn_and_a_name_without_letters_is_the_id() -> None:
    boxes = instances_of((200, 300), [[50, 60, 250, 150]], [2])

    def draw(name: str) -> np.ndarray:
        return overlay(photo(200, 300), boxes, {2: name})

    pictures = [draw(name) for name in ("猫", "犬", "вода", "#2")]
    assert all((one != other).any() for one, other in itertools.combinations(pictures, 2))
    assert (draw("\U00013000") == pictures[-1]).all()


def test_letters_that_are_higher_than_latin_ones_have_room() -> None:
    colour = np.array(PALETTE[0])
    after = overlay(photo(400, 400), instances_of((400, 400), [[50, 160, 350, 300]]), {1: "ကြောင်ဋ္ဌြ"})
    # The label lies above the box: its first and last row have no ink, only the label's colour and the photo.
    ys, _ = np.nonzero(changed(photo(400, 400), after)[:160])
    for row in (after[ys.min()], after[159]):
        assert all((pixel == GREY).all() or (pixel == colour).all() for pixel in row[60:120])


def test_lines_of_a_large_image_do_not_hide_its_small_objects() -> None:
    large = overlay(
        photo(3000, 3000), instances_of((3000, 3000), [[1000, 1000, 1032, 1032]], [3]), {3: "cell"}
    )
    # Four pixels of line on either side, not the ten of this size of image; the rest is tinted.
    row = [tuple(pixel) for pixel in large[1016, 990:1042].tolist()]
    assert row.count(colour_of(3)) == 8
    assert (GREY,) * 3 not in row[14:38]
    frame = instances_of((3000, 3000), [[1000, 1000, 1032, 1032]], [3], masks=False)
    boxed = overlay(photo(3000, 3000), frame, {3: "cell"})
    assert [tuple(pixel) for pixel in boxed[1016, 990:1042].tolist()].count(colour_of(3)) == 8


def test_what_a_tiled_picture_takes_does_not_grow_with_masks_times_pixels() -> None:
    side, count = 1500, 40
    # Each mask has the whole image: their bitmaps would take 40 bytes a pixel.
    everywhere = np.array([[0, 0, side, side]] * count)
    found = replace(
        instances_of((side, side), everywhere.tolist(), masks=False),
        runs=rectangles(everywhere.astype(np.int64)),
    )
    before = photo(side, side)
    tracemalloc.start()
    try:
        after = overlay(before, found, {1: "field"})
        encode_png(after)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert changed(before, after).all()
    assert peak < 12 * side * side


def test_thousands_of_small_instances_are_not_labelled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = np.random.default_rng(0).integers(0, 1950, (3000, 2))
    boxes = np.concatenate([corners, corners + 20], axis=1).tolist()
    laid_out = []
    original = text.lay_out
    monkeypatch.setattr(
        "model.images.overlay.lay_out", lambda *given: (laid_out.append(given), original(*given))[1]
    )
    overlay(photo(2000, 2000), instances_of((2000, 2000), boxes, masks=False), {1: "cell"})
    # The first one tells how large labels are.
    assert len(laid_out) == 1
