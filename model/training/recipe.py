"""How to train: the numbers of a run, what is wrong with them, and the learning rate that they give each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise


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
    drops: tuple[float, ...] = (0.4, 0.9)  # parts of the run; "step" multiplies by 0.1 at each
    min_sizes: tuple[int, ...] = (288, 320, 352, 384, 416)  # scale jitter: one is drawn for each batch
    # Progressive resizing: from a step on, other sizes. Small images teach as much about categories in less time.
    later_sizes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    max_size: int = 768
    flip: float = 0.5
    rois: int = 160  # sampled per image for the second stage …
    positives: float = 0.2  # … of which at most this part are objects
    proposals: tuple[int, int] = (400, 300)  # per image: into and out of the RPN's suppression
    box_weight: float = 2.0  # of L_box in the sum; 1 in the paper
    clip: float = 10.0  # of the gradient's norm
    ema: float = 0.999  # decay of the averaged weights that are saved; 0 saves the last ones
    # "float32", "bfloat16" (autocast); "auto": bfloat16 where the processor computes in it; "float64" is to tell what
    # rounding does from what an error does.
    precision: str = "auto"
    seed: int = 0
    workers: int = 1
    checkpoint_every: int = 500
    frozen_stages: int = (
        0  # of the backbone's four, from the first, that are not trained; the stem goes with the first
    )
    jitter: tuple[float, ...] = ()  # large-scale jitter: least and largest scale, as (0.1, 2.0); () is none
    jitter_side: int = 1024  # of its canvas, pixels; `min_sizes` mean nothing then
    copy_paste: float = 0.0  # how often objects of another image are pasted on; with jitter
    validate_every: int = 0  # steps; the best model so far is kept. 0: only the last one counts
    patience: int = 0  # validations without a better model, after which the run ends; 0: it never does

    def check(self) -> None:
        """TrainingError for values that make no sense."""
        if self.optimizer not in ("sgd", "adamw"):
            raise TrainingError(f"optimizer is 'sgd' or 'adamw', not {self.optimizer!r}")
        if self.schedule not in ("linear", "step", "cosine"):
            raise TrainingError(f"schedule is 'linear', 'step' or 'cosine', not {self.schedule!r}")
        if self.precision not in ("auto", "float32", "bfloat16", "float64"):
            raise TrainingError(
                f"precision is 'auto', 'float32', 'bfloat16' or 'float64', not {self.precision!r}"
            )
        counts = (self.steps, self.batch_size, self.rois, self.checkpoint_every, *self.proposals)
        sizes = (self.min_sizes, *(sizes for _, sizes in self.later_sizes))
        if min(*counts, *sum(sizes, ()), self.max_size) < 1 or not all(sizes):
            raise TrainingError("steps, batch size, RoIs, proposals and image sizes must be at least 1")
        if (largest := max(sum(sizes, ()))) > self.max_size:
            raise TrainingError(
                f"the shorter image side may be at most the longer one's limit of {self.max_size}, not {largest}"
            )
        if min(self.warmup, self.workers) < 0 or not 0 <= self.ema < 1:
            raise TrainingError(
                "warm-up and workers are numbers from 0 up, and ema is at least 0 and below 1"
            )
        for name, value in (
            ("the learning rate", self.learning_rate),
            ("the weight decay", self.weight_decay),
            ("the weight of L_box", self.box_weight),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise TrainingError(f"{name} is a number from 0 up, not {value}")
        if not self.clip > 0:  # 0 would make every gradient 0
            raise TrainingError(
                f"clip, the most that the gradient's norm may be, is above 0, not {self.clip}"
            )
        if not (0 <= self.positives <= 1 and 0 <= self.flip <= 1):
            raise TrainingError(
                f"positives and flip are parts from 0 to 1, not {self.positives} and {self.flip}"
            )
        if not 0 <= self.frozen_stages <= 4:
            raise TrainingError(f"a backbone has 4 stages to freeze, not {self.frozen_stages}")
        if self.jitter and not (len(self.jitter) == 2 and 0 < self.jitter[0] <= self.jitter[1]):
            raise TrainingError(f"jitter is a least and a largest scale, like 0.1 and 2.0: {self.jitter}")
        if not 0 <= self.copy_paste <= 1 or (self.copy_paste and not self.jitter) or self.jitter_side < 32:
            raise TrainingError(
                "copy-paste is from 0 to 1 and needs jitter, whose canvas has at least 32 pixels a side"
            )
        if min(self.validate_every, self.patience) < 0 or (self.patience and not self.validate_every):
            raise TrainingError("patience counts validations, which need a number of steps in between")
        rising = all(earlier < later for earlier, later in pairwise(self.drops))
        if not self.drops or not rising or not all(0 <= drop <= 1 for drop in self.drops):
            raise TrainingError(f"drops are parts of the run from 0 to 1, rising, at least one: {self.drops}")

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
            validate_every=other.validate_every,
            patience=other.patience,
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


# Recipes by name. Each says where its numbers are from; what a source does not say is as above.
RECIPES = {
    "small": Recipe(),
    # Mask R-CNN, section 3.1 "Training": 160k steps of 16 images, learning rate 0.02, a tenth from 120k on, weight
    # decay 0.0001, momentum 0.9, 512 RoIs with FPN, 1:3 positives, the shorter side 800. The warm-up is Detectron's.
    "paper": Recipe(
        steps=160_000, batch_size=16, optimizer="sgd", learning_rate=0.02, weight_decay=1e-4, warmup=500,
        schedule="step", drops=(0.75,), min_sizes=(800,), max_size=1333, rois=512, positives=0.25,
        proposals=(2000, 2000), box_weight=1.0, clip=1e9, ema=0.0, workers=4, checkpoint_every=5000,
        frozen_stages=1,
    ),
    # torchvision's references/detection: 26 epochs of the 117,266 images of COCO with objects in batches of 8 × 2,
    # learning rate 0.02, a tenth from epochs 16 and 22 on, 1,000 steps of warm-up.
    "torchvision": Recipe(
        steps=190_554, batch_size=16, optimizer="sgd", learning_rate=0.02, weight_decay=1e-4, warmup=1000,
        schedule="step", drops=(16 / 26, 22 / 26), min_sizes=(800,), max_size=1333, rois=512, positives=0.25,
        proposals=(2000, 2000), box_weight=1.0, clip=1e9, ema=0.0, workers=4, checkpoint_every=5000,
        frozen_stages=1,
    ),
    # Mask R-CNN, appendix A "Experiments on Cityscapes": 24k steps of 8 images, learning rate 0.01, a tenth from 18k
    # on, the shorter side from 800 to 1024.
    "cityscapes": Recipe(
        steps=24_000, batch_size=8, optimizer="sgd", learning_rate=0.01, weight_decay=1e-4, warmup=500,
        schedule="step", drops=(0.75,), min_sizes=tuple(range(800, 1025, 32)), max_size=2048, rois=512,
        positives=0.25, proposals=(2000, 2000), box_weight=1.0, clip=1e9, ema=0.0, workers=4,
        checkpoint_every=1000, frozen_stages=1,
    ),
}  # fmt: skip
RECIPES["paper-c4"] = replace(RECIPES["paper"], rois=64)  # section 3.1: 64 RoIs with C4
