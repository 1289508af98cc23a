"""Cityscapes: photos in leftImg8bit/, and what each of their pixels shows in gtFine/ (Cordts et al., 2016)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from model.data import Category, DatasetError, Sample
from model.data.masks import InstanceMasks, ObjectMask
from model.images.decode import ImageError, decode
from model.masks.boxes import mask_to_box
from model.masks.rle import encode

if TYPE_CHECKING:
    from pathlib import Path

# The classes with instances that the benchmark evaluates, under Cityscapes' label ids.
CATEGORIES = tuple(
    Category(number, name)
    for number, name in (
        (24, "person"),
        (25, "rider"),
        (26, "car"),
        (27, "truck"),
        (28, "bus"),
        (31, "train"),
        (32, "motorcycle"),
        (33, "bicycle"),
    )
)
_WANTED = frozenset(category.id for category in CATEGORIES)
# Label ids that the evaluation ignores: what nobody labelled, the car with the camera, parking lots, caravans …
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
FIRST_INSTANCE = (
    # An instance map has 1000 × label + number for one object, the label alone for several in one.
    1000
)
SPLITS = ("train", "val", "test")
# SyntaxError: Pillow's, of a PNG's damaged chunk.
PILLOW_ERRORS = OSError, SyntaxError, ValueError
PHOTO, INSTANCES = "_leftImg8bit.png", "_gtFine_instanceIds.png"


class Cityscapes:
    """One split: the photos of all its cities that have annotations, in the order of their names."""

    categories = CATEGORIES

    def __init__(self, root: Path, split: str = "train") -> None:
        """root: the folder that has leftImg8bit/ and gtFine/. Raises DatasetError, naming the first missing file."""
        self.root, self.split = root, split
        photos = root / "leftImg8bit" / split
        self._photos = sorted(photos.glob(f"*/*{PHOTO}"))
        if not self._photos:
            found = [name for name in SPLITS if (root / "leftImg8bit" / name).is_dir()]
            raise DatasetError(
                f"{photos}: no photos (CITY/*{PHOTO}) are there; splits here: {', '.join(found) or 'none'}"
            )
        missing = [path for path in map(self._instances, self._photos) if not path.is_file()]
        if missing:
            raise DatasetError(
                f"{root}: {len(missing)} of {len(self._photos)} photos have no instance map; the first is {missing[0]}"
            )
        self._sizes: dict[int, tuple[int, int]] = {}

    def _instances(self, photo: Path) -> Path:
        name = photo.name.removesuffix(PHOTO) + INSTANCES
        return self.root / "gtFine" / self.split / photo.parent.name / name

    def __len__(self) -> int:
        return len(self._photos)

    def name(self, index: int) -> str:
        """The photo's file, under the root."""
        return str(self._photos[index].relative_to(self.root))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) from the file's header. Raises DatasetError."""
        if index not in self._sizes:
            try:
                with Image.open(self._photos[index]) as photo:
                    self._sizes[index] = photo.height, photo.width
            except PILLOW_ERRORS as error:
                raise DatasetError(f"{self._photos[index]}: {error}") from error
        return self._sizes[index]

    def instance_ids(self, index: int) -> np.ndarray:
        """[H, W] int32: what each pixel shows, see FIRST_INSTANCE. Raises DatasetError."""
        path = self._instances(self._photos[index])
        try:
            with Image.open(path) as image:
                ids = np.array(image)
        except PILLOW_ERRORS as error:
            raise DatasetError(f"{path}: {error}") from error
        if ids.ndim != 2:
            raise DatasetError(f"{path}: an instance map has one channel, this has shape {list(ids.shape)}")
        return ids.astype(np.int32)

    def _fitting_ids(self, index: int, size: tuple[int, int]) -> np.ndarray:
        ids = self.instance_ids(index)
        if ids.shape != size:
            raise DatasetError(
                f"{self._photos[index]}: {size[1]}×{size[0]} pixels, but its instance map has "
                f"{ids.shape[1]}×{ids.shape[0]}"
            )
        return ids

    def counts(self, index: int) -> tuple[dict[int, int], int]:
        """How many objects of each label id a photo has, and how many groups; no pixels of the photo are decoded.

        Raises DatasetError.
        """
        numbers = np.unique(self._fitting_ids(index, self.size(index))).tolist()
        objects = Counter(n // FIRST_INSTANCE for n in numbers if n // FIRST_INSTANCE in _WANTED)
        return dict(objects), sum(n in _WANTED for n in numbers)

    def __getitem__(self, index: int) -> Sample:
        """Photo `index` with its single objects; groups are no objects to train on. Raises DatasetError."""
        try:
            pixels = decode(self._photos[index].read_bytes())
        except (OSError, ImageError) as error:
            raise DatasetError(f"{self._photos[index]}: {error}") from error
        ids = self._fitting_ids(index, (int(pixels.shape[0]), int(pixels.shape[1])))
        numbers = [int(n) for n in np.unique(ids) if n >= FIRST_INSTANCE and n // FIRST_INSTANCE in _WANTED]
        size = int(ids.shape[0]), int(ids.shape[1])
        masks = InstanceMasks((ObjectMask.from_bitmap(ids == number) for number in numbers), size)
        labels = np.array([number // FIRST_INSTANCE for number in numbers], np.int64)
        return Sample(index, pixels, masks.boxes(), labels, masks)

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """The photo's objects as COCO annotations; a group is a crowd."""
        found = [
            _annotation(sample.image_id, int(label), mask, crowd=False)
            for label, mask in zip(sample.labels, sample.masks, strict=True)
        ]
        ids = self.instance_ids(sample.image_id)
        for category in CATEGORIES:
            group = ids == category.id
            if group.any():
                found.append(_annotation(sample.image_id, category.id, group, crowd=True))
        return found


def _annotation(image_id: int, label: int, mask: np.ndarray, *, crowd: bool) -> dict[str, Any]:
    rle = encode(mask)
    x0, y0, x1, y1 = mask_to_box(mask)
    return {
        "image_id": image_id,
        "category_id": label,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": rle.area,
        "iscrowd": int(crowd),
        "segmentation": rle.to_coco(),
    }
