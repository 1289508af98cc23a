"""Folders in COCO's instances format: images and one JSON of annotations (polygons or either kind of RLE)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.data import Category, DatasetError, Sample
from model.data.keypoints import names_to_coco, to_coco
from model.data.labels import MISSING_FILE, first_of_each, read_labels
from model.data.layout import Place, locate
from model.data.masks import InstanceMasks, ObjectMask
from model.data.photos import read_pixels
from model.data.segmentation import measure, to_rle
from model.data.tally import Tally, digest, tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from model.data import Keypoints
    from model.data.labels import Annotation, Labels


class CocoFolder:
    """A labelled folder. Crowds (`iscrowd`) are no objects to train on, but are kept for the evaluation to ignore."""

    def __init__(
        self,
        annotations: Path,
        images: Path | Sequence[Path],
        *,
        skip_damaged: bool = False,
        boxes: bool = False,
    ) -> None:
        """Read the labels, and the header of every image.

        Args:
            annotations: the JSON file.
            images: the folder that its file names are relative to, or several to try.
            skip_damaged: leave out images and annotations that cannot be used, instead of refusing the folder.
            boxes: give objects without a segmentation the rectangle of their box for a mask, for networks that learn
                boxes only.

        Raises DatasetError.
        """
        roots = [images] if isinstance(images, Path) else list(images)
        labels = read_labels(Place(annotations, roots))
        self._labels, self._boxes = labels, boxes
        self.path, self.categories = labels.path, labels.categories
        self.keypoints = labels.keypoints
        self.notices = labels.notices
        # Images and annotations that are left out.
        self.problems = labels.problems
        self._images = labels.usable()
        if labels.problems and not skip_damaged:
            raise DatasetError(refusal(labels))
        if not self._images:
            raise DatasetError(_none_usable(labels))
        self._by_id = {image.id: image for image in self._images}

    @property
    def left_out(self) -> int:
        """How many images and annotations cannot be used."""
        return len(self.problems)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The image's file as the labels name it."""
        return self._images[index].name

    def file(self, index: int) -> Path:
        """Where the image lies."""
        return self._images[index].found_file

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) as annotated, or as the image is where the labels do not say it."""
        return self._images[index].found_size

    @property
    def has_outlines(self) -> bool:
        """Whether any object has one, so that masks can be measured."""
        return any(annotation.segmentation for image in self._images for annotation in image.annotations)

    def tally(self, *, boxes: bool | None = None) -> Tally:
        """What can be learned from it, and what was left out. boxes: learn those alone, by default as opened."""
        return tally(self._labels, boxes=self._boxes if boxes is None else boxes)

    def digest(self) -> str:
        """A hash of everything that is learned from: changed labels have another one."""
        return digest(self._labels)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` with its objects; those without any area, and crowds, are left out. Raises DatasetError."""
        size = self.size(index)
        pixels = read_pixels(self.file(index), size)
        labels, crops, points = [], [], []
        for annotation in self._images[index].annotations:
            crop = None if annotation.crowd else self._crop(annotation, size)
            if crop is not None and crop.bitmap.size:
                labels.append(annotation.category_id)
                crops.append(crop)
                points.append(annotation.points)
        masks = InstanceMasks(crops, size)
        sample = Sample(self._images[index].id, pixels, masks.boxes(), np.array(labels, np.int64), masks)
        if self.keypoints is None:
            return sample
        count = len(self.keypoints.names)
        stacked = np.array(points, np.float32).reshape(-1, count, 3)
        return replace(sample, keypoints=stacked, named=self.keypoints)

    def _crop(self, annotation: Annotation, size: tuple[int, int]) -> ObjectMask | None:
        rle = to_rle(annotation.segmentation, size)
        if rle is not None:
            return ObjectMask.from_rle(rle)
        if not self._boxes or annotation.box is None:
            return None
        x, y, width, height = annotation.box
        left, right = (min(max(0, round(v)), size[1]) for v in (x, x + width))
        top, bottom = (min(max(0, round(v)), size[0]) for v in (y, y + height))
        return ObjectMask(left, top, np.ones((bottom - top, right - left), np.uint8))

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """What the file says of the image, crowds included, as COCO's evaluation needs it.

        Masks are RLE; box and area are the mask's where the file has none that are one.
        """
        size = (int(sample.pixels.shape[0]), int(sample.pixels.shape[1]))
        return [_for_evaluation(annotation, size) for annotation in self._by_id[sample.image_id].annotations]


def _for_evaluation(annotation: Annotation, size: tuple[int, int]) -> dict[str, Any]:
    rle = to_rle(annotation.segmentation, size)
    pixels, around = measure(rle, size) or (0, (0.0, 0.0, 0.0, 0.0))
    box = annotation.box or around
    given = {key: value for key, value in annotation.given.items() if key in ("id", "visibility")}
    return {
        **given,
        **({} if annotation.points is None else to_coco(annotation.points)),
        "image_id": annotation.image_id,
        "category_id": annotation.category_id,
        "iscrowd": int(annotation.crowd),
        "segmentation": rle if rle is not None else _nothing(size),
        "bbox": list(box),
        "area": annotation.area or (pixels if rle is not None else box[2] * box[3]),
    }


def open_folder(
    path: Path,
    images: Path | None = None,
    *,
    split: str | None = None,
    otherwise: str = "train",
    skip_damaged: bool = False,
    boxes: bool = False,
) -> CocoFolder:
    """The dataset in a folder as labelling tools leave it, or of a JSON file. Raises DatasetError.

    Args:
        path: the dataset's folder, or its JSON file.
        images: where the images lie; by default it is looked for around the label file.
        split: the part to take of a folder that has several, like "val"; it must be there.
        otherwise: the part to take of several where `split` says nothing.
        skip_damaged: leave out images and annotations that cannot be used, instead of refusing the folder.
        boxes: give objects without a segmentation the rectangle of their box for a mask.
    """
    place = locate(path, images, split=split, otherwise=otherwise)
    return CocoFolder(*place, skip_damaged=skip_damaged, boxes=boxes)


def coco_document(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: Iterable[Category],
    keypoints: Keypoints | None = None,
) -> dict[str, Any]:
    """A COCO instances document.

    Args:
        images: COCO's records of images.
        annotations: COCO's records of annotations; their ids are counted from 1.
        categories: what the annotations refer to.
        keypoints: what their keypoints are, if they have some.
    """
    named = names_to_coco(keypoints)
    return {
        "images": images,
        "annotations": [{**annotation, "id": n} for n, annotation in enumerate(annotations, 1)],
        "categories": [{"id": c.id, "name": c.name, **named} for c in categories],
    }


def refusal(labels: Labels) -> str:
    """Why a folder with problems is not trained on, with the first of them."""
    counts = "; ".join(f"{kind}: {count}" for kind, count, _ in first_of_each(labels.problems))
    first = str(labels.problems[0]).rstrip(".")
    return (
        f"{labels.path}: {counts}. The first is {first}. `maskserve data check` shows more, and "
        "--skip-damaged leaves such images and annotations out"
    )


def _none_usable(labels: Labels) -> str:
    missing = [problem for problem in labels.problems if problem.kind == MISSING_FILE]
    what = (
        "none of the images that it names is there"
        if missing
        else "none of the images that it names can be used"
    )
    first = (missing or labels.problems)[0]
    return f"{labels.path}: {what}; the first is {first}"


def _nothing(size: tuple[int, int]) -> dict[str, Any]:
    """An empty mask, for objects that have only a box."""
    from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

    empty: dict[str, Any] = coco.encode(np.zeros(size, np.uint8, order="F"))
    return empty
