"""Scenes side by side in one large image, with their labels: for bench/tiles.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from model.data.masks import InstanceMasks
from model.masks.boxes import mask_to_box
from model.masks.rle import Rle, decode, encode
from model.masks.runs import from_turns

if TYPE_CHECKING:
    from model.data import Sample
    from model.data.coco import CocoFolder

# ImageNet's, which networks see where there is no image.
PIXEL_MEAN = 124, 116, 104


class Squares:
    """The images of a labelled folder as squares: the middle of each, resized, then the same turned by quarters."""

    def __init__(self, folder: CocoFolder, side: int) -> None:
        self.folder, self.side = folder, side
        self.categories = folder.categories

    def __getitem__(self, index: int) -> Sample:
        turns, number = divmod(index, len(self.folder))
        sample = self.folder[number]
        height, width = sample.pixels.shape[:2]
        scale = min(height, width) / self.side
        # Of the pixels that are taken: their middles.
        steps = (np.arange(self.side) + 0.5) * scale
        top, left = (height - scale * self.side) / 2, (width - scale * self.side) / 2
        rows, columns = (steps + top).astype(np.int64), (steps + left).astype(np.int64)
        square = (self.side, self.side)
        masks = InstanceMasks.of(sample.masks).take(rows, columns, square, (0, 0)).rotate(turns)
        box = (left, top, left + scale * self.side, top + scale * self.side)
        image = Image.fromarray(sample.pixels).resize(square, Image.Resampling.BILINEAR, box)
        pixels = np.ascontiguousarray(np.rot90(np.asarray(image), turns))
        return replace(sample, image_id=index, pixels=pixels, masks=masks)

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """COCO's records of its objects that are in the square."""
        records = []
        for label, mask in zip(sample.labels.tolist(), sample.masks, strict=True):
            rle = encode(mask)
            if rle.area:
                x0, y0, x1, y1 = mask_to_box(mask)
                records.append(
                    {
                        "image_id": sample.image_id,
                        "category_id": label,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": rle.area,
                        "iscrowd": 0,
                        "segmentation": rle.to_coco(),
                    }
                )
        return records


def move(annotation: dict[str, Any], left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """An annotation of a scene as one of the mosaic. size: (height, width) of the mosaic."""
    mask = decode(Rle.from_coco(annotation["segmentation"]))
    column, row = np.nonzero(np.diff(np.pad(mask, ((1, 1), (0, 0))).T.astype(np.int8), axis=1))
    runs = from_turns(np.zeros_like(column), column, row, 1).move(left, top)
    x, y, width, height = annotation["bbox"]
    moved = {"bbox": [x + left, y + top, width, height], "segmentation": runs.rles(size)[0].to_coco()}
    return {**annotation, **moved}


def assign(records: list[dict[str, Any]], pitch: int, count: int) -> None:
    """Give each record the number of the scene that has its middle; pitch: pixels from scene to scene."""
    for record in records:
        x, y, width, height = record["bbox"]
        column, row = (min(int(middle // pitch), count - 1) for middle in (x + width / 2, y + height / 2))
        record["image_id"] = row * count + column
