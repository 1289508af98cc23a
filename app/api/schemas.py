"""The documents of the API as types, from which /openapi.json takes its schemas.

The types describe the answers; they never run: responses.py builds plain dictionaries in a worker thread and orjson
writes them, which is much faster than a validating serializer.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter

# Before Python 3.12 pydantic needs this TypedDict, which knows NotRequired.
from typing_extensions import TypedDict

EXAMPLE_ID = "0f6c1d0e5a7b4c3f9a2e8d7c6b5a4f3e"
# One white pixel as a PNG file, so that "Try it out" sends a valid request at once.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"


class RleMask(TypedDict):
    """Compressed COCO RLE (masks=rle)."""

    size: Annotated[tuple[int, int], Field(description="[height, width]")]
    counts: str


PolygonMask = Annotated[
    list[list[float]],
    Field(
        description="COCO polygons, [x1, y1, x2, y2, …] each (masks=polygon). Together they are the mask; a seam that "
        "is walked in both directions leads to each hole."
    ),
]


class PngMask(TypedDict):
    """The mask as a bitmap of its box, and the place of the box in the image (masks=png)."""

    left: int
    top: int
    width: int
    height: int
    png: Annotated[str, Field(description="A 1-bit PNG file in base64; white is the instance.")]


class Instance(TypedDict):
    """One object, as a COCO results record. It has no `segmentation` with masks=png and masks=none."""

    category_id: int
    category: str
    score: Annotated[float, Field(ge=0, le=1, description="Rounded to 4 decimals.")]
    bbox: Annotated[
        tuple[float, float, float, float],
        Field(description="[x, y, width, height] in pixels of the upright image, rounded to 2 decimals."),
    ]
    area: Annotated[float, Field(description="Pixels of the mask; with masks=none, the area of the box.")]
    segmentation: NotRequired[RleMask | PolygonMask]
    mask: NotRequired[PngMask]
    keypoints: NotRequired[
        Annotated[
            list[float],
            Field(
                description="[x1, y1, v1, x2, y2, v2, …] in pixels of the upright image, in the order of the names "
                "that `/model` lists; v is always 1. Only of models that find keypoints, and not with keypoints=none."
            ),
        ]
    ]
    keypoint_scores: NotRequired[
        Annotated[
            list[float],
            Field(
                description="Of each keypoint: what `keypoints.scores` of `/model` says. Rounded to 4 decimals."
            ),
        ]
    ]


class ImageSize(TypedDict):
    """The size of the upright image in pixels."""

    width: int
    height: int


class Answer(TypedDict):
    """The instances of one image."""

    id: Annotated[str, Field(description="The request's id, as in X-Request-ID.")]
    model: str
    image: ImageSize
    instances: Annotated[list[Instance], Field(description="In descending score.")]


class ProblemDocument(TypedDict):
    """An error (RFC 9457). `retry_after`: seconds, as in Retry-After; only with 429 and 503."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    retry_after: NotRequired[int]


class CategoryDocument(TypedDict):
    """A category that the model knows, in COCO's form."""

    id: int
    name: str
    keypoints: NotRequired[
        Annotated[list[str], Field(description="Their names, where the model finds some.")]
    ]
    skeleton: NotRequired[
        Annotated[
            list[tuple[int, int]],
            Field(description="Pairs of keypoints that a drawing joins, counted from 1."),
        ]
    ]


class KeypointsDocument(TypedDict):
    """What the scores of keypoints mean."""

    scores: Annotated[
        str,
        Field(
            description="`logit`: the value of the keypoint's heatmap, any number. `probability`: 0 to 1, the share of "
            "the heatmap that the keypoint's place has."
        ),
    ]
    shown_from: Annotated[
        float, Field(description="The score from which on the service's pictures show one.")
    ]


class InputSize(TypedDict):
    """The size in pixels to which the model scales an image."""

    shorter_side: int
    longer_side_at_most: int


class ModelDocument(TypedDict):
    """The model, and how it runs."""

    name: str
    notice: Annotated[str | None, Field(description="What users of the model should know.")]
    architecture: dict[str, Any]
    categories: list[CategoryDocument]
    sha256: Annotated[str, Field(description="Checksum of the weights file.")]
    ap: Annotated[dict[str, Any], Field(description="Average precision, 0 to 1, on validation data.")]
    ap_source: Annotated[str, Field(description="Which data it was measured on, and by whom.")]
    origin: Annotated[str, Field(description="The framework that it was imported from; empty if none.")]
    device: str
    precision: str
    input_size: InputSize
    max_instances: Annotated[int, Field(description="In an image: the most that the model finds.")]
    tile_overlap: Annotated[
        float,
        Field(
            description="The default of `overlap`: the least overlap of neighbouring tiles, as a share of their side; "
            "0.2 where it is not known how large the model's objects are."
        ),
    ]
    keypoints: Annotated[
        KeypointsDocument | None, Field(description="null for models that find no keypoints.")
    ]


class StatusDocument(TypedDict):
    """The answer of a probe."""

    status: str


class TileCount(TypedDict):
    """Tiles of an image that are done, and all."""

    done: int
    total: int


PROBLEM_SCHEMA = TypeAdapter(ProblemDocument).json_schema()
PROGRESS_SCHEMA = {
    "type": "object",
    "description": "A line of NDJSON about an image that is not done yet.",
    "properties": {"id": {"type": "string"}, "tiles": TypeAdapter(TileCount).json_schema()},
    "required": ["id", "tiles"],
}

INSTANCE: Instance = {
    "category_id": 18,
    "category": "dog",
    "score": 0.9981,
    "bbox": (2.04, 0.97, 4.01, 3.05),
    "area": 12,
    # A block of 4 × 3 pixels.
    "segmentation": {"size": (6, 9), "counts": "=3300000a0"},
}
EXAMPLE: Answer = {
    "id": EXAMPLE_ID,
    "model": "maskrcnn_resnet50_fpn",
    "image": {"width": 9, "height": 6},
    "instances": [INSTANCE],
}
MODEL_EXAMPLE: ModelDocument = {
    "name": "maskrcnn_resnet50_fpn",
    "notice": None,
    "architecture": {"backbone": "resnet50"},
    "categories": [{"id": 18, "name": "dog"}],
    "sha256": "bf2d0c1e… (64 hexadecimal digits)",
    "ap": {"box": 0.379, "mask": 0.346},
    "ap_source": "COCO val2017",
    "origin": "",
    "device": "cuda:0",
    "precision": "float32",
    "input_size": {"shorter_side": 800, "longer_side_at_most": 1333},
    "max_instances": 100,
    "tile_overlap": 0.2,
    "keypoints": None,
}
