"""The query of POST /segment → what is wanted of the image. What is not understood is refused."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from app.problems import InvalidParameter
from model.instances import Options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model.data import Category

PARAMETERS = ("score_threshold", "max_instances", "categories", "masks")
MASK_FORMATS = ("rle", "polygon", "png", "none")
MOST_INSTANCES = 100  # COCO evaluates so many, and the networks keep so many per image

TIME_LIMIT = "X-Request-Timeout-Ms"  # header: milliseconds from the request to its answer
MOST_MILLISECONDS = 999_999_999  # as many as WHOLE has digits for: eleven days

JSON, NDJSON, PNG, JPEG = "application/json", "application/x-ndjson", "image/png", "image/jpeg"
# What each range of an Accept header is answered with.
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

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
WHOLE = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SegmentParams(Options):
    """What the engine is asked for, and how the answer is to spell it."""

    mask_format: str = MASK_FORMATS[0]


def parse(query: str, categories: tuple[Category, ...]) -> SegmentParams:
    """The options in a query string; those not given have the defaults of `SegmentParams`.

    Raises InvalidParameter, which names the parameter and what it takes, for whatever is unknown, empty,
    given twice, or outside its range.
    """
    options: dict[str, Any] = {}
    for name, value in single(query):
        match name:
            case "score_threshold":
                options["score_threshold"] = score(value)
            case "max_instances":
                options["max_instances"] = count(value)
            case "categories":
                options["categories"] = category_ids(value, categories)
            case "masks":
                options["mask_format"] = mask_format(value)
                options["masks"] = value != "none"
            case _:
                raise InvalidParameter(f'There is no parameter "{name[:40]}". {closest(name, PARAMETERS)}')
    return SegmentParams(**options)


def time_limit(given: str | None) -> float:
    """Seconds that the client will wait, by the TIME_LIMIT header; infinite without it. Raises InvalidParameter."""
    if given is None:
        return math.inf
    digits = given.strip().lstrip("0")  # of 0 nothing is left
    if not WHOLE.fullmatch(digits):
        raise InvalidParameter(
            f'{TIME_LIMIT} must be a whole number of milliseconds from 1 to {MOST_MILLISECONDS}, not "{given[:40]}".'
        )
    return int(digits) / 1000


def single(query: str) -> Iterable[tuple[str, str]]:
    """Names and values of a query string, each name once and each value with something in it."""
    seen: set[str] = set()
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in seen:
            raise InvalidParameter(
                f'"{name[:40]}" is given more than once; separate several values by commas.'
            )
        seen.add(name)
        value = text.strip()
        if name in PARAMETERS and not value:
            raise InvalidParameter(f"{name} is empty; leave it out for its default.")
        yield name, value


def score(value: str) -> float:
    """The threshold: a decimal number from 0 to 1. `nan`, `inf` and the like are no numbers here."""
    if DECIMAL.fullmatch(value) and 0 <= float(value) <= 1:
        return float(value)
    raise InvalidParameter(f'score_threshold must be a number from 0 to 1, not "{value[:40]}".')


def count(value: str) -> int:
    """The most instances: a whole number from 1 to 100."""
    if WHOLE.fullmatch(value) and 1 <= int(value) <= MOST_INSTANCES:
        return int(value)
    raise InvalidParameter(
        f'max_instances must be a whole number from 1 to {MOST_INSTANCES}, not "{value[:40]}".'
    )


def mask_format(value: str) -> str:
    """How masks are to be spelt: one of MASK_FORMATS."""
    if value in MASK_FORMATS:
        return value
    raise InvalidParameter(f'masks must be one of {", ".join(MASK_FORMATS)}, not "{value[:40]}".')


def category_ids(value: str, categories: tuple[Category, ...]) -> frozenset[int]:
    """The ids of comma-separated category names (in any letter case) or ids."""
    by_name = {category.name.casefold(): category.id for category in categories}
    ids = {category.id for category in categories}
    chosen = set()
    for item in value.split(","):
        wanted = item.strip()
        if wanted.casefold() in by_name:
            chosen.add(by_name[wanted.casefold()])
        elif WHOLE.fullmatch(wanted) and int(wanted) in ids:
            chosen.add(int(wanted))
        elif not wanted:
            raise InvalidParameter("categories has an empty entry between its commas.")
        else:
            raise InvalidParameter(
                f'The model has no category "{wanted[:40]}". '
                f"{closest(wanted.casefold(), [category.name for category in categories])}"
            )
    return frozenset(chosen)


def closest(name: str, names: Iterable[str]) -> str:
    """A sentence that helps whoever misspelt a name: the ones like it, or else all that there are."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, n=3):
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(names)}."


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
