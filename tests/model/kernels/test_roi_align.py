"""RoIAlign as a gather against torchvision's kernel: forward, gradient, levels, borders, batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import ops
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from model.kernels.roi_align import ADAPTIVE, PyramidRoIAlign, Sampling, level_of, roi_align, taps

# Strides 4, 8, 16, 32 of a 128 × 192 input; two images.
HEIGHT, WIDTH, BATCH, CHANNELS = 128, 192, 2, 3
BINS = (7, 14)


def pyramid(seed: int = 0, batch: int = BATCH, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(HEIGHT // stride, WIDTH // stride) for stride in (4, 8, 16, 32)]
    maps = [torch.randn(batch, CHANNELS, h, w, generator=generator).to(dtype) for h, w in sizes]
    # P6, which RoIAlign does not read, comes along as it does in the network.
    return {**{str(n): m.requires_grad_() for n, m in enumerate(maps)}, "pool": torch.zeros(batch, 1, 1, 1)}


def torchvisions(bins: int) -> MultiScaleRoIAlign:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], bins, sampling_ratio=2)
    pool.scales, pool.map_levels = [1 / 4, 1 / 8, 1 / 16, 1 / 32], initLevelMapper(2, 5)
    return pool


def both(boxes: list[Tensor], bins: int, seed: int = 0) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(pooled, gradient of each level) of ours and of torchvision's."""
    results = []
    for pool in (PyramidRoIAlign(Sampling(bins)), torchvisions(bins)):
        features = pyramid(seed)
        pooled = pool(features, boxes, [(HEIGHT, WIDTH)] * len(boxes))
        weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(seed + 1))
        levels = [features[name] for name in "0123"]
        gradients = torch.autograd.grad((pooled * weights).sum(), levels)
        results.append((pooled, *gradients))
    ours, theirs = results
    return ours, theirs


def assert_same(boxes: list[Tensor], bins: int, seed: int = 0) -> None:
    ours, theirs = both(boxes, bins, seed)
    assert ours[0].shape == (sum(map(len, boxes)), CHANNELS, bins, bins)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-4, rtol=1e-4)


def quarters(low: int, high: int) -> st.SearchStrategy[float]:
    """Multiples of ¼ px: sums of them are exact, so that both sides agree on which side of a border a sample lies."""
    return st.integers(4 * low, 4 * high).map(lambda n: n / 4)


@st.composite
def box(draw: st.DrawFn) -> list[float]:
    """xyxy: inside, across the border, beyond it, of no width, larger than the image."""
    x0, y0 = draw(quarters(-60, WIDTH + 40)), draw(quarters(-60, HEIGHT + 40))
    side = st.one_of(st.just(0.0), quarters(0, 4), quarters(0, 300))
    return [x0, y0, x0 + draw(side), y0 + draw(side)]


boxes_of_image = st.lists(box(), max_size=6).map(lambda found: torch.tensor(found).reshape(-1, 4))


def near_a_border(boxes: Tensor, bins: int) -> bool:
    """Whether rounding decides if a sample counts: it does within a hair of one cell outside the features."""
    level = level_of(boxes, 4)
    scaled = boxes.double() * (0.25 / 2.0**level)[:, None]
    lengths = (scaled[:, 2:] - scaled[:, :2]).clamp(min=1)
    ticks = (torch.arange(2 * bins) + 0.5) / (2 * bins)
    samples = scaled[:, :2, None] + lengths[:, :, None] * ticks  # [R, 2, 2 * bins]
    limits = torch.tensor([WIDTH, HEIGHT]) / (4 * 2**level)[:, None]
    outer = torch.stack([samples + 1, samples - limits[:, :, None]])
    return bool((outer.abs() < 1e-4).any())


@settings(max_examples=60, deadline=None)
@given(first=boxes_of_image, second=boxes_of_image, bins=st.sampled_from(BINS), seed=st.integers(0, 99))
def test_equals_torchvision_forward_and_backward(first: Tensor, second: Tensor, bins: int, seed: int) -> None:
    kept = [boxes[[not near_a_border(row[None], bins) for row in boxes]] for boxes in (first, second)]
    assert_same(kept, bins, seed)


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize(
    "corners",
    [
        pytest.param([0.0, 0.0, WIDTH, HEIGHT], id="whole image"),
        pytest.param([-500.0, -500.0, 900.0, 900.0], id="beyond the image on all sides"),
        pytest.param([40.0, 40.0, 40.0, 40.0], id="a point"),
        pytest.param([40.5, 10.0, 40.5, 110.0], id="a line"),
        pytest.param([WIDTH, HEIGHT, WIDTH, HEIGHT], id="a point on the corner"),
        pytest.param([1000.0, 1000.0, 1100.0, 1100.0], id="outside"),
        pytest.param([0.0, 0.0, 1.0, 1.0], id="one pixel"),
        pytest.param([3.3, 7.7, 92.1, 101.9], id="nothing whole"),
    ],
)
def test_boxes_of_every_kind_equal_torchvision(corners: list[float], bins: int) -> None:
    assert_same([torch.tensor([corners]), torch.tensor([[8.0, 8.0, 60.0, 60.0]])], bins)


@pytest.mark.parametrize("side", [112.0, 224.0, 448.0])
def test_boxes_between_two_levels_go_where_torchvision_sends_them(side: float) -> None:
    steps = torch.tensor([0.0, side])
    around = [torch.nextafter(torch.tensor(side), steps[n]) for n in (0, 1)]
    sides = torch.stack([torch.tensor(side), *around, torch.tensor(side - 0.01), torch.tensor(side + 0.01)])
    boxes = torch.stack([torch.zeros(5), torch.zeros(5), sides, sides], 1)
    assert level_of(boxes, 4).tolist() == initLevelMapper(2, 5)([boxes]).tolist()
    assert len(set(level_of(boxes, 4).tolist())) == 2


