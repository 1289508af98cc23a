"""A path → the dataset that lies there: COCO's format or Cityscapes'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.data.cityscapes import Cityscapes
from model.data.coco import open_folder

if TYPE_CHECKING:
    from pathlib import Path

    from model.data import Dataset


def open_dataset(
    path: Path,
    images: Path | None = None,
    *,
    split: str = "train",
    skip_damaged: bool = False,
    boxes: bool = False,
) -> Dataset:
    """The labelled images in a folder, or of a COCO JSON file. Raises DatasetError.

    split: of Cityscapes, which is known by its folder leftImg8bit. images, skip_damaged and boxes are those of
    model.data.coco, and mean nothing for Cityscapes.
    """
    if (path / "leftImg8bit").is_dir():
        return Cityscapes(path, split)
    return open_folder(path, images, skip_damaged=skip_damaged, boxes=boxes)
