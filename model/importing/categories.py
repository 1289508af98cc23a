"""The names of a model's classes: those given, COCO's, or numbers where there are none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from model.data import Category, Keypoints
from model.data.person import PERSON_KEYPOINTS
from model.importing.result import ImportingError
from model.zoo.coco import COCO_CATEGORIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.importing.result import Report

COCO_COUNT = len(COCO_CATEGORIES)


def coco_by_label() -> tuple[tuple[Category, ...], tuple[int, ...]]:
    """COCO's categories, and the outputs that networks have for them which number them by their ids."""
    return COCO_CATEGORIES, tuple(category.id for category in COCO_CATEGORIES)


def name_categories(names: Sequence[str]) -> tuple[Category, ...]:
    """Categories numbered from 1; COCO's own ids for exactly COCO's names. Raises ImportingError."""
    listed = [str(name).strip() for name in names]
    if not all(listed):
        raise ImportingError("a category has an empty name")
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise ImportingError(f"categories of the same name: {', '.join(twice)}")
    if listed == [category.name for category in COCO_CATEGORIES]:
        return COCO_CATEGORIES
    return tuple(Category(number, name) for number, name in enumerate(listed, start=1))


def choose_categories(count: int, given: Sequence[Category] | None, report: Report) -> tuple[Category, ...]:
    """As many categories as a network tells apart: those given, else COCO's where their number fits, else numbers.

    Args:
        count: of the network's classes, background left out.
        given: in the order of its outputs, if they are known.
        report: notes what is assumed.

    Raises ImportingError where those given are not so many.
    """
    if given is not None:
        if len(given) != count:
            raise ImportingError(f"{len(given)} categories were given for a network that tells {count} apart")
        return tuple(given)
    if count == COCO_COUNT:
        report.assumed.append("COCO's 80 categories, because it tells 80 apart")
        return COCO_CATEGORIES
    report.assumed.append(
        f"names for its categories ('class 1' … 'class {count}'), which the file does not hold: --categories A,B,…"
    )
    return tuple(Category(number, f"class {number}") for number in range(1, count + 1))


def read_categories(text: str, path: Path | None) -> tuple[Category, ...]:
    """Categories as somebody gives them in the order of the network's outputs, background left out.

    text: names with commas between them. path: instead of it a file of names, one a line, or a JSON file: a list of
    names, or COCO's with its `categories`, whose ids are kept. Raises ImportingError.
    """
    if path is None:
        return name_categories(text.split(","))
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return name_categories([line for line in content.splitlines() if line.strip()])
        document = json.loads(content)
        if isinstance(document, dict):
            entries = sorted(document["categories"], key=lambda entry: int(entry["id"]))
            name_categories([entry["name"] for entry in entries])
            return tuple(Category(int(entry["id"]), str(entry["name"])) for entry in entries)
        return name_categories(document)
    except OSError as error:
        raise ImportingError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ImportingError(f"{path}: no list of categories ({error!r:.100})") from None


def choose_keypoints(count: int, report: Report) -> Keypoints | None:
    """What the `count` keypoints of a network are: COCO's of a person where there are as many, else numbers."""
    if count == len(PERSON_KEYPOINTS.names):
        report.assumed.append(f"COCO's {count} keypoints of a person")
        return PERSON_KEYPOINTS
    if count:
        report.assumed.append(
            f"its {count} keypoints have no names: they are numbered, and no line joins them"
        )
    return Keypoints(tuple(f"keypoint {n}" for n in range(1, count + 1))) if count else None
