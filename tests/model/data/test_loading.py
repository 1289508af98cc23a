"""Batches to train on: every image in turn, a function of seed and step alone, mirrored as a whole."""

from __future__ import annotations

import multiprocessing
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model.data import Category, Sample
from model.data.loading import Schedule, batches
from model.data.shapes import CATEGORIES, Shapes

if TYPE_CHECKING:
    from model.data.loading import Batch


class Numbered:
    """Images of all aspect ratios that say their number in every pixel; image n has n % 3 objects."""

    categories = (Category(5, "left"), Category(9, "right"))

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def size(self, index: int) -> tuple[int, int]:
        return [(20, 40), (20, 30), (20, 20), (30, 20), (40, 20)][index % 5]

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        raise AssertionError("training reads no annotations")

    def __getitem__(self, index: int) -> Sample:
        height, width = self.size(index)
        pixels = np.full((height, width, 3), index, np.uint8)
        pixels[:, 0] = 255  # marks the left border
        count = index % 3
        boxes = np.array([[2, 3, 7, 9], [4, 5, width, 20]], np.float32)[:count]
        masks = np.zeros((count, height, width), np.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
            mask[y0:y1, x0:x1] = 1
        return Sample(1000 + index, pixels, boxes, np.array([5, 9])[:count], masks)


LABELS = {5: 2, 9: 1}


def drawn(length: int, **options: Any) -> list[Batch]:
    return list(batches(Numbered(length), LABELS, **{"batch_size": 4, "seed": 3, **options}))


def assert_equal(ours: Batch, theirs: Batch) -> None:
    assert (ours.step, ours.image_ids) == (theirs.step, theirs.image_ids)
    for mine, other in zip(ours.images, theirs.images, strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(ours.targets, theirs.targets, strict=True):
        assert all(torch.equal(mine[key], other[key]) for key in ("boxes", "labels", "masks"))


@pytest.mark.parametrize("length", [1, 3, 4, 23, 40])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_epoch_has_every_image_once(length: int, batch_size: int) -> None:
    per_epoch = -(-length // batch_size)
    schedule = list(Schedule(Numbered(length), batch_size, seed=0, first=0, steps=3 * per_epoch))
    assert [step for batch in schedule for step in {step for _, step in batch}] == list(range(3 * per_epoch))
    for epoch in range(3):
        batches_of_epoch = schedule[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(index for batch in batches_of_epoch for index, _ in batch) == list(range(length))


def test_epochs_and_seeds_shuffle_again() -> None:
    orders = set()
    for seed in range(3):
        schedule = list(Schedule(Numbered(40), 4, seed=seed, first=0, steps=20))
        for epoch in range(2):
            orders.add(tuple(i for batch in schedule[epoch * 10 : epoch * 10 + 10] for i, _ in batch))
    assert len(orders) == 6


def test_batches_hold_images_of_like_shape() -> None:
    dataset = Numbered(43)
    (epoch,) = [list(Schedule(dataset, 4, seed=0, first=0, steps=11))]
    alike = [len({dataset.size(index) for index, _ in batch}) == 1 and len(batch) == 4 for batch in epoch]
    # 9 images of three shapes and 8 of two: two full batches of each; what is left over is mixed.
    assert sum(alike) >= 10 - 1
    assert len(epoch) == 11


@pytest.mark.parametrize("first", [1, 5, 6, 13])
def test_starting_in_the_middle_gives_the_same_batches(first: int) -> None:
    whole = drawn(23, steps=15)
    rest = drawn(23, steps=15, first=first)
    assert [batch.step for batch in whole] == list(range(15))
    assert len(rest) == 15 - first
    for ours, theirs in zip(rest, whole[first:], strict=True):
        assert_equal(ours, theirs)


def test_nothing_is_left_to_do_after_the_last_step() -> None:
    assert drawn(8, steps=5, first=5) == []
    assert len(Schedule(Numbered(8), 4, seed=0, first=7, steps=5)) == 0


def test_images_and_targets_have_the_declared_types() -> None:
    (batch,) = drawn(4, steps=1, flip=0.0)
    dataset = Numbered(4)
    assert sorted(batch.image_ids) == [1000, 1001, 1002, 1003]
    for image_id, image, target in zip(batch.image_ids, batch.images, batch.targets, strict=True):
        sample = dataset[image_id - 1000]
        assert torch.equal(image, torch.from_numpy(sample.pixels).permute(2, 0, 1))
        assert [target[key].dtype for key in ("boxes", "labels", "masks")] == [
            torch.float32,
            torch.int64,
            torch.uint8,
        ]
        count = len(sample.labels)
        assert target["boxes"].shape == (count, 4)
        assert target["masks"].shape == (count, *image.shape[1:])
        assert target["labels"].tolist() == [LABELS[label] for label in sample.labels.tolist()]


def test_mirroring_moves_pixels_boxes_and_masks_alike() -> None:
    straight = {i: parts for b in drawn(12, steps=3, flip=0.0) for i, *parts in per_image(b)}
    mirrored = {i: parts for b in drawn(12, steps=3, flip=1.0) for i, *parts in per_image(b)}
    assert len(straight) == len(mirrored) == 12
    for image_id, (image, target) in straight.items():
        other, its = mirrored[image_id]
        assert torch.equal(other, image.flip(2))
        assert (other[:, :, -1] == 255).all()
        assert torch.equal(its["masks"], target["masks"].flip(2))
        assert torch.equal(its["labels"], target["labels"])
        for box, mask in zip(its["boxes"].tolist(), its["masks"], strict=True):
            rows, columns = np.nonzero(mask.numpy())
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def per_image(batch: Batch) -> list[tuple[int, torch.Tensor, dict[str, torch.Tensor]]]:
    return list(zip(batch.image_ids, batch.images, batch.targets, strict=True))


def test_half_of_the_images_are_mirrored_and_not_always_the_same() -> None:
    images = [parts for batch in drawn(10, steps=90, flip=0.5) for parts in per_image(batch)]
    flipped = [(image_id, bool((image[:, :, -1] == 255).all())) for image_id, image, _ in images]
    assert 0.4 < np.mean([was for _, was in flipped]) < 0.6
    assert len(set(flipped)) == 20  # every image both ways


def test_a_worker_process_gives_the_same_batches() -> None:
    dataset = Shapes(seed=1, length=3, sides=(64, 80))
    labels = {category.id: category.id for category in CATEGORIES}
    ways = [
        list(batches(dataset, labels, batch_size=2, steps=3, seed=4, workers=workers)) for workers in (0, 1)
    ]
    assert len(ways[0]) == 3
    for ours, theirs in zip(*ways, strict=True):
        assert_equal(ours, theirs)


def test_sigterm_to_the_process_group_does_not_break_the_step_that_runs() -> None:
    before = multiprocessing.active_children()
    stream = batches(Numbered(5), LABELS, batch_size=2, steps=100, workers=1)
    next(stream)
    (worker,) = (child for child in multiprocessing.active_children() if child not in before)
    # From another process: torch forgives its own.
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join()
    assert worker.exitcode == 0
