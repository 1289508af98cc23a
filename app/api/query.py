"""Reads the parameters of POST /segment and the media type of its answer."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from app.api.categories import CategoryNames
from app.problems import InvalidParameter, suggest
from model.instances import Options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.datastructures import QueryParams

    from model.data import Category

MaskFormat = Literal["rle", "polygon", "png", "none"]
# As many as COCO evaluation counts, and as the networks keep.
MAX_INSTANCES = 100

# Milliseconds from the request to its answer.
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
# Eleven days, which is no limit.
MAX_TIMEOUT_MS = 999_999_999

JSON, NDJSON, PNG, JPEG = "application/json", "application/x-ndjson", "image/png", "image/jpeg"
# The answer's media type for each range of an Accept header.
MEDIA_TYPES = {
    JSON: JSON,
    "application/*": JSON,
    "*/*": JSON,
    NDJSON: NDJSON,
    PNG: PNG,
    JPEG: JPEG,
    "image/*": JPEG,
}
QUALITY = re.compile(r"(0(\.\d{0,3})?|1(\.0{0,3})?)", re.ASCII)

DIGITS = re.compile(r"\s*\d+\s*", re.ASCII)
# Parameters that one message names.
MAX_ERRORS = 3

# What each parameter accepts, for the sentence "… must be …".
ACCEPTED = {
    "score_threshold": "a number from 0 to 1",
    "max_instances": f"a whole number from 1 to {MAX_INSTANCES}",
    "masks": f"one of {', '.join(get_args(MaskFormat))}",
    TIMEOUT_HEADER: f"a whole number of milliseconds from 1 to {MAX_TIMEOUT_MS}",
}


def require_digits(value: object) -> object:
    """Raise ValueError for what pydantic accepts as an integer but is not written in digits only: 5.0, 1_0."""
    if isinstance(value, str) and not DIGITS.fullmatch(value):
        raise ValueError("not a whole number")
    return value


@dataclass(frozen=True, slots=True)
class SegmentParams(Options):
    """The options of the engine, and the format of the masks in the answer."""

    mask_format: MaskFormat = "rle"


class SegmentQuery(BaseModel):
    """The query parameters of POST /segment."""

    model_config = ConfigDict(extra="forbid")

    score_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Only instances with at least this score. The model looks for none below 0.05.",
    )
    max_instances: Annotated[int, BeforeValidator(require_digits)] = Field(
        MAX_INSTANCES, ge=1, le=MAX_INSTANCES, description="At most this many, those with the highest scores."
    )
    categories: list[str] = Field(
        default=[],
        description="Only these categories: names or ids as `/model` lists them. Separate several by commas or repeat "
        "the parameter. A name that has a comma needs a parameter of its own. An exact name comes before an id, and an "
        "id before a name in other letter case.",
    )
    masks: MaskFormat = Field(
        "rle",
        description="`rle`: masks as COCO RLE. `polygon`: as COCO polygons, simplified. `png`: as 1-bit PNG files of "
        "the boxes. `none`: boxes only, which is faster.",
    )

    def params(self, categories: Sequence[Category]) -> SegmentParams:
        """The options for a model with these categories. Raises InvalidParameter for an unknown category."""
        return SegmentParams(
            score_threshold=self.score_threshold,
            max_instances=self.max_instances,
            categories=CategoryNames(categories).ids(self.categories) if self.categories else None,
            masks=self.masks != "none",
            mask_format=self.masks,
        )


def parse(parameters: Mapping[str, Any], categories: Sequence[Category]) -> SegmentParams:
    """The parameters of a request that did not come by HTTP. Raises InvalidParameter."""
    try:
        return SegmentQuery.model_validate(parameters).params(categories)
    except ValidationError as error:
        raise explain(error.errors()) from None


def refuse_repeated(query: QueryParams) -> None:
    """Raise InvalidParameter for a parameter that is given more than once and takes one value."""
    for name, count in Counter(name for name, _ in query.multi_items()).items():
        if count > 1 and name != "categories":
            raise InvalidParameter(f'"{name[:40]}" is given more than once; only categories may be repeated.')


def explain(errors: Sequence[Any]) -> InvalidParameter:
    """The problem for parameters that pydantic refused: their names, what they accept, and what they were."""
    return InvalidParameter(" ".join(dict.fromkeys(map(explain_one, errors[:MAX_ERRORS]))))


def explain_one(error: Mapping[str, Any]) -> str:
    """One sentence about one parameter. error: as pydantic's ValidationError lists them."""
    # FastAPI puts "query" or "header" before the name.
    place, *names = error["loc"]
    name, value = names[0] if names and place in ("query", "header") else place, error["input"]
    if error["type"] == "extra_forbidden":
        return f'There is no parameter "{name[:40]}". {suggest(name, SegmentQuery.model_fields)}'
    if name != TIMEOUT_HEADER and not value.strip():
        return f"{name} is empty; leave it out for its default."
    return f'{name} must be {ACCEPTED[name]}, not "{value[:40]}".'


def choose_media_type(accept: str) -> str:
    """The media type of the answer: JSON, unless the Accept header prefers a picture or NDJSON."""
    best, best_quality = JSON, 0.0
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weights = (parameter[2:] for parameter in parameters if parameter.startswith("q="))
        quality = parse_quality(next(weights, "1"))
        if name in MEDIA_TYPES and quality > best_quality:
            best, best_quality = MEDIA_TYPES[name], quality
    return best


def parse_quality(text: str) -> float:
    """The weight of an Accept entry (RFC 9110, section 12.4.2); 0 for anything malformed."""
    return float(text) if QUALITY.fullmatch(text) else 0.0
