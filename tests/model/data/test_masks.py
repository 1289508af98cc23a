"""Masks kept as crops are the same masks, and take memory by objects and not by pixels."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.nn.functional import interpolate
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model.data.coco import open_folder
from model.data.loading import batches
from model.data.masks import InstanceMasks, ObjectMask
from model.network.architecture import V1
from model.training.recipe import Recipe
from model.training.resizing import InputSize, choose_limits
from tests.model.data.folders import picture, sound

if TYPE_CHECKING:
    from pathlib import Path


def blobs(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """[count, H, W] random masks: rectangles with holes, some at the border, one empty, one everywhere."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), np.uint8)
    for mask in masks:
        y, x = (int(rng.integers(0, side)) for side in size)
        part = mask[y : y + int(rng.integers(1, 20)), x : x + int(rng.integers(1, 20))]
        part[:] = rng.random(part.shape) < 0.7
    masks[0], masks[1] = 0, 1
    return masks


@pytest.mark.parametrize("size", [(40, 60), (1, 50), (50, 1), (33, 31)])
def test_crops_are_the_masks_that_they_came_from(size: tuple[int, int]) -> None:
    masks = blobs(12, size)
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    for kept in (InstanceMasks.of(masks), InstanceMasks(map(ObjectMask.from_rle, rles), size)):
        assert np.array_equal(np.asarray(kept), masks)
        assert kept.shape == masks.shape
        assert kept.areas().tolist() == masks.sum((1, 2)).tolist()
        assert np.array_equal(kept.union(), masks.any(0))
        assert np.array_equal(np.asarray(kept.flip()), masks[:, :, ::-1])
        for quarters in range(4):
            turned = np.rot90(masks, quarters, (1, 2))
            assert np.array_equal(np.asarray(kept.rotate(quarters)), turned)
            assert kept.rotate(quarters).size == turned.shape[1:]
        cover = masks[3].astype(bool)
        assert np.array_equal(np.asarray(kept.without(cover)), masks * ~cover)
        assert np.array_equal(np.asarray(kept[2:5]), masks[2:5])
        assert np.array_equal(np.asarray(kept[np.array([4, 1])]), masks[[4, 1]])
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(kept, masks, strict=True))
    x0, y0, x1, y1 = kept.boxes()[1].tolist()
    assert (x0, y0, x1, y1) == (0, 0, size[1], size[0])


@pytest.mark.parametrize("size", [(20, 30), (40, 60), (97, 131), (39, 7), (1, 1)])
def test_masks_are_resized_as_torchvision_resizes_them_for_training(size: tuple[int, int]) -> None:
    masks = blobs(12, (40, 60))
    theirs = interpolate(torch.from_numpy(masks)[:, None].float(), size=size)[:, 0].byte()
    ours = InstanceMasks.of(masks).resize(size)
    assert np.array_equal(np.asarray(ours), theirs.numpy())
    assert InstanceMasks([], (40, 60)).resize(size).shape == (0, *size)


def test_resizing_takes_no_bitmap_of_the_whole_image() -> None:
    size = (3000, 4000)
    crops = [ObjectMask(20 * n, 15 * n, np.ones((100, 100), np.uint8)) for n in range(190)]
    tracemalloc.start()
    made = InstanceMasks(crops, size).resize((300, 400))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.shape == (190, 300, 400)
    assert peak < 20e6  # the bitmaps would take 2.3 GB


def test_photo_of_twelve_megapixels_with_200_objects_is_loaded_in_little_memory(tmp_path: Path) -> None:
    width, height = 4000, 3000
    document = sound(1)
    document["images"][0] |= {"file_name": "a.jpg", "width": width, "height": height}
    corners = np.random.default_rng(0).integers(0, 2400, (200, 2)).tolist()
    document["annotations"] = [
        {"image_id": 1, "category_id": 1, "segmentation": [[x, y, x + 400, y, x + 400, y + 300, x, y + 300]]}
        for x, y in corners
    ]
    picture(tmp_path / "images" / "a.jpg", (width, height))
    (tmp_path / "instances.json").write_text(json.dumps(document))
    dataset = open_folder(tmp_path)
    loader = batches(dataset, {1: 1}, batch_size=1, steps=1, input_size=InputSize(Recipe(), V1))
    tracemalloc.start()
    (batch,) = loader
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (target,) = batch.targets
    assert len(target["masks"]) == len(target["boxes"]) == 200
    assert target["masks"].shape[1] <= max(Recipe().min_sizes)
    # The image is 36 MB, and its float copy is not made here; as bitmaps of the whole image the masks are 2.4 GB.
    assert peak < 300e6


@pytest.mark.parametrize("size", [(480, 640), (3000, 4000), (333, 1000), (64, 65), (1000, 97)])
def test_masks_get_the_size_to_which_torchvision_resizes_the_image(size: tuple[int, int]) -> None:
    recipe = Recipe()
    for step in range(6):
        shorter, longer = choose_limits(recipe, step)
        transform = GeneralizedRCNNTransform(shorter, longer, [0.0] * 3, [1.0] * 3)
        image, _ = transform.resize(torch.zeros(3, *size), None)
        assert InputSize(recipe, V1)(step, *size) == tuple(image.shape[-2:])
