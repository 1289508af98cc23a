"""The engine against torchvision's eager model: the same weights and the same photo, in turns, on the same cores.

    python bench/engine.py [--model v1|v2|nuclei|shapes|resnet18|…] [--precision auto|float32|bfloat16|int8]
                           [--detections 20] [--photo FILE …] [--megapixels 12] [--rounds 5] [--threads 2] [--encode]

COCO's weights are not needed: bench/synthetic_weights.py makes random ones that behave alike, and all sides keep as
many detections as --detections says. For int8 a model that is not calibrated yet is, on the photo. Without --photo a
scene is drawn, or for a bundled model an example enlarged and cropped. Every side goes from pixels to boxes, scores
and masks: ours to COCO RLE, torchvision's to its stack of masks, and with --encode to pycocotools' RLE.

Each side lives in a process of its own and waits while another runs. torchvision is measured twice: with its
defaults, and with what `maskserve serve` tells glibc about freed memory, from which it gains more than we do.

Prints seconds (median of the rounds), ratios, ours by stage, the share of what the processor's measured
matrix-product rate allows for torchvision's operations, and by how much the resident set peaks over the model's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.allocator import keep_freed_memory
from app.runtime.cpus import usable_cpus
from bench.masks import highest_resident, processor
from bench.synthetic_weights import synthetic_weights
from model.data import Category
from model.data.drawing import paint_dead_leaves
from model.inference.calibration import measure_ranges
from model.inference.devices import resolve_precision
from model.inference.engine import Engine
from model.instances import MOST_INSTANCES, Options
from model.masks.paste import paste
from model.network.architecture import BACKBONES, V1, V2, Architecture
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from model.instances import Instances

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# By bundled model.
EXAMPLE = {
    "nuclei": EXAMPLES / "nuclei" / "images" / "crowded.png",
    "shapes": EXAMPLES / "shapes" / "images" / "000004.jpg",
}
SIDES = {
    "torchvision": "torchvision eager",
    "kept": "… with our allocator setting",
    "ours": "maskserve",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="v1", help="v1, v2, nuclei, shapes, or a backbone")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--detections", type=int, default=20)
    parser.add_argument("--photo", type=Path, nargs="+", help="several: a ratio for each, and their median")
    parser.add_argument("--megapixels", type=float, help="enlarge the photo to this size first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--encode", action="store_true", help="torchvision's masks to pycocotools' RLE too")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def pictures(given: argparse.Namespace) -> list[np.ndarray]:
    """[H, W, 3] uint8 each: what is asked for."""
    return [picture(photo, given.megapixels, given.model) for photo in given.photo or [None]]


def picture(photo: Path | None, megapixels: float | None, model: str = "") -> np.ndarray:
    """[H, W, 3] uint8; 640 × 480 where nothing else is asked for."""
    if photo is not None:
        image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    elif model in EXAMPLE:
        image = ImageOps.fit(Image.open(EXAMPLE[model]).convert("RGB"), (640, 480))
    else:
        drawn = paint_dead_leaves(np.random.default_rng(7), 480, 640)
        image = Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8))
    if megapixels is not None:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    return np.array(image)


def chosen(name: str, image: np.ndarray, detections: int) -> tuple[nn.Module, model_file.Model]:
    if name in EXAMPLE:
        return model_file.read(zoo.bundled_path(name))
    if name in BACKBONES:
        architecture = Architecture(backbone=name, norm="batch", norm_eps=1e-5)
    else:
        architecture = {"v1": V1, "v2": V2}[name]
    network: Any = synthetic_weights(architecture, tensor(image))
    network.roi_heads.detections_per_img = detections
    categories = tuple(Category(n, f"kind {n}") for n in range(1, architecture.classes))
    return network, model_file.describe(name, architecture, categories)


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1) / 255


def theirs(network: nn.Module, image: np.ndarray, *, encode: bool) -> int:
    """How many were found."""
    with torch.inference_mode():
        (found,) = network([tensor(image)])
    if encode:
        for mask in found["masks"][:, 0]:
            coco.encode(np.asfortranarray((mask > 0.5).numpy().view(np.uint8)))
    return len(found["scores"])


def ours(engine: Engine, image: np.ndarray) -> int:
    (found,) = engine.segment([image], [Options(score_threshold=0.05)])
    encoded(found)
    return len(found)


def encoded(found: Instances) -> None:
    if found.probabilities is not None:
        paste(found.probabilities, found.boxes, found.size)


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@torch.inference_mode()
def stages(engine: Engine, image: np.ndarray) -> dict[str, float]:
    """Seconds of each part of one forward pass, the fastest of three."""
    size, padded = engine.input_size(*image.shape[:2]), engine.padded_shape(*image.shape[:2])
    taken: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = run()
        taken.setdefault(name, []).append(time.perf_counter() - started)
        return result

    for _ in range(3):
        inputs = timed("resize and normalise", lambda: engine._preprocess([image], [size], padded))
        maps = timed("backbone, pyramid, RPN head", lambda: engine._extract(inputs))
        proposals = timed("proposals", lambda: engine._propose(maps, padded, [size]))
        features = timed("RoIAlign and box head", lambda: engine._box_head.features(maps, proposals))
        allowed = {"score_threshold": 0.05, "allowed": engine._is_category, "max_instances": MOST_INSTANCES}
        boxes, scores, labels = timed(
            "detections", lambda: engine._box_head.detect(features, proposals[0], size, **allowed)
        )
        if engine._mask_head is not None and len(labels):
            grids = timed("mask head", lambda: engine._mask_head(maps, [boxes], labels))
            found = engine._instances((boxes, scores, labels), grids, image.shape[:2], size)
            timed("RLE", lambda: encoded(found))
    return {name: min(values) for name, values in taken.items()}


def rate(precision: str) -> float:
    """FLOP/s of a matrix product in the precision, the best of five."""
    a = torch.ones(3072, 3072, dtype=getattr(torch, precision))
    return 2 * 3072**3 / min(seconds(lambda: a @ a) for _ in range(5))


def operations(network: nn.Module, image: np.ndarray) -> int:
    """FLOPs of convolutions and products of one image, as torchvision does it."""
    with FlopCounterMode(display=False) as counter:
        theirs(network, image, encode=False)
    return int(counter.get_total_flops())


def side(given: argparse.Namespace) -> None:
    """One side: a line of facts, then for every line that comes in, which names a photo, one run and its seconds."""
    torch.set_num_threads(given.threads)
    images, small = pictures(given), picture(None, None)
    image = images[0]
    network, model = chosen(given.model, image, given.detections)
    facts: dict[str, Any] = {}
    run: Callable[[np.ndarray], int]
    if given.side == "ours":
        if given.precision == "int8" and not model.ranges:
            model = replace(model, ranges=measure_ranges(network, model.architecture, [image]))
        engine = Engine(network, model, torch.device("cpu"), given.precision)
        del network
        engine.warm_up()
        run = partial(ours, engine)
        # torch multiplies no matrices in int8; its convolutions' share of the other rate may pass 100 %.
        numbers = resolve_precision("auto", engine.device) if engine.precision == "int8" else engine.precision
        facts = {"precision": engine.precision, "rate": rate(numbers), "numbers": numbers}
        facts["padded"] = engine.padded_shape(*image.shape[:2])
    else:
        run = partial(theirs, network, encode=given.encode)
        facts["operations"] = operations(network, small) if given.megapixels else operations(network, image)
    # What is loaded and allocated once.
    run(small)
    before = forget_peak()
    facts["count"] = run(image)
    facts["added"] = highest_resident() - before
    if given.side != "torchvision":
        keep_freed_memory()
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        asked = line.strip()
        answer = stages(engine, image) if asked == "stages" else seconds(partial(run, images[int(asked)]))
        print(json.dumps(answer), flush=True)


def forget_peak() -> int:
    """Give back what is free, and count the peak of the resident set from its present size, in bytes, on (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return highest_resident()


class Side:
    """A process that runs one side when asked to."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._line()

    def ask(self, what: str) -> Any:
        """What the process says to a photo's number (seconds) or "stages" (seconds by name, of the first photo)."""
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with code {self._process.wait()}")
        return json.loads(line)


def main() -> None:
    given = arguments()
    if given.side:
        side(given)
        return
    images = pictures(given)
    sides = {name: Side(name) for name in SIDES}
    turns = range(len(images))
    # By photo, then by round.
    rounds: list[list[dict[str, float]]] = [[] for _ in turns]
    for _ in range(given.rounds):
        for n in turns:
            rounds[n].append({name: s.ask(str(n)) for name, s in sides.items()})
    by_stage = sides["ours"].ask("stages")
    facts = sides["ours"].facts
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
    print(f"{processor()}, {given.threads} threads, {torch.backends.cpu.get_cpu_capability()}; {packages}")
    print(f"Python {platform.python_version()}; load {os.getloadavg()[0]:.1f}")
    height, width = facts["padded"]
    image, first = images[0], rounds[0]
    size = f"photo {image.shape[1]} × {image.shape[0]}, input {width} × {height}"
    print(f"\n{given.model}, {facts['precision']}; {size}")
    for name, title in SIDES.items():
        known = sides[name].facts
        text = f"  {title:30}{median(r[name] for r in first):7.3f} s  {known['count']:3} detections"
        text += f"  {known['added'] / 1e6:6.0f} MB over the loaded model"
        if name != "ours":
            ratios = sorted(r[name] / r["ours"] for r in first)
            text += (
                f"  {median(ratios):6.2f} ×  ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds)"
            )
        print(text)
    work, speed = sides["torchvision"].facts["operations"], facts["rate"]
    reached = work / speed / median(r["ours"] for r in first)
    print(f"  {work / 1e9:.0f} GFLOP at {speed / 1e9:.0f} GFLOP/s (matrix product, {facts['numbers']}) take")
    print(f"  {work / speed:.3f} s: maskserve runs at {reached:.0%} of that rate")
    print("  (over 100 % is Winograd's saving, or int8's)")
    print("  by stage, ms: " + ", ".join(f"{name} {value * 1e3:.1f}" for name, value in by_stage.items()))
    if given.photo and len(images) > 1:
        print_photos(given.photo, images, rounds)


def print_photos(photos: list[Path], images: list[np.ndarray], rounds: list[list[dict[str, float]]]) -> None:
    """A line for each photo, and the median of their ratios. rounds: seconds by side, by photo, then by round."""
    print("\n  seconds, and how many times ours, by photo (median of the rounds)")
    found: dict[str, list[float]] = {name: [] for name in ("torchvision", "kept")}
    for photo, image, runs in zip(photos, images, rounds, strict=True):
        text = f"  {photo.stem:32}{f'{image.shape[1]} × {image.shape[0]}':>12}"
        text += f"  {median(r['ours'] for r in runs):6.3f}"
        for name, ratios in found.items():
            ratios.append(median(r[name] / r["ours"] for r in runs))
            text += f"  {median(r[name] for r in runs):7.3f} ({ratios[-1]:.2f} ×)"
        print(text)
    for name, ratios in found.items():
        print(f"  {SIDES[name]}: {median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
