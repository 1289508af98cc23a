"""The data that `maskserve train` and `maskserve evaluate` are to read. Apart from them, because they import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SHAPES, FIGURES = "shapes", "figures"
# Data that maskserve draws.
DRAWN = (SHAPES, FIGURES)


@dataclass(frozen=True, slots=True)
class Source:
    """Datasets by name: "shapes", "figures", a folder in COCO's or Cityscapes' format, or the path of a JSON file."""

    data: str
    # Folder of the images of a JSON file.
    images: Path | None = None
    # The dataset that a trained model is evaluated on.
    validation: str | None = None
    # Split of Cityscapes; by default "train" for training and "val" for evaluation.
    split: str | None = None
    # Folder of photos on which some of the scenes are drawn.
    backgrounds: Path | None = None
    # Leave out what cannot be used, instead of refusing the data.
    skip_damaged: bool = False
    # Folder of the images of the validation's JSON file.
    validation_images: Path | None = None
    # Take categories whose names differ only by capitals, blanks, hyphens or underscores for the same.
    loose_names: bool = False

    @property
    def is_shapes(self) -> bool:
        """Whether the data is the scenes of shapes that maskserve draws."""
        return self.data == SHAPES

    @property
    def is_drawn(self) -> bool:
        """Whether the data is scenes that maskserve draws."""
        return self.data in DRAWN

    @property
    def evaluation_data(self) -> str | None:
        """The dataset to evaluate on: `validation`, by default held-out scenes for drawn ones."""
        return self.validation if self.validation is not None else self.data if self.is_drawn else None
