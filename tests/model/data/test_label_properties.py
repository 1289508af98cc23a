"""Any mix of oddities in a label file gives the sound folder's figures, or one sentence that says what is wrong."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data import DatasetError
from model.data.check import check
from model.data.coco import open_folder
from model.data.subset import take
from tests.model.data.folders import BOX, HEIGHT, OUTLINE, WIDTH, figures, sound, write

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS = [[10, 10], [30, 10], [30, 30], [10, 30]]
RUNS = [10 * HEIGHT + 10, *[20, 40] * 19, 20, HEIGHT * WIDTH - 29 * HEIGHT - 30]
GONE = object()  # the field is taken away
SIZES = st.sampled_from([GONE, None, 0, -1, "", {}, "right", float(WIDTH)])


def spellings(number: int) -> list[Any]:
    return [number, float(number), str(number), f"{number}.0", f" {number} ", f"00{number}"]


# Field of an annotation → values that mean what the sound one means.
CERTAIN: dict[str, list[Any]] = {
    "id": [GONE, None, "a", 7.0],
    "iscrowd": [GONE, 0, "0", None, False, 0.0, "false", "No", ""],
    "area": [GONE, 400, 400.0, "400", None, 0, -3.5, "", [], {}, "many", math.nan, math.inf],
    "bbox": [
        GONE, BOX, [float(v) for v in BOX], [str(v) for v in BOX], None, [], [1], [10, 10, -1, 5], "box", {},
        [math.nan] * 4,
    ],
    "segmentation": [
        OUTLINE, OUTLINE[0], PAIRS, [PAIRS], [[str(v) for v in OUTLINE[0]]], [[], *OUTLINE], [[*OUTLINE[0], 10, 10]],
        [[float(v) for v in OUTLINE[0]]], {"size": [HEIGHT, WIDTH], "counts": RUNS},
        {"size": [float(HEIGHT), str(WIDTH)], "counts": [float(run) for run in RUNS]}, [{"counts": RUNS}],
    ],
}  # fmt: skip

# Field → values that nobody can know the meaning of.
UNCLEAR: dict[str, list[Any]] = {
    "image_id": [GONE, None, True, [], {}, 99, "nobody", 1.5, math.nan],
    "category_id": [GONE, None, False, [1], 2, "dog", -0.5, math.inf],
    "iscrowd": [2, -1, "perhaps", [], {}, math.nan, 0.5],
    "segmentation": [
        "x", 7, True, [[1, 2, 3, 4, 5, None]], [[1, 2, 3, 4, 5, math.nan]], [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, 1e9]], [[1, 2, 3, 4, 5, 10**400]],
        [OUTLINE[0], {"counts": RUNS}], {"counts": None}, {"size": [1, 1], "counts": [1]}, {"size": "x", "counts": "0"},
        {"size": [HEIGHT, WIDTH], "counts": "}"}, {"size": [HEIGHT, WIDTH], "counts": [-1, 4801]}, {"a": 1},
        {"size": [HEIGHT, WIDTH], "counts": "é"}, {"size": [1e300, -2], "counts": [1]},
        [["a", "b", "c", "d", "e", "f"]],
    ],
}  # fmt: skip


def put(record: dict[str, Any], field: str, value: Any) -> None:
    if value is GONE:
        record.pop(field, None)
    else:
        record[field] = value


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """The sound document with any mix of certain oddities."""
    document = sound(draw(st.integers(1, 4)))
    for image in document["images"]:
        for field, right in (("width", WIDTH), ("height", HEIGHT)):
            value = draw(SIZES)
            put(
                image,
                field,
                draw(st.sampled_from(spellings(right))) if value in ("right", float(WIDTH)) else value,
            )
    for annotation in document["annotations"]:
        annotation["image_id"] = draw(st.sampled_from(spellings(annotation["image_id"])))
        annotation["category_id"] = draw(st.sampled_from([*spellings(1), "box"]))
        for field, values in CERTAIN.items():
            put(annotation, field, draw(st.sampled_from(values)))
    extra = draw(st.sampled_from(["", "root", "background", "repeated"]))
    (category,) = document["categories"]
    if extra == "root":
        category["supercategory"] = "things"
        document["categories"].insert(
            0, {"id": 0, "name": "things", "supercategory": draw(st.sampled_from(["none", None, ""]))}
        )
    elif extra == "background":
        document["categories"].insert(0, {"id": 0, "name": "_background_"})
    elif extra == "repeated":
        document["categories"].append(dict(category))
    category["id"] = draw(st.sampled_from(spellings(1)[:4]))
    if extra != "repeated":
        del document["categories"][draw(st.sampled_from([5, 6])) :]
    return document  # fmt: skip


def save(folder: Path, document: dict[str, Any], encoding: str = "utf-8") -> Path:
    """The document over the sound folder's; returns the label file."""
    write(folder, sound())
    labels = folder / "instances.json"
    labels.write_text(json.dumps(document), encoding=encoding)
    return labels


