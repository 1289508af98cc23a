"""What a training run leaves: how good the model is on the way and in the end, its card, and pictures."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import typer

from app.commands.evaluate import draw, measure, show
from app.commands.source import SHAPES
from app.commands.terminal import progress_bar
from model.data.shapes import PHOTO_PART, Shapes
from model.evaluation.card import card
from model.inference.calibration import IMAGES, examples, supports_int8
from model.inference.calibration import measured as calibrated
from model.inference.engine import Engine
from model.training.train import read_log
from model.zoo import model_file

if TYPE_CHECKING:
    from pathlib import Path

    from app.commands.source import Source
    from model.data import Dataset, Sample
    from model.instances import Instances

HELD_OUT = "500 scenes of a seed that was never trained on"


def drawn(scenes: Shapes) -> str:
    """What was trained on, for the card."""
    text = f"the first {len(scenes):,} scenes of seed {scenes.seed} that `model/data/shapes.py` draws"
    return text + f", {100 * PHOTO_PART:.0f} % of them on {len(scenes.photos)} photos" * bool(scenes.photos)


def judged(path: Path, steps: int, out: Path, measured: Dataset, device: str) -> float:
    """How good a model file is: its mask AP, or its box AP without masks; some predictions are drawn too."""
    from model.evaluation import plots  # noqa: PLC0415 - imports matplotlib, which `maskserve evaluate` can do without

    network, model = model_file.read(path)
    seen: list[tuple[Sample, Instances]] = []
    evaluation = measure(Engine(network, model, torch.device(device), "float32"), measured, seen)
    (out / "samples").mkdir(exist_ok=True)
    plots.sample_sheet(seen, model.categories, out / "samples" / f"{steps:06d}.jpg")
    line = {"steps": steps, **evaluation.ap()}
    with (out / "validation.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    text = ", ".join(f"{name} AP {value:.4f}" for name, value in evaluation.ap().items())
    typer.echo(f"after {steps} steps: {text}", err=True)
    return (evaluation.mask if evaluation.mask is not None else evaluation.box).figures["AP"]


def report(
    path: Path, out: Path, source: Source, device: str, *, dataset: Dataset, measured: Dataset | None
) -> None:
    """Calibrate and measure the model, write what was found into its file, and the card and pictures beside it.

    dataset: what it was trained on. measured: what it is to be measured on.
    """
    from model.evaluation import plots  # noqa: PLC0415 - imports matplotlib, which `maskserve evaluate` can do without

    network, model = model_file.read(path)
    if supports_int8(model.architecture):
        with progress_bar(transient=True) as bar:
            images = bar.track(examples(dataset), min(IMAGES, len(dataset)), description="calibrating")
            model = replace(model, ranges=calibrated(network, model.architecture, images))
    log = read_log(out / "log.jsonl")
    plots.training_curve(log, out / "training.png")
    pictures = [("Losses while training", "training.png")]
    evaluation = None
    if measured is not None:
        seen: list[tuple[Sample, Instances]] = []
        engine = Engine(network, model, torch.device(device), "float32")
        evaluation = measure(engine, measured, seen)
        unseen = source.measured_on == SHAPES
        where = HELD_OUT if unseen else str(source.measured_on)
        model = replace(model, ap=evaluation.ap(), ap_source=f"measured on {where}")
        draw(evaluation, engine, measured, seen, out)
        pictures += [
            ("Precision against recall", "precision_recall.png"),
            ("Precision against recall, by category", "precision_recall_by_category.png"),
            ("What is taken for what", "confusion.png"),
            (
                f"Predictions{' on scenes that were never trained on' * unseen} (score 0.5 and above)",
                "samples.jpg",
            ),
            ("The worst images: what is there, and what was found", "worst.jpg"),
        ]
        show(evaluation)
    model_file.rewrite_metadata(path, path, model)
    text = card(
        model,
        evaluation,
        log,
        command=shlex.join(["maskserve", *sys.argv[1:]]),
        data=drawn(dataset) if isinstance(dataset, Shapes) else source.data,
        measured_on=model.ap_source.removeprefix("measured on "),
        pictures=pictures,
    )
    beside = path.with_suffix(".md")
    beside.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {path} and its card {beside}; serve it: maskserve serve --model {path}")
