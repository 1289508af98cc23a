"""The shapes of what /openapi.json describes: the answer, a problem, a line of several, the model's description."""

from __future__ import annotations

from typing import Any

EXAMPLE_ID = "0f6c1d0e5a7b4c3f9a2e8d7c6b5a4f3e"
# One white pixel as a PNG file, so that "Try it out" sends something valid at once.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"

CATEGORY = {"category_id": 18, "category": "dog"}
RLE = {"size": [6, 9], "counts": "=3300000a0"}  # a block of 4 × 3 pixels
INSTANCE = {**CATEGORY, "score": 0.9981, "bbox": [2.04, 0.97, 4.01, 3.05], "area": 12, "segmentation": RLE}
EXAMPLE = {
    "id": EXAMPLE_ID,
    "model": "maskrcnn_resnet50_fpn",
    "image": {"width": 9, "height": 6},
    "instances": [INSTANCE],
}

NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}
STRING = {"type": "string"}


def array(items: dict[str, Any], length: int | None = None) -> dict[str, Any]:
    """The schema of a list, of a fixed length where one is given."""
    fixed = {} if length is None else {"minItems": length, "maxItems": length}
    return {"type": "array", "items": items, **fixed}


def record(properties: dict[str, Any], optional: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """The schema of an object with these properties, required but for the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, **more}


def described(schema: dict[str, Any], description: str) -> dict[str, Any]:
    """The schema with a description."""
    return {**schema, "description": description}


INSTANCE_SCHEMA = record(
    {
        "category_id": INTEGER,
        "category": STRING,
        "score": described({**NUMBER, "minimum": 0, "maximum": 1}, "Rounded to 4 decimals."),
        "bbox": described(
            array(NUMBER, 4), "[x, y, width, height] in pixels of the upright image, rounded to 2 decimals."
        ),
        "area": described(NUMBER, "Pixels of the mask; with masks=none, the box's area."),
        "segmentation": {
            "description": "The mask, for pycocotools; absent with masks=png and masks=none.",
            "oneOf": [
                described(
                    record({"size": described(array(INTEGER, 2), "[height, width]"), "counts": STRING}),
                    "Compressed COCO run lengths (masks=rle).",
                ),
                described(
                    array(array(NUMBER)),
                    "COCO polygons, [x1, y1, x2, y2, …] each (masks=polygon). All of them together are the mask; a "
                    "hole is reached by a seam that is walked in both directions.",
                ),
            ],
        },
        "mask": described(
            record(
                {
                    **dict.fromkeys(("left", "top", "width", "height"), INTEGER),
                    "png": described(STRING, "A 1-bit PNG file in base64; white is the instance."),
                }
            ),
            "The mask as a bitmap of its box, with its place in the image; only with masks=png.",
        ),
    },
    optional=("segmentation", "mask"),
)
ANSWER_SCHEMA = record(
    {
        "id": described(STRING, "The request's id, as in X-Request-ID."),
        "model": STRING,
        "image": described(
            record({"width": INTEGER, "height": INTEGER}), "The upright image's size in pixels."
        ),
        "instances": described(array(INSTANCE_SCHEMA), "In descending score."),
    }
)
PROBLEM_SCHEMA = record(
    {
        "type": STRING,
        "title": STRING,
        "status": INTEGER,
        "detail": STRING,
        "request_id": STRING,
        "retry_after": described(INTEGER, "Seconds, as in Retry-After; only with 429 and 503."),
    },
    optional=("retry_after",),
)
INDEX = described(INTEGER, "Which of the images, in the order sent, from 0.")
LINE_SCHEMA = {
    "oneOf": [
        {
            **schema,
            "properties": {"index": INDEX, **schema["properties"]},
            "required": ["index", *schema["required"]],
        }
        for schema in (ANSWER_SCHEMA, PROBLEM_SCHEMA)
    ]
}
MODEL_SCHEMA = record(
    {
        "name": STRING,
        "notice": described(
            {"type": ["string", "null"]}, "Something that whoever uses the model should be told."
        ),
        "architecture": {"type": "object"},
        "categories": array(record({"id": INTEGER, "name": STRING})),
        "sha256": described(STRING, "Of the weights file."),
        "ap": described({"type": "object"}, "Average precision, 0 to 1, on validation data."),
        "ap_source": described(STRING, "Which data, and who measured."),
        "device": STRING,
        "precision": STRING,
        "input_size": described(
            record({"shorter_side": INTEGER, "longer_side_at_most": INTEGER}),
            "Pixels to which the model scales an image.",
        ),
    }
)
STATUS_SCHEMA = record({"status": STRING})
