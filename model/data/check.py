"""What is wrong with a labelled folder: everything counted, with examples, before hours of training depend on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from model.data import DatasetError
from model.data.cityscapes import Cityscapes
from model.data.coco import (
    MISSING_FILE,
    SAME_IMAGE,
    annotation_fault,
    box_of,
    identity,
    images_of,
    locate,
    read_categories,
    read_document,
)
from model.data.segmentation import to_bitmap
from model.images.decode import ImageError, decode, read_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXAMPLES = 5  # of each kind that are kept
FAR = 0.5  # overlap of an annotation's box and its mask's, below which they are not about the same thing

UNREADABLE_IMAGE = "unreadable image"
OTHER_IMAGE_SIZE = "image of another size than annotated"
NO_AREA = "no area"
NO_SEGMENTATION = "no segmentation"
OUTSIDE = "outside the image"
BOX_ELSEWHERE = "box and mask apart"
SAME_ANNOTATION = "annotation id used twice"
NO_OBJECTS = "image without objects"
UNUSED = "category without objects"

# What each finding means for training; the rest are errors, which stop it unless they are to be skipped.
WARNINGS = {
    NO_AREA: "left out of training; the evaluation counts it as never found",
    NO_SEGMENTATION: "left out of training, except where only boxes are learned",
    OUTSIDE: "left out of training; the evaluation counts it as never found",
    BOX_ELSEWHERE: "training takes the box from the mask, the evaluation from the file",
    SAME_ANNOTATION: "both are used",
    NO_OBJECTS: "teaches what background is",
    UNUSED: "will never be found",
}


@dataclass(slots=True)
class Findings:
    """What was found, by kind: how often, and the first few places."""

    images: int = 0
    objects: int = 0  # without crowds
    crowds: int = 0
    per_category: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        """One more of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(where)

    @property
    def errors(self) -> int:
        """How many images and annotations cannot be used."""
        return sum(count for kind, count in self.counts.items() if kind not in WARNINGS)


