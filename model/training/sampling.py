"""Which anchors and proposals a training step learns from, drawn for each image by itself.

torchvision draws for a whole batch from one generator, so that what an image is trained on depends on its neighbours.
Here it depends on the seed, the step and the image's place in the batch alone, however many processes share the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Sampler:
    """Takes the place of torchvision's BalancedPositiveNegativeSampler (Faster R-CNN, section 3.1.3)."""

    def __init__(self, count: int, positive_fraction: float) -> None:
        """count: samples an image. positive_fraction: of them objects at most."""
        self.batch_size_per_image, self.positive_fraction = count, positive_fraction
        self._seeds: Sequence[int] = ()
        self.sampled = self.positives = 0  # in the last call, all images together

    def begin(self, seeds: Sequence[int]) -> None:
        """Seeds for the images of the batch to come."""
        self._seeds = seeds

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positive and negative samples of each image.

        matched: of each image [A], the object that something belongs to from 1 up, 0 for background, below for neither.
        """
        chosen: tuple[list[Tensor], list[Tensor]] = [], []
        self.sampled = self.positives = 0
        for found, seed in zip(matched, self._seeds, strict=True):
            generator = torch.Generator(found.device).manual_seed(seed)
            most = int(self.batch_size_per_image * self.positive_fraction)
            positive = _drawn(torch.where(found >= 1)[0], most, generator)
            rest = self.batch_size_per_image - len(positive)
            negative = _drawn(torch.where(found == 0)[0], rest, generator)
            for masks, kept in zip(chosen, (positive, negative), strict=True):
                mask = torch.zeros_like(found, dtype=torch.uint8)
                mask[kept] = 1
                masks.append(mask)
            self.sampled += len(positive) + len(negative)
            self.positives += len(positive)
        return chosen


def _drawn(candidates: Tensor, most: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(candidates), generator=generator, device=candidates.device)
    return candidates[order[:most]]
