"""A mosaic of drawn scenes in tiles, against the same scenes one by one: AP, seconds for each tile, and memory.

    python bench/tiles.py [--model shapes] [--side 8000] [--scene 384] [--gutter 32] [--tile auto] [--overlap SHARE]
                          [--no-whole] [--precision auto] [--threads 2] [--service] [--sahi]
    python bench/tiles.py --model nuclei --data nuclei/test --scene 512

The scenes are of the seed that no model is trained on, or images of a labelled folder, resized and cropped, which come
again turned by a quarter where there are too few. They are squares of --scene pixels. In a mosaic of --side pixels they
lie side by side, so most tiles show parts of four, with a gutter, so that no object touches an object of the next
scene. A scene of the network's own input size has one pixel for each of its input's, alone as in a tile.

Prints COCO's AP of both, over all objects; the processor's seconds for the forward passes and for all else, which is
locating, merging and encoding; and by how much the resident set peaked over that before, the mosaic included: with all
scores from 0 on, for one scene alone, and with those of an ordinary request.

--service: also how many tiles a second an idle service answers of the mosaic as a PNG file, decoding and answer
included, against the engine alone on the same tiles, in turns.

--sahi: also the same mosaic in the same tiles by SAHI around torchvision's model, in an environment of its own, both
with the scores and the merging that are its defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.allocator import keep_freed_memory
from app.runtime.cpus import usable_cpus
from bench.engine import forget_peak
from bench.masks import highest_resident, processor
from bench.mosaic import PIXEL_MEAN, Squares, assign, move
from bench.peers.environments import ENVIRONMENTS, make_environment
from bench.peers.inputs import write_network
from bench.peers.registry import PROGRAMS
from deploy.tests.processes import Replica
from model.data.coco import coco_document, open_folder
from model.data.shapes import Shapes
from model.evaluation.coco import coco_results, match_categories, score
from model.inference.engine import Engine
from model.inference.tiled import TiledImage, segment_tiled
from model.inference.tiling import Tiling, limit_overlap
from model.instances import Options
from model.zoo import catalogue, zoo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.instances import Instances
    from model.zoo.model_file import Model


# SAHI's default confidence threshold.
SAHI_SCORE = 0.3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--data", type=Path, help="a labelled folder, instead of drawn scenes")
    parser.add_argument("--side", type=int, default=8000, help="of the mosaic, pixels")
    parser.add_argument("--scene", type=int, default=384, help="side of a scene, pixels")
    parser.add_argument(
        "--gutter",
        type=int,
        default=32,
        help="pixels of the mean colour between scenes, as beside a lone one",
    )
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--overlap", type=float, help="without it, what the model's objects need")
    parser.add_argument("--no-whole", action="store_true")
    parser.add_argument("--service", action="store_true", help="compare a service with the engine alone")
    parser.add_argument("--sahi", action="store_true", help="compare with SAHI")
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


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    # As the service and the command do.
    keep_freed_memory()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pycocotools"))
    print(f"{processor()}, {options.threads} threads, Python {platform.python_version()}, {packages}")
    engine = TimedEngine(Engine.load(options.model, precision=options.precision))
    count = (options.side + options.gutter) // (options.scene + options.gutter)
    scenes: Shapes | Squares = Shapes(2, count * count, (options.scene, options.scene))
    if options.data is not None:
        scenes = Squares(open_folder(options.data), options.scene)
    ids = match_categories(engine.model.categories, scenes.categories)
    everything = Options(score_threshold=0.0, categories=frozenset(ids))
    pitch = options.scene + options.gutter
    size = (count * pitch - options.gutter,) * 2
    mosaic = np.full((*size, 3), PIXEL_MEAN, np.uint8)
    images: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    truth_alone: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for index in range(count * count):
        sample = scenes[index]
        top, left = (pitch * number for number in divmod(index, count))
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
    before = forget_peak()
    engine.segment([sample.pixels], [everything])
    one_pass = highest_resident() - before
    tile = None if options.tile == "auto" else int(options.tile)
    if options.overlap is None:
        options.overlap = limit_overlap(engine.model.object_extent)
    tiling = Tiling(tile, options.overlap, False if options.no_whole else None)
    engine.seconds, engine.images = 0.0, 0
    before, started = forget_peak(), time.process_time()
    merged = segment_tiled(engine, mosaic, everything, tiling)
    records = coco_results(merged, 0, ids)
    rest = time.process_time() - started - engine.seconds
    peak = highest_resident() - before
    most = engine.model.architecture.conventions.detections
    # Each object belongs to its scene, and each detection to that with its middle, because COCO's matching takes
    # time with the square of what an image has.
    moved = [{**image, "height": size[0], "width": size[1]} for image in images]
    whole_image = coco_document(moved, truth, scenes.categories)
    assign(records, pitch, count)
    print(
        f"{engine.images} tiles, {len(merged)} instances; forward {engine.seconds / engine.images * 1000:.0f} ms each, "
        f"all else {rest / engine.images * 1000:.1f} ms; forward is {engine.seconds / (engine.seconds + rest):.1%}"
    )
    print(
        f"resident set: {peak / 1e6:.0f} MB more at its peak than with the mosaic's {mosaic.nbytes / 1e6:.0f} MB; one "
        f"scene alone takes {one_pass / 1e6:.0f} MB of them"
    )
    usual = measure(engine, mosaic, Options(), tiling, ids)
    print(
        f"with the scores of an ordinary request {usual.peak / 1e6:.0f} MB, for {len(usual.records)} instances"
    )
    print(f"{'':10}{'scenes':>10}{'tiles':>10}")
    for kind in ("bbox", "segm"):
        one = score(coco_document(images, truth_alone, scenes.categories), alone, kind, most).figures
        other = score(whole_image, records, kind, most).figures
        for name in ("AP", "AP50", "AP small", "AP medium", "AP large"):
            print(f"{kind} {name:10}{one[name] * 100:>8.1f}{other[name] * 100:>10.1f}")
    if options.service:
        ratios = asyncio.run(service_against_engine(engine, mosaic, tiling, options))
        print(f"service, of the engine alone: {', '.join(f'{ratio:.1%}' for ratio in ratios)}")
    if options.sahi:
        layout = tiling.cut(*size, engine.model)
        if layout is None or layout.has_whole:
            raise SystemExit("--sahi takes a mosaic larger than a tile, and --no-whole")
        ours = measure(engine, mosaic, replace(everything, score_threshold=SAHI_SCORE), tiling, ids)
        theirs = measure_sahi(engine.model, mosaic, int(layout.tiles[0, 2]), options)
        print(f"{'':12}{'seconds':>10}{'MB':>10}{'instances':>12}{'box AP':>10}{'mask AP':>10}")
        for name, result in ("maskserve", ours), ("SAHI", theirs):
            found = result.records
            assign(found, pitch, count)
            figures = [score(whole_image, found, kind, most).figures["AP"] for kind in ("bbox", "segm")]
            print(
                f"{name:12}{result.seconds:>10.1f}{result.peak / 1e6:>10.0f}{len(found):>12}"
                + "".join(f"{100 * ap:>10.1f}" for ap in figures)
            )


async def service_against_engine(
    engine: TimedEngine, mosaic: NDArray[np.uint8], tiling: Tiling, options: argparse.Namespace
) -> list[float]:
    """Tiles a second of the service, as a part of the engine's, in each of three rounds."""
    layout = tiling.cut(*mosaic.shape[:2], engine.model)
    if layout is None:
        raise SystemExit("--service takes a mosaic larger than a tile")
    tiles = TiledImage(layout, Options())
    crops = [np.ascontiguousarray(tiles.crop(mosaic, number)) for number in range(len(tiles))]
    file = io.BytesIO()
    Image.fromarray(mosaic).save(file, "PNG", compress_level=1)
    asked = {"tile": options.tile, "overlap": options.overlap, "whole": str(layout.has_whole).lower()}
    ratios = []
    with tempfile.TemporaryDirectory() as folder, Replica(
        "service", Path(folder), model=options.model, precision=options.precision, request_timeout=3600,
        max_upload_bytes=len(file.getvalue()) + 1000, max_queue_bytes=max(2 * len(file.getvalue()), 256 << 20),
        max_image_pixels=mosaic.size,
    ) as replica:  # fmt: skip
        replica.start()
        await replica.until_ready()
        async with httpx.AsyncClient(base_url=replica.url, timeout=None) as client:
            for turn in range(4):
                started = time.perf_counter()
                for crop in crops:
                    engine.segment([crop], [tiles.options])
                alone = time.perf_counter() - started
                started = time.perf_counter()
                (await client.post("/segment", params=asked, content=file.getvalue())).raise_for_status()
                # The first is to warm up.
                ratios += [alone / (time.perf_counter() - started)] * (turn > 0)
    return ratios


