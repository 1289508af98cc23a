from __future__ import annotations

import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image

from model.masks import bilinear, edges
from model.masks.paste import crops, decode, encode, paste

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

PHOTO = (3024, 4032)
KINDS = ("noise", "blobs", "blocks", "quarters", "smooth", "saturated", "half", "nearly-half", "not-finite")


def maps(kind: str, count: int, side: int, random: np.random.Generator) -> Tensor:
    """Probability maps [count, side, side], from what a network gives to what only an adversary would."""
    noise = random.random((count, side, side))
    match kind:
        case "noise":
            values = noise
        case "blobs":  # outlines as a trained mask head draws them
            coarse = torch.from_numpy(random.normal(0, 4, (count, 1, 5, 5)))
            values = torch.sigmoid(functional.interpolate(coarse, size=(side, side), mode="bicubic"))[
                :, 0
            ].numpy()
        case "blocks":
            values = np.kron(random.integers(0, 2, (count, 4, 4)), np.ones((side, side)))[:, ::4, ::4]
        case "quarters":  # 0, 1/4, 1/2, 3/4, 1: many samples exactly at the threshold
            values = np.round(noise * 4) / 4
        case "smooth":  # hardly steeper than rounding
            values = 0.5 + np.linspace(-3e-5, 3e-5, side) + 1e-6 * noise
        case "saturated":
            values = np.broadcast_to(random.integers(0, 2, (count, 1, 1)), noise.shape)
        case "half":
            values = np.full(noise.shape, 0.5)
        case "nearly-half":
            values = 0.5 + (noise - 0.5) * 2.0**-22
        case _:
            values = np.where(noise < 0.01, np.nan, np.where(noise > 0.99, np.inf, noise * 3 - 1))
    return torch.from_numpy(values.astype(np.float32))


def boxes_around(size: tuple[int, int], count: int, random: np.random.Generator) -> Tensor:
    """Boxes of all sizes, log-uniform up to half as large again as the image, many of them reaching out of it."""
    sides = np.array(size[::-1])
    extent = np.exp(random.random((count, 2)) * np.log(sides * 1.5 + 1)) - 1
    centre = random.random((count, 2)) * sides * 1.2 - sides * 0.1
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
    clipped = np.clip(boxes, 0, [*sides, *sides])
    boxes = np.where(random.random((count, 1)) < 0.5, clipped, boxes)
    whole = random.random((count, 1)) < 0.25
    return torch.from_numpy(np.where(whole, np.round(boxes), boxes).astype(np.float32))


