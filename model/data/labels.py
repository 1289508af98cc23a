"""The one reader of COCO label files: for training, validation, evaluation, `data check`, `data take` and calibration.

It is tolerant where the meaning is certain, and leaves out, with a reason that names the field, what is not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from model.data.categories import Categories, read_categories
from model.data.document import read_document
from model.data.fields import Key, LabelFault, quote, to_box, to_count, to_flag, to_key, to_number
from model.data.finder import ImageFinder, NotFound, OutsideFolder
from model.data.keypoints import read_names, read_points
from model.data.photos import ImageProblem, read_size
from model.data.segmentation import Fault, Segmentation, read_segmentation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from model.data import Category, Keypoints
    from model.data.fields import Box
    from model.data.layout import Place

MISSING_FILE = "missing image file"
OUTSIDE_FOLDER = "file outside the images' folder"
UNKNOWN_CATEGORY = "unknown category"
UNKNOWN_IMAGE = "unknown image"
NO_ANNOTATION = "no annotation"
NO_IMAGE = "no image"
SAME_IMAGE = "image id used twice"
SAME_FILE = "image listed under two ids"
UNCLEAR_CROWD = "unclear iscrowd"


@dataclass(slots=True)
class LabelledImage:
    """One image that the file lists."""

    id: int
    # Its id in the file; the same as `id` where that is a number.
    key: Key
    # Its file as the label file names it.
    name: str
    # Where that was found.
    file: Path | None = None
    # (height, width) upright, as annotated, or as the image is.
    size: tuple[int, int] | None = None
    # Why it cannot be used.
    problem: LabelFault | None = None
    annotations: list[Annotation] = field(default_factory=list)

    @property
    def found_file(self) -> Path:
        """The file of an image that can be used."""
        if self.file is None:
            raise ValueError(f"{self.name}: no file was found")
        return self.file

    @property
    def found_size(self) -> tuple[int, int]:
        """(height, width) of an image that can be used, or has annotations."""
        if self.size is None:
            raise ValueError(f"{self.name}: its size is unknown")
        return self.size


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object, or a crowd of them, of which nobody can tell them apart."""

    image_id: int
    category_id: int
    crowd: bool
    box: Box | None
    # As the file has it, pixels.
    area: float | None
    segmentation: Segmentation | None
    # What to call it in a message.
    where: str
    # As it stands in the file.
    given: dict[str, Any]
    points: NDArray[np.float32] | None = None  # [K, 3] x, y and visibility, where the file has keypoints

    @property
    def has_keypoint(self) -> bool:
        """Whether it is an object with a labelled keypoint, and no crowd."""
        return self.points is not None and not self.crowd and bool(self.points.any())


@dataclass(slots=True)
class Labels:
    """What a label file says, as far as it can be used, and what of it cannot."""

    path: Path
    # Folder that the images' names are relative to.
    root: Path
    categories: tuple[Category, ...]
    # Every one that the file lists, usable or not.
    images: list[LabelledImage]
    # Of images and annotations, in the file's order.
    problems: list[LabelFault]
    # What was passed over and does no harm.
    notices: list[str]
    # What its objects' keypoints are, if any has a labelled one.
    keypoints: Keypoints | None = None

    def usable(self) -> list[LabelledImage]:
        """The images that are there and have the size that they are annotated for."""
        return [image for image in self.images if image.problem is None]


