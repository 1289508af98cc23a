"""A large image in tiles: what each tile has, put together to the instances of the image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.inference.tiling import MOST_MERGED, Tiling
from model.instances import Instances
from model.masks import merge
from model.masks.merge import TileDetections
from model.masks.paste import column_runs
from model.masks.runs import empty, rectangles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from model.inference.engine import Engine
    from model.instances import Options
    from model.masks.merge import Layout

# Tiles of a batch, on devices that run them together.
BATCH = 8


class TiledImage:
    """One image on its way through the network, tile by tile in any order.

    tiles = TiledImage(layout, options)
    for number in range(len(tiles)):
        [found] = engine.segment([tiles.crop(image, number)], [tiles.options])
        tiles.add(tiles.locate(number, found))
    instances = tiles.merge()

    All may run on any thread; `locate` for several tiles at once, the others one at a time.
    """

    def __init__(self, layout: Layout, options: Options) -> None:
        """Begin with nothing found.

        Args:
            layout: the tiles.
            options: of the image. Tiles are asked for as many instances as the model finds, and for masks: merging
                needs both.
        """
        self.layout = layout
        self.options = replace(options, max_instances=None, masks=True)
        self._wanted = options
        self._parts: list[TileDetections] = []
        # Of all tiles alike.
        self._keypoints_from = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self.layout.tiles)

    def crop(self, image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
        """A tile's pixels, [h, w, 3], without copying them; image: [H, W, 3]."""
        left, top, right, bottom = self.layout.tiles[number].tolist()
        return image[top:bottom, left:right]

    def locate(self, number: int, found: Instances) -> TileDetections | None:
        """What was found in a tile and is not left to another one, in pixels of the image; None if nothing is."""
        if not len(found):
            return None
        self._keypoints_from = found.keypoints_from
        left, top, right, bottom = self.layout.tiles[number].tolist()
        boxes = found.boxes.numpy()
        if found.probabilities is None:
            whole = np.stack([*np.floor(boxes[:, :2]).T, *np.ceil(boxes[:, 2:]).T], axis=1)
            size = np.array([right - left, bottom - top] * 2)
            masks = rectangles(np.clip(whole, 0, size).astype(np.int64))
        else:
            masks = column_runs(found.probabilities, found.boxes, found.size, rule=found.pasting)
        located = TileDetections(
            boxes + np.array([left, top, left, top], dtype=np.float32),
            found.scores.numpy(),
            found.labels.numpy(),
            np.full(len(found), number, dtype=np.int64),
            masks.move(left, top),
            _place_keypoints(found, (left, top)),
            has_masks=found.probabilities is not None,
        )
        # Before the best are kept: what is left to another tile must not take the place of what that one has.
        located = merge.leave_to_others(located, number, self.layout)
        return located if len(located) else None

    def add(self, found: TileDetections | None) -> None:
        """Keep what `locate` has made of a tile. Of all tiles, the best MOST_MERGED are kept at least.

        Most calls copy little; some sort up to 2 · MOST_MERGED detections, which takes half a second.
        """
        if found is None:
            return
        self._parts.append(found)
        self._count += len(found)
        # Many small arrays would lie scattered in the memory that each pass frees, so that the tensors of the next find
        # no room there.
        while len(self._parts) > 1 and len(self._parts[-1]) >= len(self._parts[-2]) // 2:
            self._parts[-2:] = [merge.concatenate(self._parts[-2:])]
        if self._count > 2 * MOST_MERGED:
            self._parts = [merge.concatenate(self._parts).best(MOST_MERGED)]
            self._count = MOST_MERGED

    def merge(self) -> Instances:
        """The instances of the image, once all tiles are there."""
        size = self.layout.size
        if not self._parts:
            none, masks = torch.zeros(0), empty() if self._wanted.masks else None
            return Instances(size, torch.zeros(0, 4), none, none.long(), None, runs=masks)
        found = merge.merge(merge.concatenate(self._parts).best(MOST_MERGED), self.layout)
        found = found.best(self._wanted.max_instances)
        return Instances(
            size,
            torch.from_numpy(found.boxes),
            torch.from_numpy(found.scores),
            torch.from_numpy(found.labels),
            None,
            keypoints=torch.from_numpy(found.keypoints[..., :3]) if found.keypoints.size else None,
            keypoint_scores=torch.from_numpy(found.keypoints[..., 3]) if found.keypoints.size else None,
            keypoints_from=self._keypoints_from,
            runs=found.masks if self._wanted.masks and found.has_masks else None,
        )


def _place_keypoints(found: Instances, corner: tuple[int, int]) -> NDArray[np.float32]:
    """[N, K, 4] keypoints in the image: x, y, 1 and score. corner: left and top of the tile."""
    if found.keypoints is None or found.keypoint_scores is None:
        return np.zeros((len(found), 0, 4), dtype=np.float32)
    places = torch.cat([found.keypoints, found.keypoint_scores[..., None]], dim=2).numpy()
    moved: NDArray[np.float32] = places + np.array([*corner, 0, 0], dtype=np.float32)
    return moved


def segment_tiled(
    engine: Engine, image: NDArray[np.uint8], options: Options, tiling: Tiling | None = None
) -> Instances:
    """The instances of a large image, by tiles; what the engine finds without tiles where one would cover the image.

    Args:
        engine: the model.
        image: [H, W, 3] uint8 RGB.
        options: of the image. `max_instances` counts after merging, and may be up to MOST_MERGED.
        tiling: how it is cut; by default as the model needs it.

    Raises TilingError, and what Engine.segment raises.
    """
    height, width = image.shape[:2]
    layout = (tiling or Tiling()).cut(height, width, engine.model)
    if layout is None:
        (found,) = engine.segment([image], [options])
        return found
    tiles = TiledImage(layout, options)
    for numbers in _batches(layout, BATCH if engine.batches else 1):
        crops = [tiles.crop(image, number) for number in numbers]
        for number, found in zip(numbers, engine.segment(crops, [tiles.options] * len(crops)), strict=True):
            tiles.add(tiles.locate(number, found))
    return tiles.merge()


def _batches(layout: Layout, size: int) -> Iterator[range]:
    """Numbers of tiles that may run together; the whole image has a shape of its own."""
    count = len(layout.tiles) - layout.has_whole
    for begin in range(0, count, size):
        yield range(begin, min(begin + size, count))
    if layout.has_whole:
        yield range(count, count + 1)
