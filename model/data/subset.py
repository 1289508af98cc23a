"""A few images of a labelled folder as a folder of their own: a small real dataset out of a large one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.data import DatasetError
from model.data.coco import annotation_fault, images_of, locate, read_categories, read_document

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Taken:
    """What a subset holds."""

    images: int
    objects: int  # without crowds
    categories: tuple[str, ...]


def take(
    path: Path, out: Path, count: int, names: Sequence[str] | None = None, images: Path | None = None
) -> Taken:
    """Copy the first `count` images that have objects, and their annotations, to `out` as `open_folder` reads it.

    path, images: as for model.data.coco.open_folder. names: the categories to keep; by default those that occur.
    Annotations that cannot be used are left out. Raises DatasetError.
    """
    path, folder = locate(path, images)
    document = read_document(path)
    categories = {c.id: c.name for c in read_categories(document, path)}
    if names is not None and (unknown := sorted(set(names) - set(categories.values()))):
        raise DatasetError(f"{path}: no category {unknown[0]!r}; there are {', '.join(categories.values())}")
    kept = {number for number, name in categories.items() if names is None or name in names}
    listed = images_of(document, path)
    sizes = {number: (height, width) for number, _, height, width in listed}
    by_image: dict[int, list[dict[str, object]]] = {}
    for annotation in document["annotations"]:
        if annotation_fault(annotation, sizes, kept) is None:
            by_image.setdefault(int(annotation["image_id"]), []).append(annotation)
    chosen = [
        image
        for image in listed
        if any(not a.get("iscrowd") for a in by_image.get(image[0], [])) and (folder / image[1]).is_file()
    ][:count]
    if not chosen:
        raise DatasetError(f"{path}: no image has objects of these categories")
    for _, name, _, _ in chosen:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DatasetError(f"{path}: {name} lies outside the images' folder")
    for _, name, _, _ in chosen:
        target = out / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
    annotations = [annotation for number, *_ in chosen for annotation in by_image[number]]
    occurring = {int(str(annotation["category_id"])) for annotation in annotations}
    subset = {
        "images": [{"id": i, "file_name": n, "height": h, "width": w} for i, n, h, w in chosen],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in categories.items() if n in occurring],
    }
    (out / "instances.json").write_text(json.dumps(subset))
    objects = sum(not a.get("iscrowd") for a in annotations)
    return Taken(len(chosen), objects, tuple(categories[n] for n in categories if n in occurring))