def read_labels(place: Place, *, headers: bool = True) -> Labels:
    """Everything in a label file. Raises DatasetError where it is no such file.

    place: as model.data.layout.locate finds it. headers: look at every image's header, so that one which is damaged
    or of another size than annotated is known at once; else only where the file does not say the size.
    """
    document = read_document(place.labels)
    categories = read_categories(document, place.labels)
    keypoints, unusable = read_names(document["categories"])
    without_points: list[str] = []
    images, problems = _read_images(document["images"])
    finder = ImageFinder(place.roots, [image.name for image in images])
    for image in images:
        _find(image, finder, headers=headers)
        if image.problem is not None:
            problems.append(image.problem)
    by_key, by_id = {image.key: image for image in images}, {image.id: image for image in images}
    for number, annotation in enumerate(document["annotations"]):
        read = _read_annotation(annotation, number, by_key, categories)
        if keypoints is not None and isinstance(read, Annotation):
            read = _with_points(read, len(keypoints.names), without_points)
        if isinstance(read, LabelFault):
            problems.append(read)
        elif read is not None:
            by_id[read.image_id].annotations.append(read)
    notices = [f"{place.labels}: left out {text}" for text in categories.dropped]
    if unusable:
        notices.append(f"{place.labels}: left out the {unusable}")
    if without_points:
        notices.append(
            f"{place.labels}: left out keypoints that are no list of x, y and 0, 1 or 2 for each: "
            f"{len(without_points)}, first {without_points[0]}"
        )
    images, spare = _without_repeats(images, problems)
    if spare:
        notices.append(
            f"{place.labels}: left out what lists a file again, without objects: {len(spare)}, first {spare[0]}"
        )
    labels = Labels(place.labels, finder.root, categories.known, images, problems, notices, keypoints)
    if keypoints is not None and not any(
        a.has_keypoint for image in labels.usable() for a in image.annotations
    ):
        labels.keypoints = None
        for image in images:
            image.annotations = [replace(annotation, points=None) for annotation in image.annotations]
        notices.append(f"{place.labels}: left out the keypoints, of which no object has a labelled one")
    return labels


def _read_images(listed: Sequence[Any]) -> tuple[list[LabelledImage], list[LabelFault]]:
    """The images with ids and names, and what is wrong with the others. Their ids are numbers, or all are counted."""
    ids = [to_key(image.get("id")) if isinstance(image, dict) else None for image in listed]
    texts = {str(image["id"]).strip() for image in listed if isinstance(image, dict) and "id" in image}
    joined = Counter(key for key in ids if key is not None)
    # "012" and "12" are one number and two names.
    apart = len(joined) < len(texts) and any(
        isinstance(i, dict) and isinstance(i.get("id"), str) for i in listed
    )
    images: dict[Key, LabelledImage] = {}
    problems = []
    for place, (image, key) in enumerate(zip(listed, ids, strict=True)):
        where = f"images[{place}]"
        if not isinstance(image, dict):
            problems.append(LabelFault(NO_IMAGE, where, f"an object is needed, not {quote(image)}"))
        elif key is None:
            told = f"id is {quote(image.get('id'))}, but a number or a name is needed"
            problems.append(LabelFault(NO_IMAGE, where, told))
        elif (name := file_name_of(image)) is None:
            told = f"file_name is {quote(image.get('file_name'))}, but the name of a file is needed"
            problems.append(LabelFault(NO_IMAGE, f"image {quote(image['id'])}", told))
        else:
            own = str(image["id"]).strip() if apart else key
            if own in images and images[own].name == name:
                continue
            if own in images:
                told = f"id is that of {images[own].name} and of {name}"
                problems.append(LabelFault(SAME_IMAGE, f"image {own}", told))
                continue
            sides = to_count(image.get("height")), to_count(image.get("width"))
            size = (sides[0], sides[1]) if sides[0] is not None and sides[1] is not None else None
            images[own] = LabelledImage(0, own, name, size=size)
    taken = {key for key in images if isinstance(key, int)}
    following = max(taken, default=0) + 1
    for key, found in images.items():
        found.id = key if isinstance(key, int) else following
        following += not isinstance(key, int)
    return list(images.values()), problems


def _without_repeats(
    images: Sequence[LabelledImage], problems: list[LabelFault]
) -> tuple[list[LabelledImage], list[str]]:
    """The images without those that list another's file and have no objects, and the names of those.

    Without objects they would teach that the others' objects are background. Where both have objects, that is added to
    the problems: they may be the same objects.
    """
    first: dict[Path, LabelledImage] = {}
    spare: list[LabelledImage] = []
    for image in images:
        if image.file is None or image.problem is not None:
            continue
        other = first.setdefault(image.file, image)
        if other is image:
            continue
        if image.annotations and other.annotations:
            told = f"file_name is {image.name}, which image {other.key} has too, and both have annotations"
            image.problem = LabelFault(SAME_FILE, f"image {image.key}", told)
            problems.append(image.problem)
            continue
        if image.annotations:
            first[image.file] = image
        spare.append(other if image.annotations else image)
    without = {id(image) for image in spare}
    return [image for image in images if id(image) not in without], [image.name for image in spare]


