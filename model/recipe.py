"""How to train: the numbers of a run, what is wrong with them, and the learning rate that they give each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


class TrainingError(Exception):
    """Training cannot start or go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. The defaults are those that the bundled model was trained with."""

    steps: int = 5000
    batch_size: int = 8
    optimizer: str = "adamw"  # or "sgd": momentum 0.9, as the paper (section 3.1)
    learning_rate: float = 7e-4
    weight_decay: float = 0.05
    warmup: int = 250  # steps of linear warm-up
    schedule: str = (
        "linear"  # constant, then straight down to 0 from the first of `drops`; or "step", "cosine"
    )
    drops: tuple[float, ...] = (0.65, 0.9)  # parts of the run; "step" multiplies by 0.1 at each
    min_sizes: tuple[int, ...] = (288, 320, 352, 384, 416)  # scale jitter: one is drawn for each batch
    # Progressive resizing: from a step on, other sizes. Small images teach as much about categories in less time.
    later_sizes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    max_size: int = 768
    flip: float = 0.5
    rois: int = 96  # sampled per image for the second stage …
    positives: float = 0.3  # … of which at most this part are objects
    proposals: tuple[int, int] = (400, 250)  # per image: into and out of the RPN's suppression
    clip: float = 10.0  # of the gradient's norm
    ema: float = 0.999  # decay of the averaged weights that are saved; 0 saves the last ones
    precision: str = (
        "auto"  # "float32", "bfloat16" (autocast), or bfloat16 where the processor computes in it
    )
    seed: int = 0
    workers: int = 1
    checkpoint_every: int = 500

    def check(self) -> None:
        """TrainingError for values that make no sense."""
        if self.optimizer not in ("sgd", "adamw"):
            raise TrainingError(f"optimizer is 'sgd' or 'adamw', not {self.optimizer!r}")
        if self.schedule not in ("linear", "step", "cosine"):
            raise TrainingError(f"schedule is 'linear', 'step' or 'cosine', not {self.schedule!r}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise TrainingError(f"precision is 'auto', 'float32' or 'bfloat16', not {self.precision!r}")
        counts = (self.steps, self.batch_size, self.rois, self.checkpoint_every, *self.proposals)
        sizes = (self.min_sizes, *(sizes for _, sizes in self.later_sizes))
        if min(*counts, *sum(sizes, ()), self.max_size) < 1 or not all(sizes):
            raise TrainingError("steps, batch size, RoIs, proposals and image sizes must be at least 1")
        if min(self.warmup, self.workers) < 0 or not 0 <= self.ema < 1:
            raise TrainingError(
                "warm-up and workers are numbers from 0 up, and ema is at least 0 and below 1"
            )
        if not self.drops or list(self.drops) != sorted(self.drops):
            raise TrainingError(f"drops are parts of the run in ascending order, at least one: {self.drops}")

    def sizes(self, step: int) -> tuple[int, ...]:
        """The shorter image sides to draw from at a step."""
        chosen = self.min_sizes
        for first, sizes in self.later_sizes:
            if step >= first:
                chosen = sizes
        return chosen

    def begins_like(self, other: Recipe, steps: int) -> bool:
        """Whether the first `steps` steps are the same: what is to come, and what never shows, may differ."""
        alike = replace(
            self,
            steps=other.steps,
            later_sizes=other.later_sizes,
            workers=other.workers,
            checkpoint_every=other.checkpoint_every,
        )
        return alike == other and all(
            self.rate(step) == other.rate(step) and self.sizes(step) == other.sizes(step)
            for step in range(steps)
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then the schedule."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** sum(step >= part * self.steps for part in self.drops)
        if self.schedule == "linear":
            hold = self.drops[0] * self.steps
            return self.learning_rate * min(1.0, (self.steps - step) / max(1.0, self.steps - hold))
        part = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))
