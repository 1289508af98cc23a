"""What one wrong convention costs: the AP of `shapes` when it runs as another framework would run its weights.

    python bench/conventions.py [--scenes 40]

The weights are the same in every row, and no row raises an error: this is what an importer gets wrong without notice.
Scenes are held out from training. Prints a table in Markdown, each row's AP and its difference from the first.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.cpus import usable_cpus
from model.data.shapes import Shapes, held_out_scenes
from model.evaluation.coco import evaluate
from model.inference.engine import Engine
from model.network.conventions import Conventions
from model.network.skeleton import skeleton
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from model.network.architecture import Architecture

VARIANTS: dict[str, dict[str, Any]] = {
    "as it was trained (torchvision)": {},
    "RoIAlign by half a pixel (`aligned`)": {"box_aligned": True, "mask_aligned": True},
    "deviation 1 instead of 58": {"pixel_std": (1.0, 1.0, 1.0)},
    "box weights 1, 1, 1, 1": {"box_weights": True},
    "BGR for RGB": {"bgr": True},
    "anchors by half a stride (`OFFSET` 0.5)": {"anchor_offset": 0.5},
    "Pillow's resize": {"resize": "detectron2"},
    "OpenCV's resize": {"resize": "mmdetection"},
    "adaptive sampling": {"box_samples": 0, "mask_samples": 0},
    "Detectron2's pasting": {"paste": "detectron2"},
    "background last": {"background": True},
}


def wrong(
    tensors: dict[str, torch.Tensor], architecture: Architecture, change: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], Architecture]:
    """Weights and architecture with one mistake."""
    tensors = dict(tensors)
    change = dict(change)
    if change.pop("bgr", False):
        tensors["backbone.body.conv1.weight"] = tensors["backbone.body.conv1.weight"].flip(1)
    for part in ("weight", "bias"):
        if change.get("box_weights"):
            name = f"roi_heads.box_predictor.bbox_pred.{part}"
            factor = torch.tensor([10.0, 10.0, 5.0, 5.0]).repeat(len(tensors[name]) // 4)
            tensors[name] = tensors[name] * factor.view(-1, *[1] * (tensors[name].ndim - 1))
        if change.get("background"):
            name = f"roi_heads.box_predictor.cls_score.{part}"
            tensors[name] = tensors[name].roll(1, 0)
    change.pop("box_weights", None)
    change.pop("background", None)
    return tensors, replace(architecture, conventions=replace(Conventions(), **change))


def main() -> None:
    """Measure every variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=40, help="held-out scenes to measure on")
    scenes = parser.parse_args().scenes
    torch.set_num_threads(usable_cpus())
    network, model = model_file.read(zoo.bundled_path("shapes"), runnable=False)
    tensors = network.state_dict()
    data = Shapes(held_out_scenes().seed, scenes)
    print(f"{model.name}, {scenes} held-out scenes, float32; {platform.processor() or platform.machine()}\n")
    print("| convention | box AP | mask AP | box | mask |\n|---|---|---|---|---|")
    first: dict[str, float] = {}
    for name, change in VARIANTS.items():
        weights, architecture = wrong(tensors, model.architecture, change)
        engine = Engine(
            model_file.fill(skeleton(architecture), weights),
            replace(model, architecture=architecture),
            torch.device("cpu"),
        )
        found = {kind: 100 * value for kind, value in evaluate(engine, data).ap().items()}
        first = first or found
        columns = [f"{found[kind]:.1f}" for kind in ("box", "mask")]
        columns += [f"{found[kind] - first[kind]:+.1f}" for kind in ("box", "mask")]
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
