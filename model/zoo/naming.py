"""Names in a model file's description: whether they can be shown, and those of keypoints."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from model.data import Keypoints

# Of a name.
MOST_CHARACTERS = 200


def is_name(text: str) -> bool:
    """Whether a text can be shown in a line and written as UTF-8: no control characters, no lone surrogates."""
    kinds = {unicodedata.category(character) for character in text}
    return len(text) <= MOST_CHARACTERS and not kinds & {"Cc", "Cs", "Zl", "Zp"}


def is_unicode(document: Any) -> bool:
    """Whether all texts in a JSON document are Unicode; JSON can spell half of a surrogate pair."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_keypoints(values: Any) -> Keypoints | None:
    """What a document says of keypoints. Raises KeyError, TypeError or ValueError for what is not that."""
    if values is None:
        return None
    ends = [end for first, second in values["skeleton"] for end in (first, second)]
    if not all(type(end) is int for end in ends):
        raise TypeError(f"a skeleton of {ends!r:.60} is not of integers")
    return Keypoints(
        tuple(str(name) for name in values["names"]), tuple(zip(ends[::2], ends[1::2], strict=True))
    )


def find_keypoint_fault(keypoints: Keypoints | None, count: int) -> str | None:
    """What is wrong with a model's keypoints, as the end of a line; None if nothing.

    keypoints: as its description names them. count: how many its architecture has.
    """
    names, skeleton = ((), ()) if keypoints is None else (keypoints.names, keypoints.skeleton)
    if len(names) != count:
        return f"it names {len(names)} of its {count} keypoints"
    if not all(0 <= end < len(names) for joined in skeleton for end in joined):
        return "its skeleton joins keypoints that there are not"
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        return "its keypoints have names that are empty or the same"
    if not all(map(is_name, names)):
        return f"its keypoints have names that are not one line of at most {MOST_CHARACTERS} characters"
    return None
