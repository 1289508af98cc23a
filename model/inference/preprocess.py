"""Photos → the network's input: resized as its framework resizes, normalised, padded (Mask R-CNN, section 3.1).

Of a photo much larger than the input only the rows and columns that the result needs are turned into floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from model.images.resize import RESIZE_BYTES
from model.kernels.openmp import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.kernels.convolution import Format


# Times the result's pixels from which an image is not turned into floats as a whole: 12 megapixels take 28 ms instead
# of 155, and 120 MB less; a 640 × 480 photo, 9 ms by torch's kernel, would take 19.
LARGE_FACTOR = 4


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
        batch = torch.zeros((len(images), *padded, 3), dtype=self._form.dtype, device=device)
        for row, image, size in zip(batch, images, sizes, strict=True):
            if self._resize_bytes is not None:
                resized = _upload(self._resize_bytes(image, size), device).float()
            elif device.type == "cpu":
                resized = _resize(image, size)
            else:
                pixels = torch.from_numpy(np.require(image, requirements=("C", "W")))
                resized = _interpolate(_upload(pixels, device), size)
            row[: size[0], : size[1]] = torch.addcmul(self._shift, resized, self._scale)
        return batch.permute(0, 3, 1, 2)


def _resize(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """[h, w, 3] float32 in 0 to 255: bilinear, without antialiasing, as torch.nn.functional.interpolate."""
    pixels = torch.from_numpy(np.require(image, requirements=("C", "W")))
    if image.shape[0] * image.shape[1] <= LARGE_FACTOR * size[0] * size[1]:
        return _interpolate(pixels, size)
    *rows, down = _bilinear_taps(image.shape[0], size[0])
    *columns, across = _bilinear_taps(image.shape[1], size[1])
    # Above and below, each of the left and the right column. Picked as bytes: rows of floats would take 150 MB of 64
    # megapixels.
    (above_left, above_right), (below_left, below_right) = (
        [line.index_select(1, column).float() for column in columns]
        for line in (pixels.index_select(0, row) for row in rows)
    )
    left = torch.lerp(above_left, below_left, down[:, None, None])
    right = torch.lerp(above_right, below_right, down[:, None, None])
    return torch.lerp(left, right, across[:, None])


def _interpolate(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The same of [H, W, 3] uint8 by torch's own kernel, all pixels as floats."""
    planes = pixels.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
    with one_thread():
        resized = functional.interpolate(planes, size, mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0)


def _bilinear_taps(before: int, after: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `after` places the two of `before` that it lies between, and how far it is to the second."""
    scale = torch.tensor(before / after, dtype=torch.float32)
    place = ((torch.arange(after, dtype=torch.float32) + 0.5) * scale - 0.5).clamp(min=0)
    low = place.to(torch.int64).clamp(max=before - 1)
    return low, (low + 1).clamp(max=before - 1), place - low


def _upload(pixels: Tensor, device: torch.device) -> Tensor:
    """Bytes on the device. To a GPU they go from pinned memory, and the host does not wait."""
    return pixels if device.type == "cpu" else pixels.pin_memory().to(device, non_blocking=True)
