"""Images are cut into tiles of one shape that overlap enough, and only where that helps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model.inference.tiling import (
    MOST_TILES,
    Tiling,
    TilingError,
    choose_tile,
    object_extent,
    relative_extents,
)
from model.network.architecture import SMALL, V1
from tests.model.inference.networks import described

if TYPE_CHECKING:
    from model.network.architecture import Architecture
    from model.zoo.model_file import Model


def model_of(architecture: Architecture, object_extent: float = 0.0) -> Model:
    return replace(described(architecture), object_extent=object_extent)


def same_tiles(size: tuple[int, int], model: Model, one: Tiling, other: Tiling) -> bool:
    layouts = [tiling.cut(*size, model) for tiling in (one, other)]
    return np.array_equal(*(layout.tiles for layout in layouts if layout is not None))


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(1000, 1500, 300, 0.2), (301, 299, 300, 0.05), (640, 65_535, 1024, 0.5), (599, 600, 300, 0.33)],
)
def test_tiles_have_one_shape_cover_the_image_and_overlap_enough(
    height: int, width: int, tile: int, overlap: float
) -> None:
    layout = Tiling(tile, overlap).cut(height, width, model_of(V1))
    assert layout is not None
    left, top, right, bottom = layout.tiles.T
    assert set((right - left).tolist()) == {min(tile, width)}
    assert set((bottom - top).tolist()) == {min(tile, height)}
    for starts, ends, length, shared in (
        (left, right, width, layout.overlap[1]),
        (top, bottom, height, layout.overlap[0]),
    ):
        starts, ends = np.unique(starts), np.unique(ends)  # noqa: PLW2901
        assert (starts[0], ends[-1]) == (0, length)
        if len(starts) > 1:
            assert shared == (ends[:-1] - starts[1:]).min() >= overlap * tile
            # One tile less would leave too little.
            assert (length - tile) / max(len(starts) - 2, 1e-9) > tile - np.ceil(overlap * tile)
        else:
            assert shared == length
    assert not layout.has_whole


@pytest.mark.parametrize(("extent", "share"), [(0.0, 0.2), (0.12, 0.2), (0.3, 0.3), (0.47, 0.47), (0.9, 0.5)])
def test_tiles_overlap_as_a_models_objects_need_unless_told_otherwise(extent: float, share: float) -> None:
    model = model_of(V1, extent)
    assert same_tiles((8000, 8000), model, Tiling(), Tiling(overlap=share))
    assert same_tiles((8000, 8000), model, Tiling(overlap=0.1), Tiling(800, 0.1, whole=True))
    # In tiles that are shrunk the objects that the model finds are larger in the image.
    assert same_tiles((8000, 8000), model, Tiling(1600), Tiling(1600, share))


def test_long_tiles_overlap_by_no_more_than_square_ones_need() -> None:
    size, model = (800, 20_000), model_of(V1, 0.4)
    assert same_tiles(size, model, Tiling(), Tiling(1333, 0.4 * 800 / 1333, whole=True))


def test_no_image_is_refused_for_an_overlap_that_nobody_asked_for() -> None:
    model = model_of(SMALL, 0.47)
    layout = Tiling(384).cut(30_000, 30_000, model)
    assert layout is not None
    assert len(layout.tiles) == 98**2
    with pytest.raises(TilingError, match=r"overlap by 0\.47"):
        Tiling(384, 0.47).cut(30_000, 30_000, model)


@pytest.mark.parametrize("size", [(400, 600), (600, 400), (400, 4000)])
def test_extents_are_those_in_the_input(size: tuple[int, int]) -> None:
    boxes = np.array([[10, 20, 60, 40], [0, 0, 30, 100]], dtype=np.float32)
    # The last one has a longer side of 1,333 at most.
    scale = 2 if max(size) < 1000 else 133 / 400
    expected = [50 * scale / 800, 100 * scale / 800]
    assert relative_extents(boxes, size, V1) == pytest.approx(expected)
    assert relative_extents(boxes[:0], size, V1) == []


def test_nine_of_ten_objects_are_within_the_extent() -> None:
    assert object_extent([0.1] * 89 + [0.25] + [0.9] * 10) == pytest.approx(0.25, abs=0.07)
    assert object_extent([0.123456]) == 0.12


def test_the_whole_image_is_the_last_tile_by_default_of_auto() -> None:
    chosen = Tiling().cut(2000, 3000, model_of(V1))
    assert chosen is not None
    assert chosen.has_whole
    assert chosen.tiles[-1].tolist() == [0, 0, 3000, 2000]
    assert (chosen.tiles[0, 2:] == V1.min_size).all()
    given = Tiling(500, whole=True).cut(2000, 3000, model_of(V1))
    assert given is not None
    assert given.has_whole


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (600, 800, None),
        # Shrunk by less than √2.
        (1100, 1500, None),
        (1200, 1600, 800),
        (8000, 8000, 800),
        # A strip: as long as an input may be.
        (700, 4000, 1333),
        (32_768, 32_768, 800),
    ],
)
def test_auto_shows_the_model_the_image_in_its_own_resolution(
    height: int, width: int, side: int | None
) -> None:
    assert choose_tile(height, width, V1) == side
    if side is not None:
        scale = V1.input_size(min(side, height), min(side, width))
        assert scale[0] == pytest.approx(min(side, height), abs=1)


def test_auto_takes_larger_tiles_where_there_would_be_too_many() -> None:
    tiny = replace(SMALL, min_size=96, max_size=160)
    layout = Tiling().cut(32_768, 32_768, model_of(tiny))
    assert layout is not None
    assert MOST_TILES / 8 < len(layout.tiles) <= MOST_TILES + 1
    # Only because so much of them is overlap.
    layout = Tiling(overlap=0.5).cut(32_000, 32_000, model_of(SMALL))
    assert layout is not None
    assert MOST_TILES / 8 < len(layout.tiles) <= MOST_TILES + 1


def test_too_many_tiles_and_too_long_sides_are_refused() -> None:
    with pytest.raises(TilingError, match=r"at most 16384 are accepted\. Take larger tiles, or a smaller"):
        Tiling(64).cut(30_000, 30_000, model_of(V1))
    with pytest.raises(TilingError, match="at most 65535 pixels a side"):
        Tiling(64).cut(1, 70_000, model_of(V1))
