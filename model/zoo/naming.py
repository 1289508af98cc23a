"""Names in a model file's description: whether they can be shown, and those of keypoints."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from model.data import Keypoints

if TYPE_CHECKING:
    from model.zoo.model_file import Model

# Of a name.
MOST_CHARACTERS = 200


def is_name(text: str) -> bool:
    """Whether a text can be shown in a line and written as UTF-8: no control characters, no lone surrogates."""
    kinds = {unicodedata.category(character) for character in text}
    return len(text) <= MOST_CHARACTERS and not kinds & {"Cc", "Cs", "Zl", "Zp"}


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


def find_keypoint_fault(model: Model) -> str | None:
    """What is wrong with the keypoints of a description, as the end of a line; None if nothing."""
    names, skeleton = (
        ((), ()) if model.keypoints is None else (model.keypoints.names, model.keypoints.skeleton)
    )
    if len(names) != model.architecture.keypoints:
        return f"it names {len(names)} of its {model.architecture.keypoints} keypoints"
    if not all(0 <= end < len(names) for joined in skeleton for end in joined):
        return "its skeleton joins keypoints that there are not"
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        return "its keypoints have names that are empty or the same"
    if not all(map(is_name, names)):
        return f"its keypoints have names that are not one line of at most {MOST_CHARACTERS} characters"
    return None
