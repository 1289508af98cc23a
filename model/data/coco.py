"""Folders in COCO's instances format: images and one JSON of annotations (polygons or either kind of RLE)."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from model.data import Category, DatasetError, Sample
from model.data.segmentation import Fault, fault, to_bitmap, to_rle
from model.images.decode import ImageError, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MISSING_FILE = "missing image file"
UNKNOWN_CATEGORY = "unknown category"
UNKNOWN_IMAGE = "unknown image"
NO_ANNOTATION = "no annotation"
SAME_IMAGE = "image id used twice"


class CocoFolder:
    """A labelled folder. Crowds (`iscrowd`) are no objects to train on, but are kept for the evaluation to ignore."""

    def __init__(
        self, annotations: Path, images: Path, *, skip_damaged: bool = False, boxes: bool = False
    ) -> None:
        """annotations: the JSON file. images: the folder that its file names are relative to.

        skip_damaged: leave out images and annotations that cannot be used, instead of refusing the folder. boxes: an
        object without a segmentation has the rectangle of its box for a mask, for networks that learn boxes only.
        Raises DatasetError.
        """
        self.path, self.images, self._boxes = annotations, images, boxes
        document = read_document(annotations)
        self.categories = tuple(sorted(read_categories(document, annotations), key=lambda c: c.id))
        self._images: list[tuple[int, str, int, int]] = []
        self._annotations: dict[int, list[dict[str, Any]]] = {}
        problems = list(self._sort(document))
        self.left_out = len(problems)  # images and annotations
        if problems and not skip_damaged:
            counts = Counter(problem.kind for _, problem in problems)
            where, first = problems[0]
            raise DatasetError(
                f"{annotations}: {'; '.join(f'{kind}: {n}' for kind, n in counts.items())}. "
                f"The first is {where}: {first.detail}. `maskserve data check` shows more, and --skip-damaged leaves "
                "such images and annotations out"
            )
        if not self._images:
            raise DatasetError(f"{annotations}: none of the images that it names is there")

    def _sort(self, document: dict[str, Any]) -> Iterator[tuple[str, Fault]]:
        """Fill in images and annotations that can be used, and yield where the others are and why they cannot."""
        sizes: dict[int, tuple[int, int]] = {}
        for image_id, name, height, width in images_of(document, self.path):
            if image_id in sizes:
                yield f"image {image_id}", Fault(SAME_IMAGE, name)
                continue
            sizes[image_id] = height, width
            if (self.images / name).is_file():
                self._images.append((image_id, name, height, width))
            else:
                yield f"image {image_id}", Fault(MISSING_FILE, f"{name} is not in {self.images}")
        known = {category.id for category in self.categories}
        for annotation in document["annotations"]:
            problem = annotation_fault(annotation, sizes, known)
            if problem is None:
                self._annotations.setdefault(int(annotation["image_id"]), []).append(annotation)
            else:
                yield f"annotation {identity(annotation)}", problem

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The image's file, under the images' folder."""
        return self._images[index][1]

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
            mask = self._mask(annotation, (height, width))
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

    def _mask(self, annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray | None:
        mask = to_bitmap(annotation, size)
        if mask is not None or not self._boxes or box_of(annotation) is None:
            return mask
        x, y, width, height = box_of(annotation) or (0, 0, 0, 0)
        mask = np.zeros(size, np.uint8)
        left, top = max(0, round(x)), max(0, round(y))
        mask[top : max(0, round(y + height)), left : max(0, round(x + width))] = 1
        return mask

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """What the file says of the image, crowds included, masks as RLE; area and box are filled in where missing."""
        size = (int(sample.pixels.shape[0]), int(sample.pixels.shape[1]))
        found = []
        for annotation in self._annotations.get(sample.image_id, []):
            filled = {"iscrowd": 0, **annotation}
            rle = to_rle(annotation, size)
            filled["segmentation"] = rle if rle is not None else _nothing(size)
            if box_of(annotation) is None:
                mask = to_bitmap(annotation, size)
                filled["bbox"] = [0, 0, 0, 0] if mask is None else _box(mask)
            if "area" not in filled:
                mask = to_bitmap(annotation, size)
                width, height = filled["bbox"][2:]
                filled["area"] = width * height if mask is None else int(mask.sum())
            found.append(filled)
        return found


def open_folder(
    path: Path, images: Path | None = None, *, skip_damaged: bool = False, boxes: bool = False
) -> CocoFolder:
    """The dataset in a folder (its instances.json, or the only file in its annotations/), or of a JSON file.

    images: where the images lie; by default `images` beside the file or one folder up, else where the file is.
    skip_damaged, boxes: as for CocoFolder. Raises DatasetError.
    """
    return CocoFolder(*locate(path, images), skip_damaged=skip_damaged, boxes=boxes)


def locate(path: Path, images: Path | None = None) -> tuple[Path, Path]:
    """The JSON file and the images' folder that `open_folder` would read. Raises DatasetError."""
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
        images = next((folder for folder in around if folder.is_dir()), path.parent)
    return path, images


def coco_document(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: Iterable[Category]
) -> dict[str, Any]:
    """A COCO instances document; annotations are numbered from 1."""
    return {
        "images": images,
        "annotations": [{**annotation, "id": n} for n, annotation in enumerate(annotations, 1)],
        "categories": [{"id": c.id, "name": c.name} for c in categories],
    }


def read_document(path: Path) -> dict[str, Any]:
    """The JSON, with its lists of images, annotations and categories. Raises DatasetError."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DatasetError(f"{path}: no JSON ({error})") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: not COCO's instances format (a JSON object is expected)")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise DatasetError(f"{path}: not COCO's instances format (no list of {key})")
    if not document["images"]:
        raise DatasetError(f"{path}: it names no images")
    return document


def read_categories(document: dict[str, Any], path: Path) -> list[Category]:
    """The categories as the file lists them. Raises DatasetError."""
    try:
        found = [Category(int(c["id"]), str(c["name"])) for c in document["categories"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: not COCO's instances format ({error!r} in its categories)") from error
    if len({c.id for c in found}) < len(found) or len({c.name for c in found}) < len(found):
        raise DatasetError(f"{path}: two of its categories have the same id or name")
    return found


def images_of(document: dict[str, Any], path: Path) -> list[tuple[int, str, int, int]]:
    """(id, file name, height, width) of each image. Raises DatasetError."""
    try:
        return [
            (int(i["id"]), str(i["file_name"]), int(i["height"]), int(i["width"])) for i in document["images"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: not COCO's instances format ({error!r} in its images)") from error


def annotation_fault(
    annotation: Any, sizes: dict[int, tuple[int, int]], categories: set[int]
) -> Fault | None:
    """Why an annotation cannot be used; None if it can. sizes: (height, width) of the images by their id."""
    try:
        image_id, category = int(annotation["image_id"]), int(annotation["category_id"])
    except (KeyError, TypeError, ValueError) as error:
        return Fault(NO_ANNOTATION, f"image_id and category_id are needed ({error!r})")
    if category not in categories:
        return Fault(UNKNOWN_CATEGORY, f"category {category}, which the categories do not list")
    if image_id not in sizes:
        return Fault(UNKNOWN_IMAGE, f"image {image_id}, which the images do not list")
    return fault(annotation, sizes[image_id])


def identity(annotation: Any) -> str:
    """What to call an annotation in a message."""
    return str(annotation.get("id", "without id")) if isinstance(annotation, dict) else f"{annotation!r:.30}"


def box_of(annotation: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """x, y, width, height in pixels; None where the annotation has no box that is one."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(type(v) in (int, float) and abs(v) < 1e9 for v in box):
        return None
    return box[0], box[1], box[2], box[3]


def _box(mask: np.ndarray) -> list[int]:
    """x, y, width, height of what is not zero."""
    if not mask.any():
        return [0, 0, 0, 0]
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(xs[0]), int(ys[0])
    return [x, y, int(xs[-1]) + 1 - x, int(ys[-1]) + 1 - y]


def _nothing(size: tuple[int, int]) -> dict[str, Any]:
    """An empty mask, for objects that have only a box."""
    from pycocotools import mask as coco  # noqa: PLC0415 - of the extra `train`; the service runs without it

    empty: dict[str, Any] = coco.encode(np.zeros(size, np.uint8, order="F"))
    return empty