def by_torchvision(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Iterator[np.ndarray]:
    """The masks [H, W] that torchvision pastes, one by one; zeros for a box that it raises for."""
    for probability, box in zip(probabilities, boxes, strict=True):
        try:
            pasted = paste_masks_in_image(probability[None, None], box[None], size)[0, 0]
        except RuntimeError as error:
            assert "expanded size of the tensor" in str(error), error  # noqa: PT017 - no other is expected
            pasted = torch.zeros(size)
        yield (pasted > threshold).numpy().astype(np.uint8)


def assert_identical(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
    ours = paste(probabilities, boxes, size)
    assert len(ours) == len(boxes)
    for index, (rle, pasted) in enumerate(zip(ours, by_torchvision(probabilities, boxes, size), strict=True)):
        theirs = coco.encode(np.asfortranarray(pasted))
        assert rle.counts == theirs["counts"], f"box {index}: {boxes[index].tolist()} in {size}"
        assert list(rle.size) == theirs["size"]
        assert rle.area == pasted.sum()


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    side=st.sampled_from([28, 28, 28, 1, 2, 7, 14, 56]),
)
def test_run_lengths_are_byte_identical_to_torchvisions(
    seed: int, kind: str, height: int, width: int, side: int
) -> None:
    random = np.random.default_rng(seed)
    assert_identical(maps(kind, 12, side, random), boxes_around((height, width), 12, random), (height, width))


coordinates = st.one_of(
    st.integers(-200, 300).map(float),
    st.floats(-200, 300, width=32),
    st.sampled_from([0.0, 63.0, 63.5, 64.0, 97.0, 96.99999, -0.5, -1.0, 1e-30]),
)


@settings(deadline=None, max_examples=250)
@given(box=st.tuples(coordinates, coordinates, coordinates, coordinates), kind=st.sampled_from(KINDS))
def test_any_four_numbers_are_a_box_that_is_cut_as_torchvision_cuts_it(
    box: tuple[float, float, float, float], kind: str
) -> None:
    assert_identical(maps(kind, 1, 28, np.random.default_rng(1)), torch.tensor([box]), (64, 97))


@pytest.mark.parametrize(
    ("size", "count", "rounds"),
    [
        pytest.param((97, 131), 50, 18, id="small"),
        pytest.param((480, 640), 50, 2, id="640x480"),
        pytest.param(PHOTO, 10, 1, id="12-megapixels"),
    ],
)
def test_a_thousand_boxes_are_byte_identical_to_torchvisions(
    size: tuple[int, int], count: int, rounds: int, threads: int
) -> None:
    random = np.random.default_rng(threads)
    for turn in range(rounds):
        kind = "blobs" if turn % 2 == 0 else KINDS[turn // 2 % len(KINDS)]
        assert_identical(maps(kind, count, 28, random), boxes_around(size, count, random), size)


@pytest.mark.parametrize("kind", ["noise", "blobs", "half", "quarters"])
@pytest.mark.parametrize(
    "box",
    [
        pytest.param([0, 0, 4032, 3024], id="whole-image"),
        pytest.param([-9000, -7000, 12000, 9000], id="far-larger-than-the-image"),
        pytest.param([2000, 0, 2001, 3024], id="one-pixel-wide"),
        pytest.param([0, 1500, 4032, 1500], id="no-height"),
        pytest.param([4031, 3023, 4032, 3024], id="last-corner"),
    ],
)
def test_large_boxes_are_byte_identical_to_torchvisions(box: list[float], kind: str) -> None:
    size = (
        (302, 403) if kind in {"half", "quarters"} or box[0] < 0 else PHOTO
    )  # both sides compute every pixel
    boxes = torch.tensor([box], dtype=torch.float32) * (size[0] / PHOTO[0])
    assert_identical(maps(kind, 1, 28, np.random.default_rng(2)), boxes, size)


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([10, 20, 10, 20], id="a-point"),
        pytest.param([10, 20, 10, 60], id="no-width"),
        pytest.param([50, 20, 10, 60], id="right-before-left"),
        pytest.param([10, 60, 50, 20], id="bottom-before-top"),
        pytest.param([-60, -60, -20, -20], id="off-the-upper-left"),
        pytest.param([-60, 20, -20, 60], id="off-the-left"),
        pytest.param([120, 20, 160, 60], id="off-the-right"),
        pytest.param([20, 120, 60, 160], id="below"),
        pytest.param([-30, -30, 0, 0], id="touching-the-first-pixel"),
        pytest.param([99, 79, 130, 130], id="touching-the-last-pixel"),
        pytest.param([-1, -1, 100, 80], id="one-pixel-out-on-all-sides"),
        pytest.param([20, 20, 47, 47], id="28-pixels"),
        pytest.param([20, 20, 49, 48], id="30-by-29-pixels"),
        pytest.param([20, 20, 82, 84], id="64-by-66-pixels"),
    ],
)
@pytest.mark.parametrize("kind", ["noise", "saturated", "quarters"])
def test_odd_boxes_are_byte_identical_to_torchvisions(box: list[float], kind: str) -> None:
    probabilities = maps(kind, 1, 28, np.random.default_rng(3))
    assert_identical(probabilities, torch.tensor([box], dtype=torch.float32), (80, 100))


@pytest.mark.parametrize("left", [-9e6, -6e6, -1.7e7])
def test_a_box_eighteen_million_pixels_wide_is_cut_as_torchvision_cuts_it(left: float) -> None:
    # float32 no longer tells such a map's pixels apart. One row of it is all that torchvision has memory for.
    random, size = np.random.default_rng(3), (80, 100)
    assert_identical(maps("noise", 1, 28, random), torch.tensor([[left, 10.0, left + 1.8e7, 10.0]]), size)


def test_a_box_that_torchvision_raises_for_gives_an_empty_mask() -> None:
    probabilities, box = torch.ones(1, 28, 28), torch.tensor([[-60.0, -60.0, -20.0, -20.0]])
    with pytest.raises(RuntimeError, match="expanded size of the tensor"):
        paste_masks_in_image(probabilities[None], box, (80, 100))
    assert paste(probabilities, box, (80, 100)) == [encode(np.zeros((80, 100)))]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e30, -3e38, 2.0**31])
