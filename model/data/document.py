"""A label file's bytes → its JSON document, or one sentence that says what the file is instead."""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any

from model.data import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

# UTF-32's mark begins with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# An escaped surrogate, with its other half if that follows.
_SURROGATE = re.compile(r"\\u[dD](?:[89abAB]..(?:\\u[dD][c-fC-F]..)?|[c-fC-F]..)")
_LISTS = ("images", "annotations", "categories")
_EXPORT = "export the labels as COCO (instance segmentation)"

# A key that only another tool's own format has → what that is.
_OTHERS = {
    "shapes": "LabelMe's own format of one image",
    "_via_img_metadata": "a project of the VGG Image Annotator",
    "_via_settings": "a project of the VGG Image Annotator",
    "items": "Datumaro's own format",
    "log_version": "a training log",
}


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object, with its lists of images, annotations and categories. Raises DatasetError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({(error.strerror or 'unknown reason').lower()})"
        ) from error
    if content[:4] == b"PK\x03\x04" or content[:2] == b"\x1f\x8b":
        raise DatasetError(f"{path}: this is a compressed archive; unpack it and name the folder")
    document = _parse(_text(content, path), path)
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: not COCO's instances format: {_not_an_object(document)}")
    for key in _LISTS:
        if not isinstance(document.get(key), list):
            other = next((what for sign, what in _OTHERS.items() if sign in document), None)
            told = f"it is {other}; {_EXPORT}" if other else f"a list named {json.dumps(key)} is missing"
            raise DatasetError(f"{path}: not COCO's instances format: {told}")
    if not document["images"]:
        raise DatasetError(f"{path}: it names no images")
    return document


def _text(content: bytes, path: Path) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    encoding = encoding or json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        name, byte = encoding.removesuffix("-sig").upper(), f"0x{content[error.start]:02x}"
        raise DatasetError(
            f"{path}: not in {name}: byte {byte} in line {line}; save the file as UTF-8"
        ) from error


def _parse(text: str, path: Path) -> Any:
    if not text.strip():
        raise DatasetError(f"{path}: not JSON: the file is empty")
    if text.startswith("version https://git-lfs"):
        raise DatasetError(f"{path}: this is a pointer of Git LFS; `git lfs pull` brings the file itself")
    for found in _SURROGATE.finditer(text):
        before = text[max(0, found.start() - 64) : found.start()]
        escaped = (len(before) - len(before.rstrip("\\"))) % 2
        if len(found[0]) == len(r"\ud800") and not escaped:
            line = text.count("\n", 0, found.start()) + 1
            raise DatasetError(
                f"{path}: line {line} has half of a character, {found[0]}; write that text again"
            )
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            told = "it ends too early; the file was cut off"
        else:
            near = " ".join(text[error.pos : error.pos + 30].split())
            told = f"line {error.lineno}, column {error.colno}, at {json.dumps(near, ensure_ascii=False)}"
        raise DatasetError(f"{path}: not JSON: {told}") from error
    # Lists in lists, or numbers of thousands of digits.
    except (RecursionError, ValueError) as error:
        raise DatasetError(f"{path}: not JSON that anybody labels with: it is nested too deeply, or has a number of "
                           "thousands of digits") from error  # fmt: skip


def _not_an_object(document: Any) -> str:
    if isinstance(document, list) and document and isinstance(document[0], dict):
        if "score" in document[0] and "image_id" in document[0]:
            return "these are results, not labels"
        if "data" in document[0] or "predictions" in document[0]:
            return f"these are Label Studio's tasks; {_EXPORT}"
    return "a JSON object is expected"
