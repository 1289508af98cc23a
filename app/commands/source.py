"""What `maskserve train` and `maskserve evaluate` were told to read; apart from them, because they import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = "shapes"


@dataclass(frozen=True, slots=True)
class Source:
    """Datasets by name: "shapes", a folder in COCO's or Cityscapes' format, or the path of a COCO JSON file."""

    data: str
    images: Path | None = None  # where the images of a JSON file lie
    validation: str | None = None  # what a trained model is measured on
    split: str | None = None  # of Cityscapes; by default it is trained on "train" and measured on "val"
    backgrounds: Path | None = None  # photos to draw some of the scenes on
    skip_damaged: bool = False  # leave out what cannot be used, instead of refusing the data

    @property
    def drawn(self) -> bool:
        """Whether the data is the scenes that draw themselves."""
        return self.data == SHAPES

    @property
    def measured_on(self) -> str | None:
        """What to measure on: what was said; for drawn scenes, if nothing was said, held-out ones."""
        return self.validation if self.validation is not None else SHAPES if self.drawn else None
