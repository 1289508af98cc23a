"""How to train: the settings of a run, their validation, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from model.data.appearance import Appearance
from model.data.augment import Augmentation

# Fields that are from 0 to 1.
PROBABILITIES = ("positives", "flip", "flip_vertical", "rotate", "grey", "invert")
# Fields that limit random factors; see model/data/appearance.py.
STRENGTHS = ("gamma", "brightness", "contrast", "saturation", "stain")
# Factors of a fifth to five.
MOST_STRENGTH = 4


class TrainingError(Exception):
    """Training cannot start or continue; the message says why."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a training run. The defaults are those of the bundled model `shapes`."""

    steps: int = 5000
    batch_size: int = 8

    # "adamw", or "sgd" with momentum 0.9, as in the paper (section 3.1).
    optimizer: str = "adamw"
    learning_rate: float = 7e-4
    weight_decay: float = 0.05
    # Steps of linear warm-up.
    warmup: int = 250
    # "linear": constant, then linear decay to 0 from the first of `drops` on. "step": times 0.1 at each of `drops`.
    # "cosine": half a cosine, down to 1 %.
    schedule: str = "linear"
    # Fractions of the run.
    drops: tuple[float, ...] = (0.4, 0.9)
    # The largest norm of the gradient; larger ones are scaled down to it.
    clip: float = 10.0
    # Decay of the averaged weights that are saved; 0 saves the last weights instead.
    ema: float = 0.999

    # Scale jitter: the shorter image side, pixels, drawn for each batch.
    min_sizes: tuple[int, ...] = (288, 320, 352, 384, 416)
    # Progressive resizing: (step, sizes) replaces `min_sizes` from that step on. Small images teach categories as
    # well as large ones, in less time.
    later_sizes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    # Limit of the longer image side, pixels.
    max_size: int = 768
    # Probabilities of a horizontal flip, of a vertical one, and of a rotation by one, two or three quarter turns.
    flip: float = 0.5
    flip_vertical: float = 0.0
    rotate: float = 0.0
    # Strengths and probabilities as in model/data/appearance.py.
    gamma: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    stain: float = 0.0
    grey: float = 0.0
    invert: float = 0.0
    # Large-scale jitter: the smallest and the largest scale, such as (0.1, 2.0); () turns it off.
    jitter: tuple[float, ...] = ()
    # Side of the square canvas of large-scale jitter, pixels. `min_sizes` is not used with it.
    jitter_side: int = 1024
    # Probability of pasting objects of another image; requires `jitter`.
    copy_paste: float = 0.0

    # RoIs per image that the heads are trained on, and the largest fraction of them that are objects.
    rois: int = 160
    positives: float = 0.2
    # RPN proposals per image before and after NMS.
    proposals: tuple[int, int] = (400, 300)
    # Weight of L_box in the total loss; 1 in the paper.
    box_weight: float = 2.0
    # Stages of the backbone (0 to 4), counted from the input, that are not trained; the stem belongs to the first.
    frozen_stages: int = 0

    # "float32", "bfloat16" (autocast), "auto" (bfloat16 if the processor has instructions for it), or "float64",
    # which tells a rounding difference from an error.
    precision: str = "auto"
    seed: int = 0
    # Processes that load and augment images.
    workers: int = 1
    # Steps between checkpoints.
    checkpoint_every: int = 500
    # Steps between validations, which keep the best model; 0 validates at the end only.
    validate_every: int = 0
    # Stop after this many validations without a better model; 0 never stops early.
    patience: int = 0

    def check(self) -> None:
        """Raise TrainingError for settings that are out of range or contradict each other."""
        if self.optimizer not in ("sgd", "adamw"):
            raise TrainingError(f"optimizer must be 'sgd' or 'adamw', not {self.optimizer!r}")
        if self.schedule not in ("linear", "step", "cosine"):
            raise TrainingError(f"schedule must be 'linear', 'step' or 'cosine', not {self.schedule!r}")
        if self.precision not in ("auto", "float32", "bfloat16", "float64"):
            raise TrainingError(
                f"precision must be 'auto', 'float32', 'bfloat16' or 'float64', not {self.precision!r}"
            )
        counts = (self.steps, self.batch_size, self.rois, self.checkpoint_every, *self.proposals)
        sizes = (self.min_sizes, *(sizes for _, sizes in self.later_sizes))
        if min(*counts, *sum(sizes, ()), self.max_size) < 1 or not all(sizes):
            raise TrainingError("steps, batch size, RoIs, proposals and image sizes must be at least 1")
        if (largest := max(sum(sizes, ()))) > self.max_size:
            raise TrainingError(
                f"the shorter image side must not exceed the limit of the longer one, {self.max_size}: {largest}"
            )
        if min(self.warmup, self.workers) < 0 or not 0 <= self.ema < 1:
            raise TrainingError("warm-up and workers must be at least 0, and ema at least 0 and below 1")
        for name, value in (
            ("the learning rate", self.learning_rate),
            ("the weight decay", self.weight_decay),
            ("the weight of L_box", self.box_weight),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise TrainingError(f"{name} must be a number of at least 0, not {value}")
        # A limit of 0 would make every gradient 0.
        if not self.clip > 0:
            raise TrainingError(f"clip, the largest norm of the gradient, must be above 0, not {self.clip}")
        for name in PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(
                    f"{name.replace('_', ' ')} must be from 0 to 1, not {getattr(self, name)}"
                )
        for name in STRENGTHS:
            if not 0 <= getattr(self, name) <= MOST_STRENGTH:
                raise TrainingError(
                    f"the strength of {name} must be from 0 to {MOST_STRENGTH}, not {getattr(self, name)}"
                )
        if not 0 <= self.frozen_stages <= 4:
            raise TrainingError(f"frozen_stages must be from 0 to 4, not {self.frozen_stages}")
        if self.jitter and not (len(self.jitter) == 2 and 0 < self.jitter[0] <= self.jitter[1]):
            raise TrainingError(
                f"jitter must be a smallest and a largest scale, such as 0.1 and 2.0: {self.jitter}"
            )
        if not 0 <= self.copy_paste <= 1 or (self.copy_paste and not self.jitter) or self.jitter_side < 32:
            raise TrainingError(
                "copy-paste must be from 0 to 1 and needs jitter, whose canvas must have at least 32 pixels a side"
            )
        if min(self.validate_every, self.patience) < 0 or (self.patience and not self.validate_every):
            raise TrainingError("patience counts validations, so it needs validate_every")
        rising = all(earlier < later for earlier, later in pairwise(self.drops))
        if not self.drops or not rising or not all(0 <= drop <= 1 for drop in self.drops):
            raise TrainingError(f"drops must be one or more rising fractions from 0 to 1: {self.drops}")

    def step_seed(self, step: int) -> int:
        """What a step's random draws begin from."""
        return (self.seed + 1) * 1_000_003 + step

    def sizes(self, step: int) -> tuple[int, ...]:
        """The shorter image sides to draw from at a step."""
        current = self.min_sizes
        for first, sizes in self.later_sizes:
            if step >= first:
                current = sizes
        return current

    def augmentation(self) -> Augmentation:
        """How samples are changed."""
        return Augmentation(
            flip=self.flip,
            flip_vertical=self.flip_vertical,
            rotate=self.rotate,
            appearance=Appearance(**{f.name: getattr(self, f.name) for f in fields(Appearance)}),
            jitter=(self.jitter[0], self.jitter[1]) if self.jitter else None,
            side=self.jitter_side,
            copy_paste=self.copy_paste,
        )

    def matches_until(self, other: Recipe, steps: int) -> bool:
        """Whether the first `steps` steps of both recipes are the same.

        Settings that only affect later steps, or never affect the weights, may differ.
        """
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


# Recipes by name, each with its source. Settings that the source leaves open are Recipe's defaults.
RECIPES = {
    "small": Recipe(),
    # This repository: cell nuclei in microscopy. A canvas shows a part of an image at half to two times the size that
    # the model sees it at in use.
    "nuclei": Recipe(
        steps=8000, batch_size=4, learning_rate=5e-4, warmup=200, rois=256, positives=0.33, proposals=(1000, 1000),
        flip_vertical=0.5, rotate=0.75, gamma=0.5, brightness=0.5, contrast=0.5, saturation=0.5, stain=0.15,
        grey=0.2, invert=0.1, jitter=(0.75, 2.0), jitter_side=512,
    ),
    # Mask R-CNN, section 3.1 "Training": 160k steps of 16 images, learning rate 0.02, times 0.1 from 120k on, weight
    # decay 0.0001, momentum 0.9, 512 RoIs with FPN, 1:3 positives, the shorter side 800. The warm-up is Detectron's.
    "paper": Recipe(
        steps=160_000, batch_size=16, optimizer="sgd", learning_rate=0.02, weight_decay=1e-4, warmup=500,
        schedule="step", drops=(0.75,), min_sizes=(800,), max_size=1333, rois=512, positives=0.25,
        proposals=(2000, 2000), box_weight=1.0, clip=1e9, ema=0.0, workers=4, checkpoint_every=5000,
        frozen_stages=1,
    ),
    # torchvision's references/detection: 26 epochs of the 117,266 images of COCO with objects in batches of 8 × 2,
    # learning rate 0.02, times 0.1 from epochs 16 and 22 on, 1,000 steps of warm-up.
    "torchvision": Recipe(
        steps=190_554, batch_size=16, optimizer="sgd", learning_rate=0.02, weight_decay=1e-4, warmup=1000,
        schedule="step", drops=(16 / 26, 22 / 26), min_sizes=(800,), max_size=1333, rois=512, positives=0.25,
        proposals=(2000, 2000), box_weight=1.0, clip=1e9, ema=0.0, workers=4, checkpoint_every=5000,
        frozen_stages=1,
    ),
    # Mask R-CNN, appendix A "Experiments on Cityscapes": 24k steps of 8 images, learning rate 0.01, times 0.1 from
    # 18k on, the shorter side from 800 to 1024.
    "cityscapes": Recipe(
        steps=24_000, batch_size=8, optimizer="sgd", learning_rate=0.01, weight_decay=1e-4, warmup=500,
        schedule="step", drops=(0.75,), min_sizes=tuple(range(800, 1025, 32)), max_size=2048, rois=512,
        positives=0.25, proposals=(2000, 2000), box_weight=1.0, clip=1e9, ema=0.0, workers=4,
        checkpoint_every=1000, frozen_stages=1,
    ),
}  # fmt: skip
# Section 3.1: 64 RoIs with C4.
RECIPES["paper-c4"] = replace(RECIPES["paper"], rois=64)