class Result(NamedTuple):
    """Of one way to segment the mosaic."""

    seconds: float
    # Bytes of the resident set more than before.
    peak: int
    records: list[dict[str, Any]]


def measure(
    engine: TimedEngine, mosaic: NDArray[np.uint8], options: Options, tiling: Tiling, ids: dict[int, int]
) -> Result:
    """Ours."""
    before, started = forget_peak(), time.perf_counter()
    merged = segment_tiled(engine, mosaic, options, tiling)
    seconds = time.perf_counter() - started
    peak = highest_resident() - before
    return Result(seconds, peak, coco_results(merged, 0, ids))


def measure_sahi(model: Model, mosaic: NDArray[np.uint8], tile: int, options: argparse.Namespace) -> Result:
    """SAHI around torchvision's model, of the same weights, in a process of its own."""
    make_environment("sahi")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network, _ = zoo.load(options.model, catalogue.default_folder())
        write_network(folder, network, model, SAHI_SCORE)
        np.save(folder / "mosaic.npy", mosaic)
        program = PROGRAMS / "sahi_tiles.py"
        python = ENVIRONMENTS / "sahi" / "bin" / "python"
        arguments = [folder, tile, options.overlap, options.threads]
        subprocess.run([python, program, *map(str, arguments)], check=True)
        found = json.loads((folder / "sahi.json").read_text())
    return Result(found["seconds"], found["peak"], found["records"])


if __name__ == "__main__":
    main()
