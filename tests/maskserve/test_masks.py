"""The client's own masks agree with the engine's encoder and pycocotools, and refuse what is no mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from maskserve.masks import decode_rle, encode_rle, fill_polygons
from model.masks import rle

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@settings(deadline=None)
@given(mask=MASKS, scale=st.sampled_from([1, 30]))
def test_run_lengths_are_byte_identical_to_pycocotools_and_come_back(mask: np.ndarray, scale: int) -> None:
    mask = np.kron(mask, np.ones((scale, scale), np.bool_)).astype(np.bool_)
    encoded = encode_rle(mask)
    theirs = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    assert encoded == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(encoded, mask.shape), mask)


@settings(deadline=None)
@given(mask=MASKS)
def test_what_the_engine_encodes_is_decoded(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_rle(rle.encode(mask).to_coco(), mask.shape), mask)


def test_runs_may_be_a_list_of_numbers() -> None:
    assert decode_rle({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3)).tolist() == [
        [False, True, False],
        [True, False, False],
    ]


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [40_000, 40_000], "counts": [0, 1_600_000_000]},
        {"size": [4, 4], "counts": [0, 17]},
        {"size": [4, 4], "counts": [-1, 17]},
        # Modulo 2^64 their sum is right.
        {"size": [4, 4], "counts": [2**63 - 1, 2**63 - 1, 2 + 16]},
        {"size": [4, 4], "counts": [[16]]},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "P"},
        {"size": [4, 4], "counts": "é"},
        {"size": [4, 4], "counts": "ooooooooo0"},
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(segmentation: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"RLE|mask"):
        decode_rle(segmentation, (4, 4))


def test_polygons_that_overlap_are_united() -> None:
    squares = [[0, 0, 6, 0, 6, 6, 0, 6], [3, 3, 9, 3, 9, 9, 3, 9]]
    filled = fill_polygons(squares, (10, 10))
    assert filled.sum() == 36 + 36 - 9
    assert filled[4, 4]


@pytest.mark.parametrize("part", [[0, 0, 1], [0, 0, 1e300, 0, 5, 5], [float("nan")] * 6, [[0, 0], [1, 1]]])
def test_what_is_no_polygon_is_refused(part: list[Any]) -> None:
    with pytest.raises(ValueError, match="polygon"):
        fill_polygons([part], (10, 10))
