"""Photos → the network's input: resized as its framework resizes, normalised, padded (Mask R-CNN, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from model.images.resize import RESIZE_BYTES
from model.kernels import bilinear
from model.kernels.bilinear import Taps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.kernels.convolution import Format


class Preprocessor:
    """Images [H, W, 3] uint8 → a batch [B, 3, H', W'], as torchvision's GeneralizedRCNNTransform makes it, or what the
    model's own framework has in its place.
    """

    def __init__(self, transform: Any, form: Format, resize: str = "torchvision") -> None:
        """Prepare the arithmetic.

        Args:
            transform: has `image_mean` and `image_std`, of values 0 to 1.
            form: where the batch lies, and in which numbers.
            resize: see model/network/conventions.py.
        """
        mean, deviation = (
            torch.tensor(values, dtype=torch.float32)
            for values in (transform.image_mean, transform.image_std)
        )
        # (pixel / 255 - mean) / deviation as one product and one sum; it may as well follow the resizing.
        self._scale = (1 / (255 * deviation)).to(form.device)
        self._shift = (-mean / deviation).to(form.device)
        self._form = form
        self._resize_bytes = RESIZE_BYTES.get(resize)
        self._kernel = bilinear.kernel() if form.device.type == "cpu" else None

    def __call__(
        self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> Tensor:
        """Channels last, zero where images end.

        Args:
            images: [H, W, 3] uint8 each.
            sizes: (height, width) that each is resized to.
            padded: (height, width) of the batch.
        """
        device = self._form.device
        batch = torch.empty((len(images), *padded, 3), dtype=self._form.dtype, device=device)
        for place, image, size in zip(batch, images, sizes, strict=True):
            inside = place[: size[0], : size[1]]
            place[size[0] :].zero_()
            place[: size[0], size[1] :].zero_()
            if self._resize_bytes is not None:
                resized = _upload(self._resize_bytes(image, size), device).float()
            elif device.type != "cpu":
                resized = _interpolate(_upload(_tensor(image), device), size)
            elif self._kernel is not None:
                self._kernel(image, inside, self._scale, self._shift)
                continue
            else:
                resized = _resize(_tensor(image), size)
            inside.copy_(torch.addcmul(self._shift, resized, self._scale))
        return batch.permute(0, 3, 1, 2)


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """[h, w, 3] float32 in 0 to 255, of [H, W, 3] uint8: as _interpolate, but the same on any number of threads, and
    only the rows and columns that the result needs are turned into floats.
    """
    rows, columns = (Taps.of(before, after) for before, after in zip(pixels.shape, size, strict=False))
    # Above and below, each of the left and the right column. Picked as bytes: rows of floats would take 150 MB of 64
    # megapixels.
    (above_left, above_right), (below_left, below_right) = (
        [line.index_select(1, column).float() for column in (columns.first, columns.second)]
        for line in (pixels.index_select(0, row) for row in (rows.first, rows.second))
    )
    left = torch.lerp(above_left, below_left, rows.part[:, None, None])
    right = torch.lerp(above_right, below_right, rows.part[:, None, None])
    return torch.lerp(left, right, columns.part[:, None])


def _interpolate(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """[h, w, 3] float32 in 0 to 255, of [H, W, 3] uint8: bilinear, without antialiasing, by torch's own kernel."""
    planes = pixels.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
    return functional.interpolate(planes, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(image, requirements=("C", "W")))


def _upload(pixels: Tensor, device: torch.device) -> Tensor:
    """Bytes on the device. To a GPU they go from pinned memory, and the host does not wait."""
    return pixels if device.type == "cpu" else pixels.pin_memory().to(device, non_blocking=True)
