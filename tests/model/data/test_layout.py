"""Exports open as they lie, images are found however their names are spelt, and no name leads out of the folder."""

from __future__ import annotations

import json
import os
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest

from model.data import DatasetError, finder
from model.data.check import check
from model.data.coco import open_folder
from tests.model.data.folders import figures, picture, sound, write

if TYPE_CHECKING:
    from pathlib import Path


def named(*names: str) -> dict[str, Any]:
    """The sound document with these file names."""
    document = sound(len(names))
    for image, name in zip(document["images"], names, strict=True):
        image["file_name"] = name
    return document


def lay(folder: Path, labels: str, document: dict[str, Any], *files: str) -> None:
    """The label file, and a picture at each of the paths."""
    (folder / labels).parent.mkdir(parents=True, exist_ok=True)
    (folder / labels).write_text(json.dumps(document), encoding="utf-8")
    for file in files:
        picture(folder / file)


# Tool → what it writes of each subset: the label file, where images lie, and what comes before their names in the JSON.
SUBSETS = {
    "Roboflow": ("train/_annotations.coco.json", "train/", "", "valid/_annotations.coco.json", "valid/"),
    "COCO": (
        "annotations/instances_train2017.json", "train2017/", "", "annotations/instances_val2017.json", "val2017/",
    ),
    "COCO with images/": (
        "annotations/instances_train2014.json", "images/train2014/", "", "annotations/instances_val2014.json",
        "images/val2014/",
    ),
    "CVAT": (
        "annotations/instances_Train.json", "images/Train/", "", "annotations/instances_Validation.json",
        "images/Validation/",
    ),
    "Datumaro": (
        "annotations/instances_train.json", "images/train/", "", "annotations/instances_val.json", "images/val/",
    ),
    "a JSON a subset": ("train.json", "images/train/", "", "val.json", "images/val/"),
    "names with the subset": ("annotations/train.json", "train/", "train/", "annotations/val.json", "val/"),
}  # fmt: skip


@pytest.mark.parametrize("tool", SUBSETS)
def test_each_subset_of_an_export_is_read_with_its_own_images(tmp_path: Path, tool: str) -> None:
    labels, images, before, val_labels, val_images = SUBSETS[tool]
    expected = figures(write(tmp_path / "sound", sound(2)))
    files = ("0001.png", "0002.png")
    folder = tmp_path / "export"
    lay(folder, labels, named(*(before + f for f in files)), *(images + f for f in files))
    val = named(*(before.replace("train", "val") + f for f in files))
    lay(folder, val_labels, val, *(val_images + f for f in files))
    (folder / "annotations").mkdir(exist_ok=True)
    for part in ("captions", "person_keypoints"):  # COCO's other files, which are for other tasks
        if tool == "COCO":
            (folder / "annotations" / f"{part}_train2017.json").write_text("{}")
    for options, place in (({}, images), ({"split": "train"}, images), ({"otherwise": "val"}, val_images)):
        dataset = open_folder(folder, **options)
        assert dataset.file(0) == folder / place / files[0]
        assert figures(folder, **options) == expected
    assert open_folder(folder / val_labels).file(1) == folder / val_images / files[1]
    with pytest.raises(DatasetError, match=r"its label files are .*none is of the split 'test'"):
        open_folder(folder, split="test")


