"""Folders in COCO's instances format: images and one JSON of annotations (polygons or either kind of RLE)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from model.data import Category, DatasetError, Sample
from model.image import ImageError, decode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class CocoFolder:
    """A labelled folder. Crowds (`iscrowd`) are no objects to train on, but are kept for the evaluation to ignore."""

    def __init__(self, annotations: Path, images: Path) -> None:
        """annotations: the JSON file. images: the folder that its file names are relative to. Raises DatasetError."""
        self.path, self.images = annotations, images
        document = _read(annotations)
        try:
            self.categories = tuple(
                Category(int(c["id"]), str(c["name"]))
                for c in sorted(document["categories"], key=lambda c: int(c["id"]))
            )
            self._images = [
                (int(i["id"]), str(i["file_name"]), int(i["height"]), int(i["width"]))
                for i in document["images"]
            ]
            self._annotations: dict[int, list[dict[str, Any]]] = {}
            for annotation in document["annotations"]:
                self._annotations.setdefault(int(annotation["image_id"]), []).append(annotation)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{annotations}: not COCO's instances format ({error!r})") from error
        self._check()

    def _check(self) -> None:
        if not self._images:
            raise DatasetError(f"{self.path}: it names no images")
        known = {category.id for category in self.categories}
        for image_id, found in self._annotations.items():
            if unknown := {a.get("category_id") for a in found} - known:
                raise DatasetError(
                    f"{self.path}: image {image_id} has an object of category {min(unknown, key=str)}, "
                    "which the categories do not list"
                )
        missing = [name for _, name, _, _ in self._images if not (self.images / name).is_file()]
        if missing:
            raise DatasetError(
                f"{self.path}: {len(missing)} of {len(self._images)} images are not in {self.images}; "
                f"the first is {missing[0]}"
            )

    def __len__(self) -> int:
        return len(self._images)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) as the annotations say."""
        return self._images[index][2], self._images[index][3]

    def __getitem__(self, index: int) -> Sample:
        """Image `index` with its objects; those without any area, and crowds, are left out. Raises DatasetError."""
        image_id, name, height, width = self._images[index]
        try:
            pixels = decode((self.images / name).read_bytes())
        except (OSError, ImageError) as error:
            raise DatasetError(f"{self.images / name}: {error}") from error
        if pixels.shape[:2] != (height, width):
            raise DatasetError(
                f"{self.images / name}: {pixels.shape[1]}×{pixels.shape[0]} pixels, but its annotations are for "
                f"{width}×{height}"
            )
        boxes, labels, masks = [], [], []
        for annotation in self._annotations.get(image_id, []):
            if annotation.get("iscrowd"):
                continue
            mask = _bitmap(annotation, height, width, self.path)
            if mask is None or not mask.any():
                continue
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes.append([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
            labels.append(int(annotation["category_id"]))
            masks.append(mask)
        return Sample(
            image_id,
            pixels,
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
            np.array(masks, np.uint8).reshape(-1, height, width),
        )

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """What the file says of the image, crowds included; the area is filled in where the file has none."""
        height, width = sample.pixels.shape[:2]
        found = []
        for annotation in self._annotations.get(sample.image_id, []):
            filled = {"iscrowd": 0, **annotation}
            if "area" not in filled:
                mask = _bitmap(annotation, height, width, self.path)
                filled["area"] = 0 if mask is None else int(mask.sum())
            found.append(filled)
        return found


def open_folder(path: Path, images: Path | None = None) -> CocoFolder:
    """The dataset in a folder (its instances.json, or the only file in its annotations/), or of a JSON file.

    images: where the images lie; by default `images` beside the file or one folder up, else where the file is.
    Raises DatasetError.
    """
    if path.is_dir():
        found = [path / "instances.json"] if (path / "instances.json").is_file() else []
        found = found or sorted((path / "annotations").glob("*.json"))
        if len(found) != 1:
            raise DatasetError(
                f"{path}: an instances.json, or exactly one JSON file in annotations/, is needed; "
                f"there are {len(found)}. A JSON file can be named instead of the folder"
            )
        path = found[0]
    if images is None:
        around = (path.parent / "images", path.parent.parent / "images", path.parent)
        images = next(folder for folder in around if folder.is_dir())
    return CocoFolder(path, images)


def coco_document(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: Iterable[Category]
) -> dict[str, Any]:
    """A COCO instances document; annotations are numbered from 1."""
    return {
        "images": images,
        "annotations": [{**annotation, "id": n} for n, annotation in enumerate(annotations, 1)],
        "categories": [{"id": c.id, "name": c.name} for c in categories],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DatasetError(f"{path}: no JSON ({error})") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: not COCO's instances format (a JSON object is expected)")
    return document


def _bitmap(annotation: dict[str, Any], height: int, width: int, path: Path) -> np.ndarray | None:
    """[H, W] uint8 of one annotation; None if it has no segmentation."""
    from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, list):
            polygons = [p for p in segmentation if len(p) >= 6]
            if not polygons:
                return None
            rle = coco.merge(coco.frPyObjects(polygons, height, width))
        elif isinstance(segmentation, dict):
            listed = isinstance(segmentation["counts"], list)
            rle = coco.frPyObjects(segmentation, height, width) if listed else segmentation
        else:
            return None
        mask: np.ndarray = coco.decode(rle)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DatasetError(
            f"{path}: annotation {annotation.get('id')} has an unreadable segmentation ({error!r})"
        ) from error
    if mask.shape != (height, width):
        raise DatasetError(
            f"{path}: annotation {annotation.get('id')} has a mask of {mask.shape[1]}×{mask.shape[0]} pixels "
            f"in an image of {width}×{height}"
        )
    return mask
