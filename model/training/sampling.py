"""Which anchors and proposals a training step learns from, drawn for each image on its own.

torchvision draws for a whole batch from one generator, so an image's samples depend on the images beside it. Here they
depend only on the seed, the step and the image's place in the batch, however many processes share the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Sampler:
    """Replaces torchvision's BalancedPositiveNegativeSampler (Faster R-CNN, section 3.1.3)."""

    def __init__(self, count: int, positive_fraction: float) -> None:
        """count: samples per image. positive_fraction: the largest fraction of them that are objects."""
        self.batch_size_per_image, self.positive_fraction = count, positive_fraction
        self._seeds: Sequence[int] = ()
        # Of the last call, summed over its images.
        self.sampled = self.positives = 0

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Set one seed for each image of the next batch."""
        self._seeds = seeds

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positive and the negative samples of each image.

        labels: for each image [A] the class of the object that an anchor or proposal is matched with (from 1 up), 0
        for background, below 0 for anchors that are neither.
        """
        chosen: tuple[list[Tensor], list[Tensor]] = [], []
        self.sampled = self.positives = 0
        for own, seed in zip(labels, self._seeds, strict=True):
            generator = torch.Generator(own.device).manual_seed(seed)
            most = int(self.batch_size_per_image * self.positive_fraction)
            positive = _draw(torch.where(own >= 1)[0], most, generator)
            rest = self.batch_size_per_image - len(positive)
            negative = _draw(torch.where(own == 0)[0], rest, generator)
            for masks, indices in zip(chosen, (positive, negative), strict=True):
                mask = torch.zeros_like(own, dtype=torch.uint8)
                mask[indices] = 1
                masks.append(mask)
            self.sampled += len(positive) + len(negative)
            self.positives += len(positive)
        return chosen


def _draw(candidates: Tensor, most: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(candidates), generator=generator, device=candidates.device)
    return candidates[order[:most]]
