"""Instances → the JSON document of the contract, in which each instance is a COCO results record.

Numbers are rounded to what they are worth: boxes to 0.01 pixel, scores to 0.0001. That also keeps the last
bits of float32 sums, which depend on the order in which a device added, out of the answer.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from model.images.decode import encode_jpeg, encode_png
from model.images.overlay import overlay
from model.masks.paste import crops, outlines, paste

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from model.instances import Instances
    from model.zoo.zoo import Model

JSON, NDJSON, PNG, JPEG = "application/json", "application/x-ndjson", "image/png", "image/jpeg"
OFFERED = {
    JSON: JSON,
    "application/*": JSON,
    "*/*": JSON,
    NDJSON: NDJSON,
    PNG: PNG,
    JPEG: JPEG,
    "image/*": JPEG,
}  # by Accept
QUALITY = re.compile(r"(0(\.\d{0,3})?|1(\.0{0,3})?)", re.ASCII)

BOX_DECIMALS = 2
SCORE_DECIMALS = 4


def encode(
    media_type: str,
    request_id: str,
    model: Model,
    image: NDArray[np.uint8],
    instances: Instances,
    *,
    mask_format: str = "rle",
) -> bytes:
    """The answer to one request: JSON, or the image [H, W, 3] with its instances drawn on it."""
    if media_type == JSON:
        return orjson.dumps({"id": request_id, **document(model, instances, mask_format)})
    drawn = overlay(image, instances, {category.id: category.name for category in model.categories})
    return encode_png(drawn) if media_type == PNG else encode_jpeg(drawn)


def line(
    index: int,
    request_id: str,
    model: Model,
    image: NDArray[np.uint8],  # noqa: ARG001 - as `encode` has it
    instances: Instances,
    *,
    mask_format: str,
) -> bytes:
    """The answer for one of several images, without the line break behind it. index: of the image, from 0."""
    return orjson.dumps({"index": index, "id": request_id, **document(model, instances, mask_format)})


def document(model: Model, instances: Instances, mask_format: str = "rle") -> dict[str, Any]:
    """The answer without the request's id: the same for the same image, whoever asks."""
    height, width = instances.size
    return {
        "model": model.name,
        "image": {"width": width, "height": height},
        "instances": records(model, instances, mask_format),
    }


def records(model: Model, instances: Instances, mask_format: str = "rle") -> list[dict[str, Any]]:
    """One COCO results record per instance, by descending score; `COCO.loadRes` wants only `image_id` added.

    mask_format: of app.api.query.MASKS. `bbox` is [x, y, width, height]. `area` is the mask's pixel count; without
    masks it is the box's area, as pycocotools has it for boxes, and there is no `segmentation`. `png` masks are no
    COCO segmentation and stand in `mask`.
    """
    names = {category.id: category.name for category in model.categories}
    sizes = instances.boxes[:, 2:] - instances.boxes[:, :2]  # [N, 2] width, height
    rows = [
        {
            "category_id": label,
            "category": names[label],
            "score": round(score, SCORE_DECIMALS),
            "bbox": [round(number, BOX_DECIMALS) for number in (*corner, *size)],
        }
        for label, score, corner, size in zip(
            instances.labels.tolist(),
            instances.scores.tolist(),
            instances.boxes[:, :2].tolist(),
            sizes.tolist(),
            strict=True,
        )
    ]
    if instances.probabilities is None:
        for row in rows:
            row["area"] = round(row["bbox"][2] * row["bbox"][3], BOX_DECIMALS)
        return rows
    for row, mask in zip(rows, MASKS[mask_format](instances.probabilities, instances), strict=True):
        row.update(mask)
    return rows


def rle_masks(probabilities: Tensor, instances: Instances) -> Iterator[dict[str, Any]]:
    """Masks as compressed COCO run lengths."""
    for rle in paste(probabilities, instances.boxes, instances.size):
        yield {"area": rle.area, "segmentation": rle.to_coco()}


def polygon_masks(probabilities: Tensor, instances: Instances) -> Iterator[dict[str, Any]]:
    """Masks as COCO polygons."""
    for parts, area in outlines(probabilities, instances.boxes, instances.size):
        yield {"area": area, "segmentation": parts}


def png_masks(probabilities: Tensor, instances: Instances) -> Iterator[dict[str, Any]]:
    """Masks as 1-bit PNG files in base64, each cut to its box; black is background."""
    for left, top, bitmap in crops(probabilities, instances.boxes, instances.size):
        height, width = bitmap.shape
        file = encode_png(bitmap if bitmap.size else np.zeros((1, 1), np.bool_))  # no PNG has no pixels
        yield {
            "area": int(np.count_nonzero(bitmap)),
            "mask": {
                "left": left,
                "top": top,
                "width": max(width, 1),
                "height": max(height, 1),
                "png": base64.b64encode(file).decode(),
            },
        }


MASKS = {"rle": rle_masks, "polygon": polygon_masks, "png": png_masks}


def preferred(accept: str) -> str:
    """What to answer with: JSON, unless an Accept header prefers a kind of picture or a line for each image."""
    best, best_quality = JSON, 0.0
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weights = (parameter[2:] for parameter in parameters if parameter.startswith("q="))
        quality = quality_of(next(weights, "1"))
        if name in OFFERED and quality > best_quality:
            best, best_quality = OFFERED[name], quality
    return best


def quality_of(text: str) -> float:
    """The weight of an Accept entry (RFC 9110, section 12.4.2); 0 for what is none."""
    return float(text) if QUALITY.fullmatch(text) else 0.0
