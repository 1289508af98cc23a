"""Ablations of RoIAlign (against RoIPool) and of sigmoid masks (against softmax), beside the paper's results.

    python bench/ablation.py [--steps 1500] [--seeds 0 1 2] [--scenes 4000] [--evaluated 200] [--out DIR] [--c4]

The small network is trained on drawn scenes. All variants share seeds, scenes, steps and recipe, and differ in one part
only. The paper measured on COCO with ResNet-50-C4 (Mask R-CNN, Tables 2b and 2c), so that the signs of the differences
can be compared, but not their sizes. By default the network has an FPN; --c4 takes a ResNet-18-C4, whose single map of
stride 16 is where the paper saw the largest gain.

Prints a table in Markdown and writes it, with all figures, into the folder. Finished runs there are not repeated, and
interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.cpus import usable_cpus
from model.data.shapes import CATEGORIES, Shapes
from model.evaluation.card import hardware
from model.evaluation.coco import evaluate
from model.inference.engine import Engine
from model.network.architecture import C4, SMALL, Architecture
from model.training.recipe import Recipe
from model.training.train import train
from model.zoo import model_file

FIGURES = ("AP", "AP50", "AP75")
VARIANTS = {
    "RoIAlign, sigmoid": {},
    "RoIPool, sigmoid": {"pooling": "pool"},
    "RoIAlign, softmax": {"masks": "softmax"},
}
# Mask AP, AP50, AP75 on COCO (Tables 2b and 2c).
PAPER = {
    "RoIAlign, sigmoid": (30.3, 51.2, 31.5),
    "RoIPool, sigmoid": (26.9, 48.8, 26.4),
    "RoIAlign, softmax": (24.8, 44.1, 25.1),
}
BASE = "RoIAlign, sigmoid"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500, help="steps of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=4000, help="scenes to train on")
    parser.add_argument("--evaluated", type=int, default=200, help="scenes to evaluate on, of another seed")
    parser.add_argument("--side", type=int, default=224, help="shorter side of the input")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--c4", action="store_true", help="a ResNet-18-C4 instead of the network with FPN")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    return parser.parse_args()


def architecture(options: argparse.Namespace) -> Architecture:
    classes, sides = len(CATEGORIES) + 1, {"min_size": options.side, "max_size": 2 * options.side}
    if options.c4:
        base = replace(
            C4, backbone="resnet18", norm="batch", anchor_sizes=SMALL.anchor_sizes, mask_channels=64
        )
        return replace(base, classes=classes, **sides)
    return replace(SMALL, classes=classes, **sides)


def train_and_evaluate(variant: str, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Box and mask figures of one run; reads them if the run is finished already."""
    changed = replace(architecture(options), **VARIANTS[variant])
    run = options.out / f"{variant.replace(', ', '-').lower()}-{seed}"
    result = run / "figures.json"
    if result.exists():
        figures: dict[str, dict[str, float]] = json.loads(result.read_text())
        return figures
    recipe = Recipe(
        steps=options.steps, batch_size=options.batch, warmup=min(250, options.steps // 6), seed=seed,
        min_sizes=(options.side,), max_size=2 * options.side,
    )  # fmt: skip
    sides = (200, 400)
    model = model_file.describe(
        variant, changed, CATEGORIES, training={"data": f"{options.scenes} scenes of seed 1"}
    )

    def on_step(step: int, losses: dict[str, float]) -> None:
        if (step + 1) % 100 == 0:
            print(f"  {variant}, seed {seed}: step {step + 1}, L {losses['L']:.3f}", file=sys.stderr)

    path = train(Shapes(1, options.scenes, sides), model, recipe, run, device=options.device, on_step=on_step)
    network, known = model_file.read(path)
    engine = Engine(network, known, torch.device(options.device), "float32")
    figures = {}
    evaluation = evaluate(engine, Shapes(2, options.evaluated, sides))
    for kind, scores in (("mask", evaluation.mask), ("box", evaluation.box)):
        assert scores is not None
        figures[kind] = {name: 100 * scores.figures[name] for name in FIGURES}
    result.write_text(json.dumps(figures, indent=1))
    (run / "checkpoint.pt").unlink(missing_ok=True)
    return figures


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def table(results: dict[str, list[dict[str, dict[str, float]]]]) -> list[str]:
    """The table in Markdown, with the paper's mask figures."""
    rows = [
        "| | mask AP | AP50 | AP75 | box AP | paper's mask AP | AP50 | AP75 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, runs in results.items():
        ours = [cell([run["mask"][name] for run in runs]) for name in FIGURES]
        ours.append(cell([run["box"]["AP"] for run in runs]))
        rows.append(f"| {variant} | " + " | ".join([*ours, *(f"{v:.1f}" for v in PAPER[variant])]) + " |")
    rows.append("")
    for variant in list(results)[1:]:
        # By seed, because the seed affects both variants in the same way.
        gains = [
            b["mask"]["AP"] - o["mask"]["AP"] for b, o in zip(results[BASE], results[variant], strict=True)
        ]
        paper = PAPER[BASE][0] - PAPER[variant][0]
        each = ", ".join(f"{gain:+.1f}" for gain in gains)
        rows.append(
            f"- {BASE} over {variant}: {mean(gains):+.1f} mask AP (by seed: {each}); paper {paper:+.1f}"
        )
    return rows


def main() -> None:
    options = arguments()
    torch.set_num_threads(usable_cpus())
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, dict[str, float]]]] = {variant: [] for variant in VARIANTS}
    for seed in options.seeds:
        for variant in VARIANTS:
            results[variant].append(train_and_evaluate(variant, seed, options))
    network = "ResNet-18-C4" if options.c4 else "ResNet-18 with a 64-channel FPN"
    lines = [
        (
            f"{network}, {options.steps} steps of {options.batch} scenes, shorter side {options.side}; seeds "
            f"{', '.join(map(str, options.seeds))}; mean ± standard deviation on {options.evaluated} other scenes."
        ),
        "",
        *table(results),
        "",
        (
            f"{hardware(options.device)}; Python {platform.python_version()}, torch {torch.__version__}, "
            f"torchvision {torchvision.__version__}."
        ),
    ]
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
