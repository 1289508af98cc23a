"""What is wrong with a labelled folder: everything counted, with examples, before hours of training depend on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.data import DatasetError
from model.data.cityscapes import Cityscapes
from model.data.fields import to_key
from model.data.labels import read_labels
from model.data.layout import locate
from model.data.photos import UNREADABLE_IMAGE, ImageProblem, read_pixels
from model.data.segmentation import measure
from model.data.tally import tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model.data.labels import Annotation, LabelledImage
    from model.data.layout import Place

# Of each kind that are kept.
EXAMPLES = 5
# Overlap of an annotation's box and its mask's, below which they are not about the same thing.
FAR = 0.5

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
    # Without crowds.
    objects: int = 0
    crowds: int = 0
    per_category: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    # What was passed over and does no harm.
    notices: list[str] = field(default_factory=list)
    # Why there is nothing to train on, if there is not.
    refusal: str | None = None

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
    split: str | None = None,
    pixels: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Findings:
    """Look at every image's header and every annotation of a folder in COCO's or Cityscapes' format.

    Args:
        path: the dataset's folder, or its JSON file.
        images: where the images of a JSON file lie.
        split: which part to take of a folder that has several; by default "train".
        pixels: decode the images too, which finds files that end too early.
        on_image: gets how many images are done, and how many there are.

    Raises DatasetError where there is nothing to look at.
    """
    if (path / "leftImg8bit").is_dir():
        return _cityscapes(Cityscapes(path, split or "train"), on_image, pixels=pixels)
    return _coco(locate(path, images, split=split), on_image, pixels=pixels)


def _coco(place: Place, on_image: Callable[[int, int], None] | None, *, pixels: bool) -> Findings:
    labels = read_labels(place)
    names = {category.id: category.name for category in labels.categories}
    found = Findings(per_category=dict.fromkeys(names.values(), 0), notices=labels.notices)
    for problem in labels.problems:
        found.add(problem.kind, str(problem))
    ids: set[Any] = set()
    for number, image in enumerate(labels.images, start=1):
        found.images += 1
        if pixels and image.problem is None:
            _decode(found, image)
        for annotation in image.annotations:
            _look_at_annotation(found, annotation, image, names)
            if (key := to_key(annotation.given.get("id"))) is not None:
                if key in ids:
                    found.add(SAME_ANNOTATION, f"{annotation.where}: id is that of another annotation, too")
                ids.add(key)
        if not image.annotations and image.problem is None:
            found.add(NO_OBJECTS, image.name)
        if on_image is not None:
            on_image(number, len(labels.images))
    _look_at_categories(found)
    found.refusal = tally(labels).refusal()
    return found


def _decode(found: Findings, image: LabelledImage) -> None:
    try:
        read_pixels(image.found_file, image.found_size)
    except ImageProblem as problem:
        found.add(problem.kind, f"image {image.key}: {problem}")


def _look_at_annotation(
    found: Findings, annotation: Annotation, image: LabelledImage, names: dict[int, str]
) -> None:
    if annotation.crowd:
        found.crowds += 1
        return
    found.objects += 1
    found.per_category[names[annotation.category_id]] += 1
    if annotation.segmentation is None:
        given = annotation.given.get("segmentation")
        short = isinstance(given, list) and any(given) if isinstance(given, list) else False
        told = ": segmentation has only polygons of fewer than three corners" if short else ""
        found.add(NO_AREA if short else NO_SEGMENTATION, f"{annotation.where}{told}")
        return
    pixels, own = measure(annotation.segmentation, image.found_size) or (0, (0.0, 0.0, 0.0, 0.0))
    if not pixels:
        found.add(OUTSIDE if _beyond(annotation, image.found_size) else NO_AREA, annotation.where)
    elif annotation.box is not None and (overlap := _overlap(annotation.box, own)) < FAR:
        where = f"{annotation.where}: box {_text(annotation.box)}, mask in {_text(own)}"
        found.add(BOX_ELSEWHERE, f"{where} (IoU {overlap:.2f})")


def _beyond(annotation: Annotation, size: tuple[int, int]) -> bool:
    """Whether a polygon has corners off the image."""
    if not isinstance(annotation.segmentation, list):
        return False
    return any(
        min(polygon) < 0 or max(polygon[::2]) > size[1] or max(polygon[1::2]) > size[0]
        for polygon in annotation.segmentation
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
