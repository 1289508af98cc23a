"""Encodes instances as the JSON document of the API, in which each instance is a COCO results record.

Boxes are rounded to 0.01 pixel and scores to 0.0001. Rounding also hides the last bits of float32 sums, which depend on
the order in which a device adds.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from app.api.query import JSON, PNG
from model.images.decode import encode_jpeg, encode_png
from model.images.overlay import overlay
from model.network.conventions import KEYPOINT_SCORES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from app.api.schemas import CategoryDocument, KeypointsDocument
    from model.instances import Instances
    from model.zoo.model_file import Model

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
    """The answer for one image: JSON, or the picture with the instances drawn on it.

    Args:
        media_type: JSON, PNG or JPEG of app.api.query.
        request_id: goes into the JSON.
        model: names the categories.
        image: [H, W, 3] uint8, the upright image.
        instances: found in it.
        mask_format: one of app.api.query.MaskFormat.
    """
    if media_type == JSON:
        return orjson.dumps({"id": request_id, **document(model, instances, mask_format)})
    drawn = overlay(
        image,
        instances,
        {category.id: category.name for category in model.categories},
        skeleton=() if model.keypoints is None else model.keypoints.skeleton,
    )
    return encode_png(drawn) if media_type == PNG else encode_jpeg(drawn)


def line(
    index: int,
    request_id: str,
    model: Model,
    image: NDArray[np.uint8],  # noqa: ARG001 - see below
    instances: Instances,
    *,
    mask_format: str,
) -> bytes:
    """The answer for one of several images: a line of NDJSON without its line break.

    Args:
        index: of the image in the request, from 0.
        request_id: goes into the JSON.
        model: names the categories.
        image: not used; present so that `encode` and `line` are called alike.
        instances: found in the image.
        mask_format: one of app.api.query.MaskFormat.
    """
    return orjson.dumps({"index": index, "id": request_id, **document(model, instances, mask_format)})


def document(model: Model, instances: Instances, mask_format: str = "rle") -> dict[str, Any]:
    """The answer without the request's id; the same image always has the same one.

    Args:
        model: names the categories.
        instances: of the image.
        mask_format: one of app.api.query.MaskFormat.
    """
    height, width = instances.size
    return {
        "model": model.name,
        "image": {"width": width, "height": height},
        "instances": records(model, instances, mask_format),
    }


def records(model: Model, instances: Instances, mask_format: str = "rle") -> list[dict[str, Any]]:
    """One COCO results record per instance, by descending score; `COCO.loadRes` wants only `image_id` added.

    `bbox` is [x, y, width, height]. `area` is the mask's pixel count; without masks it is the area of the box, as
    pycocotools has it, and there is no `segmentation`. A `png` mask is no COCO segmentation; it is under `mask`.
    `keypoints` is [x, y, 1] of each keypoint in a row, where there are some.

    Args:
        model: names the categories.
        instances: of one image.
        mask_format: one of app.api.query.MaskFormat.
    """
    names = {category.id: category.name for category in model.categories}
    # In NumPy, because torch takes longer for so few numbers.
    boxes = instances.boxes.numpy()
    sizes = boxes[:, 2:] - boxes[:, :2]  # [N, 2] width, height
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
            boxes[:, :2].tolist(),
            sizes.tolist(),
            strict=True,
        )
    ]
    if instances.keypoints is not None and instances.keypoint_scores is not None:
        for row, places, certain in zip(
            rows, instances.keypoints.tolist(), instances.keypoint_scores.tolist(), strict=True
        ):
            row["keypoints"] = [
                value
                for x, y, v in places
                for value in (round(x, BOX_DECIMALS), round(y, BOX_DECIMALS), int(v))
            ]
            row["keypoint_scores"] = [round(score, SCORE_DECIMALS) for score in certain]
    if not instances.has_masks or mask_format == "none":
        for row in rows:
            row["area"] = round(row["bbox"][2] * row["bbox"][3], BOX_DECIMALS)
        return rows
    for row, mask in zip(rows, MASK_ENCODERS[mask_format](instances), strict=True):
        row.update(mask)
    return rows


def describe_categories(model: Model) -> list[CategoryDocument]:
    """The model's categories in COCO's form, with their keypoints if it finds some."""
    known = model.keypoints
    # COCO counts keypoints from 1.
    joined = [] if known is None else [(first + 1, second + 1) for first, second in known.skeleton]
    return [
        {"id": category.id, "name": category.name}
        if known is None
        else {"id": category.id, "name": category.name, "keypoints": list(known.names), "skeleton": joined}
        for category in model.categories
    ]


def describe_keypoints(model: Model) -> KeypointsDocument | None:
    """What the scores of the model's keypoints mean; None if it finds none."""
    kind = model.architecture.conventions.keypoint_scores
    return None if model.keypoints is None else {"scores": kind, "shown_from": KEYPOINT_SCORES[kind]}


def rle_masks(instances: Instances) -> Iterator[dict[str, Any]]:
    """Masks as compressed COCO RLE."""
    for rle in instances.rles():
        yield {"area": rle.area, "segmentation": rle.to_coco()}


def polygon_masks(instances: Instances) -> Iterator[dict[str, Any]]:
    """Masks as COCO polygons."""
    for parts, area in instances.outlines():
        yield {"area": area, "segmentation": parts}


def png_masks(instances: Instances) -> Iterator[dict[str, Any]]:
    """Masks as 1-bit PNG files in base64, each cut to its box; black is background."""
    for left, top, bitmap in instances.crops():
        height, width = bitmap.shape
        # A PNG has at least one pixel.
        file = encode_png(bitmap if bitmap.size else np.zeros((1, 1), np.bool_))
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


MASK_ENCODERS = {"rle": rle_masks, "polygon": polygon_masks, "png": png_masks}
