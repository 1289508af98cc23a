"""Dataset → batches to train on: aspect-ratio grouping, horizontal flip, background workers.

What a step sees is a function of the seed and the step's number alone, so a run that resumes sees what it would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from model.data import Dataset

# Batches hold images of like shape, because a batch is padded to its largest height and width. Bounds of
# width / height, after torchvision's reference recipe (k = 3: seven groups between 1:2 and 2:1).
_ASPECT_BOUNDS = 2.0 ** np.linspace(-1, 1, 7)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step sees."""

    step: int
    image_ids: list[int]
    images: list[Tensor]  # each [3, H, W] uint8
    targets: list[dict[str, Tensor]]  # boxes [N, 4] float32, labels [N] int64, masks [N, H, W] uint8


class Schedule:
    """Which images each step takes: every epoch all of them once, shuffled, grouped by aspect ratio."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, first: int, steps: int) -> None:
        self.batch_size, self.seed, self.first, self.steps = batch_size, seed, first, steps
        aspects = np.array([w / h for h, w in (dataset.size(i) for i in range(len(dataset)))])
        self.groups = np.searchsorted(_ASPECT_BOUNDS, aspects)
        self.per_epoch = -(-len(dataset) // batch_size)

    def __len__(self) -> int:
        return max(0, self.steps - self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first
        epoch, skip = divmod(self.first, self.per_epoch)
        while step < self.steps:
            for indices in self._epoch(epoch)[skip:]:
                if step == self.steps:
                    return
                yield [(index, step) for index in indices]
                step += 1
            epoch, skip = epoch + 1, 0

    def _epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        waiting: dict[int, list[int]] = {}
        batches, order = [], rng.permutation(len(self.groups))
        for index in order.tolist():
            group = waiting.setdefault(int(self.groups[index]), [])
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        # What is left of each group fills the last batches, neighbouring aspect ratios together.
        rest = [index for key in sorted(waiting) for index in waiting[key]]
        batches += [rest[n : n + self.batch_size] for n in range(0, len(rest), self.batch_size)]
        return [batches[n] for n in rng.permutation(len(batches)).tolist()]


class _Augmented(TorchDataset[dict[str, Any]]):
    """Samples as tensors, mirrored half of the time (the paper, section 3.1, and torchvision's recipe)."""

    def __init__(self, dataset: Dataset, label_of: dict[int, int], seed: int, flip: float) -> None:
        self.dataset, self.label_of, self.seed, self.flip = dataset, label_of, seed, flip

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, step = key
        sample = self.dataset[index]
        pixels, boxes, masks = sample.pixels, sample.boxes, sample.masks
        if np.random.default_rng([self.seed, step, index]).random() < self.flip:
            width = pixels.shape[1]
            pixels, masks = pixels[:, ::-1], masks[:, :, ::-1]
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        return {
            "step": step,
            "image_id": sample.image_id,
            "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            "target": {
                "boxes": torch.from_numpy(np.ascontiguousarray(boxes)).reshape(-1, 4),
                "labels": torch.tensor([self.label_of[n] for n in sample.labels.tolist()], dtype=torch.int64),
                "masks": torch.from_numpy(masks.copy()),  # an empty view keeps its negative strides otherwise
            },
        }


def _collate(items: list[dict[str, Any]]) -> Batch:
    return Batch(
        items[0]["step"],
        [i["image_id"] for i in items],
        [i["image"] for i in items],
        [i["target"] for i in items],
    )


def batches(
    dataset: Dataset,
    labels: dict[int, int],
    *,
    batch_size: int,
    steps: int,
    first: int = 0,
    seed: int = 0,
    flip: float = 0.5,
    workers: int = 0,
) -> Iterator[Batch]:
    """Batches for the steps `first` … `steps` - 1.

    labels: category id → the network's class. workers: processes that render or decode ahead; 0 does it in place.
    """
    loader = DataLoader(
        _Augmented(dataset, labels, seed, flip),
        batch_sampler=Schedule(dataset, batch_size, seed, first, steps),
        num_workers=workers,
        collate_fn=_collate,
        # Forking a process that runs OpenMP threads can hang, so workers are started afresh.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)
