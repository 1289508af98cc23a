from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from model.masks.rle import Rle, decode, encode, foreground, from_changes

# pycocotools 2.0.11's decoder has not learnt numpy 2's `copy` argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

bitmaps = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
)


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A bitmap with runs of all lengths, from single pixels to many columns."""
    random = np.random.default_rng(seed)
    flat = np.repeat(np.arange(400) & 1, random.integers(1, 4 ** random.integers(1, 8), 400))
    return np.resize(flat.astype(np.uint8), size[0] * size[1]).reshape(size[1], size[0]).T


@given(bitmaps)
def test_encoding_is_byte_identical_to_pycocotools(bitmap: np.ndarray) -> None:
    rle = encode(bitmap)
    theirs = coco.encode(np.asfortranarray(bitmap))
    assert rle.to_coco() == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert rle.area == coco.area(theirs)


@pytest.mark.parametrize("seed", range(40))
def test_encoding_of_long_and_short_runs_is_byte_identical_to_pycocotools(seed: int) -> None:
    bitmap = blobs(seed, (173 + 29 * seed, 911))
    assert encode(bitmap).counts == coco.encode(np.asfortranarray(bitmap))["counts"]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3024, 4032), (0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("value", [0, 1])
def test_uniform_bitmaps_are_byte_identical_to_pycocotools(size: tuple[int, int], value: int) -> None:
    bitmap = np.full(size, value, dtype=np.uint8)
    rle = encode(bitmap)
    assert rle.counts == coco.encode(np.asfortranarray(bitmap))["counts"]
    assert rle.area == bitmap.sum()
    assert rle.size == size


@given(bitmaps)
def test_foreground_has_the_numbers_of_the_pixels(bitmap: np.ndarray) -> None:
    assert foreground(encode(bitmap)).tolist() == np.flatnonzero(bitmap.T).tolist()


@given(bitmaps)
def test_decoding_returns_the_bitmap(bitmap: np.ndarray) -> None:
    decoded = decode(encode(bitmap))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, bitmap)


@pytest.mark.parametrize("seed", range(10))
def test_we_read_what_pycocotools_writes_and_it_reads_what_we_write(seed: int) -> None:
    bitmap = blobs(seed, (301, 407))
    np.testing.assert_array_equal(decode(Rle.from_coco(coco.encode(np.asfortranarray(bitmap)))), bitmap)
    np.testing.assert_array_equal(coco.decode(encode(bitmap).to_coco()), bitmap)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float32])
def test_any_dtype_and_memory_order_encodes_alike(dtype: type, order: str) -> None:
    bitmap = blobs(1, (60, 80))
    other = np.array(bitmap * 3 if dtype is not np.bool_ else bitmap, dtype=dtype, order=order)
    assert encode(other) == encode(bitmap)


def test_from_coco_reads_plain_counts_as_pycocotools_does() -> None:
    plain = {"size": [4, 5], "counts": [3, 6, 2, 4, 5]}
    theirs = coco.frPyObjects(plain, 4, 5)
    rle = Rle.from_coco(plain)
    assert rle.counts == theirs["counts"]
    assert rle.area == coco.area(theirs) == 10


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param({"size": [4, 5], "counts": "3"}, id="too-few-pixels"),
        pytest.param({"size": [4, 5], "counts": [3, -3, 20]}, id="negative-run"),
        pytest.param({"size": [4, 5], "counts": [2**63 - 1, 2**63 - 1, 22]}, id="overflow"),
        pytest.param({"size": [4, 5], "counts": ""}, id="empty-string"),
        pytest.param({"size": [4, 5], "counts": "P"}, id="unfinished-number"),
        pytest.param({"size": [4, 5], "counts": " !"}, id="foreign-characters"),
        pytest.param({"size": [4, 5], "counts": "Ä"}, id="not-ascii"),
        pytest.param({"size": [4, 5], "counts": "P" * 40 + "0"}, id="endless-number"),
        pytest.param({"size": [4, 5], "counts": None}, id="no-counts"),
        pytest.param({"counts": "d0"}, id="no-size"),
        pytest.param({"size": [20], "counts": "d0"}, id="one-sided-size"),
    ],
)
def test_damaged_run_lengths_are_refused(segmentation: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the messages are numpy's, python's and ours
        Rle.from_coco(segmentation)


def test_a_place_named_twice_is_no_change() -> None:
    whole = from_changes(np.array([0, 3, 3, 5, 5, 5, 6]), range(1), (2, 3))
    np.testing.assert_array_equal(decode(whole[0]), [[1, 1, 1], [1, 1, 0]])


def test_masks_encoded_together_equal_masks_encoded_alone() -> None:
    size = (31, 47)
    bitmaps = [blobs(seed, size) for seed in range(8)]
    bitmaps += [np.zeros(size, np.uint8), np.ones(size, np.uint8), np.zeros(size, np.uint8)]
    changes = []
    for index, bitmap in enumerate(bitmaps):
        flat = np.concatenate([[0], bitmap.T.reshape(-1), [0]])
        changes.append(np.flatnonzero(np.diff(flat)) + index * (size[0] * size[1] + 1))
    assert from_changes(np.concatenate(changes), range(len(bitmaps)), size) == [
        encode(bitmap) for bitmap in bitmaps
    ]


def test_an_array_that_is_no_bitmap_is_refused() -> None:
    with pytest.raises(ValueError, match="two axes"):
        encode(np.zeros((3, 4, 2), np.uint8))
