"""Labels as tools and people write them: what is certain gives what the sound folder gives, the rest one sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from model.data import DatasetError
from model.data.check import check
from model.data.coco import open_folder
from tests.model.data.folders import BOX, HEIGHT, OUTLINE, WIDTH, figures, picture, sound, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Change = "Callable[[dict[str, Any]], None]"


def each(part: str, **values: Any) -> Change:
    """Every image, annotation or category gets these values; `...` takes a field away, a function changes it."""

    def change(document: dict[str, Any]) -> None:
        for record in document[part]:
            for key, value in values.items():
                if value is ...:
                    record.pop(key)
                else:
                    record[key] = value(record[key]) if callable(value) else value

    return change


def replace_categories(*categories: dict[str, Any]) -> Change:
    def change(document: dict[str, Any]) -> None:
        document["categories"] = list(categories)

    return change


def name_image_ids(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image["id"] = f"{image['id']:04d}_02999_d"
    for annotation in document["annotations"]:
        annotation["image_id"] = f"{annotation['image_id']:04d}_02999_d"


def lvis(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    for annotation in document["annotations"]:
        annotation.pop("iscrowd")


def run_lengths(size: list[Any], kind: type = int) -> dict[str, Any]:
    """The square of OUTLINE, uncompressed."""
    runs = [10 * HEIGHT + 10, *[20, 40] * 19, 20, HEIGHT * WIDTH - 29 * HEIGHT - 30]
    return {"size": size, "counts": [kind(run) for run in runs]}


PAIRS = [[10, 10], [30, 10], [30, 30], [10, 30]]
CERTAIN = [
    pytest.param(each("annotations", iscrowd=value), id=f"iscrowd {value!r}")
    for value in ("0", None, False, 0.0, "false", "no", "", "False", ...)
]
CERTAIN += [
    pytest.param(each("annotations", area=value), id=f"area {value!r}")
    for value in (None, -1, 0, "", "400", [], "NaN", float("nan"), ...)
]
CERTAIN += [
    pytest.param(each("annotations", bbox=value), id=f"bbox {value!r}")
    for value in (None, [], [10, 10, -20, 20], ["10", "10", "20", "20"], [10, 10, 0, 0], "box", ...)
]
CERTAIN += [
    pytest.param(each("annotations", segmentation=value), id=f"segmentation {name}")
    for name, value in {
        "is a flat list": OUTLINE[0],
        "has text": [[str(v) for v in OUTLINE[0]]],
        "has pairs": [PAIRS],
        "is pairs": PAIRS,
        "is points": [{"x": x, "y": y} for x, y in PAIRS],
        "is closed": [[*OUTLINE[0], 10, 10]],
        "has an empty polygon": [[], *OUTLINE],
        "is two corners": [[10, 10, 30, 30]],
        "is a box": [BOX],
        "is RLE": run_lengths([HEIGHT, WIDTH]),
        "is RLE of floats": run_lengths([float(HEIGHT), float(WIDTH)], float),
        "is RLE of text": run_lengths([str(HEIGHT), str(WIDTH)], str),
        "is RLE in a list": [run_lengths([HEIGHT, WIDTH])],
        "is JSON as text": json.dumps(OUTLINE),
        "is RLE as text": json.dumps(run_lengths([HEIGHT, WIDTH])),
    }.items()
]
CERTAIN += [
    pytest.param(each("images", **dict.fromkeys(("width", "height"), value)), id=f"sizes {value!r}")
    for value in (None, 0, "", -1, ...)
]
CERTAIN += [
    pytest.param(each("images", width=str, height=str), id="sizes as text"),
    pytest.param(each("images", id=float), id="float image ids"),
    pytest.param(each("images", id=str), id="text image ids in images"),
    pytest.param(each("annotations", image_id=str), id="text image ids in annotations"),
    pytest.param(each("annotations", image_id="{:04d}".format), id="image ids with zeros in front"),
    pytest.param(each("annotations", category_id=str), id="text category ids in annotations"),
    pytest.param(each("annotations", category_id=lambda _: "box"), id="category names in annotations"),
    pytest.param(each("categories", id=str), id="text category ids in categories"),
    pytest.param(each("annotations", id=...), id="annotations without ids"),
    pytest.param(name_image_ids, id="image ids that are names"),
    pytest.param(lvis, id="LVIS"),
    pytest.param(lambda d: d["images"].append({**d["images"][0]}), id="image listed twice"),
    pytest.param(lambda d: d["images"].insert(0, {**d["images"][0], "id": 9}), id="image listed under two ids"),
    pytest.param(
        replace_categories(
            {"id": 0, "name": "box", "supercategory": "none"}, {"id": 1, "name": "box", "supercategory": "box"}
        ),
        id="Roboflow's root with the same name",
    ),
    pytest.param(
        replace_categories(
            {"id": 0, "name": "boxes", "supercategory": "none"}, {"id": 1, "name": "box", "supercategory": "boxes"}
        ),
        id="Roboflow's root",
    ),
    pytest.param(
        replace_categories({"id": 0, "name": "_background_"}, {"id": 1, "name": "box"}), id="LabelMe's background"
    ),
    pytest.param(replace_categories({"id": 1, "name": "box"}, {"id": 1, "name": "box"}), id="category listed twice"),
]  # fmt: skip


@pytest.mark.parametrize("change", CERTAIN)
def test_what_is_certain_gives_what_the_sound_folder_gives(
    tmp_path: Path, change: Callable[..., None]
) -> None:
    expected = figures(write(tmp_path / "sound", sound()))
    document = sound()
    for image in document["images"]:
        picture(tmp_path / "odd" / "images" / image["file_name"])
    change(document)
    labels = tmp_path / "odd" / "instances.json"
    labels.write_text(json.dumps(document), encoding="utf-8")
    assert figures(labels.parent) == expected
    found = check(labels.parent)
    assert (found.objects, found.errors, found.refusal) == (4, 0, None)
    assert (
        CliRunner()
        .invoke(cli, ["data", "take", str(labels), str(tmp_path / "few"), "--count", "2"])
        .exit_code
        == 0
    )
    assert figures(tmp_path / "few") == expected[:2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks_and_wide_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    document = sound() | {"categories": [{"id": 1, "name": "Schlüssel"}]}
    write(tmp_path, document)
    (tmp_path / "instances.json").write_text(json.dumps(document, ensure_ascii=False), encoding=encoding)
    assert open_folder(tmp_path).categories[0].name == "Schlüssel"


def cut(content: bytes) -> bytes:
    return content[:100]


REFUSED = [
    pytest.param(lambda _: b"", "the file is empty", id="empty"),
    pytest.param(cut, "cut off", id="cut off"),
    pytest.param(lambda c: c.replace(b'"images":', b'"images"'), "line 1, column 11", id="no colon"),
    pytest.param(
        lambda c: c.replace(b'"box"', '"Schlüssel"'.encode("cp1252")),
        "not in UTF-8: byte 0xfc in line 1",
        id="cp1252",
    ),
    pytest.param(lambda _: b"PK\x03\x04....", "unpack it", id="zip"),
    pytest.param(lambda _: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull", id="Git LFS"),
    pytest.param(
        lambda c: c.replace(b'"box"', rb'"\ud83d\ude00 \\ud83d \ud83d"'),
        r"half of a character, \ud83d",
        id="half",
    ),
    pytest.param(lambda _: b"[" * 100_000, "nested too deeply", id="deep"),
    pytest.param(lambda _: b'{"shapes": [], "imagePath": "a"}', "LabelMe", id="LabelMe"),
    pytest.param(lambda _: b'{"_via_settings": {}}', "VGG Image Annotator", id="VIA"),
    pytest.param(lambda _: b'[{"image_id": 1, "score": 0.5}]', "results, not labels", id="results"),
    pytest.param(lambda _: b'[{"data": {}, "annotations": []}]', "Label Studio", id="Label Studio's tasks"),
    pytest.param(
        lambda _: b'{"images": [], "categories": []}', 'list named "annotations"', id="no annotations"
    ),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_file_that_holds_no_labels_is_refused_in_one_sentence(
    tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    labels = write(tmp_path, sound()) / "instances.json"
    labels.write_bytes(change(labels.read_bytes()))
    with pytest.raises(DatasetError) as refused:
        open_folder(tmp_path)
    assert reason in str(refused.value)
    assert str(refused.value).startswith(f"{labels}: ")
    assert "Error" not in str(refused.value)


TURNED = {"size": [WIDTH, HEIGHT], "counts": [4800]}
SHORT = {"size": [HEIGHT, WIDTH], "counts": [5]}
SIZELESS = {"size": None, "counts": [4800]}
UNCLEAR = [
    pytest.param(("annotations", "iscrowd", 2), "iscrowd is 2", id="iscrowd 2"),
    pytest.param(("annotations", "iscrowd", "maybe"), 'iscrowd is "maybe"', id="iscrowd maybe"),
    pytest.param(("annotations", "image_id", 9), "image_id is 9", id="unknown image"),
    pytest.param(("annotations", "image_id", None), "image_id is null", id="no image id"),
    pytest.param(("annotations", "image_id", 1.5), "image_id is 1.5", id="half an image id"),
    pytest.param(("annotations", "image_id", True), "image_id is true", id="image id true"),
    pytest.param(("annotations", "category_id", "dog"), 'category_id is "dog"', id="unknown category"),
    pytest.param(("annotations", "category_id", [1]), "category_id is [1]", id="category id in a list"),
    pytest.param(("annotations", "segmentation", [[1, 2, 3, None, 5, 6]]), "a polygon with null", id="null"),
    pytest.param(("annotations", "segmentation", TURNED), "[height, width]", id="turned RLE"),
    pytest.param(("annotations", "segmentation", SHORT), "do not add up", id="short RLE"),
    pytest.param(("annotations", "segmentation", SIZELESS), "the size null", id="RLE without size"),
    pytest.param(("images", "id", None), "id is null", id="image without id"),
    pytest.param(("images", "file_name", 7), "file_name is 7", id="file name is a number"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), UNCLEAR)
def test_what_is_not_certain_is_named_with_its_field_and_left_out(
    tmp_path: Path, change: tuple[str, str, Any], reason: str
) -> None:
    part, field, value = change
    document = sound()
    for image in document["images"]:
        picture(tmp_path / "images" / image["file_name"])
    document[part][1][field] = value
    if part == "images":
        del document["annotations"][1]
    labels = tmp_path / "instances.json"
    labels.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DatasetError) as refused:
        open_folder(tmp_path)
    text = str(refused.value)
    assert text.startswith(f"{labels}: ")
    assert reason in text
    assert (f"annotation {document['annotations'][1]['id']}" if part == "annotations" else "image") in text
    rest = open_folder(tmp_path, skip_damaged=True)
    assert rest.tally().objects == 3
    assert rest.left_out == 1


def test_image_with_objects_under_two_ids_is_named(tmp_path: Path) -> None:
    document = sound()
    document["images"].append({**document["images"][0], "id": 9})
    document["annotations"].append({**document["annotations"][0], "id": 9, "image_id": 9})
    write(tmp_path, document)
    with pytest.raises(DatasetError, match=r"image 9: file_name is 0001\.png, which image 1 has too"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, skip_damaged=True).tally().objects == 4


def test_annotation_of_categories_without_ids_is_told_their_names(tmp_path: Path) -> None:
    write(tmp_path, sound() | {"categories": [{"name": "box"}]})
    with pytest.raises(DatasetError, match=r"category_id is 1, which the categories \(box\) do not list"):
        open_folder(tmp_path)


CATEGORIES = [
    pytest.param([], "lists no categories", id="none"),
    pytest.param([7], r"categories\[0\]: an object", id="a number"),
    pytest.param([{"id": 1}], r"categories\[0\]: name is null", id="no name"),
    pytest.param([{"id": 1, "name": ""}], r'categories\[0\]: name is ""', id="empty name"),
    pytest.param([{"id": [], "name": "a"}], r"categories\[0\]: id is \[\]", id="id is a list"),
    pytest.param([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "the same id, 1", id="one id"),
    pytest.param([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], 'the same name, "a"', id="one name"),
]


@pytest.mark.parametrize(("categories", "reason"), CATEGORIES)
def test_categories_that_mean_nothing_are_refused_by_their_place(
    tmp_path: Path, categories: list[Any], reason: str
) -> None:
    write(tmp_path, sound() | {"categories": categories, "annotations": []})
    for read in (open_folder, check):
        with pytest.raises(DatasetError, match=reason):
            read(tmp_path)


def test_category_ids_need_not_be_in_order_and_may_have_ten_digits(tmp_path: Path) -> None:
    categories = [{"id": 1_000_000_007, "name": "big"}, {"id": 0, "name": "zero"}, {"id": 7, "name": "seven"}]
    document = sound() | {"categories": categories}
    for annotation, number in zip(document["annotations"], (0, 7, 1_000_000_007, 0), strict=True):
        annotation["category_id"] = number
    seen = figures(write(tmp_path, document))
    assert [labels for _, _, labels, _, _ in seen] == [["zero"], ["seven"], ["big"], ["zero"]]


def test_root_that_has_objects_is_a_category_like_any_other(tmp_path: Path) -> None:
    document = sound()
    document["categories"] = [
        {"id": 1, "name": "box", "supercategory": "none"},
        {"id": 2, "name": "lid", "supercategory": "box"},
    ]
    assert [c.name for c in open_folder(write(tmp_path, document)).categories] == ["box", "lid"]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_size_of_the_stored_frame_is_refused_with_a_hint_at_exif(tmp_path: Path, orientation: int) -> None:
    document = sound(1)
    document["images"][0]["file_name"] = "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path, document)
    picture(tmp_path / "images" / "a.jpg", exif=exif)
    with pytest.raises(
        DatasetError, match=rf"60×80 pixels, annotated as 80×60.*EXIF orientation \({orientation}\)"
    ):
        open_folder(tmp_path)
    document["images"][0] |= {"width": HEIGHT, "height": WIDTH}  # the size of the upright picture is right
    (tmp_path / "instances.json").write_text(json.dumps(document))
    assert open_folder(tmp_path).size(0) == (WIDTH, HEIGHT)


NOTHING = [
    pytest.param({"iscrowd": 1}, "4 annotations are crowds", id="all crowds"),
    pytest.param({"segmentation": []}, "--masks none", id="boxes only"),
    pytest.param({"segmentation": [[10, 10, 30, 30]], "bbox": [50, 50, 5, 5]}, "--masks none", id="two corners"),
    pytest.param({"segmentation": [[10, 10, 10, 10, 10, 10]]}, "no area", id="points"),
    pytest.param({"segmentation": [[90, 70, 95, 70, 95, 75]]}, "no area", id="outside"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), NOTHING)
def test_nothing_to_learn_is_said_with_the_way_out(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    document = sound()
    each("annotations", **change)(document)
    write(tmp_path, document)
    refusal = open_folder(tmp_path).tally().refusal()
    assert refusal is not None
    assert refusal.startswith("there is nothing to train on: 4 images without any object that counts")
    assert reason in refusal
    result = CliRunner().invoke(cli, ["data", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert reason in result.stdout


def test_boxes_alone_are_something_to_learn_for_a_network_without_masks(tmp_path: Path) -> None:
    document = sound()
    each("annotations", segmentation=[])(document)
    write(tmp_path, document)
    assert open_folder(tmp_path, boxes=True).tally().refusal() is None


def test_tally_says_what_is_learned_from_and_what_is_left_out(tmp_path: Path) -> None:
    document = sound()
    document["annotations"][1]["iscrowd"] = "1"
    document["annotations"][2]["segmentation"] = None
    document["annotations"][3]["category_id"] = 9
    write(tmp_path, document)
    assert str(open_folder(tmp_path, skip_damaged=True).tally()) == (
        "learning from 4 images with 1 object and 1 mask (3 images without objects); left out: "
        "unknown category × 1, crowds (iscrowd is 1) × 1, objects with a box and no outline × 1"
    )
