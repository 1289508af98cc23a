"""Where the mask head's maps lie on an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placement:
    """Maps on an image: as torchvision's `paste_masks_in_image` lays them there, or where `begin` is given, at any
    place between pixels, as Detectron2's does.
    """

    grids: Floats  # [N, S, S] the maps with their border of zeros
    # Foreground is above it, or with `begin` at least it; in [0, 1).
    threshold: np.float32
    corner: Indices  # [2, N] y and x of the resized map's first pixel, in the image
    sides: Indices  # [2, N] its height and width, at least 1
    start: Indices  # [2, N] y and x of its first pixel inside the image
    stop: Indices  # [2, N] one past its last pixel inside the image, or `start` where there is none
    origin: Indices  # [N] how changes are numbered: the image's pixel (y, x) is origin + x * pitch + y
    pitch: Indices  # [N]
    begin: Doubles | None = None  # [2, N] y and x of the map's first sample, in pixels from `corner`
    spacing: Doubles | None = None  # [2, N] pixels from sample to sample

    def samples(self) -> tuple[Doubles, Doubles]:
        """[2, N] pixels from sample to sample, and [2, N, S] the samples' places in pixels from `corner`."""
        side = self.grids.shape[-1]
        if self.begin is not None and self.spacing is not None:
            return self.spacing, np.arange(side) * self.spacing[:, :, None] + self.begin[:, :, None]
        spacing = self.sides / side
        return spacing, (np.arange(side) + 0.5) * spacing[:, :, None] - 0.5

    def in_samples(self, axis: int, mask: Indices, pixel: Doubles | Indices) -> Doubles:
        """Places along an axis, counted in samples: [K].

        Args:
            axis: 0 for y, 1 for x.
            mask: [K] numbers of the masks.
            pixel: [K] the places, in pixels from `corner`.
        """
        if self.begin is not None and self.spacing is not None:
            counted: Doubles = (pixel - self.begin[axis, mask]) / self.spacing[axis, mask]
            return counted
        centres: Doubles = (pixel + 0.5) * (self.grids.shape[-1] / self.sides[axis, mask]) - 0.5
        return centres
