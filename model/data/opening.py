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
    split: str | None = None,
    otherwise: str = "train",
    skip_damaged: bool = False,
    boxes: bool = False,
) -> Dataset:
    """The labelled images in a folder, or of a COCO JSON file. Raises DatasetError.

    Args:
        path: a folder with Cityscapes' leftImg8bit/, one that labelling tools leave, or a COCO JSON file.
        images: where the images of a COCO JSON file lie.
        split: which part of the folder to take, where it has several; it must be there.
        otherwise: which part to take of several where `split` says nothing.
        skip_damaged: as for model.data.coco.CocoFolder.
        boxes: as for model.data.coco.CocoFolder.
    """
    if (path / "leftImg8bit").is_dir():
        return Cityscapes(path, split if split is not None else otherwise)
    return open_folder(path, images, split=split, otherwise=otherwise, skip_damaged=skip_damaged, boxes=boxes)
