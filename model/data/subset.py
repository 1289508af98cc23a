"""A few images of a labelled folder as a folder of their own: a small real dataset out of a large one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.data import DatasetError
from model.data.keypoints import names_to_coco
from model.data.labels import read_labels
from model.data.layout import locate
from model.data.photos import ImageProblem, read_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.data.labels import Annotation, LabelledImage, Labels


@dataclass(frozen=True, slots=True)
class Taken:
    """What a subset holds."""

    images: int
    # Without crowds.
    objects: int
    categories: tuple[str, ...]


def take(
    path: Path,
    out: Path,
    count: int,
    names: Sequence[str] | None = None,
    images: Path | None = None,
    *,
    split: str | None = None,
    skip: int = 0,
) -> Taken:
    """Copy `count` images that have objects, and their annotations, to `out` as `open_folder` reads it.

    Args:
        path: the dataset's folder, or its JSON file.
        out: the folder to make.
        count: how many images.
        names: the categories to keep; by default those that occur.
        images: where the images of a JSON file lie.
        split: which part to take of a folder that has several; by default "train".
        skip: how many images with objects come before the first of them.

    Annotations that cannot be used are left out. Ids stay as they are. Raises DatasetError.
    """
    labels = read_labels(locate(path, images, split=split), headers=False)
    categories = {category.id: category.name for category in labels.categories}
    if names is not None and (unknown := sorted(set(names) - set(categories.values()))):
        raise DatasetError(
            f"{labels.path}: no category {unknown[0]!r}; there are {', '.join(categories.values())}"
        )
    kept = {number for number, name in categories.items() if names is None or name in names}
    chosen = _choose(labels, kept, skip + count)
    if len(chosen) <= skip:
        raise DatasetError(
            f"{labels.path}: nothing is left after {skip} images; {len(chosen)} have objects of these categories"
        )
    chosen = chosen[skip:]
    files = _copy(chosen, labels.root, out)
    annotations = [a for image in chosen for a in _of(image, kept)]
    occurring = {annotation.category_id for annotation in annotations}
    pointed = {annotation.category_id for annotation in annotations if annotation.has_keypoint}
    named = names_to_coco(labels.keypoints)
    document = {
        "images": [
            {"id": image.key, "file_name": name, "height": image.found_size[0], "width": image.found_size[1]}
            for image, name in zip(chosen, files, strict=True)
        ],
        "annotations": [_record(a, image) for image in chosen for a in _of(image, kept)],
        "categories": [
            {"id": n, "name": name, **(named if n in pointed else {})}
            for n, name in categories.items()
            if n in occurring
        ],
    }
    (out / "instances.json").write_text(json.dumps(document), encoding="utf-8")
    objects = sum(not annotation.crowd for annotation in annotations)
    return Taken(len(chosen), objects, tuple(categories[n] for n in categories if n in occurring))


def _of(image: LabelledImage, kept: set[int]) -> list[Annotation]:
    return [annotation for annotation in image.annotations if annotation.category_id in kept]


def _choose(labels: Labels, kept: set[int], count: int) -> list[LabelledImage]:
    """The first usable images with objects of the categories. Raises DatasetError where there are none."""
    chosen: list[LabelledImage] = []
    damaged: str | None = None
    for image in labels.usable():
        if len(chosen) < count and any(not annotation.crowd for annotation in _of(image, kept)):
            try:
                read_size(image.found_file, image.found_size)
            except ImageProblem as problem:
                damaged = damaged or str(problem)
            else:
                chosen.append(image)
    if not chosen:
        first = damaged or (str(labels.problems[0]) if labels.problems else None)
        told = f"; the first that cannot be used: {first}" if first is not None else ""
        raise DatasetError(f"{labels.path}: no image has objects of these categories{told}")
    return chosen


def _copy(chosen: Sequence[LabelledImage], root: Path, out: Path) -> list[str]:
    """Copy the images below `out`/images by their path in the images' folder, which is returned."""
    names = []
    for image in chosen:
        name = image.found_file.relative_to(root).as_posix()
        target = out / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image.found_file, target)
        names.append(name)
    return names


def _record(annotation: Annotation, image: LabelledImage) -> dict[str, Any]:
    """The annotation with everything that it had, in COCO's own spelling."""
    record = {
        **annotation.given,
        "image_id": image.key,
        "category_id": annotation.category_id,
        "iscrowd": int(annotation.crowd),
        "segmentation": annotation.segmentation if annotation.segmentation is not None else [],
    }
    for name, value in (("bbox", annotation.box), ("area", annotation.area)):
        record.pop(name, None)
        if value is not None:
            record[name] = value
    return record
