"""Images with masks in files of their own, as microscopy keeps them, made into folders in COCO's format.

Three layouts are read:

- Data Science Bowl 2018: `NAME/images/x.png` and `NAME/masks/*.png`, one bitmap an object;
- StarDist: `images/x.tif` and `masks/x.tif`, a label image: 0 is background, and every other value one object;
- Cellpose: `x.png` or `x_img.png`, and beside it `x_masks.png` or `x_cp_masks.png`, a label image.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model.data import Category, DatasetError
from model.data.coco import coco_document
from model.data.masks import ObjectMask
from model.data.photos import read_label_image, read_size
from model.images.files import images_in
from model.masks.rle import encode, from_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from model.masks.rle import Rle

_PART = re.compile(r"[\w-]+", re.ASCII)
_CELLPOSE = re.compile(r"(?P<name>.+?)(?:_cp)?_masks")
_LAYOUTS = (
    "NAME/images/x.png with NAME/masks/*.png, one bitmap an object; images/x.tif with masks/x.tif, a label image; or "
    "x.png with x_masks.png beside it, a label image"
)

# Of the part that has every image that no other part names.
REST = "train"
# Of the part that is not written.
LEFT_OUT = "left_out"


class LabelledFile(NamedTuple):
    """An image and the files with its masks."""

    # What the image is to be called, without suffix.
    name: str
    image: Path
    masks: list[Path]
    # Whether a file of masks is a label image, rather than the bitmap of one object.
    is_label_image: bool


@dataclass(slots=True)
class Part:
    """A folder in COCO's format as it grows."""

    folder: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    # Files without a single pixel of an object.
    empty_masks: int = 0
    label_images: int = 0
    # Names that were asked for and that no image has.
    missing: list[str] = field(default_factory=list)

    def add(self, file: LabelledFile) -> None:
        """Copy an image, and add its records. Raises DatasetError."""
        size = read_size(file.image, None)
        number = len(self.images) + 1
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        name = file.name + file.image.suffix
        shutil.copyfile(file.image, self.folder / "images" / name)
        self.images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        for masks in file.masks:
            values = read_label_image(masks, size)
            objects = encode_labels(values) if file.is_label_image else [encode(values)]
            objects = [rle for rle in objects if rle.area]
            self.empty_masks += not objects
            self.label_images += file.is_label_image
            self.annotations += [_record(number, rle) for rle in objects]

    def notices(self) -> list[str]:
        """What whoever converts may not expect."""
        told = []
        if self.missing:
            told.append(
                f"{len(self.missing)} of its names are of no image here: {', '.join(self.missing[:3])}"
            )
        if self.empty_masks:
            told.append(f"files of masks that are empty: {self.empty_masks}")
        if self.label_images > 1 and len(self.annotations) <= self.label_images:
            told.append(
                "label images with one value have one object each, whatever it looks like: number the objects"
            )
        return told

    def write(self, category: str) -> None:
        """Write the annotations, all of one category."""
        document = coco_document(self.images, self.annotations, [Category(1, category)])
        (self.folder / "instances.json").write_text(json.dumps(document, separators=(",", ":")), "utf-8")