@pytest.mark.parametrize("place", range(4))
def test_a_box_out_of_all_bounds_gives_an_empty_mask(number: float, place: int) -> None:
    box = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    box[0, place] = number
    assert paste(torch.ones(1, 28, 28), box, (80, 100)) == [encode(np.zeros((80, 100)))]


@pytest.mark.parametrize("threshold", [0.0, 1e-7, 0.1, 0.3, 0.7, 0.999, 0.99999])
def test_other_thresholds_cut_torchvisions_mask_too(threshold: float) -> None:
    random = np.random.default_rng(4)
    for kind in KINDS:
        probabilities, boxes = maps(kind, 10, 28, random), boxes_around((70, 90), 10, random)
        expected = [encode(pasted) for pasted in by_torchvision(probabilities, boxes, (70, 90), threshold)]
        assert paste(probabilities, boxes, (70, 90), threshold) == expected


@pytest.mark.parametrize("kind", ["blobs", "noise", "half"])
def test_a_mask_is_the_same_whatever_masks_share_the_call(kind: str) -> None:
    random = np.random.default_rng(5)
    probabilities, boxes = maps(kind, 30, 28, random), boxes_around((200, 300), 30, random)
    hostile = maps("not-finite", 30, 28, random)
    together = paste(torch.cat([probabilities, hostile]), torch.cat([boxes, boxes]), (200, 300))
    alone = [
        paste(probability[None], box[None], (200, 300))[0]
        for probability, box in zip(probabilities, boxes, strict=True)
    ]
    assert together[:30] == alone


def test_the_size_of_the_blocks_worked_on_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    probabilities = torch.cat([maps(kind, 6, 28, random) for kind in KINDS])
    boxes = boxes_around((90, 120), len(probabilities), random)
    whole = paste(probabilities, boxes, (90, 120))
    monkeypatch.setattr(edges, "CROSSINGS_AT_ONCE", 100)
    monkeypatch.setattr(edges, "PIXELS_AT_ONCE", 7)
    assert paste(probabilities, boxes, (90, 120)) == whole


def test_crops_are_the_pasted_masks_cut_to_their_boxes() -> None:
    random, size = np.random.default_rng(7), (120, 160)
    probabilities = torch.cat([maps(kind, 6, 28, random) for kind in KINDS])
    boxes = boxes_around(size, len(probabilities), random)
    pasted = by_torchvision(probabilities, boxes, size)
    for crop, expected, box in zip(crops(probabilities, boxes, size), pasted, boxes.tolist(), strict=True):
        height, width = crop.bitmap.shape
        assert crop.bitmap.dtype == np.bool_
        assert width <= (box[2] - box[0]) * 30 / 28 + 2
        assert height <= (box[3] - box[1]) * 30 / 28 + 2
        canvas = np.zeros(size, dtype=np.uint8)
        canvas[crop.top : crop.top + height, crop.left : crop.left + width] = crop.bitmap
        np.testing.assert_array_equal(canvas, expected)


def test_pasted_masks_decode_to_torchvisions_bitmaps() -> None:
    random, size = np.random.default_rng(8), (120, 160)
    probabilities, boxes = maps("blobs", 20, 28, random), boxes_around(size, 20, random)
    for rle, expected in zip(
        paste(probabilities, boxes, size), by_torchvision(probabilities, boxes, size), strict=True
    ):
        np.testing.assert_array_equal(decode(rle), expected)


def test_no_instances_give_no_masks() -> None:
    assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), PHOTO) == []
    assert list(crops(torch.zeros(0, 28, 28), torch.zeros(0, 4), PHOTO)) == []


def test_strided_maps_and_boxes_that_want_gradients_are_read_as_they_are() -> None:
    random = np.random.default_rng(9)
    probabilities, boxes = maps("blobs", 5, 28, random), boxes_around((60, 80), 5, random)
    expected = paste(probabilities, boxes, (60, 80))
    strided = probabilities.transpose(1, 2).contiguous().transpose(1, 2)
    assert paste(strided.requires_grad_(), boxes.clone().requires_grad_(), (60, 80)) == expected
    assert paste(probabilities, boxes, (60, 80)) == expected, "the arguments were changed"


