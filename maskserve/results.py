"""What the service found in an image, with masks as NumPy arrays."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from maskserve.masks import decode_rle, encode_rle, fill_polygons

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class Crop(NamedTuple):
    """The part of an image that a mask covers."""

    left: int  # pixels of the image
    top: int
    bitmap: NDArray[np.bool_]  # [h, w]


@dataclass(frozen=True, slots=True)
class Instance:
    """One object."""

    category_id: int
    category: str
    score: float  # 0 to 1
    bbox: tuple[float, float, float, float]  # [x, y, width, height], pixels of the upright image
    area: float  # pixels of the mask; without masks, of the box
    size: tuple[int, int]  # (height, width) of the image
    record: Mapping[str, Any] = field(repr=False)  # as the service sent it

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The corners [x1, y1, x2, y2]."""
        x, y, width, height = self.bbox
        return x, y, x + width, y + height

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask [H, W] of the whole image, made anew each time. Raises ValueError after masks="none"."""
        match self.record:
            case {"segmentation": {"size": _, "counts": _} as rle}:
                return decode_rle(rle, self.size)
            case {"segmentation": [*polygons]}:
                return fill_polygons(polygons, self.size)
            case {"mask": {"left": left, "top": top, "png": text}}:
                with Image.open(io.BytesIO(base64.b64decode(text))) as image:
                    bitmap = np.asarray(image, dtype=np.bool_)
                mask = np.zeros(self.size, dtype=np.bool_)
                height, width = bitmap.shape
                mask[top : top + height, left : left + width] = bitmap
                return mask
        raise ValueError('there is no mask: it was asked with masks="none"')

    @property
    def crop(self) -> Crop:
        """The mask cut to its pixels, and where they lie; without any, an empty crop."""
        mask = self.mask
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return Crop(0, 0, np.zeros((0, 0), dtype=np.bool_))
        top, left = int(rows[0]), int(columns[0])
        return Crop(left, top, mask[top : rows[-1] + 1, left : columns[-1] + 1])

    def to_coco(self, image_id: int) -> dict[str, Any]:
        """The COCO results record; a mask that came as PNG becomes run lengths."""
        record = {"image_id": image_id, **self.record}
        if record.pop("mask", None) is not None:
            record["segmentation"] = encode_rle(self.mask)
        return record


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one image, its instances in descending score."""

    id: str  # of the request, to be found in the service's log
    model: str
    width: int  # of the upright image, pixels
    height: int
    instances: tuple[Instance, ...]
    timings: Mapping[str, float] = field(default_factory=dict)  # stage → milliseconds, by the service's clock

    @classmethod
    def from_document(cls, document: Mapping[str, Any], timings: Mapping[str, float] | None = None) -> Result:
        """From the service's JSON. Raises KeyError or TypeError where it is no such document."""
        width, height = document["image"]["width"], document["image"]["height"]
        instances = tuple(
            Instance(
                category_id=record["category_id"],
                category=record["category"],
                score=record["score"],
                bbox=tuple(record["bbox"]),
                area=record["area"],
                size=(height, width),
                record=record,
            )
            for record in document["instances"]
        )
        return cls(document["id"], document["model"], width, height, instances, timings or {})

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
