"""Images with masks in files of their own, as the Data Science Bowl, StarDist and Cellpose lay them out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from app.cli.main import cli
from model.data import DatasetError
from model.data.check import check
from model.data.coco import open_folder
from model.data.label_images import convert, encode_labels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 40, 50


def labels(seed: int, dtype: type = np.uint16) -> np.ndarray:
    """A label image of blocks that touch each other and the border, one of them in two pieces; numbers have gaps."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 3, 4, 250], (4, 5)).astype(dtype)
    coarse[0, 0], coarse[3, 4], coarse[0, 4] = 9, 9, 0
    return np.kron(coarse, np.ones((10, 10), dtype))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photo(path: Path, seed: int) -> None:
    save(path, np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8))


def data_science_bowl(root: Path) -> None:
    for seed in (1, 2):
        photo(root / f"n{seed}/images/n{seed}.png", seed)
        values = labels(seed)
        for number in np.unique(values[values > 0]).tolist():
            save(root / f"n{seed}/masks/{number:03d}.png", (values == number).astype(np.uint8) * 255)


def stardist(root: Path) -> None:
    for seed in (1, 2):
        photo(root / f"images/n{seed}.tif", seed)
        save(root / f"masks/n{seed}.tif", labels(seed))


def cellpose(root: Path) -> None:
    photo(root / "n1.png", 1)
    save(root / "n1_cp_masks.tif", labels(1, np.int32))
    photo(root / "n2_img.png", 2)
    save(root / "n2_masks.png", labels(2, np.uint8))


def colours(root: Path) -> None:
    """As StarDist's, with three bytes of a number in red, green and blue, or a palette."""
    photo(root / "images/n1.png", 1)
    values = labels(1, np.int64) * 1000
    alpha = np.full(SIZE, 255)
    bands = [values & 255, values >> 8 & 255, values >> 16 & 255, alpha]
    save(root / "masks/n1.png", np.stack(bands, -1).astype(np.uint8))
    photo(root / "images/n2.png", 2)
    indexed = Image.fromarray(labels(2, np.uint8), "L").convert("P")
    indexed.putpalette(np.random.default_rng(0).bytes(768))
    indexed.save(root / "masks/n2.png")


@pytest.mark.parametrize("layout", [data_science_bowl, stardist, cellpose, colours])
def test_each_layout_gives_the_same_objects(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path / "in")
    made = convert(tmp_path / "in", tmp_path / "out", "cell")
    assert list(made) == [""]
    assert check(tmp_path / "out").errors == 0
    folder = open_folder(tmp_path / "out")
    assert [category.name for category in folder.categories] == ["cell"]
    assert len(folder) == 2
    for index, seed in enumerate((1, 2)):
        values = labels(seed)
        expected = np.stack([values == number for number in np.unique(values[values > 0])])
        assert np.array_equal(np.asarray(folder[index].masks), expected)
        pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
        assert np.array_equal(folder[index].pixels, pixels)


def test_label_images_become_the_run_lengths_of_pycocotools() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 6, rng.integers(1, 9, 2)) * rng.integers(0, 2)
        found = encode_labels(values)
        numbers = np.unique(values[values > 0])
        assert len(found) == len(numbers)
        for rle, number in zip(found, numbers, strict=True):
            expected = coco.encode(np.asfortranarray(values == number, dtype=np.uint8))
            assert (rle.counts, rle.area) == (expected["counts"], int((values == number).sum()))


def test_parts_become_folders_of_their_own(tmp_path: Path) -> None:
    stardist(tmp_path / "in")
    photo(tmp_path / "in/images/bad.tif", 3)
    save(tmp_path / "in/masks/bad.tif", labels(3))
    parts = tmp_path / "parts.json"
    parts.write_text(json.dumps({"validation": ["n2", "gone"], "test": [], "left_out": ["bad"]}))
    command = ["data", "convert", str(tmp_path / "in"), str(tmp_path / "out"), "--parts", str(parts)]
    result = CliRunner().invoke(cli, [*command, "--category", "cell"])
    assert result.exit_code == 0, result.stderr
    assert f"{tmp_path / 'out/train'}: 1 images, 4 objects of cell" in result.stdout
    assert "1 of its names are of no image here: gone" in result.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train", "validation"]
    assert open_folder(tmp_path / "out/train").name(0) == "n1.tif"
    assert open_folder(tmp_path / "out/validation").name(0) == "n2.tif"


