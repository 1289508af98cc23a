"""Mosaics of bench/tiles.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.mosaic import Squares, assign, move
from model.data.coco import open_folder
from model.data.shapes import Shapes
from model.masks.rle import Rle, decode

if TYPE_CHECKING:
    from pathlib import Path


def test_squares_come_again_turned_with_their_objects(tmp_path: Path) -> None:
    Shapes(seed=3, length=3, sides=(64, 96)).export(tmp_path)
    squares = Squares(open_folder(tmp_path), 48)
    count = 0
    for index in range(3):
        upright, turned = squares[index], squares[index + 3]
        assert upright.pixels.shape == turned.pixels.shape == (48, 48, 3)
        assert np.array_equal(np.rot90(upright.pixels), turned.pixels)
        for annotation, mask in zip(squares.annotations(turned), upright.masks, strict=True):
            found = decode(Rle.from_coco(annotation["segmentation"]))
            assert np.array_equal(found, np.rot90(mask))
            x, y, width, height = annotation["bbox"]
            assert found[y : y + height, x : x + width].sum() == annotation["area"] == mask.sum()
            count += 1
    assert count > 3


def test_an_annotation_moves_with_its_mask() -> None:
    scenes = Shapes(seed=3, length=1, sides=(64, 64))
    for annotation in scenes.annotations(scenes[0]):
        moved = move(annotation, 30, 10, (90, 110))
        mask = decode(Rle.from_coco(annotation["segmentation"]))
        expected = np.zeros((90, 110), np.uint8)
        expected[10:74, 30:94] = mask
        assert np.array_equal(decode(Rle.from_coco(moved["segmentation"])), expected)
        assert moved["bbox"][:2] == [annotation["bbox"][0] + 30, annotation["bbox"][1] + 10]


def test_a_record_belongs_to_the_scene_with_its_middle() -> None:
    # Scenes of 40 pixels with gutters of 10: two by two.
    records = [{"bbox": [x, y, 10, 10]} for x, y in ((0, 0), (44, 0), (46, 0), (20, 80), (95, 95))]
    assign(records, 50, 2)
    assert [record["image_id"] for record in records] == [0, 0, 1, 2, 3]