SINGLE = {
    "ours": ("instances.json", "images/a.png", "a.png"),
    "Label Studio": ("result.json", "images/90fbb0c0-a.png", "images/90fbb0c0-a.png"),
    "Label Studio on Windows": ("result.json", "images/90fbb0c0-a.png", "images\\90fbb0c0-a.png"),
    "Label Studio's local files": ("result.json", "images/sub/a b.png", "/data/local-files/?d=sub/a%20b.png"),
    "Label Studio's uploads": ("result.json", "images/90fbb0c0-a.png", "/data/upload/3/90fbb0c0-a.png"),
    "LabelMe": ("annotations.json", "JPEGImages/a.png", "JPEGImages/a.png"),
    "LabelMe on Windows": ("annotations.json", "JPEGImages/a.png", "JPEGImages\\a.png"),
    "VIA": ("via_export_coco.json", "a.png", "a.png"),
    "CVAT without subsets": ("annotations/instances_default.json", "images/a.png", "a.png"),
    "CVAT with its default": ("annotations/instances_default.json", "images/default/a.png", "a.png"),
    "FiftyOne": ("labels.json", "data/a.png", "a.png"),
    "beside the images": ("coco.json", "a.png", "a.png"),
    "images in the name as well": ("instances.json", "images/a.png", "images/a.png"),
    "one subset": ("annotations/instances_Train.json", "images/Train/a.png", "a.png"),
    "folders": ("instances.json", "images/x/y/a.png", "x/y/a.png"),
    "backslashes": ("instances.json", "images/x/a.png", "x\\a.png"),
    "a drive": ("instances.json", "images/x/a.png", "C:\\Users\\me\\images\\x\\a.png"),
    "a path of another machine": ("instances.json", "images/a.png", "/home/me/photos/a.png"),
    "a dot": ("instances.json", "images/a.png", "./a.png"),
    "percent-encoding": ("instances.json", "images/Capture décran 1.png", "Capture%20d%C3%A9cran%201.png"),
    "percent-encoding on disk": ("instances.json", "images/a%20b.png", "a b.png"),
    "signs that mean something in addresses": ("instances.json", "images/a#1 & 50%.png", "a#1 & 50%.png"),
    "an address": ("instances.json", "images/a.png", "https://example.com/train2017/a.png"),
    "a bucket": ("instances.json", "images/x/a.png", "s3://bucket/x/a.png"),
    "capitals": ("instances.json", "images/IMG_1.PNG", "img_1.png"),
    "NFD on disk": (
        "instances.json",
        "images/" + unicodedata.normalize("NFD", "Schlüssel.png"),
        "Schlüssel.png",
    ),
    "NFC on disk": ("instances.json", "images/Schlüssel.png", unicodedata.normalize("NFD", "Schlüssel.png")),
    "in a folder that the name leaves out": ("instances.json", "images/batch 1/a.png", "a.png"),
    "in a folder of another name": ("labels.json", "photos/a.png", "a.png"),
}


@pytest.mark.parametrize("tool", SINGLE)
def test_export_of_one_part_is_read_as_it_lies(tmp_path: Path, tool: str) -> None:
    labels, file, name = SINGLE[tool]
    expected = figures(write(tmp_path / "sound", sound(1)))
    lay(tmp_path / "export", labels, named(name), file)
    for hidden in ("._a.png", "__MACOSX/._a.png", ".thumbnails/a.png"):
        (tmp_path / "export" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "export" / hidden).write_bytes(b"\0\5\x16\7")
    for path in (tmp_path / "export", tmp_path / "export" / labels):
        assert figures(path) == expected
    assert open_folder(tmp_path / "export").file(0) == tmp_path / "export" / file


def test_images_that_lie_elsewhere_are_found_by_naming_their_folder(tmp_path: Path) -> None:
    lay(tmp_path, "mine/instances.json", named("set/a.png"), "photos/a.png")
    (tmp_path / "mine" / "images").mkdir()
    with pytest.raises(DatasetError, match=r"set/a\.png is not in .*--images takes the folder"):
        open_folder(tmp_path / "mine" / "instances.json")
    dataset = open_folder(tmp_path / "mine" / "instances.json", tmp_path / "photos")
    assert dataset.file(0) == tmp_path / "photos" / "a.png"
    with pytest.raises(DatasetError, match="no such folder"):
        open_folder(tmp_path / "mine", tmp_path / "nowhere")


def test_missing_image_says_where_it_was_looked_for_and_what_is_like_it(tmp_path: Path) -> None:
    lay(tmp_path, "instances.json", named("photo_01.jpeg", "b.png"), "images/photo_01.jpg", "images/b.png")
    with pytest.raises(DatasetError) as refused:
        open_folder(tmp_path)
    text = str(refused.value)
    assert f"photo_01.jpeg is not in {tmp_path / 'images'}" in text
    assert "photo_01.jpg has a name like it" in text


