"""What /openapi.json says of each route: every parameter, every body form with an example, every problem."""

from __future__ import annotations

from typing import Any

from app import problems
from app.api.query import JPEG, JSON, MASK_FORMATS, MOST_INSTANCES, NDJSON, PNG, TIME_LIMIT
from app.api.schemas import (
    ANSWER_SCHEMA,
    EXAMPLE,
    EXAMPLE_ID,
    INTEGER,
    LINE_SCHEMA,
    MODEL_SCHEMA,
    NUMBER,
    PIXEL,
    PROBLEM_SCHEMA,
    STATUS_SCHEMA,
    STRING,
    array,
    described,
    record,
)
from app.observability.metrics import CONTENT_TYPE
from app.problems import Problem

DESCRIPTION = """\
POST an image to `/segment`: the answer has a category, a score, a box and a mask for every object found,
as COCO results records.

    curl -F image=@photo.jpg http://localhost:8000/segment

Errors are RFC 9457 problems (`application/problem+json`). Every answer has an `X-Request-ID`, the client's
own if it sent one, and a `Server-Timing` header that says where the time went.
"""


def problem_responses(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can end in these problems, one example for each kind."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        meaning = (kind.__doc__ or "").partition("\n")[0]
        entry = found.setdefault(
            kind.status,
            {"description": "", "content": {problems.MEDIA_TYPE: {"schema": PROBLEM_SCHEMA, "examples": {}}}},
        )
        entry["description"] = f"{entry['description']} {meaning}".strip()
        example: dict[str, Any] = {
            "type": f"urn:maskserve:problem:{kind.slug}",
            "title": kind.title,
            "status": kind.status,
            "detail": meaning,
            "request_id": EXAMPLE_ID,
        }
        if kind.status in (429, 503):
            example["retry_after"] = 5
            entry["headers"] = {"Retry-After": {"schema": INTEGER, "description": "Seconds."}}
        entry["content"][problems.MEDIA_TYPE]["examples"][kind.slug] = {
            "summary": kind.title,
            "value": example,
        }
    return found


def answers(schema: dict[str, Any], example: Any, *kinds: type[Problem]) -> dict[str, Any]:
    """What a JSON route's decorator gets: its answer, and the problems it can end in."""
    content = {JSON: {"schema": schema, "example": example}}
    return {
        "response_model": None,
        "responses": {200: {"description": "The answer.", "content": content}, **problem_responses(*kinds)},
    }


def parameter(
    name: str, schema: dict[str, Any], description: str, place: str = "query", **more: Any
) -> dict[str, Any]:
    """One optional parameter, of the query if no other place is named."""
    return {
        "name": name,
        "in": place,
        "required": False,
        "schema": schema,
        "description": description,
        **more,
    }


# app.api.auth adds the key; {} says that a service without a file of keys asks for none.
SECURITY: dict[str, Any] = {"security": [{}]}

SEGMENT = answers(
    ANSWER_SCHEMA,
    EXAMPLE,
    problems.MalformedRequest,
    problems.Unauthorized,
    problems.BodyTooSlow,
    problems.BodyTooLarge,
    problems.ImageTooLarge,
    problems.UnsupportedFormat,
    problems.UndecodableImage,
    problems.InvalidParameter,
    problems.UnusableUrl,
    problems.QueueFull,
    Problem,
    problems.NotReady,
    problems.Draining,
    problems.DeadlineExceeded,
)
SEGMENT["responses"][200]["description"] = (
    "The instances, as JSON. With `Accept: image/png` or `image/jpeg`: the picture with the instances on it. For "
    "several images, or with `Accept: application/x-ndjson`: a line of JSON for each, in the order sent, as soon as it "
    "and those before it are done; an image with which something is wrong has a problem in its line."
)
SEGMENT["responses"][200]["content"] |= {
    NDJSON: {"schema": LINE_SCHEMA, "example": {"index": 0, **EXAMPLE}},
    PNG: {"schema": {"type": "string", "format": "binary"}},
    JPEG: {"schema": {"type": "string", "format": "binary"}},
}
SEGMENT |= {
    "operation_id": "segment",
    "summary": "Find the instances in an image, or in each of several",
    "description": "Send the image in whichever form suits; all three get the same answer. A form may have several.",
    "openapi_extra": SECURITY
    | {
        "parameters": [
            parameter(
                "score_threshold",
                {**NUMBER, "minimum": 0, "maximum": 1, "default": 0.5},
                "Only instances that score at least this. Below 0.05 the model does not look.",
            ),
            parameter(
                "max_instances",
                {**INTEGER, "minimum": 1, "maximum": MOST_INSTANCES, "default": MOST_INSTANCES},
                "At most so many, the best-scoring ones.",
            ),
            parameter(
                "categories",
                array(STRING),
                "Only these: names or ids as `/model` lists them, separated by commas.",
                style="form",
                explode=False,
            ),
            parameter(
                "masks",
                {**STRING, "enum": list(MASK_FORMATS), "default": MASK_FORMATS[0]},
                "`rle`: masks as COCO run lengths. `polygon`: as COCO polygons, simplified. `png`: as 1-bit PNG files "
                "of the boxes. `none`: boxes only, which is quicker.",
            ),
            parameter(
                TIME_LIMIT,
                {**INTEGER, "minimum": 1, "maximum": 999_999_999},
                "Milliseconds that the client will wait, from the request's header to the answer. What cannot be "
                "ready by then is refused at once (429) or given up (504).",
                "header",
            ),
        ],
        "requestBody": {
            "required": True,
            "description": "The image (JPEG, PNG, WebP, GIF, BMP or TIFF), in one of three forms.",
            "content": {
                "multipart/form-data": {
                    "schema": record(
                        {
                            "image": described(
                                array({"type": "string", "format": "binary"}),
                                "The image, or several: a part each, all called image.",
                            )
                        }
                    ),
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "image/*": {"schema": {"type": "string", "format": "binary"}},
                JSON: {
                    "schema": {
                        "oneOf": [
                            record(
                                {
                                    "image": described(
                                        STRING, "The image file in base64; a data: URL is accepted too."
                                    )
                                },
                                additionalProperties=False,
                            ),
                            record(
                                {
                                    "url": described(
                                        STRING,
                                        "The image's https address, where the service fetches from its host.",
                                    )
                                },
                                additionalProperties=False,
                            ),
                        ]
                    },
                    "example": {"image": PIXEL},
                },
            },
        },
    },
}

HEALTHZ = answers(STATUS_SCHEMA, {"status": "ok"}, problems.NotReady) | {
    "operation_id": "healthz",
    "summary": "Is the process worth keeping? (liveness)",
    "description": "Green while the model loads and while the device gives signs of life, under any load.",
}
LIVEZ = HEALTHZ | {"operation_id": "livez", "summary": "The same as /healthz"}
READYZ = answers(STATUS_SCHEMA, {"status": "ready"}, problems.NotReady, problems.Draining) | {
    "operation_id": "readyz",
    "summary": "Are requests taken? (readiness)",
    "description": "Red while the model loads, while the service shuts down, and when the device has failed.",
}
METRICS: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {
            "description": "The metrics, in Prometheus' text format.",
            "content": {CONTENT_TYPE.partition(";")[0]: {"schema": STRING}},
        },
        **problem_responses(problems.Unauthorized),
    },
    "operation_id": "metrics",
    "summary": "Counters, histograms and gauges for Prometheus",
    "openapi_extra": SECURITY,
}
MODEL = answers(
    MODEL_SCHEMA,
    {
        "name": "maskrcnn_resnet50_fpn",
        "notice": None,
        "architecture": {"backbone": "resnet50"},
        "categories": [{"id": 18, "name": "dog"}],
        "sha256": "bf2d0c1e… (64 hexadecimal digits)",
        "ap": {"box": 0.379, "mask": 0.346},
        "ap_source": "COCO val2017",
        "device": "cuda:0",
        "precision": "float32",
        "input_size": {"shorter_side": 800, "longer_side_at_most": 1333},
    },
    problems.Unauthorized,
    problems.NotReady,
) | {
    "operation_id": "model",
    "summary": "Which model answers here, and how it runs",
    "openapi_extra": SECURITY,
}
