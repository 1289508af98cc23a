"""The masks of one image, each kept as the part inside its box, so that memory grows with objects and not with pixels.

A photo of 12 megapixels with 200 objects would take 2.4 GB as bitmaps of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from torch.nn.functional import interpolate

from model.masks.boxes import mask_to_box
from model.masks.rle import decompress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ObjectMask:
    """The part of one mask inside its box."""

    # Of the first column, pixels of the image.
    left: int
    # Of the first row.
    top: int
    bitmap: NDArray[np.uint8]  # [h, w], 0 or 1; no sides where the mask is empty

    @classmethod
    def from_bitmap(cls, bitmap: NDArray[Any], left: int = 0, top: int = 0) -> Self:
        """The smallest crop that has everything of a bitmap.

        Args:
            bitmap: [H, W]; whatever is not zero is foreground.
            left: of its first column, pixels of the image.
            top: of its first row.
        """
        x0, y0, x1, y1 = mask_to_box(bitmap)
        return cls(left + x0, top + y0, np.array(bitmap[y0:y1, x0:x1] != 0, np.uint8))

    @classmethod
    def from_rle(cls, rle: Mapping[str, Any]) -> Self:
        """The crop of compressed COCO RLE; only the columns that the mask touches are painted."""
        counts = rle["counts"]
        runs = decompress(counts.encode("ascii") if isinstance(counts, str) else counts)
        ends = np.cumsum(runs)
        starts, stops = ends[:-1:2], ends[1::2]
        starts, stops = starts[stops > starts], stops[stops > starts]
        if not len(starts):
            return cls(0, 0, np.zeros((0, 0), np.uint8))
        height = int(rle["size"][0])
        left, right = int(starts[0]) // height, (int(stops[-1]) - 1) // height
        edges = np.stack([starts, stops], 1).reshape(-1) - left * height
        lengths = np.diff(edges, prepend=0, append=(right + 1 - left) * height)
        painted = np.repeat(np.arange(len(lengths), dtype=np.uint8) & 1, lengths)
        return cls.from_bitmap(painted.reshape(-1, height).T, left)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge, pixels of the image."""
        height, width = self.bitmap.shape
        return self.left, self.top, self.left + width, self.top + height


class InstanceMasks(Sequence["NDArray[np.uint8]"]):
    """N masks of one image; as a sequence or an array it is [N, H, W] uint8, made when it is asked for."""

    def __init__(self, crops: Iterable[ObjectMask], size: tuple[int, int]) -> None:
        """size: (height, width) of the image, pixels."""
        self.crops, self.size = list(crops), size

    @classmethod
    def of(cls, masks: NDArray[Any] | InstanceMasks) -> InstanceMasks:
        """The same masks, cropped. masks: [N, H, W], whatever is not zero is foreground."""
        if isinstance(masks, InstanceMasks):
            return masks
        return cls(map(ObjectMask.from_bitmap, masks), (masks.shape[1], masks.shape[2]))

    def __len__(self) -> int:
        return len(self.crops)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> InstanceMasks: ...
    def __getitem__(self, index: Any) -> NDArray[np.uint8] | InstanceMasks:
        """One mask as a bitmap [H, W]; or several, by a slice, their numbers, or a truth value for each."""
        if isinstance(index, int | np.integer):
            return self._bitmap(self.crops[index])
        chosen = np.arange(len(self.crops))[index]
        return InstanceMasks([self.crops[n] for n in chosen.tolist()], self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        dense = np.zeros(self.shape, np.uint8)
        for bitmap, crop in zip(dense, self.crops, strict=True):
            self._paint(bitmap, crop)
        return dense if dtype is None else dense.astype(dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, height, width)."""
        return len(self.crops), *self.size

    def boxes(self) -> NDArray[np.float32]:
        """[N, 4] xyxy, pixels."""
        return np.array([crop.box for crop in self.crops], np.float32).reshape(-1, 4)

    def areas(self) -> NDArray[np.int64]:
        """[N] pixels."""
        return np.array([int(crop.bitmap.sum()) for crop in self.crops], np.int64)

    def flip(self) -> InstanceMasks:
        """Left and right exchanged."""
        width = self.size[1]
        flipped = [ObjectMask(width - crop.box[2], crop.top, crop.bitmap[:, ::-1]) for crop in self.crops]
        return InstanceMasks(flipped, self.size)

    def rotate(self, quarters: int) -> InstanceMasks:
        """Rotated counterclockwise by 0 to 3 quarter turns, as `numpy.rot90` rotates an array [H, W]."""
        crops, (height, width) = self.crops, self.size
        for _ in range(quarters):
            crops = [ObjectMask(crop.top, width - crop.box[2], np.rot90(crop.bitmap)) for crop in crops]
            height, width = width, height
        return InstanceMasks(crops, (height, width))

    def take(
        self, rows: NDArray[Any], columns: NDArray[Any], size: tuple[int, int], corner: tuple[int, int]
    ) -> InstanceMasks:
        """Masks of another image, in which the pixels of some rows and columns make up one rectangle.

        Args:
            rows: the row of each pixel of that rectangle, ascending.
            columns: the column of each.
            size: (height, width) of the other image.
            corner: (top, left) of the rectangle in it.
        """
        crops = []
        for crop in self.crops:
            x0, y0, x1, y1 = crop.box
            top, bottom = np.searchsorted(rows, (y0, y1)).tolist()
            left, right = np.searchsorted(columns, (x0, x1)).tolist()
            part = crop.bitmap[rows[top:bottom, None] - y0, columns[left:right] - x0]
            crops.append(ObjectMask.from_bitmap(part, left + corner[1], top + corner[0]))
        return InstanceMasks(crops, size)

    def without(self, cover: NDArray[np.bool_]) -> InstanceMasks:
        """What remains of each mask outside of an area. cover: [H, W]."""
        crops = []
        for crop in self.crops:
            x0, y0, x1, y1 = crop.box
            crops.append(ObjectMask.from_bitmap(crop.bitmap * ~cover[y0:y1, x0:x1], x0, y0))
        return InstanceMasks(crops, self.size)

    def union(self) -> NDArray[np.bool_]:
        """[H, W]: where any of them is."""
        found = np.zeros(self.size, np.bool_)
        for crop in self.crops:
            x0, y0, x1, y1 = crop.box
            found[y0:y1, x0:x1] |= crop.bitmap != 0
        return found

    def resize(self, size: tuple[int, int]) -> InstanceMasks:
        """In another size (height, width), by the nearest pixel, as torch's `interpolate` does it."""
        rows, columns = (_nearest(before, after) for before, after in zip(self.size, size, strict=True))
        return self.take(rows, columns, size, (0, 0))

    def _bitmap(self, crop: ObjectMask) -> NDArray[np.uint8]:
        bitmap = np.zeros(self.size, np.uint8)
        self._paint(bitmap, crop)
        return bitmap

    def _paint(self, bitmap: NDArray[np.uint8], crop: ObjectMask) -> None:
        x0, y0, x1, y1 = crop.box
        bitmap[y0:y1, x0:x1] = crop.bitmap


def _nearest(before: int, after: int) -> NDArray[np.int64]:
    """[after]: which of `before` pixels each pixel of another size takes; ascending."""
    numbers = torch.arange(before, dtype=torch.float32).reshape(1, 1, before, 1)
    resized = interpolate(numbers, size=(after, 1))
    return resized.reshape(-1).to(torch.int64).numpy()
