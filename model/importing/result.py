"""What an import gives, whichever framework it is from, and what it says about how it got there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from model.data import Category, Keypoints
    from model.network.architecture import Architecture


class ImportingError(Exception):
    """The model cannot be imported; the message is one line that names what is not supported or missing."""


@dataclass(slots=True)
class Report:
    """What whoever imports a model should know."""

    # What the file is.
    recognised: list[str] = field(default_factory=list)
    # From the file or its configuration.
    taken: list[str] = field(default_factory=list)
    # Neither says it: a default, and how to say otherwise.
    assumed: list[str] = field(default_factory=list)
    # A field → what to ask, where no default is good enough.
    needed: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A line for each thing, but for what is still needed."""
        parts = (("recognised", self.recognised), ("taken", self.taken), ("assumed", self.assumed))
        return [f"{heading}: {line}" for heading, lines in parts for line in lines]


@dataclass(frozen=True, slots=True)
class Imported:
    """A model of another framework in this project's terms."""

    framework: str
    architecture: Architecture
    # By the names of model.network.build.
    tensors: dict[str, Tensor]
    categories: tuple[Category, ...]
    # The network's output of each category.
    labels: tuple[int, ...]
    report: Report
    # What the keypoints are, if it has a head for them.
    keypoints: Keypoints | None = None
