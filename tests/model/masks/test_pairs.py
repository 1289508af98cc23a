"""Boxes that overlap are found without comparing all with all."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from model.masks.pairs import candidates


@pytest.mark.parametrize("seed", range(8))
def test_each_pair_of_one_category_and_two_tiles_that_overlaps_is_found_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, longest = 80, int(random.choice([3, 60, 400]))
    corners = random.integers(0, random.integers(100, 1000, 2), (count, 2))
    boxes = np.concatenate([corners, corners + random.integers(0, longest, (count, 2))], axis=1)
    # One reaches far beyond the others.
    boxes[0] = [0, 0, 65_535, 1] if seed % 2 else [0, 0, 1, 65_535]
    labels, tiles = random.integers(0, 2, count), random.integers(0, 4, count)
    expected = [
        (one, other)
        for one, other in combinations(range(count), 2)
        if labels[one] == labels[other]
        and tiles[one] != tiles[other]
        and (
            np.maximum(boxes[one, :2], boxes[other, :2]) < np.minimum(boxes[one, 2:], boxes[other, 2:])
        ).all()
    ]
    found = [pair for pairs in candidates(boxes, labels, tiles) for pair in zip(*pairs, strict=True)]
    assert sorted(found) == expected


@pytest.mark.parametrize("tall", [0, 100])
def test_a_hundred_thousand_small_boxes_are_compared_with_those_nearby_only(tall: int) -> None:
    corners = np.random.default_rng(0).integers(0, 16_000, (100_000, 2))
    boxes = np.concatenate([corners, corners + 40], axis=1)
    boxes[:tall, 1::2] = 0, 16_000
    numbers = np.arange(len(boxes))
    pieces = list(candidates(boxes, np.zeros_like(numbers), numbers))
    # CANDIDATES_AT_ONCE are looked at for each piece; sorted along one axis alone, there would be 25 pieces.
    assert len(pieces) == 1
    assert sum(len(first) for first, _ in pieces) > 100_000
