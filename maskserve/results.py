"""What the service found in an image, with masks as NumPy arrays."""

from __future__ import annotations

import base64
import io
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from maskserve.errors import AnswerError
from maskserve.masks import decode_columns, decode_rle, encode_rle, fill_polygons

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


# Most pixels of an image that a service can be set to take; a mask has a byte for each.
MOST_PIXELS = 1 << 30


class MaskCrop(NamedTuple):
    """The part of an image that a mask covers."""

    # pixels of the image
    left: int
    top: int
    bitmap: NDArray[np.bool_]  # [h, w]


@dataclass(frozen=True, slots=True)
class Instance:
    """One object."""

    category_id: int
    category: str
    # 0 to 1
    score: float
    # [x, y, width, height], pixels of the upright image
    bbox: tuple[float, float, float, float]
    # pixels of the mask; without masks, of the box
    area: float
    # (height, width) of the image
    size: tuple[int, int]
    # as the service sent it
    record: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], size: tuple[int, int]) -> Instance:
        """From the service's JSON; size: (height, width) of the image. Raises KeyError, TypeError or ValueError."""
        x, y, width, height = map(float, record["bbox"])
        return cls(
            category_id=operator.index(record["category_id"]),
            category=str(record["category"]),
            score=float(record["score"]),
            bbox=(x, y, width, height),
            area=float(record["area"]),
            size=size,
            record=record,
        )

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The corners [x1, y1, x2, y2]."""
        x, y, width, height = self.bbox
        return x, y, x + width, y + height

    @property
    def keypoints(self) -> NDArray[np.float64] | None:
        """Keypoints [K, 3]: x and y, pixels of the image, and 1; None where the answer has none.

        Raises AnswerError for what are none.
        """
        found = self._numbers("keypoints")
        if found is not None and len(found) % 3:
            raise AnswerError(
                f"the keypoints of a {self.category} are {len(found)} numbers, not three of each"
            )
        return None if found is None else found.reshape(-1, 3)

    @property
    def keypoint_scores(self) -> NDArray[np.float64] | None:
        """The score of each keypoint [K], as `keypoints` of `Client.model` says; None where the answer has none.

        Raises AnswerError for what are none.
        """
        return self._numbers("keypoint_scores")

    def _numbers(self, name: str) -> NDArray[np.float64] | None:
        if self.record.get(name) is None:
            return None
        try:
            numbers = np.array(self.record[name], dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise AnswerError(f"the {name} of a {self.category} cannot be read: {error}") from error
        if numbers.ndim != 1:
            raise AnswerError(f"the {name} of a {self.category} are no list of numbers")
        return numbers

    @property
    def has_mask(self) -> bool:
        """Whether the answer has a mask for it."""
        return bool({"segmentation", "mask"} & self.record.keys())

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask [H, W] of the whole image, computed on each access.

        Raises ValueError after masks="none", and AnswerError for what is no mask of this image.
        """
        try:
            match self.record:
                case {"segmentation": {"size": _, "counts": _} as rle}:
                    return decode_rle(rle, self.size)
                case {"segmentation": [*polygons]}:
                    return fill_polygons(polygons, self.size)
                case {"mask": {"left": int(left), "top": int(top), "png": str(text)}}:
                    return paste_png(base64.b64decode(text), (left, top), self.size)
        except (ValueError, TypeError, OverflowError) as error:
            raise AnswerError(f"the mask of a {self.category} cannot be read: {error}") from error
        raise ValueError('there is no mask: it was asked with masks="none"')

    @property
    def crop(self) -> MaskCrop:
        """The mask cut to its pixels, and where they lie; without any, an empty crop. Raises as `mask`.

        RLE is decoded only in the columns that the object covers.
        """
        first, mask = self._columns()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return MaskCrop(0, 0, np.zeros((0, 0), dtype=np.bool_))
        top, left = int(rows[0]), int(columns[0])
        return MaskCrop(first + left, top, mask[top : rows[-1] + 1, left : columns[-1] + 1])

    def _columns(self) -> tuple[int, NDArray[np.bool_]]:
        """Columns that hold the whole mask, [H, w], and the number of the first."""
        match self.record:
            case {"segmentation": {"size": _, "counts": _} as rle}:
                try:
                    return decode_columns(rle, self.size)
                except (ValueError, TypeError, OverflowError) as error:
                    raise AnswerError(f"the mask of a {self.category} cannot be read: {error}") from error
        return 0, self.mask

    def to_coco(self, image_id: int) -> dict[str, Any]:
        """The COCO results record; a mask that came as PNG becomes RLE."""
        record = {"image_id": image_id, **self.record}
        if record.pop("mask", None) is not None:
            record["segmentation"] = encode_rle(self.mask)
        return record


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one image, its instances in descending score."""

    # of the request, as in the service's log
    id: str
    model: str
    # of the upright image, pixels
    width: int
    height: int
    instances: tuple[Instance, ...]
    # stage → milliseconds, by the service's clock
    timings: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], timings: Mapping[str, float] | None = None) -> Result:
        """From the service's JSON. Raises AnswerError where it is no such document."""
        try:
            width, height = (
                operator.index(document["image"]["width"]),
                operator.index(document["image"]["height"]),
            )
            if width < 1 or height < 1 or width * height > MOST_PIXELS:
                raise AnswerError(f"an image of {width} × {height} pixels")
            instances = tuple(
                Instance.from_record(record, (height, width)) for record in document["instances"]
            )
            return cls(str(document["id"]), str(document["model"]), width, height, instances, timings or {})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, AnswerError):
                raise
            raise AnswerError(
                f"the answer is no result of maskserve: {error.__class__.__name__}: {error}"
            ) from error

    @property
    def document(self) -> dict[str, Any]:
        """The service's JSON again."""
        return {
            "id": self.id,
            "model": self.model,
            "image": {"width": self.width, "height": self.height},
            "instances": [dict(instance.record) for instance in self.instances],
        }

    @property
    def boxes(self) -> NDArray[np.float64]:
        """Corners [N, 4], xyxy, pixels."""
        return np.array([instance.box for instance in self.instances], dtype=np.float64).reshape(-1, 4)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Scores [N]."""
        return np.array([instance.score for instance in self.instances], dtype=np.float64)

    @property
    def category_ids(self) -> NDArray[np.int64]:
        """Category ids [N]."""
        return np.array([instance.category_id for instance in self.instances], dtype=np.int64)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Masks [N, H, W]: for small images, or few instances. Raises ValueError after masks="none"."""
        stack = np.zeros((len(self.instances), self.height, self.width), dtype=np.bool_)
        for layer, instance in zip(stack, self.instances, strict=True):
            layer[:] = instance.mask
        return stack

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results records, for `pycocotools.coco.COCO.loadRes`."""
        return [instance.to_coco(image_id) for instance in self.instances]


def paste_png(content: bytes, corner: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask [H, W] from the PNG file of its box.

    Args:
        content: the file.
        corner: (left, top) of the box in the image, pixels.
        size: (height, width) of the image.

    Raises ValueError for what is no PNG file or reaches out of the image.
    """
    left, top = corner
    height, width = size
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if left < 0 or top < 0 or left + image.width > width or top + image.height > height:
                raise ValueError(f"a box of {image.width} × {image.height} pixels at {left}, {top}")
            bitmap = np.asarray(image.convert("L")) > 0
    # SyntaxError: Pillow's, of a damaged chunk.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no PNG file: {error}") from error
    mask = np.zeros(size, dtype=np.bool_)
    mask[top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap
    return mask
