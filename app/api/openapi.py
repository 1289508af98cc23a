"""What /openapi.json says that FastAPI cannot read from the routes: the problems, the body forms, more media types."""

from __future__ import annotations

from typing import Any

from app import problems
from app.api.query import JPEG, JSON, NDJSON, PNG
from app.api.schemas import EXAMPLE, EXAMPLE_ID, MODEL_EXAMPLE, PIXEL, PROBLEM_SCHEMA, PROGRESS_SCHEMA
from app.observability.metrics import CONTENT_TYPE
from app.problems import Problem

DESCRIPTION = """\
POST an image to `/segment`: the answer has a category, a score, a box and a mask for every object found,
as COCO results records.

    curl -F image=@photo.jpg http://localhost:8000/segment

Errors are RFC 9457 problems (`application/problem+json`). Every answer has an `X-Request-ID`, the client's
own if it sent one, and a `Server-Timing` header with the duration of each stage.
"""
FILE = {"type": "string", "format": "binary"}
# {} stands for no key, which is needed only where the service has a file of keys.
SECURITY: dict[str, Any] = {"security": [{}]}
# The server or the router answers these, whatever the route.
EVERYWHERE = {
    problems.UnknownPath,
    problems.MethodNotAllowed,
    problems.HeaderTooSlow,
    problems.HeaderTooLarge,
}

Responses = dict[int | str, dict[str, Any]]


def answers(content: dict[str, Any], *kinds: type[Problem], description: str = "The answer.") -> Responses:
    """The `responses` of a route: its answer by media type, and an example of each problem that it can answer with."""
    found: Responses = {200: {"description": description, "content": content}}
    for kind in kinds:
        meaning = (kind.__doc__ or "").partition("\n")[0]
        entry = found.setdefault(kind.status, {"description": "", "content": {}})
        entry["description"] = f"{entry['description']} {meaning}".strip()
        retries = kind.status in (429, 503)
        if retries:
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
        document = kind(meaning, retry_after=5 if retries else None).document(EXAMPLE_ID)
        content = entry["content"].setdefault(problems.MEDIA_TYPE, {"schema": PROBLEM_SCHEMA, "examples": {}})
        content["examples"][kind.slug] = {"summary": kind.title, "value": document}
    return found


def line(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a line of NDJSON: a document, and the index of its image."""
    index = {"type": "integer", "description": "Which of the images, in the order sent, from 0."}
    return {"allOf": [schema, {"type": "object", "properties": {"index": index}, "required": ["index"]}]}


SEGMENT = answers(
    {
        JSON: {"example": EXAMPLE},
        NDJSON: {
            "schema": {
                "oneOf": [
                    line({"$ref": "#/components/schemas/Answer"}),
                    line(PROBLEM_SCHEMA),
                    line(PROGRESS_SCHEMA),
                ]
            },
            "example": {"index": 0, **EXAMPLE},
        },
        PNG: {"schema": FILE},
        JPEG: {"schema": FILE},
    },
    Problem,
    *(kind for kind in Problem.__subclasses__() if kind not in EVERYWHERE),
    description="The instances, as JSON. With `Accept: image/png` or `image/jpeg`: the picture with the instances on "
    "it. For several images, or with `Accept: application/x-ndjson`: one line of JSON for each image, in the order "
    "sent, each as soon as it and those before it are done. The line of an image that failed has a problem. With "
    "`tile`, lines with `tiles` say meanwhile how far the image is whose line comes next.",
)
JSON_FIELDS = {
    "image": {"type": "string", "description": "The image file in base64; a data: URL is accepted too."},
    "url": {"type": "string", "description": "Its https address, on a host from which the service fetches."},
}
SEGMENT_BODY = {
    "required": True,
    "description": "The image (JPEG, PNG, WebP, GIF, BMP or TIFF), in one of three forms.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {
                        "type": "array",
                        "items": FILE,
                        "description": "The image, or several: one part each, all called image.",
                    }
                },
                "required": ["image"],
            }
        },
        "application/octet-stream": {"schema": FILE},
        "image/*": {"schema": FILE},
        JSON: {
            "schema": {
                "type": "object",
                "oneOf": [
                    {"properties": {name: field}, "required": [name], "additionalProperties": False}
                    for name, field in JSON_FIELDS.items()
                ],
            },
            "example": {"image": PIXEL},
        },
    },
}
HEALTHZ = answers({JSON: {"example": {"status": "ok"}}}, problems.NotReady)
READYZ = answers({JSON: {"example": {"status": "ready"}}}, problems.NotReady, problems.Draining)
METRICS = answers({CONTENT_TYPE.partition(";")[0]: {"schema": {"type": "string"}}}, problems.Unauthorized)
MODEL = answers({JSON: {"example": MODEL_EXAMPLE}}, problems.Unauthorized, problems.NotReady)
