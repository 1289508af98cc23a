"""What an import gives, whichever framework it is from, and what it says about how it got there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from model.data import Category
    from model.network.architecture import Architecture


class ImportingError(Exception):
    """The model cannot be imported; the message is one line that names what is not supported or missing."""


@dataclass(slots=True)
class Report:
    """What whoever imports a model should know."""

    recognised: list[str] = field(default_factory=list)  # what the file is
    taken: list[str] = field(default_factory=list)  # from the file or its configuration
    assumed: list[str] = field(default_factory=list)  # neither says it: a default, and how to say otherwise
    needed: dict[str, str] = field(
        default_factory=dict
    )  # a field → what to ask, where no default is good enough

    def lines(self) -> list[str]:
        """A line for each thing, but for what is still needed."""
        parts = (("recognised", self.recognised), ("taken", self.taken), ("assumed", self.assumed))
        return [f"{heading}: {line}" for heading, lines in parts for line in lines]


@dataclass(frozen=True, slots=True)
class Imported:
    """A model of another framework in this project's terms."""

    framework: str
    architecture: Architecture
    tensors: dict[str, Tensor]  # by the names of model.network.build
    categories: tuple[Category, ...]
    labels: tuple[int, ...]  # the network's output of each category
    report: Report