def file_name_of(image: dict[str, Any]) -> str | None:
    """The image's name, or the end of its address, which is all that LVIS has."""
    for key in ("file_name", "coco_url", "path", "filename", "flickr_url"):
        value = image.get(key)
        if isinstance(value, str) and value.strip():
            return value
    return None


def _find(image: LabelledImage, finder: ImageFinder, *, headers: bool) -> None:
    """Fill in the image's file and size, or its problem."""
    where = f"image {image.key}"
    try:
        image.file = finder.find(image.name)
        if headers or image.size is None:
            image.size = read_size(image.file, image.size)
    except OutsideFolder as problem:
        image.problem = LabelFault(OUTSIDE_FOLDER, where, str(problem))
    except NotFound as problem:
        image.problem = LabelFault(MISSING_FILE, where, str(problem))
    except ImageProblem as problem:
        image.problem = LabelFault(problem.kind, where, str(problem))


def _read_annotation(
    given: Any, place: int, images: dict[Key, LabelledImage], categories: Categories
) -> Annotation | LabelFault | None:
    """One annotation; what is wrong with it; None for those of an image that cannot be used."""
    if not isinstance(given, dict):
        return LabelFault(NO_ANNOTATION, f"annotations[{place}]", f"an object is needed, not {quote(given)}")
    where = f"annotation {given['id']}" if to_key(given.get("id")) is not None else f"annotations[{place}]"
    for name in ("image_id", "category_id"):
        if to_key(given.get(name)) is None:
            told = f"{name} is {quote(given.get(name))}, but a number or a name is needed"
            return LabelFault(NO_ANNOTATION, where, told if name in given else f"{name} is missing")
    key = to_key(given["image_id"])
    image = (
        images.get(key) if key is not None and key in images else images.get(str(given["image_id"]).strip())
    )
    if image is None:
        told = f"image_id is {quote(given['image_id'])}, an id that no image in the file has"
        return LabelFault(UNKNOWN_IMAGE, where, told)
    where += f" of image {image.key} ({image.name})"
    category = categories.find(given["category_id"])
    if category is None:
        keys = [str(key) for key in categories.keys]
        known = ", ".join(keys[:5]) + ", …" * (len(keys) > 5)
        told = f"category_id is {quote(given['category_id'])}, which the categories ({known}) do not list"
        return LabelFault(UNKNOWN_CATEGORY, where, told)
    crowd = to_flag(given.get("iscrowd"))
    if crowd is None:
        told = f"iscrowd is {quote(given['iscrowd'])}, but 0 or 1 is needed"
        return LabelFault(UNCLEAR_CROWD, where, told)
    if image.size is None or image.problem is not None:
        return None
    box, area = to_box(given.get("bbox")), to_number(given.get("area"))
    segmentation = read_segmentation(given.get("segmentation"), image.size, box)
    if isinstance(segmentation, Fault):
        return LabelFault(segmentation.kind, where, segmentation.detail)
    area = area if area is not None and area > 0 else None
    return Annotation(image.id, category, crowd, box, area, segmentation, where, given)


def _with_points(annotation: Annotation, count: int, without: list[str]) -> Annotation:
    """The annotation with its keypoints.

    Args:
        annotation: as it was read so far.
        count: that each object has.
        without: gets what to call an object whose keypoints cannot be used, and are not labelled then.
    """
    points = read_points(annotation.given.get("keypoints"), count)
    if points is None:
        without.append(annotation.where)
    return replace(annotation, points=read_points(None, count) if points is None else points)


def first_of_each(problems: Sequence[LabelFault]) -> Iterator[tuple[str, int, LabelFault]]:
    """Each kind of problem with how often it occurs and the first place."""
    counts = Counter(problem.kind for problem in problems)
    for kind, count in counts.items():
        yield kind, count, next(problem for problem in problems if problem.kind == kind)