def is_one_sentence(text: str, labels: Path) -> bool:
    """Whether a message is fit for people: it begins with the file, has one line, and nothing of Python's in it."""
    python = re.search(
        r"Error|Traceback|<class|NoneType|dict|object has|unpack|\bNone\b|\bTrue\b|0x[0-9a-f]{6}", text
    )
    return text.startswith(f"{labels}: ") and "\n" not in text and python is None and len(text) < 1200


@settings(max_examples=60, deadline=None)
@given(documents(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_any_mix_of_certain_oddities_gives_the_sound_figures(document: dict[str, Any], encoding: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        labels = save(Path(name) / "odd", document, encoding)
        expected = figures(write(Path(name) / "sound", sound(len(document["images"]))))
        assert figures(labels) == expected
        assert check(labels).errors == 0
        take(labels, Path(name) / "few", 10)
        assert figures(Path(name) / "few") == expected


@settings(max_examples=60, deadline=None)
@given(
    documents(),
    st.sampled_from([(field, value) for field, values in UNCLEAR.items() for value in values]),
    st.data(),
)
def test_what_is_not_certain_is_one_sentence_that_names_file_annotation_and_field(
    document: dict[str, Any], change: tuple[str, Any], data: st.DataObject
) -> None:
    field, value = change
    place = data.draw(st.integers(0, len(document["annotations"]) - 1))
    put(document["annotations"][place], field, value)
    with tempfile.TemporaryDirectory() as name:
        labels = save(Path(name), document)
        with pytest.raises(DatasetError) as refused:
            open_folder(labels)
        text = str(refused.value)
        assert is_one_sentence(text, labels), text
        assert field in text
        given_id = document["annotations"][place].get("id")
        assert f"annotation {given_id}" in text or f"annotations[{place}]" in text
        assert check(labels).errors == 1
        assert len(open_folder(labels, skip_damaged=True)) == len(document["images"])


def refused_with(read: Callable[[Path], object], labels: Path) -> str | None:
    """The sentence with which a file is refused; None if it is read."""
    try:
        read(labels)
    except DatasetError as error:
        return str(error)
    return None


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = {
    "images": ["id", "file_name", "width", "height", "coco_url"],
    "annotations": ["id", "image_id", "category_id", "iscrowd", "area", "bbox", "segmentation"],
    "categories": ["id", "name", "supercategory"],
}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_field_is_read_or_refused_in_one_sentence(data: st.DataObject) -> None:
    document = sound(2)
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from(list(FIELDS)))
        if not (isinstance(document[part], list) and document[part]):
            continue
        place = data.draw(st.integers(0, len(document[part]) - 1))
        if data.draw(st.integers(0, 9)) == 0:
            document[part][place] = data.draw(JUNK)
        elif isinstance(document[part][place], dict):
            put(document[part][place], data.draw(st.sampled_from(FIELDS[part])), data.draw(JUNK))
    with tempfile.TemporaryDirectory() as name:
        labels = save(Path(name), document)
        for read in (check, figures, lambda path: figures(path, skip_damaged=True, boxes=True)):
            refusal = refused_with(read, labels)
            assert refusal is None or is_one_sentence(refusal, labels), refusal