def test_names_alike_are_looked_for_a_few_times_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wrong folder all images are missing, and each look takes a tenth of a second."""
    looks: list[str] = []
    monkeypatch.setattr(finder, "get_close_matches", lambda name, *_: looks.append(name) or [])
    lay(tmp_path, "instances.json", named(*(f"{number}.png" for number in range(20))), "images/other.png")
    assert check(tmp_path).counts["missing image file"] == 20
    assert 0 < len(looks) <= finder.MOST_SEARCHES


def test_image_of_another_subset_is_never_taken_for_one_that_is_missing(tmp_path: Path) -> None:
    files = ("Train/0001.png", "Validation/0001.png")
    lay(tmp_path, "annotations/instances_Train.json", named("0001.png", "Validation/0002.png"),
        *(f"images/{file}" for file in files), "images/Train/0002.png")  # fmt: skip
    dataset = open_folder(tmp_path, skip_damaged=True)
    assert [dataset.file(n).relative_to(tmp_path).as_posix() for n in range(len(dataset))] == [
        "images/Train/0001.png"
    ]


def test_name_that_fits_several_files_is_refused_with_them(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "instances.json",
        named("a.png", "b.png"),
        "images/b.png",
        "images/x/a.png",
        "images/y/a.png",
    )
    with pytest.raises(DatasetError, match=r"could be several files .*x/a\.png, y/a\.png"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.png", "x/../../secret.png", "..\\secret.png", "%2e%2e/secret.png"]
)
def test_name_that_leads_out_of_the_folder_is_not_read(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "secret.png")
    lay(tmp_path / "data", "instances.json", named(name), "a.png")
    with pytest.raises(DatasetError, match="leads out of the images' folder"):
        open_folder(tmp_path / "data")
    assert check(tmp_path / "data").counts["file outside the images' folder"] == 1
    # Neither is a file of that name in the folder: which of the two is meant is not certain.
    picture(tmp_path / "data" / "secret.png")
    assert check(tmp_path / "data").counts["file outside the images' folder"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "..\\..\\label-studio\\data\\media\\upload\\1\\a.png",
        "../../label-studio/data/media/upload/1/a.png",
        "/data/upload/1/a.png",
        "/data/local-files/?d=photos/a.png",
        "data/local-files/?d=photos%2Fa.png",
        "http://localhost:8080/data/local-files/?d=C%3A%5Cphotos%5Ca.png",
        "../images/a.png",
        "images/x/../a.png",
    ],
)
def test_names_of_a_labelling_server_are_read_where_one_file_has_their_end(tmp_path: Path, name: str) -> None:
    lay(tmp_path / "a", "result.json", named(name), "images/a.png")
    assert open_folder(tmp_path / "a").file(0) == tmp_path / "a" / "images" / "a.png"
    assert check(tmp_path / "a").errors == 0


def test_name_that_leads_out_and_fits_several_files_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "result.json", named("../../upload/1/a.png", "b.png"),
        "images/a.png", "images/x/a.png", "images/b.png")  # fmt: skip
    with pytest.raises(DatasetError, match=r"leads out .* could be several files"):
        open_folder(tmp_path)


def test_name_of_another_subset_beside_the_folder_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "annotations/instances_train.json", named("a.png", "../val/b.png"),
        "images/train/a.png", "images/train/b.png")  # fmt: skip
    (tmp_path / "images" / "val").mkdir()
    with pytest.raises(DatasetError, match="leads out of the images' folder"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["/dev/zero", "/etc/hostname", "file:///etc/hostname", "a\0.png", "x" * 5000]
)
def test_absolute_and_impossible_names_are_only_looked_for_in_the_folder(tmp_path: Path, name: str) -> None:
    lay(tmp_path, "instances.json", named(name), "images/a.png")
    assert check(tmp_path).counts["missing image file"] == 1


def test_absolute_name_of_an_image_outside_is_not_read(tmp_path: Path) -> None:
    picture(tmp_path / "secret" / "b.png")
    lay(tmp_path / "data", "instances.json", named(str(tmp_path / "secret" / "b.png")), "images/a.png")
    assert check(tmp_path / "data").counts["missing image file"] == 1


def test_links_out_of_the_folder_and_what_is_no_file_are_not_read(tmp_path: Path) -> None:
    picture(tmp_path / "secret" / "a.png")
    names = ["a.png", "out/a.png", "zero.png", "pipe.png", "in.png", "good.png"]
    lay(tmp_path / "data", "instances.json", named(*names), "data/images/good.png", "images/good.png")
    images = tmp_path / "data" / "images"
    (images / "a.png").symlink_to(tmp_path / "secret" / "a.png")
    (images / "out").symlink_to(tmp_path / "secret")
    (images / "zero.png").symlink_to("/dev/zero")
    (images / "in.png").symlink_to(images / "good.png")
    os.mkfifo(images / "pipe.png")
    found = check(tmp_path / "data", pixels=True)
    assert found.counts["file outside the images' folder"] == 4
    assert len(open_folder(tmp_path / "data", skip_damaged=True)) == 2


def test_folder_of_images_may_be_a_link(tmp_path: Path) -> None:
    picture(tmp_path / "disk" / "a.png")
    lay(tmp_path / "data", "instances.json", named("a.png"))
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")
    assert len(open_folder(tmp_path / "data")) == 1


def test_folder_with_labels_of_other_tools_says_which(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(DatasetError, match="YOLO; export them as COCO"):
        open_folder(tmp_path)


def test_folder_that_may_not_be_read_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, "annotations/instances_train.json", named("a.png"), "train/a.png")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DatasetError, match=r"cannot be read \(permission denied\)"):
        open_folder(tmp_path)


def test_export_inside_the_folder_of_an_archive_is_found(tmp_path: Path) -> None:
    for part in ("Train", "Validation"):
        lay(
            tmp_path,
            f"export/annotations/instances_{part}.json",
            named("a.png"),
            f"export/images/{part}/a.png",
        )
    assert (
        open_folder(tmp_path, split="val").file(0) == tmp_path / "export" / "images" / "Validation" / "a.png"
    )


def test_labels_that_exchange_width_and_height_are_told_so(tmp_path: Path) -> None:
    document = named("a.png")
    document["images"][0] |= {"width": 60, "height": 80}
    lay(tmp_path, "instances.json", document, "images/a.png")
    with pytest.raises(
        DatasetError, match=r"80×60 pixels, annotated as 60×80 .*; width and height are exchanged"
    ):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [(" a.png ", "a.png"), ("90fbb0c0-a.png", "a.png"), ("/data/upload/1/90fbb0c0-a.png", "a.png")],
    ids=["blanks", "uploaded", "uploaded, with its folder"],
)
def test_names_that_a_server_or_a_table_changed_are_read(tmp_path: Path, name: str, file: str) -> None:
    lay(tmp_path, "instances.json", named(name), f"images/{file}")
    assert open_folder(tmp_path).file(0) == tmp_path / "images" / file


def test_label_file_may_have_a_suffix_in_capitals_and_a_compressed_one_is_named(tmp_path: Path) -> None:
    lay(tmp_path / "a", "INSTANCES.JSON", named("a.png"), "images/a.png")
    assert len(open_folder(tmp_path / "a")) == 1
    lay(tmp_path / "b", "annotations/train.json.gz", named("a.png"), "images/a.png")
    with pytest.raises(DatasetError, match=r"annotations/train\.json\.gz is compressed; unpack it"):
        open_folder(tmp_path / "b")


def test_unprintable_name_is_quoted(tmp_path: Path) -> None:
    lay(tmp_path, "instances.json", named("\x1b[31mred.png"), "images/a.png")
    with pytest.raises(DatasetError) as refused:
        open_folder(tmp_path)
    assert str(refused.value).isprintable()
