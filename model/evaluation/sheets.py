"""Sheets of images: predictions on their images, and the worst images beside what is annotated in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont

from model.images.overlay import overlay
from model.instances import Instances
from model.masks.paste import Crop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from model.data import Category, Keypoints, Sample
    from model.evaluation.confusion import ImageScore


def worst_images(
    images: Sequence[tuple[ImageScore, Sample, Instances]],
    categories: Sequence[Category],
    path: Path,
    *,
    keypoints: Keypoints | None,
) -> None:
    """Draw annotated objects (left) and predictions (right) of each image, below a line with its errors.

    Args:
        images: scores, samples and predictions.
        categories: those of the dataset.
        path: the file to write.
        keypoints: those of the model.
    """
    names = {category.id: category.name for category in categories}
    side, gap, line = 520, 8, 22
    sheet = Image.new("RGB", (2 * side + gap, len(images) * (side + gap + line) or 1), "white")
    top = 0
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for score, sample, predicted in images:
        errors = [
            f"{count} {word}"
            for count, word in (
                (score.missed, "missed"),
                (score.misclassified, "misclassified"),
                (score.false_positive, "false positive"),
            )
            if count
        ]
        text = (
            f"image {sample.image_id}: quality {score.quality:.2f}, {score.found} found, {', '.join(errors)}"
        )
        draw.text((2, top + 3), text, fill="black", font=font)
        true = Instances(
            (int(sample.pixels.shape[0]), int(sample.pixels.shape[1])),
            torch.from_numpy(sample.boxes),
            torch.ones(len(sample.labels)),
            torch.from_numpy(sample.labels),
            None,
        )
        pictures = (
            overlay(sample.pixels, true, names, list(true_crops(sample))),
            _draw(sample, predicted, names, keypoints),
        )
        height = 0
        for column, pixels in enumerate(pictures):
            tile = Image.fromarray(pixels)
            tile.thumbnail((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (column * (side + gap), top + line))
            height = max(height, tile.height)
        top += line + height + gap
    sheet.crop((0, 0, sheet.width, max(top, 1))).save(path, quality=88)


def true_crops(sample: Sample) -> Iterator[Crop]:
    """The annotated masks of a sample, each cropped to its box."""
    for mask, (x0, y0, x1, y1) in zip(sample.masks, sample.boxes.astype(int).tolist(), strict=True):
        yield Crop(x0, y0, mask[y0:y1, x0:x1].astype(bool))


def sample_sheet(
    samples: Sequence[tuple[Sample, Instances]],
    categories: Sequence[Category],
    path: Path,
    *,
    keypoints: Keypoints | None,
    columns: int = 3,
) -> None:
    """Draw predictions on their images, side by side on one sheet.

    Args:
        samples: images and predictions.
        categories: those of the model.
        path: the file to write.
        keypoints: those of the model.
        columns: images per row.
    """
    names = {category.id: category.name for category in categories}
    side, gap = 420, 8
    tiles = []
    for sample, instances in samples:
        tile = Image.fromarray(_draw(sample, instances, names, keypoints))
        tile.thumbnail((side, side), Image.Resampling.LANCZOS)
        tiles.append(tile)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(
            tile,
            (
                column * (side + gap) + (side - tile.width) // 2,
                row * (side + gap) + (side - tile.height) // 2,
            ),
        )
    sheet.save(path, quality=88)


def _draw(
    sample: Sample, predicted: Instances, names: Mapping[int, str], keypoints: Keypoints | None
) -> NDArray[np.uint8]:
    """Predictions on their image, [H, W, 3] uint8.

    Args:
        sample: the image.
        predicted: its instances.
        names: of the categories, by id.
        keypoints: those of the model.
    """
    return overlay(sample.pixels, predicted, names, skeleton=() if keypoints is None else keypoints.skeleton)