def convert(
    path: Path,
    out: Path,
    category: str,
    names: Mapping[str, Sequence[str]] | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> dict[str, Part]:
    """Copy the images below `path` to `out`, with their masks in `out`/instances.json, as `open_folder` reads it.

    Args:
        path: a folder with one of this module's layouts.
        out: the folder to make.
        category: what all objects are called.
        names: by part, names of images without their suffix; each part becomes a folder of its own in `out`, and the
            images that no part names become the part "train". The part "left_out" is not written.
        on_image: told how many images of how many are done.

    Returns the parts by name; without `names` the only one is "". Raises DatasetError.
    """
    files = find(path)
    found = {file.name for file in files}
    parts = {
        part: Part(out / part, missing=sorted(set(listed) - found)) for part, listed in (names or {}).items()
    }
    parts.setdefault(REST if parts else "", Part(out / (REST if parts else "")))
    part_of = {name: part for part, listed in (names or {}).items() for name in listed}
    for done, file in enumerate(files, 1):
        part = part_of.get(file.name, REST if names else "")
        if part != LEFT_OUT:
            parts[part].add(file)
        if on_image is not None:
            on_image(done, len(files))
    parts = {name: part for name, part in parts.items() if part.images}
    for written in parts.values():
        written.write(category)
    return parts


def read_parts(file: Path) -> dict[str, list[str]]:
    """Names of images by part, from a JSON file; see `convert`. Raises DatasetError."""
    try:
        parts = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(parts, dict):
        raise DatasetError(f"{file}: not a JSON object with a list of names for each part")
    for part, names in parts.items():
        if not _PART.fullmatch(part):
            raise DatasetError(f"{file}: a part is called by letters, digits, _ and -, not {part!r:.60}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"{file}: {part} is a list of images' names without their suffix")
    counts = Counter(name for names in parts.values() for name in set(names))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DatasetError(f"{file}: {twice[0]} is in two parts")
    return parts


def find(path: Path) -> list[LabelledFile]:
    """The images of a folder and their files of masks, by name. Raises DatasetError, which tells the layouts."""
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder")
    if _has_both(path):
        files = _pairs(path / "images", path / "masks")
    elif folders := [folder for folder in sorted(path.iterdir()) if _has_both(folder)]:
        files = [_bitmaps(folder) for folder in folders]
    else:
        files = _cellpose(path)
    if not files:
        raise DatasetError(f"{path}: no masks are found here; accepted are {_LAYOUTS}")
    return files


def _has_both(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _pairs(images: Path, masks: Path) -> list[LabelledFile]:
    by_name = {file.stem: file for file in images_in(masks)}
    files = images_in(images)
    if without := [file for file in files if file.stem not in by_name]:
        raise DatasetError(
            f"{without[0]}: {masks} has no file {without[0].stem}, as {len(without)} images lack one"
        )
    return [LabelledFile(file.stem, file, [by_name[file.stem]], is_label_image=True) for file in files]


def _bitmaps(folder: Path) -> LabelledFile:
    images = images_in(folder / "images")
    if len(images) != 1:
        raise DatasetError(
            f"{folder}: {len(images)} images in images/, where one was expected, with a mask for each of its objects; "
            "give the folder itself if its masks/ has label images"
        )
    return LabelledFile(folder.name, images[0], images_in(folder / "masks"), is_label_image=False)


def _cellpose(folder: Path) -> list[LabelledFile]:
    by_name = {file.stem: file for file in images_in(folder)}
    files = []
    owners: dict[Path, Path] = {}
    for stem, masks in by_name.items():
        if (match := _CELLPOSE.fullmatch(stem)) is None:
            continue
        name = match["name"]
        image = by_name.get(name) or by_name.get(f"{name}_img")
        if image is None:
            raise DatasetError(f"{masks}: there is no image {name} or {name}_img beside it")
        if (other := owners.setdefault(image, masks)) != masks:
            raise DatasetError(
                f"{image}: both {other.name} and {masks.name} have its masks; remove one of them"
            )
        files.append(LabelledFile(image.stem, image, [masks], is_label_image=True))
    return files


def _record(image: int, rle: Rle) -> dict[str, Any]:
    left, top, right, bottom = ObjectMask.from_rle(rle.to_coco()).box
    return {
        "image_id": image,
        "category_id": 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": rle.area,
        "iscrowd": 0,
        "segmentation": rle.to_coco(),
    }


def encode_labels(labels: NDArray[np.int64]) -> list[Rle]:
    """The objects of a label image [H, W] as RLE, by ascending value; 0 is background.

    Work and memory grow with the image, not with the number of objects.
    """
    size = labels.shape
    values, numbers = np.unique(labels.T, return_inverse=True)
    # In column-major order, as COCO counts, between two pixels of background.
    flat = np.concatenate([[-1], numbers.reshape(-1), [-1]])
    places = np.flatnonzero(flat[1:] != flat[:-1])
    ended, begun = flat[places], flat[places + 1]
    changes = np.concatenate(
        [mask[mask >= 0] * (labels.size + 1) + places[mask >= 0] for mask in (ended, begun)]
    )
    encoded = from_changes(np.sort(changes), range(len(values)), (size[0], size[1]))
    return [rle for value, rle in zip(values.tolist(), encoded, strict=True) if value]
