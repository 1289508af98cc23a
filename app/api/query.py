"""Reads the parameters of POST /segment and the media type of its answer."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema  # noqa: TC002 - pydantic reads the annotations
from starlette.datastructures import QueryParams

from app.api.categories import CategoryNames
from app.problems import InvalidParameter, suggest
from model.inference.tiling import (
    MAX_OVERLAP,
    MAX_TILE,
    MIN_OVERLAP,
    MIN_TILE,
    MOST_MERGED,
    Tiling,
    TilingError,
)
from model.instances import Options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

    from model.masks.merge import Layout
    from model.zoo.model_file import Model

MaskFormat = Literal["rle", "polygon", "png", "none"]
KeypointFormat = Literal["coco", "none"]

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
    "max_instances": "a whole number from 1 to {most}, the most that the model finds",
    "masks": f"one of {', '.join(get_args(MaskFormat))}",
    "keypoints": f"one of {', '.join(get_args(KeypointFormat))}",
    "tile": f"auto, or a whole number of pixels from {MIN_TILE} to {MAX_TILE}",
    "overlap": f"a number from {MIN_OVERLAP} to {MAX_OVERLAP}",
    "whole": "true or false",
    TIMEOUT_HEADER: f"a whole number of milliseconds from 1 to {MAX_TIMEOUT_MS}",
}


def require_digits(value: object) -> object:
    """Raise ValueError for what pydantic accepts as an integer but is not written in digits only: 5.0, 1_0."""
    if isinstance(value, str) and not DIGITS.fullmatch(value):
        raise ValueError("not a whole number")
    return value


def require_digits_or_auto(value: object) -> object:
    """As `require_digits`, but for the word auto."""
    return value if value == "auto" else require_digits(value)


@dataclass(frozen=True, slots=True)
class SegmentParams(Options):
    """The options of the engine, how large images are cut, and the format of the masks in the answer."""

    mask_format: MaskFormat = "rle"
    # None: the image is segmented as a whole.
    tiling: Tiling | None = None

    def cut(self, height: int, width: int, model: Model) -> Layout | None:
        """The tiles of an image; None if it is segmented as a whole. Raises InvalidParameter for too many.

        Args:
            height: of the image, pixels.
            width: likewise.
            model: the default side and overlap of tiles depend on it.
        """
        try:
            return None if self.tiling is None else self.tiling.cut(height, width, model)
        except TilingError as error:
            raise InvalidParameter(str(error)) from None


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
    max_instances: Annotated[int | SkipJsonSchema[None], BeforeValidator(require_digits)] = Field(
        None,
        ge=1,
        # `params` checks the model's own limit.
        json_schema_extra={"maximum": MOST_MERGED},
        description="At most this many, those with the highest scores. The model has a number of its own, "
        "`max_instances` of `/model`, which is the default and the largest that is accepted. With `tile` it is "
        f"the most in each tile, and this parameter counts after merging: up to {MOST_MERGED:,}, the default.",
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
        "the boxes. `none`: boxes only, which is faster without `tile`.",
    )
    keypoints: KeypointFormat = Field(
        "coco",
        description="`coco`: the keypoints of each instance as COCO lists them, where the model finds some. `none`: "
        "none of them, which is faster.",
    )
    tile: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=MIN_TILE, le=MAX_TILE)] | SkipJsonSchema[None],
        BeforeValidator(require_digits_or_auto),
    ] = Field(
        None,
        description="For large images: the image is cut into overlapping square tiles with sides of so many pixels, "
        "and what they have is merged. `auto`: tiles in which the model sees the image in its own resolution, and none "
        "where it nearly does anyway.",
    )
    overlap: float | SkipJsonSchema[None] = Field(
        None,
        ge=MIN_OVERLAP,
        le=MAX_OVERLAP,
        allow_inf_nan=False,
        description="With `tile`: the least overlap of neighbouring tiles, as a share of their side. The default is "
        "`tile_overlap` of `/model`; of tiles that are no squares, as much as the model's objects need.",
    )
    whole: bool | SkipJsonSchema[None] = Field(
        None,
        description="With `tile`: segment the whole image too, shrunk as without tiles, for objects that are larger "
        "than a tile. The default is true with `tile=auto`, else false.",
    )

    def params(self, model: Model) -> SegmentParams:
        """The options for a model. Raises InvalidParameter for an unknown category and more instances than it finds."""
        categories = model.categories
        if self.tile is None and (unused := {"overlap", "whole"} & self.model_fields_set):
            raise InvalidParameter(f'"{min(unused)}" is for images in tiles; it needs the parameter tile.')
        if self.max_instances is not None and self.tile is None and self.max_instances > model.max_instances:
            raise InvalidParameter(
                describe_invalid_value("max_instances", str(self.max_instances), model.max_instances)
            )
        if self.max_instances is not None and self.max_instances > MOST_MERGED:
            given = str(self.max_instances)[:40]
            raise InvalidParameter(
                f'max_instances must be a whole number from 1 to {MOST_MERGED} with tile, not "{given}".'
            )
        return SegmentParams(
            score_threshold=self.score_threshold,
            max_instances=self.max_instances,
            categories=CategoryNames(categories).ids(self.categories) if self.categories else None,
            masks=self.masks != "none",
            mask_format=self.masks,
            keypoints=self.keypoints != "none",
            tiling=self.tiling(),
        )

    def tiling(self) -> Tiling | None:
        """How images are cut, if they are."""
        if self.tile is None:
            return None
        return Tiling(self.tile if isinstance(self.tile, int) else None, self.overlap, self.whole)


DEFAULT_QUERY = SegmentQuery()
Timeout = Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS), BeforeValidator(require_digits)]
_TIMEOUT: TypeAdapter[int] = TypeAdapter(Timeout)


def parse(parameters: Mapping[str, Any], model: Model) -> SegmentParams:
    """The parameters of a request that did not come by HTTP. Raises InvalidParameter."""
    try:
        return SegmentQuery.model_validate(parameters).params(model)
    except ValidationError as error:
        raise explain(error.errors(), model.max_instances) from None


def read_parameters(request: Request, most: int) -> tuple[SegmentQuery, int]:
    """The query of a request, and the milliseconds that its client will wait. Raises InvalidParameter.

    FastAPI would analyse the types of all parameters again each time: a sixth of the event loop's work for a request.

    Args:
        request: its body is not looked at.
        most: instances that the model finds in an image.
    """
    errors: list[Any] = []
    repeated: InvalidParameter | None = None
    query, timeout_ms = DEFAULT_QUERY, MAX_TIMEOUT_MS
    if text := request.scope["query_string"]:
        try:
            query = (_parse_query_cached if len(text) <= MAX_CACHED_QUERY_BYTES else _parse_query)(text)
        except ValidationError as error:
            errors += error.errors()
        except InvalidParameter as problem:
            repeated = problem
    if (given := request.headers.get(TIMEOUT_HEADER)) is not None:
        try:
            timeout_ms = _TIMEOUT.validate_python(given)
        except ValidationError as error:
            errors += [{**each, "loc": ("header", TIMEOUT_HEADER)} for each in error.errors()]
    if errors:
        raise explain(errors, most)
    if repeated is not None:
        raise repeated
    return query, timeout_ms


def _parse_query(text: bytes) -> SegmentQuery:
    """The parameters in a query string. Raises ValidationError, InvalidParameter."""
    given = QueryParams(text)
    query = SegmentQuery.model_validate(
        {name: given.getlist(name) if name == "categories" else value for name, value in given.items()}
    )
    raise_if_repeated(given)
    return query


# Most clients always send the same query.
MAX_CACHED_QUERY_BYTES = 256
_parse_query_cached = lru_cache(64)(_parse_query)


def raise_if_repeated(query: QueryParams) -> None:
    """Raise InvalidParameter for a parameter that is given more than once and takes one value."""
    for name, count in Counter(name for name, _ in query.multi_items()).items():
        if count > 1 and name != "categories":
            raise InvalidParameter(f'"{name[:40]}" is given more than once; only categories may be repeated.')


def explain(errors: Sequence[Any], most: int) -> InvalidParameter:
    """The problem for parameters that pydantic refused: their names, what they accept, and what they were.

    most: instances that the model finds in an image.
    """
    sentences = (explain_one(error, most) for error in errors[:MAX_ERRORS])
    return InvalidParameter(" ".join(dict.fromkeys(sentences)))


def explain_one(error: Mapping[str, Any], most: int) -> str:
    """One sentence about one parameter. error: as pydantic's ValidationError lists them. most: as in `explain`."""
    # "query" or "header" may come before the name.
    place, *names = error["loc"]
    name, value = names[0] if names and place in ("query", "header") else place, error["input"]
    if error["type"] == "extra_forbidden":
        return f'There is no parameter "{name[:40]}". {suggest(name, SegmentQuery.model_fields)}'
    if name != TIMEOUT_HEADER and not value.strip():
        return f"{name} is empty; leave it out for its default."
    return describe_invalid_value(name, value, most)


def describe_invalid_value(name: str, value: str, most: int) -> str:
    """The sentence about a parameter's value.

    Args:
        name: of the parameter.
        value: as it was sent.
        most: instances that the model finds in an image.
    """
    return f'{name} must be {ACCEPTED[name].format(most=most)}, not "{value[:40]}".'


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