def test_images_of_one_name_in_several_folders_stay_apart(tmp_path: Path) -> None:
    for seed in (1, 2):
        photo(tmp_path / f"in/n{seed}/images/raw.png", seed)
        save(tmp_path / f"in/n{seed}/masks/a.png", (labels(seed) == 9).astype(np.uint8))
    convert(tmp_path / "in", tmp_path / "out", "cell")
    folder = open_folder(tmp_path / "out")
    assert [folder.name(0), folder.name(1)] == ["n1.png", "n2.png"]


def test_what_may_surprise_is_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"in/{name}.png", 1)
        save(tmp_path / f"in/{name}_masks.png", (labels(1) == 9).astype(np.uint8) * 255)
    photo(tmp_path / "in/c.png", 1)
    save(tmp_path / "in/c_masks.png", np.zeros(SIZE, np.uint8))
    (part,) = convert(tmp_path / "in", tmp_path / "out", "cell").values()
    assert len(part.images) == 3
    assert len(part.annotations) == 2
    empty, single = part.notices()
    assert empty == "files of masks that are empty: 1"
    assert "one object each" in single


def without_masks(root: Path) -> str:
    photo(root / "a.png", 1)
    return "no masks are found here; accepted are NAME/images/x.png"


def mask_missing(root: Path) -> str:
    stardist(root)
    photo(root / "images/n3.tif", 3)
    return r"n3.tif: .*masks has no file n3"


def other_size(root: Path) -> str:
    stardist(root)
    save(root / "masks/n2.tif", labels(2)[:-1])
    return r"n2.tif: 50×39 pixels; its image has 50×40"


def fractions(root: Path) -> str:
    stardist(root)
    save(root / "masks/n2.tif", labels(2).astype(np.float32) / 2)
    return "not whole numbers"


def no_image(root: Path) -> str:
    stardist(root)
    (root / "masks/n2.tif").write_bytes((root / "masks/n2.tif").read_bytes()[:300])
    return r"masks/n2.tif: "


def image_missing(root: Path) -> str:
    save(root / "n1_masks.png", labels(1, np.uint8))
    return "there is no image n1 or n1_img beside it"


def masks_twice(root: Path) -> str:
    photo(root / "n1.png", 1)
    for name in ("n1_masks.png", "n1_cp_masks.png"):
        save(root / name, labels(1, np.uint8))
    return "both n1_cp_masks.png and n1_masks.png have its masks"


def several_images(root: Path) -> str:
    stardist(root / "train")
    return "2 images in images/, where one was expected"


WRONG = [
    without_masks, mask_missing, other_size, fractions, no_image, image_missing, masks_twice, several_images,
]  # fmt: skip


@pytest.mark.parametrize("make", WRONG)
def test_what_cannot_be_converted_is_told(tmp_path: Path, make: Callable[[Path], str]) -> None:
    reason = make(tmp_path / "in")
    with pytest.raises(DatasetError, match=reason):
        convert(tmp_path / "in", tmp_path / "out", "cell")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a JSON object"),
        ('{"a": "n1"}', "a is a list of images' names"),
        ('{"a": ["n1"], "b": ["n1"]}', "n1 is in two parts"),
        ('{"../a": []}', "a part is called by letters"),
    ],
)
def test_parts_that_are_none_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    stardist(tmp_path / "in")
    (tmp_path / "parts.json").write_text(text)
    command = ["data", "convert", str(tmp_path / "in"), str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*command, "--parts", str(tmp_path / "parts.json")])
    assert result.exit_code == 1
    assert reason in result.stderr