@pytest.mark.parametrize(
    ("probabilities", "boxes", "size", "threshold"),
    [
        pytest.param((2, 28, 27), (2, 4), (8, 8), 0.5, id="maps-that-are-not-square"),
        pytest.param((2, 1, 28, 28), (2, 4), (8, 8), 0.5, id="maps-with-a-channel"),
        pytest.param((2, 0, 0), (2, 4), (8, 8), 0.5, id="maps-without-samples"),
        pytest.param((2, 28, 28), (3, 4), (8, 8), 0.5, id="more-boxes-than-maps"),
        pytest.param((2, 28, 28), (2, 5), (8, 8), 0.5, id="boxes-of-five-numbers"),
        pytest.param((2, 28, 28), (2, 4), (-8, 8), 0.5, id="negative-image"),
        pytest.param((2, 28, 28), (2, 4), (8, 8), 1.0, id="threshold-one"),
        pytest.param((2, 28, 28), (2, 4), (8, 8), -0.1, id="negative-threshold"),
        pytest.param((2, 28, 28), (2, 4), (8, 8), float("nan"), id="no-threshold"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    probabilities: tuple[int, ...], boxes: tuple[int, ...], size: tuple[int, int], threshold: float
) -> None:
    with pytest.raises(ValueError, match=r"must be|cannot be"):
        paste(torch.zeros(probabilities), torch.zeros(boxes), size, threshold)


def peak(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> int:
    """Bytes that numpy allocates at most at one time while masks are pasted."""
    paste(probabilities[:1], boxes[:1], size)
    tracemalloc.start()
    try:
        paste(probabilities, boxes, size)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "most"), [("blobs", 15_000_000), ("noise", 30_000_000)])
def test_a_hundred_masks_on_twelve_megapixels_take_little_memory(kind: str, most: int) -> None:
    # torchvision's stack of float32 masks takes 4.9 GB, one mask of it 49 MB.
    random = np.random.default_rng(10)
    probabilities, boxes = maps(kind, 100, 28, random), boxes_around(PHOTO, 100, random)
    assert peak(probabilities, boxes, PHOTO) < most


def test_memory_does_not_grow_with_the_image() -> None:
    random = np.random.default_rng(11)
    probabilities, boxes = maps("blobs", 50, 28, random), boxes_around((480, 640), 50, random)
    clipped = boxes.clamp(0, 480)
    assert peak(probabilities, clipped, (48000, 64000)) < 1.5 * peak(probabilities, clipped, (480, 640))


def test_masks_need_no_pycocotools() -> None:
    program = "import sys, model.masks; sys.exit('pycocotools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (30, 30),
        (30, 98),
        (30, 99),
        (64, 64),
        (64, 65),
        (1, 127),
        (2, 127),
        (9, 1),
        (500, 3),
        (301, 407),
    ],
)
def test_single_pixels_equal_torchs_resize_to_the_last_bit(size: tuple[int, int], threads: int) -> None:
    random = np.random.default_rng(12)
    for kind in ("noise", "blobs", "quarters", "not-finite"):
        grids = maps(kind, 2, 30, random).numpy()
        resized = functional.interpolate(
            torch.from_numpy(grids)[:, None], size=size, mode="bilinear", align_corners=False
        )[:, 0].numpy()
        grid, row, column = (axis.reshape(-1) for axis in np.indices(resized.shape))
        pixels = bilinear.Pixels(grid, np.full_like(grid, size[0]), np.full_like(grid, size[1]), row, column)
        np.testing.assert_array_equal(bilinear.values(grids, pixels), resized.reshape(-1))


def test_the_way_this_torch_rounds_is_known() -> None:
    assert bilinear.rounding_is_known(), (
        "correct still, but ten times slower: teach model/masks/bilinear.py this build's rounding"
    )


def test_a_torch_whose_rounding_is_not_known_pastes_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    random, size = np.random.default_rng(13), (120, 160)
    probabilities = torch.cat([maps(kind, 6, 28, random) for kind in KINDS])
    boxes = boxes_around(size, len(probabilities), random)
    expected = paste(probabilities, boxes, size)
    bitmaps = [crop.bitmap for crop in crops(probabilities, boxes, size)]
    monkeypatch.setattr(bilinear, "_rounding", lambda kernel: None)
    assert paste(probabilities, boxes, size) == expected
    for crop, bitmap in zip(crops(probabilities, boxes, size), bitmaps, strict=True):
        np.testing.assert_array_equal(crop.bitmap, bitmap)


def test_single_pixels_are_refused_where_the_rounding_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bilinear, "_rounding", lambda kernel: None)
    one = np.ones(1, dtype=np.int64)
    with pytest.raises(RuntimeError, match="not known"):
        bilinear.values(np.ones((2, 30, 30), dtype=np.float32), bilinear.Pixels(one, one, one, one, one))
