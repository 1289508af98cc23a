"""A mosaic of drawn scenes in tiles, against the same scenes one by one: AP, seconds for each tile, and memory.

    python bench/tiles.py [--model shapes] [--side 8000] [--scene 384] [--tile auto] [--overlap 0.2] [--no-whole]
                          [--precision auto] [--threads 2]

The scenes are of the seed that no model is trained on, squares of --scene pixels; in a mosaic of --side pixels they lie
side by side, so most tiles show parts of four. A scene of the network's own input size has one pixel for each of its
input's, alone as in a tile.

Prints COCO's AP of both, over all objects; the processor's seconds for the forward passes and for all else, which is
locating, merging and encoding; and by how much the resident set peaked over that before, the mosaic included.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.cpus import usable_cpus
from bench.engine import forget_peak
from bench.masks import highest_resident, processor
from model.data.coco import coco_document
from model.data.shapes import CATEGORIES, Shapes
from model.evaluation.coco import coco_results, match_categories, score
from model.inference.engine import Engine
from model.inference.tiled import segment_tiled
from model.inference.tiling import DEFAULT_OVERLAP, Tiling
from model.instances import Options
from model.masks.rle import Rle, decode
from model.masks.runs import from_turns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.instances import Instances


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--side", type=int, default=8000, help="of the mosaic, pixels")
    parser.add_argument("--scene", type=int, default=384, help="side of a scene, pixels")
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--overlap", type=float, default=DEFAULT_OVERLAP)
    parser.add_argument("--no-whole", action="store_true")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    return parser.parse_args()


class TimedEngine:
    """An engine that counts the processor's seconds of its forward passes."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.model, self.batches = engine, engine.model, engine.batches
        self.seconds, self.images = 0.0, 0

    def segment(self, images: list[NDArray[np.uint8]], options: list[Options]) -> list[Instances]:
        started = time.process_time()
        found = self.engine.segment(images, options)
        self.seconds += time.process_time() - started
        self.images += len(images)
        return found


def move(annotation: dict[str, Any], left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """An annotation of a scene as one of the mosaic. size: (height, width) of the mosaic."""
    mask = decode(Rle.from_coco(annotation["segmentation"]))
    column, row = np.nonzero(np.diff(np.pad(mask, ((1, 1), (0, 0))).T.astype(np.int8), axis=1))
    runs = from_turns(np.zeros_like(column), column, row, 1).move(left, top)
    x, y, width, height = annotation["bbox"]
    moved = {"bbox": [x + left, y + top, width, height], "segmentation": runs.rles(size)[0].to_coco()}
    return {**annotation, **moved, "image_id": 0}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pycocotools"))
    print(f"{processor()}, {options.threads} threads, Python {platform.python_version()}, {packages}")
    engine = TimedEngine(Engine.load(options.model, precision=options.precision))
    ids = match_categories(engine.model.categories, CATEGORIES)
    everything = Options(score_threshold=0.0, categories=frozenset(ids))
    count = options.side // options.scene
    scenes = Shapes(2, count * count, (options.scene, options.scene))
    size = (count * options.scene, count * options.scene)
    mosaic = np.empty((*size, 3), np.uint8)
    images: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    truth_alone: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for index in range(len(scenes)):
        sample = scenes[index]
        top, left = (options.scene * number for number in divmod(index, count))
        mosaic[top : top + options.scene, left : left + options.scene] = sample.pixels
        images.append({"id": index, "height": options.scene, "width": options.scene})
        found = engine.segment([sample.pixels], [everything])[0]
        alone += coco_results(found, index, ids)
        annotations = scenes.annotations(sample)
        truth_alone += annotations
        truth += [move(annotation, left, top, size) for annotation in annotations]
    each = engine.seconds / engine.images
    print(
        f"{count * count} scenes of {options.scene} pixels, {len(truth)} objects; {each * 1000:.0f} ms each"
    )
    tile = None if options.tile == "auto" else int(options.tile)
    tiling = Tiling(tile, options.overlap, False if options.no_whole else None)
    engine.seconds, engine.images = 0.0, 0
    before, started = forget_peak(), time.process_time()
    merged = segment_tiled(engine, mosaic, everything, tiling)  # type: ignore[arg-type]
    records = coco_results(merged, 0, ids)
    rest = time.process_time() - started - engine.seconds
    peak = highest_resident() - before
    whole_image = [{"id": 0, "height": size[0], "width": size[1]}]
    print(
        f"{engine.images} tiles, {len(merged)} instances; forward {engine.seconds / engine.images * 1000:.0f} ms each, "
        f"all else {rest / engine.images * 1000:.1f} ms; forward is {engine.seconds / (engine.seconds + rest):.1%}"
    )
    print(
        f"resident set: {peak / 1e6:.0f} MB more at its peak than the {mosaic.nbytes / 1e6:.0f} MB of the mosaic"
    )
    print(f"{'':10}{'scenes':>10}{'tiles':>10}")
    for kind in ("bbox", "segm"):
        one = score(coco_document(images, truth_alone, CATEGORIES), alone, kind).figures
        other = score(coco_document(whole_image, truth, CATEGORIES), records, kind, len(records)).figures
        for name in ("AP", "AP50", "AP small", "AP medium", "AP large"):
            print(f"{kind} {name:10}{one[name] * 100:>8.1f}{other[name] * 100:>10.1f}")


if __name__ == "__main__":
    main()
