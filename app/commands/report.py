"""What a training run reports: scores on the way, the final figures, the model card and its pictures."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import typer

from app.commands.evaluate import draw_plots, evaluate_with_progress, print_tables
from app.commands.source import DRAWN
from app.commands.terminal import progress_bar
from model.data import DatasetError
from model.data.coco import CocoFolder
from model.data.figures import Figures
from model.data.shapes import PHOTO_PART, Shapes
from model.evaluation.card import card
from model.evaluation.sheets import sample_sheet
from model.inference.calibration import MAX_IMAGES, measure_ranges, take_samples, why_not_int8
from model.inference.engine import Engine
from model.inference.tiling import object_extent, relative_extents
from model.training.train import read_log
from model.zoo import model_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np

    from app.commands.source import Source
    from model.data import Dataset, Sample
    from model.evaluation.coco import Evaluation
    from model.instances import Instances
    from model.zoo.model_file import Model

HELD_OUT_SCENES = "500 scenes of a seed that was never trained on"


def describe_scenes(scenes: Shapes) -> str:
    """The drawn training data, for the model card."""
    text = f"the first {len(scenes):,} scenes of seed {scenes.seed} that `model/data/shapes.py` draws"
    return text + f", {100 * PHOTO_PART:.0f} % of them on {len(scenes.photos)} photos" * bool(scenes.photos)


def describe_data(dataset: Dataset, name: str) -> str:
    """The training data, for the model card: what was learned from, and what was left out."""
    if isinstance(dataset, Shapes):
        return describe_scenes(dataset)
    if isinstance(dataset, Figures):
        return f"the first {len(dataset):,} scenes of seed {dataset.seed} that `model/data/figures.py` draws"
    return f"{name}; {dataset.tally()}" if isinstance(dataset, CocoFolder) else name


def describe_skipped(evaluation: Evaluation | None) -> str:
    """How many images of the evaluation could not be read, as the end of a sentence."""
    count = 0 if evaluation is None else len(evaluation.unreadable)
    return f" ({count} of its images could not be read)" if count else ""


def validate(path: Path, steps: int, out: Path, dataset: Dataset, device: str) -> float:
    """The mask AP or keypoint AP of a weights file, the mean of both, or the box AP of a model without either.

    Also draws some predictions into samples/ and appends the figures to validation.jsonl.

    Args:
        path: the weights file.
        steps: how many steps it was trained for.
        out: the run folder.
        dataset: what to validate on.
        device: where to run the model.
    """
    network, model = model_file.read(path)
    samples: list[tuple[Sample, Instances]] = []
    engine = Engine(network, model, torch.device(device), "float32")
    evaluation = evaluate_with_progress(engine, dataset, samples)
    (out / "samples").mkdir(exist_ok=True)
    sheet = out / "samples" / f"{steps:06d}.jpg"
    sample_sheet(samples, model.categories, sheet, keypoints=model.keypoints)
    with (out / "validation.jsonl").open("a") as log:
        log.write(json.dumps({"steps": steps, **evaluation.ap()}) + "\n")
    figures = ", ".join(f"{name} AP {value:.4f}" for name, value in evaluation.ap().items())
    typer.echo(f"after {steps} steps: {figures}", err=True)
    finer = [scores for scores in (evaluation.mask, evaluation.keypoints) if scores is not None]
    return fmean(scores.figures["AP"] for scores in finer or [evaluation.box])


def _measure(network: Any, model: Model, dataset: Dataset) -> Model:
    """The model with what some of its training images tell: its activations' ranges and its objects' extent."""
    a = model.architecture
    extents: list[float] = []

    def images(samples: Iterable[Sample]) -> Iterator[np.ndarray]:
        for sample in samples:
            height, width = sample.pixels.shape[:2]
            extents.extend(relative_extents(sample.boxes, (height, width), a))
            yield sample.pixels

    with progress_bar(transient=True) as bar:
        count = min(MAX_IMAGES, len(dataset))
        shown = images(bar.track(take_samples(dataset), count, description="calibrating"))
        if why_not_int8(a):
            for _ in shown:
                # It has its objects looked at.
                pass
        else:
            try:
                model = replace(model, ranges=measure_ranges(network, a, shown))
            except ValueError as error:
                typer.echo(f"not calibrated for int8: {error}", err=True)
    return replace(model, object_extent=object_extent(extents)) if extents else model


def report(
    path: Path, out: Path, source: Source, device: str, *, dataset: Dataset, validation: Dataset | None
) -> None:
    """Calibrate and evaluate a model, add the results to its file, and write its card and pictures.

    Args:
        path: the weights file.
        out: the run folder, for the pictures.
        source: the names of the data.
        device: where to run the model.
        dataset: what the model was trained on; some of its images calibrate int8.
        validation: what to evaluate on; None skips the evaluation.
    """
    from model.evaluation import plots  # noqa: PLC0415 - imports matplotlib

    network, model = model_file.read(path)
    model = _measure(network, model, dataset)
    log = read_log(out / "log.jsonl")
    plots.training_curve(log, out / "training.png")
    pictures = [("Training losses", "training.png")]
    evaluation = None
    samples: list[tuple[Sample, Instances]] = []
    engine = Engine(network, model, torch.device(device), "float32")
    try:
        evaluation = None if validation is None else evaluate_with_progress(engine, validation, samples)
    except DatasetError as error:
        # The files were there when the run started; the model and its card are worth keeping all the same.
        typer.echo(f"not evaluated: {error}", err=True)
    if evaluation is not None and validation is not None:
        held_out = source.evaluation_data in DRAWN
        where = HELD_OUT_SCENES if held_out else str(source.evaluation_data)
        model = replace(model, ap=evaluation.ap(), ap_source=f"measured on {where}")
        draw_plots(evaluation, engine, validation, samples, out)
        pictures += [
            ("Precision against recall", "precision_recall.png"),
            ("Precision against recall, by category", "precision_recall_by_category.png"),
            ("Confusion matrix", "confusion.png"),
            *[("Matched masks, by IoU threshold", "matching.png")] * (evaluation.matching is not None),
            (f"Predictions{' on held-out scenes' * held_out}, score 0.5 and above", "samples.jpg"),
            ("The worst images: ground truth on the left, predictions on the right", "worst.jpg"),
        ]
        print_tables(evaluation)
        for reason in evaluation.unreadable:
            typer.echo(f"skipped: {reason}", err=True)
    model_file.rewrite_metadata(path, path, model)
    text = card(
        model,
        evaluation,
        log,
        command=shlex.join(["maskserve", *sys.argv[1:]]),
        data=describe_data(dataset, source.data),
        measured_on=model.ap_source.removeprefix("measured on ") + describe_skipped(evaluation),
        pictures=pictures,
    )
    card_path = path.with_suffix(".md")
    card_path.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {path} and its model card {card_path}; serve it with: maskserve serve --model {path}")
