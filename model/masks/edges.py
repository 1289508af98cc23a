"""Where the columns of pasted masks turn from background to foreground and back, which is what RLE counts.

A resized map is bilinear in each cell between four neighbouring samples, so down a pixel column it is a
straight line from one row of samples to the next. A column turns only in cells whose two ends lie on different
sides of the threshold, and the line says at which row: no pixel inside or outside an outline is ever computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from model.masks import bilinear

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from model.masks.placement import Placement

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Indices = NDArray[np.int64]
    Flags = NDArray[np.bool_]

# Some twenty arrays of them: 10 MB, and a core's cache holds those in use.
CROSSINGS_AT_ONCE = 1 << 16
# Where pixels are computed: some thirty arrays of them, 15 MB.
PIXELS_AT_ONCE = 1 << 16
# Pixels of a resized map: float32 still holds each one's centre, as `_doubt` supposes.
LARGEST_SIDE = 1 << 22


@dataclass(frozen=True, slots=True)
class _Strips:
    """Columns between two neighbouring columns of samples, where an outline may run: one entry a strip."""

    mask: Indices
    # First pixel column, in the image.
    left: Indices
    # Pixel columns.
    width: Indices
    # Cells of the strip that the outline may run through.
    cells: Indices
    # Number of the first of them in `_Cells`.
    first: Indices
    # Of the first pixel column from the left samples, in samples.
    offset: Doubles
    # And of each column from the one before it.
    step: Doubles


@dataclass(frozen=True, slots=True)
class _Cells:
    """Cells between four samples that the outline may run through, by mask, then strip, then downwards."""

    # Upper left sample minus threshold.
    upper: Floats
    # From there to the upper right sample.
    upper_step: Floats
    lower: Floats
    lower_step: Floats
    # Of the upper samples, in the image.
    row: Doubles
    # Rows from the upper to the lower samples.
    height: Doubles
    # First pixel row of the cell in the image.
    top: Doubles
    # One past its last.
    bottom: Doubles


def changes(placed: Placement) -> Iterator[tuple[range, Indices]]:
    """The places where masks turn, ascending, as `rle.from_changes` takes them, for a few masks at a time.

    Exact to the last bit of torch's own resize: a pixel that the line leaves in doubt is computed as torch does
    (`bilinear`); on a torch whose rounding is not known there, torch computes all of them.
    """
    if placed.begin is None and not bilinear.rounding_is_known():
        yield from _changes_by_torch(placed)
        return
    strips, cells = _outline(placed)
    crossings = np.cumsum(strips.width * strips.cells)
    # Each mask's strips.
    bounds = np.searchsorted(strips.mask, np.arange(len(placed.grids) + 1))
    load = np.append(0, crossings)[bounds]
    for masks in _blocks(load, CROSSINGS_AT_ONCE):
        begin, end = int(bounds[masks.start]), int(bounds[masks.stop])
        load_of_strips = np.append(0, crossings)[begin : end + 1]
        turns = [
            _turns(placed, strips, cells, range(begin + part.start, begin + part.stop))
            for part in _blocks(load_of_strips, CROSSINGS_AT_ONCE)
        ]
        yield masks, np.concatenate(turns) if turns else np.empty(0, dtype=np.int64)


def _blocks(load: Indices, most: int) -> Iterator[range]:
    """Neighbours whose loads add up to at most `most`, or one alone; load: [n + 1] the sums up to each."""
    begin = 0
    while begin < len(load) - 1:
        end = max(int(np.searchsorted(load, load[begin] + most, side="right")) - 1, begin + 1)
        yield range(begin, end)
        begin = end


def _doubt(samples: int) -> np.float32:
    """How far torch's float32 value and ours may lie apart, for maps of values from 0 to 1.

    In units of 2^-24: torch's position is off by up to 3 · samples in each direction, where the map's slope is
    at most 1, and both make fewer than 20 more roundings of values up to 1. A third is added for good measure.
    """
    return np.float32(8 * (samples + 4) * 2.0**-24)


def _outline(placed: Placement) -> tuple[_Strips, _Cells]:
    """The strips and cells that outlines may run through."""
    grids, side = placed.grids, placed.grids.shape[-1]
    # Maps that `_doubt` does not hold for stand at the threshold everywhere: all their pixels are computed.
    values = grids.reshape(len(grids), grids.shape[1] * grids.shape[2])
    bounded = (values.min(1) >= 0) & (values.max(1) <= 1) & (placed.sides.max(0) <= LARGEST_SIDE)
    levels: Floats = grids.swapaxes(1, 2) - placed.threshold  # [N, x, y]
    levels[~bounded] = 0

    spacing, samples = placed.samples()
    edges = np.ceil(samples).astype(np.int64)
    # Before the first sample and behind the last one, pixels take the sample's value.
    edges[:, :, 0] = 0
    edges[:, :, -1] = placed.sides
    edges += placed.corner[:, :, None]
    np.maximum(edges, placed.start[:, :, None], out=edges)
    np.minimum(edges, placed.stop[:, :, None], out=edges)
    widths = edges[1, :, 1:] - edges[1, :, :-1]  # [N, S - 1]

    doubt = _doubt(side)
    mixed = ~(_at_all_corners(levels > doubt) | _at_all_corners(levels < -doubt))  # [N, S - 1, S - 1]
    mixed &= (widths > 0)[:, :, None]
    counts = mixed.sum(2)  # [N, S - 1]
    mask, strip = counts.nonzero()
    left, cells = edges[1, mask, strip], counts[mask, strip]
    step = 1 / spacing[1, mask]
    place = left - placed.corner[1, mask]
    offset = (
        (place + 0.5) * step - 0.5 if placed.begin is None else (place - placed.begin[1, mask]) * step
    ) - strip
    strips = _Strips(mask, left, widths[mask, strip], cells, cells.cumsum() - cells, offset, step)

    x, mask = strip.repeat(cells), mask.repeat(cells)
    # Three axes at once take twice as long.
    y = mixed.ravel().nonzero()[0] - (mask * (side - 1) + x) * (side - 1)
    upper, lower = levels[mask, x, y], levels[mask, x, y + 1]
    return strips, _Cells(
        upper=upper,
        upper_step=levels[mask, x + 1, y] - upper,
        lower=lower,
        lower_step=levels[mask, x + 1, y + 1] - lower,
        row=samples[0, mask, y] + placed.corner[0, mask],
        height=spacing[0, mask],
        top=edges[0, mask, y].astype(np.float64),
        bottom=edges[0, mask, y + 1].astype(np.float64),
    )


def _at_all_corners(samples: Flags) -> Flags:
    pairs = samples[:, 1:] & samples[:, :-1]
    return pairs[:, :, 1:] & pairs[:, :, :-1]


def _turns(placed: Placement, strips: _Strips, cells: _Cells, block: range) -> Indices:
    """The ascending places where masks turn in a block of strips."""
    doubt = _doubt(placed.grids.shape[-1])

    # One entry a pixel column.
    width = strips.width[block.start : block.stop]
    strip = np.arange(block.start, block.stop).repeat(width)
    nth = np.arange(len(strip)) - (width.cumsum() - width).repeat(width)
    column = strips.left[strip] + nth
    place = strips.offset[strip] + nth * strips.step[strip]
    along = np.minimum(np.maximum(place, 0), 1).astype(np.float32)
    mask = strips.mask[strip]
    # Number of the column's pixel at row 0.
    zero = placed.origin[mask] + column * placed.pitch[mask]

    # One entry a column and cell: its upper and its lower end, above the threshold or below.
    count = strips.cells[strip]
    at = np.arange(len(strip)).repeat(count)
    cell = (strips.first[strip] - (count.cumsum() - count))[at]
    cell += np.arange(len(cell))
    share = along[at]
    upper = cells.upper[cell] + share * cells.upper_step[cell]
    lower = cells.lower[cell] + share * cells.lower_step[cell]
    found = ((np.minimum(upper, lower) <= doubt) & (np.maximum(upper, lower) >= -doubt)).nonzero()[0]

    # One entry a column and cell where it turns, or may turn. Rows before `after` are as the upper end, rows
    # from `until` on as the lower end.
    at, cell, upper, lower = at[found], cell[found], upper[found], lower[found]
    # Anything may happen between such ends.
    open_ = np.minimum(np.abs(upper), np.abs(lower)) <= doubt
    drop = upper - lower
    drop[open_] = 1
    height, top, bottom = cells.height[cell], cells.top[cell], cells.bottom[cell]
    row = cells.row[cell] + height * (upper / drop)
    reach = height * np.abs(doubt / drop)
    after = np.minimum(np.maximum(np.ceil(row - reach), top), bottom)
    until = np.minimum(np.maximum(np.ceil(row + reach), top), bottom)
    after[open_], until[open_] = top[open_], bottom[open_]

    # A row of samples in doubt is called what it seems to be in the cell above as in the one below: where that
    # is wrong, the column turns twice at one row, which is no turn.
    settled = after == until
    certain = (settled & ((upper > 0) != (lower > 0))).nonzero()[0]
    turns: Indices = zero[at[certain]] + after[certain].astype(np.int64)
    rest = (~settled).nonzero()[0]
    if not len(rest):
        return turns
    at = at[rest]
    doubtful = _Doubtful(
        mask=mask[at],
        column=column[at],
        zero=zero[at],
        after=after[rest].astype(np.int64),
        until=until[rest].astype(np.int64),
        upper=upper[rest] > 0,
        lower=lower[rest] > 0,
    )
    turns = np.concatenate([turns, *_compute(placed, doubtful)])
    # Merges what is sorted already.
    turns.sort(kind="stable")
    return turns


@dataclass(frozen=True, slots=True)
class _Doubtful:
    """Pieces of pixel columns whose every pixel has to be computed."""

    mask: Indices
    column: Indices
    # Number of the column's pixel at row 0.
    zero: Indices
    # First row.
    after: Indices
    # One past the last row.
    until: Indices
    # Whether the row before is foreground.
    upper: Flags
    # Whether the row behind is.
    lower: Flags


def _compute(placed: Placement, pieces: _Doubtful) -> Iterator[Indices]:
    """The places where columns turn from the row before a piece to the row behind it."""
    lengths = pieces.until - pieces.after
    for block in _blocks(np.append(0, np.cumsum(lengths)), PIXELS_AT_ONCE):
        length = lengths[block.start : block.stop]
        stop = np.cumsum(length)
        piece = np.repeat(np.arange(block.start, block.stop), length)
        row = pieces.after[piece] + np.arange(len(piece)) - np.repeat(stop - length, length)
        mask = pieces.mask[piece]
        row_in_map, column_in_map = (
            row - placed.corner[0, mask],
            pieces.column[piece] - placed.corner[1, mask],
        )
        if placed.begin is None:
            pixels = bilinear.Pixels(
                grid=mask,
                height=placed.sides[0, mask],
                width=placed.sides[1, mask],
                row=row_in_map,
                column=column_in_map,
            )
            inside = bilinear.values(placed.grids, pixels) > placed.threshold
        else:
            places = (
                placed.in_samples(axis, mask, at) for axis, at in enumerate((row_in_map, column_in_map))
            )
            inside = bilinear.sample(placed.grids, mask, *places) >= placed.threshold
        before = np.empty_like(inside)
        before[1:] = inside[:-1]
        before[stop - length] = pieces.upper[block.start : block.stop]
        yield (pieces.zero[piece] + row)[inside != before]
        last = inside[stop - 1] != pieces.lower[block.start : block.stop]
        yield (pieces.zero + pieces.until)[block.start : block.stop][last]


def _changes_by_torch(placed: Placement) -> Iterator[tuple[range, Indices]]:
    """The same from whole resized maps: slow, and as large as the box."""
    for mask, grid in enumerate(torch.from_numpy(placed.grids)):
        (top, left), (bottom, right) = placed.start[:, mask].tolist(), placed.stop[:, mask].tolist()
        if top == bottom:
            yield range(mask, mask + 1), np.empty(0, dtype=np.int64)
            continue
        y, x = placed.corner[:, mask].tolist()
        resized = functional.interpolate(
            grid[None, None], size=placed.sides[:, mask].tolist(), mode="bilinear", align_corners=False
        )[0, 0, top - y : bottom - y, left - x : right - x]
        inside = np.pad(resized.numpy() > placed.threshold, ((1, 1), (0, 0))).T  # [columns, rows + 2]
        column, row = np.nonzero(inside[:, 1:] != inside[:, :-1])
        number = placed.origin[mask] + (column + left) * placed.pitch[mask] + row + top
        yield range(mask, mask + 1), number