@given(st.lists(st.tuples(st.floats(0, 2000, width=32), st.floats(0, 2000, width=32)), min_size=1))
@settings(deadline=None)
def test_levels_are_torchvisions(sides: list[tuple[float, float]]) -> None:
    boxes = torch.tensor([(0.0, 0.0, w, h) for w, h in sides])
    assert level_of(boxes, 4).tolist() == initLevelMapper(2, 5)([boxes]).tolist()


def test_every_level_is_read_from_every_image() -> None:
    sides = torch.tensor([20.0, 120.0, 230.0, 460.0])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), sides, sides], 1)
    assert level_of(boxes, 4).tolist() == [0, 1, 2, 3]
    assert_same([boxes, boxes.flip(0)], 7)


@pytest.mark.parametrize("empty", [0, 1])
def test_an_image_may_have_no_boxes(empty: int) -> None:
    boxes = [torch.tensor([[8.0, 8.0, 60.0, 60.0], [0.0, 0.0, 100.0, 30.0]])] * 2
    boxes[empty] = torch.zeros(0, 4)
    assert_same(boxes, 7)


def test_no_boxes_at_all_give_nothing_and_a_gradient_of_zeros() -> None:
    features = pyramid()
    pooled = PyramidRoIAlign(Sampling(7))(features, [torch.zeros(0, 4)] * 2, [(HEIGHT, WIDTH)] * 2)
    assert pooled.shape == (0, CHANNELS, 7, 7)
    for gradient in torch.autograd.grad(pooled.sum(), [features[name] for name in "0123"]):
        assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("bins", BINS)
def test_weights_of_inner_bins_sum_to_one(bins: int) -> None:
    boxes = torch.tensor([[16.0, 16.0, 90.0, 77.0]])
    rows, weights = taps(boxes, torch.tensor([1]), [(32, 48), (16, 24)], BATCH, Sampling(bins))
    assert rows.shape == weights.shape == (bins * bins, 16)
    torch.testing.assert_close(weights.sum(1), torch.ones(bins * bins))
    assert rows.min() >= 32 * 48  # the second image's rows of P2
    assert rows.max() < 2 * 32 * 48


def test_bfloat16_stays_near_float32() -> None:
    boxes = [torch.tensor([[8.0, 8.0, 60.0, 60.0], [0.0, 0.0, 130.0, 120.0]])] * 2
    exact = PyramidRoIAlign(Sampling(7))(pyramid(), boxes, [(HEIGHT, WIDTH)] * 2)
    features = pyramid(dtype=torch.bfloat16)
    rounded = PyramidRoIAlign(Sampling(7))(features, boxes, [(HEIGHT, WIDTH)] * 2)
    assert rounded.dtype == torch.bfloat16
    # 8 bits of precision on features of up to about 4, their weights, and the sum.
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.02)
    for gradient in torch.autograd.grad(rounded.float().sum(), [features[name] for name in "01"]):
        assert gradient.dtype == torch.bfloat16
        assert gradient.isfinite().all()
        assert gradient.count_nonzero() > 0


def test_result_lies_in_memory_channels_last() -> None:
    pooled = PyramidRoIAlign(Sampling(7))(pyramid(), [torch.tensor([[8.0, 8.0, 60.0, 60.0]])] * 2, [])
    assert pooled.is_contiguous(memory_format=torch.channels_last)


SAMPLINGS = [
    pytest.param(Sampling(7, ADAPTIVE, aligned=True, level_rule="detectron2"), id="Detectron2's ROIAlignV2"),
    pytest.param(Sampling(14, ADAPTIVE, level_rule="detectron2"), id="Detectron2's ROIAlign"),
    pytest.param(Sampling(10, 3), id="three samples"),
    pytest.param(Sampling(5, 2, aligned=True), id="aligned, two samples"),
    pytest.param(Sampling(7, ADAPTIVE, aligned=True, level_rule="mmdetection"), id="MMDetection's"),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_other_samplings_equal_torchvisions_operator(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(64, 96), (32, 48), (16, 24), (8, 12)]
    maps = [torch.randn(2, 8, *shape, generator=generator) for shape in shapes]
    table = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, 8) for m in maps])
    corners = torch.rand(300, 2, 2, generator=generator) * torch.tensor([400.0, 270.0]) - 8
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes[-5:, 2:] = boxes[-5:, :2]  # points
    boxes[0] = torch.tensor([0.0, 100.0, 380.0, 101.0])  # on P2 and 14 cells to a bin
    images = torch.randint(0, 2, (len(boxes),), generator=generator)
    level = level_of(boxes, 4, sampling.level_rule)
    expected = torch.zeros(len(boxes), 8, sampling.bins, sampling.bins)
    for n, features in enumerate(maps):
        rois = torch.cat([images[:, None].float(), boxes], 1)[level == n]
        ratio = sampling.samples or -1
        expected[level == n] = ops.roi_align(
            features, rois, sampling.bins, 0.25 / 2**n, ratio, sampling.aligned
        )
    found = roi_align(table, shapes, boxes, images, sampling).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("rule", "side", "level"),
    [
        pytest.param("torchvision", 223.99997, 2, id="torchvision's is for a little less"),
        pytest.param("detectron2", 223.99997, 1, id="Detectron2's is not"),
        pytest.param("mmdetection", 223.99997, 2, id="MMDetection's too"),
    ],
)
def test_levels_of_boxes_at_a_border_follow_the_rule(rule: str, side: float, level: int) -> None:
    assert level_of(torch.tensor([[0.0, 0.0, side, side]]), 4, rule).tolist() == [level]
