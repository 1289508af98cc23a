"""Labelled folders to read: a sound one, and the same as labelling tools and people leave it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from PIL import Image

from model.data.coco import open_folder

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEIGHT = 80, 60
OUTLINE = [[10, 10, 30, 10, 30, 30, 10, 30]]
BOX = [10, 10, 20, 20]


def sound(count: int = 4) -> dict[str, Any]:
    """A COCO document of images 0001.png …, each with one object of 20 × 20 pixels."""
    return {
        "images": [
            {"id": n, "file_name": f"{n:04d}.png", "width": WIDTH, "height": HEIGHT}
            for n in range(1, count + 1)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": n,
                "category_id": 1,
                "bbox": BOX,
                "area": 400,
                "iscrowd": 0,
                "segmentation": OUTLINE,
            }
            for n in range(1, count + 1)
        ],
        "categories": [{"id": 1, "name": "box"}],
    }


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    """A picture with a white square where OUTLINE is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (40, 60, 80))
    image.paste("white", (10, 10, 30, 30))
    image.save(path, **options)


def write(folder: Path, document: Any, name: str = "instances.json", *, images: str = "images") -> Path:
    """The label file as JSON, and a picture for each file that it names in `images`."""
    for image in document["images"]:
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            picture(folder / images / image["file_name"])
    labels = folder / name
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(json.dumps(document), encoding="utf-8")
    return folder


def figures(path: Path, **options: Any) -> list[tuple[Any, ...]]:
    """What training and evaluation see of every image: sides, boxes, labels, masks' pixels; areas, boxes, crowds."""
    dataset = open_folder(path, **options)
    names = {category.id: category.name for category in dataset.categories}
    seen = []
    for index in range(len(dataset)):
        sample = dataset[index]
        truth = dataset.annotations(sample)
        seen.append(
            (
                sample.pixels.shape,
                sample.boxes.tolist(),
                [names[label] for label in sample.labels.tolist()],
                [int(mask.sum()) for mask in sample.masks],
                [(a["area"], [float(v) for v in a["bbox"]], a["iscrowd"]) for a in truth],
            )
        )
    return seen
