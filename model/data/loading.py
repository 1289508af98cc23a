"""Dataset → batches to train on: aspect-ratio grouping, augmentation, background workers, shares of processes.

What a step sees is a function of the seed and the step's number alone, so a run that resumes sees what it would have.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from model.data import DatasetError
from model.data.augment import Augmentation
from model.data.masks import InstanceMasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from model.data import Dataset, Sample

    InputSize = Callable[[int, int, int], tuple[int, int]]

# Batches hold images of like shape, because a batch is padded to its largest height and width. Bounds of
# width / height, after torchvision's reference recipe (k = 3: seven groups between 1:2 and 2:1).
_ASPECT_BOUNDS = 2.0 ** np.linspace(-1, 1, 7)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step sees."""

    step: int
    image_ids: list[int]
    # Each [3, H, W] uint8.
    images: list[Tensor]
    # Boxes [N, 4] float32, labels [N] int64, masks [N, h, w] uint8, see `batches`; keypoints [N, K, 3] float32 of data
    # that has them.
    targets: list[dict[str, Tensor]]
    # What to call each image in a message.
    names: list[str]
    # Of each image in the batch that all processes share.
    places: list[int]
    # Images that others took the place of, and why.
    unreadable: list[str]


class Schedule:
    """Which images each step takes: every epoch all of them once, shuffled, grouped by aspect ratio."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, first: int, steps: int) -> None:
        """Group the images by aspect ratio.

        Args:
            dataset: the images.
            batch_size: images a step.
            seed: of the order.
            first: the step to begin with.
            steps: of the whole run.
        """
        self.batch_size, self.seed, self.first, self.steps = batch_size, seed, first, steps
        aspects = np.array([_aspect(dataset, index) for index in range(len(dataset))])
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


def _aspect(dataset: Dataset, index: int) -> float:
    """Width / height; 1 for an image whose header is damaged, which another takes the place of."""
    try:
        height, width = dataset.size(index)
    except DatasetError:
        return 1.0
    return width / height


class _Share:
    """The part of each batch that one of several processes takes: an image's number, the step, its place in the batch.

    A process that has none in a short batch gets one without a number, so that it takes part in the step.
    """

    def __init__(self, schedule: Schedule, rank: int, world: int) -> None:
        self.schedule, self.rank, self.world = schedule, rank, world

    def __len__(self) -> int:
        return len(self.schedule)

    def __iter__(self) -> Iterator[list[tuple[int | None, int, int]]]:
        for batch in self.schedule:
            own: list[tuple[int | None, int, int]]
            own = [(index, step, place) for place, (index, step) in enumerate(batch)]
            yield own[self.rank :: self.world] or [(None, batch[0][1], -1)]


class _Augmented(TorchDataset[dict[str, Any]]):
    """Samples as tensors; what happens to one is a function of the seed, the step and its number."""

    def __init__(
        self,
        dataset: Dataset,
        label_of: dict[int, int],
        seed: int,
        changes: Augmentation,
        input_size: InputSize | None,
    ) -> None:
        self.dataset, self.label_of, self.seed, self.changes = dataset, label_of, seed, changes
        self.input_size = input_size

    def __getitem__(self, key: tuple[int | None, int, int]) -> dict[str, Any]:
        index, step, place = key
        if index is None:
            return {"step": step}
        rng = np.random.default_rng([self.seed, step, index])
        unreadable: list[str] = []
        sample, number = self._readable(index, unreadable)
        sample = self.changes(
            sample, rng, lambda: self._readable(int(rng.integers(len(self.dataset))), unreadable)[0]
        )
        name = getattr(self.dataset, "name", None)
        return {
            "step": step,
            "place": place,
            "image_id": sample.image_id,
            "name": str(name(number)) if name is not None else f"image {sample.image_id}",
            "unreadable": unreadable,
            "image": torch.from_numpy(np.ascontiguousarray(sample.pixels.transpose(2, 0, 1))),
            "target": {
                "boxes": torch.from_numpy(np.ascontiguousarray(sample.boxes)).reshape(-1, 4),
                "labels": torch.tensor([self.label_of[n] for n in sample.labels.tolist()], dtype=torch.int64),
                **(
                    {}
                    if sample.keypoints is None
                    else {"keypoints": torch.from_numpy(np.ascontiguousarray(sample.keypoints, np.float32))}
                ),
            },
            # Not yet as a tensor [N, h, w]: a hundred nuclei on 512 × 512 pixels would be 26 MB, in each image that a
            # worker has ready.
            "masks": InstanceMasks.of(sample.masks).resize(self._size(sample, step)),
        }

    def _size(self, sample: Sample, step: int) -> tuple[int, int]:
        """(height, width) that the network takes the image at, or its own."""
        height, width = int(sample.pixels.shape[0]), int(sample.pixels.shape[1])
        return (height, width) if self.input_size is None else self.input_size(step, height, width)

    def _readable(self, index: int, unreadable: list[str]) -> tuple[Sample, int]:
        """Sample `index`, or the next one that can be read: one damaged file must not end a run of days."""
        reasons: list[str] = []
        for number in range(index, index + len(self.dataset)):
            try:
                sample = self.dataset[number % len(self.dataset)]
            except DatasetError as error:
                reasons.append(str(error))
            else:
                unreadable += reasons
                return sample, number % len(self.dataset)
        raise DatasetError(f"no image can be read: {reasons[0]}")


def _collate(items: list[dict[str, Any]]) -> Batch:
    step, items = items[0]["step"], [item for item in items if "image" in item]
    return Batch(
        step,
        image_ids=[item["image_id"] for item in items],
        images=[item["image"] for item in items],
        targets=[item["target"] | {"masks": item["masks"]} for item in items],
        names=[item["name"] for item in items],
        places=[item["place"] for item in items],
        unreadable=[reason for item in items for reason in item["unreadable"]],
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
    changes: Augmentation | None = None,
    share: tuple[int, int] = (0, 1),
    input_size: InputSize | None = None,
) -> Iterator[Batch]:
    """Batches for the steps `first` … `steps` - 1.

    Args:
        dataset: the images.
        labels: category id → the network's class.
        batch_size: images a step.
        steps: of the whole run.
        first: the step to begin with.
        seed: of the order and of all changes.
        flip: how often images are mirrored, where `changes` says nothing.
        workers: processes that render or decode ahead; 0 does it in place.
        changes: of the samples.
        share: this process's number, and how many there are.
        input_size: from the step and an image's height and width to the (height, width) that the network resizes it to.
            Masks come in that size, which is far smaller than that of photos; by default in the image's.

    An image that cannot be read is replaced by the next; DatasetError if none can.
    """
    loader = DataLoader(
        _Augmented(dataset, labels, seed, changes if changes is not None else Augmentation(flip), input_size),
        batch_sampler=_Share(Schedule(dataset, batch_size, seed, first, steps), *share),
        num_workers=workers,
        collate_fn=_collate,
        # Forking a process that runs OpenMP threads can hang, so workers are started afresh.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_end_without_complaint if workers else None,
    )
    return map(_with_bitmaps, loader)


def _end_without_complaint(_: int) -> None:
    """In a worker: SIGTERM ends it with status 0.

    Whoever stops a run often signals its whole process group. torch raises an error in the middle of the step that
    runs, which is to be finished and saved, as soon as a worker ends with another status.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _with_bitmaps(batch: Batch) -> Batch:
    """The batch with masks as tensors."""
    for target in batch.targets:
        target["masks"] = torch.from_numpy(np.asarray(target["masks"]))
    return batch
