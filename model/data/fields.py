"""Values as label files spell them → numbers, ids and flags; None where a value cannot mean one.

Labelling tools write numbers as text, ids as floats, and flags in every spelling. Where the meaning is certain it is
taken; where it is not, the caller says which field is wrong.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

_INTEGER = re.compile(r"[+-]?\d{1,18}(\.0*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
# Ids beyond do not fit into 64 bits, and are names.
_LIMIT = 10**18
_NO = frozenset(("", "0", "0.0", "false", "no", "n", "f", "none", "null"))
_YES = frozenset(("1", "1.0", "true", "yes", "y", "t"))

# What identifies an image or a category within a file.
Key = int | str
# x, y, width, height in pixels.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class LabelFault:
    """Something in a label file that cannot be used: a kind to count by, where it stands, and what is wrong."""

    kind: str
    # Like "annotation 7 of image 3 (a.png)".
    where: str
    # Names the field.
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


def to_key(value: Any) -> Key | None:
    """An id: numbers join however they are written (7, 7.0, "7", "007"), names stay names; None if it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < _LIMIT else str(value)
    if isinstance(value, float):
        return int(value) if abs(value) < _LIMIT and value == int(value) else None
    if isinstance(value, str) and (text := value.strip()):
        return int(text.partition(".")[0]) if _INTEGER.fullmatch(text) else text
    return None


def to_number(value: Any) -> float | None:
    """A finite number, written as one or as text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    if isinstance(value, str) and len(value) < 64 and _NUMBER.fullmatch(value.strip()):
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def to_count(value: Any) -> int | None:
    """A whole number above 0, as an image's side is; written as a number or as text."""
    number = to_number(value)
    return int(number) if number is not None and number >= 1 and number == int(number) else None


def to_flag(value: Any) -> bool | None:
    """A flag in any spelling that leaves no doubt: 1, 1.0, true, "yes"; 0, null, "false", "" …; None for the rest."""
    if value is None:
        return False
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        text = value.strip().lower()
        return False if text in _NO else True if text in _YES else None
    return None


def to_box(value: Any) -> Box | None:
    """x, y, width, height in pixels; None for whatever is no box with an area."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [to_number(v) for v in value]
    if any(v is None or abs(v) >= 1e9 for v in numbers):
        return None
    x, y, width, height = (v for v in numbers if v is not None)
    return (x, y, width, height) if width > 0 and height > 0 else None


def quote(value: Any) -> str:
    """A value as the file has it, cut short, for a message."""
    if isinstance(value, list):
        return "a list" if len(value) > 4 or any(isinstance(v, list | dict) for v in value) else _json(value)
    return "an object" if isinstance(value, dict) else _json(value)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
