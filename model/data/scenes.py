"""What the synthetic data sets have in common: seeds, sizes, annotations, and files of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from model.data.coco import coco_document
from model.data.keypoints import to_coco
from model.masks.paste import encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.random import Generator

    from model.data import Category, Keypoints, Sample


class Scenes:
    """Scenes 0 … length - 1 of a seed; aspect ratios go from 1:2 to 2:1.

    The same seed and index draw the same scene on every machine; other versions of NumPy and Pillow may draw some of
    its pixels otherwise.
    """

    categories: tuple[Category, ...] = ()
    keypoints: Keypoints | None = None

    def __init__(self, seed: int, length: int, sides: tuple[int, int]) -> None:
        """Nothing is drawn yet.

        Args:
            seed: of all scenes.
            length: how many scenes there are.
            sides: shortest and longest image side, pixels; at least 64.

        Raises ValueError for a length or sides that cannot be.
        """
        if length < 0 or not 64 <= sides[0] <= sides[1]:
            raise ValueError(
                f"a length of at least 0 and sides of at least 64 px are needed: {length}, {sides}"
            )
        self.seed, self.length, self.sides = seed, length, sides

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Scene `index`, with what is visible of each object."""
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of scene `index`."""
        return self._size(self._generator(index))

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """The sample's objects as COCO annotations, masks as compressed RLE; `visibility` is an extra key of ours."""
        annotations = []
        for row, (x0, y0, x1, y1) in enumerate(sample.boxes.tolist()):
            rle = encode(sample.masks[row])
            annotations.append(
                {
                    "image_id": sample.image_id,
                    "category_id": int(sample.labels[row]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": rle.area,
                    "iscrowd": 0,
                    "segmentation": rle.to_coco(),
                    "visibility": round(float(sample.visibility[row]), 4)
                    if sample.visibility is not None
                    else 1.0,
                    **({} if sample.keypoints is None else to_coco(sample.keypoints[row])),
                }
            )
        return annotations

    def export(self, folder: Path, indices: Sequence[int] | None = None) -> None:
        """Write scenes (all, or those named) as JPEG files in `folder`/images and their annotations, in COCO's
        format, as `folder`/instances.json.
        """
        (folder / "images").mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(self.length) if indices is None else indices:
            sample = self[index]
            height, width = sample.pixels.shape[:2]
            name = f"{index:06d}.jpg"
            Image.fromarray(sample.pixels).save(folder / "images" / name, quality=90, subsampling=0)
            images.append({"id": index, "file_name": name, "height": height, "width": width})
            annotations += self.annotations(sample)
        document = coco_document(images, annotations, self.categories, self.keypoints)
        (folder / "instances.json").write_text(json.dumps(document, separators=(",", ":")))

    def _generator(self, index: int) -> Generator:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return np.random.default_rng([self.seed, index])

    def _size(self, rng: Generator) -> tuple[int, int]:
        low, high = self.sides
        # Width / height.
        aspect = float(np.exp(rng.uniform(-np.log(2), np.log(2))))
        stretch = max(aspect, 1 / aspect)
        short = float(np.exp(rng.uniform(np.log(low), np.log(max(low, high / stretch)))))
        long = min(round(short * stretch), high)
        return (round(short), long) if aspect >= 1 else (long, round(short))