def check(
    path: Path,
    images: Path | None = None,
    *,
    split: str = "train",
    pixels: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Findings:
    """Look at every image's header and every annotation of a folder in COCO's or Cityscapes' format.

    pixels: decode the images too, which finds files that end too early. on_image gets how many images are done, and
    how many there are. Raises DatasetError where there is nothing to look at.
    """
    if (path / "leftImg8bit").is_dir():
        return _cityscapes(Cityscapes(path, split), on_image, pixels=pixels)
    return _coco(*locate(path, images), on_image, pixels=pixels)


def _coco(path: Path, folder: Path, on_image: Callable[[int, int], None] | None, *, pixels: bool) -> Findings:
    document = read_document(path)
    categories = {c.id: c.name for c in read_categories(document, path)}
    found = Findings(per_category=dict.fromkeys(categories.values(), 0))
    by_image: dict[int, list[Any]] = {}
    listed = images_of(document, path)
    sizes = {number: (height, width) for number, _, height, width in listed}
    ids: set[Any] = set()
    for annotation in document["annotations"]:
        if (problem := annotation_fault(annotation, sizes, set(categories))) is not None:
            found.add(problem.kind, f"annotation {identity(annotation)}: {problem.detail}")
            continue
        by_image.setdefault(int(annotation["image_id"]), []).append(annotation)
        if (number := annotation.get("id")) is not None:
            if str(number) in ids:
                found.add(SAME_ANNOTATION, f"annotation {number}")
            ids.add(str(number))
    seen: set[int] = set()
    for number, (image_id, name, height, width) in enumerate(listed, start=1):
        if image_id in seen:
            found.add(SAME_IMAGE, f"image {image_id}: {name}")
            continue
        seen.add(image_id)
        found.images += 1
        _look_at_image(found, folder / name, (height, width), pixels=pixels)
        for annotation in by_image.get(image_id, []):
            _look_at_annotation(found, annotation, (height, width), categories)
        if not by_image.get(image_id):
            found.add(NO_OBJECTS, name)
        if on_image is not None:
            on_image(number, len(listed))
    _look_at_categories(found)
    return found


def _look_at_image(found: Findings, file: Path, size: tuple[int, int], *, pixels: bool) -> None:
    try:
        content = file.read_bytes()
        header = read_header(content)
        if pixels:
            decode(content)
    except FileNotFoundError:
        found.add(MISSING_FILE, str(file))
    except (OSError, ImageError) as error:
        found.add(UNREADABLE_IMAGE, f"{file}: {error}")
    else:
        if (header.height, header.width) != size:
            is_, said = f"{header.width}×{header.height}", f"{size[1]}×{size[0]}"
            found.add(OTHER_IMAGE_SIZE, f"{file}: {is_} pixels, annotated as {said}")


def _look_at_annotation(
    found: Findings, annotation: dict[str, Any], size: tuple[int, int], categories: dict[int, str]
) -> None:
    where = f"annotation {identity(annotation)} of image {annotation['image_id']}"
    if annotation.get("iscrowd"):
        found.crowds += 1
        return
    found.objects += 1
    found.per_category[categories[int(annotation["category_id"])]] += 1
    box = box_of(annotation)
    if not annotation.get("segmentation"):
        found.add(NO_SEGMENTATION, where)
        return
    mask = to_bitmap(annotation, size)
    if mask is None or not mask.any():
        outside = mask is not None and _beyond(annotation, size)
        found.add(OUTSIDE if outside else NO_AREA, where)
    elif box is not None:
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        own = (float(xs[0]), float(ys[0]), float(xs[-1] + 1 - xs[0]), float(ys[-1] + 1 - ys[0]))
        if (overlap := _overlap(box, own)) < FAR:
            found.add(BOX_ELSEWHERE, f"{where}: box {_text(box)}, mask in {_text(own)} (IoU {overlap:.2f})")


def _beyond(annotation: dict[str, Any], size: tuple[int, int]) -> bool:
    """Whether a polygon has corners off the image."""
    segmentation = annotation["segmentation"]
    if not isinstance(segmentation, list):
        return False
    return any(
        min(polygon) < 0 or max(polygon[::2]) > size[1] or max(polygon[1::2]) > size[0]
        for polygon in segmentation
        if polygon
    )


def _overlap(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    """IoU of two boxes x, y, width, height, each a pixel larger all around: small ones are apart by rounding alone."""
    shared = 1.0
    for axis in (0, 1):
        low = max(ours[axis], theirs[axis]) - 1
        high = min(ours[axis] + ours[axis + 2], theirs[axis] + theirs[axis + 2]) + 1
        shared *= max(0.0, high - low)
    areas = [(box[2] + 2) * (box[3] + 2) for box in (ours, theirs)]
    together = sum(areas) - shared
    return shared / together if together > 0 else 0.0


def _text(box: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in box) + "]"


def _look_at_categories(found: Findings) -> None:
    for name, count in found.per_category.items():
        if not count:
            found.add(UNUSED, name)


def _cityscapes(
    dataset: Cityscapes, on_image: Callable[[int, int], None] | None, *, pixels: bool
) -> Findings:
    names = {category.id: category.name for category in dataset.categories}
    found = Findings(per_category=dict.fromkeys(names.values(), 0))
    for index in range(len(dataset)):
        found.images += 1
        try:
            if pixels:
                _ = dataset[index]
            objects, crowds = dataset.counts(index)
        except DatasetError as error:
            found.add(UNREADABLE_IMAGE, str(error))
            continue
        for label, count in objects.items():
            found.objects += count
            found.per_category[names[label]] += count
        found.crowds += crowds
        if not objects:
            found.add(NO_OBJECTS, dataset.name(index))
        if on_image is not None:
            on_image(index + 1, len(dataset))
    _look_at_categories(found)
    return found
