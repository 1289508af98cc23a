"""What the tiles of an image have becomes its instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from model.inference import tiled
from model.inference.tiled import TiledImage
from model.instances import Instances, Options
from model.masks.merge import Layout

if TYPE_CHECKING:
    import pytest

# Two tiles of 100 × 100 pixels that share the columns 60 to 100.
PAIR = Layout((100, 160), np.array([[0, 0, 100, 100], [60, 0, 160, 100]]), (100, 40))


def boxes(*found: tuple[float, tuple[int, int, int, int]]) -> Instances:
    """Of a model without masks: scores, and xyxy in the tile."""
    scores, places = (torch.tensor(column, dtype=torch.float32) for column in zip(*found, strict=True))
    return Instances((100, 100), places, scores, torch.ones(len(found), dtype=torch.int64), None)


def test_what_is_left_to_another_tile_takes_the_place_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "MOST_MERGED", 3)
    tiles = TiledImage(PAIR, Options())
    tiles.add(tiles.locate(0, boxes((0.6, (30, 20, 90, 40)))))
    # The first one is cut by the tile's left border.
    right = (0.95, (0, 20, 30, 40)), (0.8, (50, 20, 70, 40)), (0.7, (50, 60, 70, 80))
    tiles.add(tiles.locate(1, boxes(*right)))
    found = tiles.merge()
    assert found.scores.numpy().round(2).tolist() == [np.float32(0.8), np.float32(0.7), np.float32(0.6)]
    assert found.boxes[2].tolist() == [30, 20, 90, 40]
    # Nothing is its own.
    assert tiles.locate(1, boxes(right[0])) is None


def test_what_many_tiles_have_lies_in_few_arrays() -> None:
    tiles = TiledImage(PAIR, Options())
    for number in range(200):
        tiles.add(tiles.locate(0, boxes(*[(0.9, (30, 20, 90, 40))] * (1 + number % 5))))
    assert sum(len(part) for part in tiles._parts) == 600
    assert len(tiles._parts) <= 10
