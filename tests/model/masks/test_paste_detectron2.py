"""Masks pasted as Detectron2 and MMDetection do: each pixel's centre sampled in the map, which lies between pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from model.masks.paste import crops, decode, outlines, paste

HEIGHT, WIDTH = 47, 61


def sampled(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, H, W] float64: the maps at all pixels' centres, by torch's grid_sample."""
    height, width = size
    x0, y0, x1, y1 = boxes.double()[:, :, None].unbind(1)
    y = ((torch.arange(height) + 0.5) - y0) / (y1 - y0) * 2 - 1
    x = ((torch.arange(width) + 0.5) - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], 3)
    return functional.grid_sample(maps[:, None].double(), grid, align_corners=False)[:, 0]


def assert_pasted(maps: Tensor, boxes: Tensor, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    exact = sampled(maps, boxes, size)
    found = np.stack([decode(rle) for rle in paste(maps, boxes, size, rule="detectron2")]).astype(bool)
    unlike = torch.from_numpy(found) != (exact >= 0.5)
    assert (exact[unlike] - 0.5).abs().max() < 1e-6 if unlike.any() else True
    for mask, crop in zip(found, crops(maps, boxes, size, rule="detectron2"), strict=True):
        whole = np.zeros_like(mask)
        height, width = crop.bitmap.shape
        whole[crop.top : crop.top + height, crop.left : crop.left + width] = crop.bitmap
        assert np.array_equal(whole, mask)


corner = st.floats(-30, 70, width=32)
side = st.floats(0.25, 120, width=32)


@settings(max_examples=80, deadline=None)
@given(
    place=st.tuples(corner, corner, side, side), seed=st.integers(0, 1000), cells=st.sampled_from((20, 28))
)
def test_every_pixel_is_its_centre_sampled(
    place: tuple[float, float, float, float], seed: int, cells: int
) -> None:
    x, y, width, height = place
    maps = torch.rand(1, cells, cells, generator=torch.Generator().manual_seed(seed))
    assert_pasted(maps, torch.tensor([[x, y, x + width, y + height]]))


def test_smooth_maps_of_all_sizes_together() -> None:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(40, 1, 4, 4, generator=generator)
    maps = functional.interpolate(coarse, size=(28, 28), mode="bilinear")[:, 0]
    corners = torch.rand(40, 2, 2, generator=generator) * torch.tensor([200.0, 300.0])
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], 1)
    assert_pasted(maps, boxes, (310, 205))


def test_a_full_map_covers_the_pixels_whose_centres_lie_in_the_box() -> None:
    """Half of a cell of the map's border is above a half of 1."""
    boxes = torch.tensor([[10.0, 5.0, 38.0, 33.0]])
    (rle,) = paste(torch.ones(1, 28, 28), boxes, (HEIGHT, WIDTH), rule="detectron2")
    rows, columns = np.nonzero(decode(rle))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 32, 10, 37)


def test_the_threshold_itself_is_foreground() -> None:
    boxes = torch.tensor([[10.0, 5.0, 38.0, 33.0]])
    maps = torch.full((1, 28, 28), 0.5)
    assert decode(paste(maps, boxes, (HEIGHT, WIDTH), rule="detectron2")[0]).sum() == 28 * 28
    assert decode(paste(maps, boxes, (HEIGHT, WIDTH))[0]).sum() == 0


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([10.0, 10.0, 10.0, 30.0], id="no width"),
        pytest.param([30.0, 10.0, 10.0, 30.0], id="ends before it begins"),
        pytest.param([float("nan"), 0.0, 10.0, 30.0], id="not a number"),
        pytest.param([0.0, 0.0, float("inf"), 30.0], id="without end"),
        pytest.param([-50.0, -50.0, -20.0, -20.0], id="off the image"),
        pytest.param([0.0, 0.0, 1e12, 1e12], id="beyond every image"),
    ],
)
def test_boxes_of_no_use_give_empty_masks(box: list[float]) -> None:
    (rle,) = paste(torch.ones(1, 28, 28), torch.tensor([box]), (HEIGHT, WIDTH), rule="detectron2")
    assert decode(rle).sum() == 0


def test_polygons_follow_the_same_edge() -> None:
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    disc = torch.sigmoid(8 - ((y - 13.5) ** 2 + (x - 13.5) ** 2).sqrt())[None]
    boxes = torch.tensor([[3.25, 4.75, 51.5, 40.25]])
    ((polygon,),) = (parts.parts for parts in outlines(disc, boxes, (HEIGHT, WIDTH), rule="detectron2"))
    xs, ys = np.array(polygon).reshape(-1, 2).T
    mask = decode(paste(disc, boxes, (HEIGHT, WIDTH), rule="detectron2")[0])
    rows, columns = np.nonzero(mask)
    assert abs(xs.min() - columns.min()) < 1
    assert abs(ys.max() - rows.max() - 1) < 1


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="torchvision, detectron2, not 'pasted'"):
        paste(torch.ones(1, 28, 28), torch.zeros(1, 4), (HEIGHT, WIDTH), rule="pasted")
