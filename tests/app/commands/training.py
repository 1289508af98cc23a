"""A finished training run that tests share, and the options that make one quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

QUICK = {"steps": 2, "batch_size": 2, "workers": 0, "precision": "float32", "sizes": ["64"], "warmup": 1}


def as_arguments(options: dict[str, object]) -> list[str]:
    """Options of run_training as they are typed."""
    words: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(item)]
    return words


@dataclass(frozen=True)
class Trained:
    """A run of two steps, validated after each. Tests do not change its files."""

    # Labelled data: four drawn scenes in COCO's format.
    data: Path
    # The run folder.
    run: Path
    # What the command printed on stdout.
    output: str

    @property
    def path(self) -> Path:
        """The best weights."""
        return self.run / "best.safetensors"
