"""`maskserve train` and `maskserve evaluate`: from a labelled folder, or drawn scenes, to a model to serve."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from app.cpus import usable_cpus
from app.loading import LOAD_ERRORS
from app.source import SHAPES, Source
from model import weights, zoo
from model.calibration import IMAGES, examples
from model.calibration import measured as calibrated
from model.card import card, hardware, versions
from model.data import DatasetError
from model.data.coco import open_folder
from model.data.shapes import held_out, training
from model.engine import Engine
from model.evaluate import FIGURES, Evaluation, evaluate
from model.instances import Options
from model.int8 import quantisable
from model.network import BACKBONES, SMALL, Architecture, ArchitectureError
from model.recipe import Recipe, TrainingError
from model.train import read_log, train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from model.data import Dataset, Sample
    from model.instances import Instances

HELD_OUT = "500 scenes of a seed that was never trained on"
ERRORS = (*LOAD_ERRORS, DatasetError, TrainingError, ArchitectureError)
SAMPLES = 9  # pictures on the sheet of predictions


def run_training(
    source: Source,
    out: Path,
    architecture: str,
    device: str,
    overrides: dict[str, Any],
    *,
    initial: str | None = None,
) -> int:
    """Train, evaluate, and leave model.safetensors with its card in the run folder; the program's exit code.

    initial: a model to start from, by its name or file, instead of random weights of `architecture`.
    """
    torch.set_num_threads(usable_cpus())
    try:
        dataset: Dataset = training() if source.drawn else open_folder(Path(source.data), source.images)
        measured = None if source.measured_on is None else measurable(source.measured_on)
        facts: dict[str, Any] = {"hardware": hardware(device), "versions": versions(), "data": source.data}
        start, base = None, described(architecture, len(dataset.categories) + 1)
        if initial is not None:
            start, before = beginning(initial, dataset)
            base = before.architecture
            facts |= {"initial": {"name": before.name, "sha256": before.sha256, "training": before.training}}
        model = zoo.describe(SHAPES if source.drawn else out.name, base, dataset.categories, training=facts)
        given = {name: value for name, value in overrides.items() if value is not None}
        sizes = sizes_by_step(given.pop("sizes", []), scales(base))
        recipe = Recipe(**{**sizes, "max_size": base.max_size, **given})
        path = run_with_progress(dataset, model, recipe, out, device, initial=start)
        report(path, out, source, device, dataset=dataset, measured=measured)
    except ERRORS as error:
        typer.echo(str(error), err=True)
        return 1
    return 0


def measurable(name: str, images: Path | None = None) -> Dataset:
    """The dataset of that name to measure on. Raises DatasetError."""
    return held_out() if name == SHAPES else open_folder(Path(name), images)


def described(architecture: str, classes: int) -> Architecture:
    """What `small` means, or a backbone with the paper's widths; nothing is pretrained, so BatchNorm is trained."""
    if architecture == "small":
        return replace(SMALL, classes=classes)
    if architecture not in BACKBONES:
        raise ArchitectureError(f"no architecture {architecture!r}; there are small, {', '.join(BACKBONES)}")
    return Architecture(backbone=architecture, classes=classes, norm="batch", norm_eps=1e-5)


def beginning(name: str, dataset: Dataset) -> tuple[nn.Module, zoo.Model]:
    """The network and description of a model to go on training. Raises TrainingError if it knows other categories."""
    network, model = zoo.load(name, weights.default_folder())
    if model.categories != tuple(dataset.categories):
        raise TrainingError(
            f"{name} knows other categories than the data: "
            f"{', '.join(c.name for c in model.categories)} instead of "
            f"{', '.join(c.name for c in dataset.categories)}"
        )
    return network, model


def scales(architecture: Architecture) -> tuple[int, ...]:
    """Shorter image sides to train at, around the one that the network is used at: ¾ to 13/12 of it."""
    return tuple(round(architecture.min_size * part / 12 / 32) * 32 for part in (9, 10, 11, 12, 13))


def sizes_by_step(texts: Sequence[str], usual: tuple[int, ...]) -> dict[str, Any]:
    """The recipe's `min_sizes` and `later_sizes` from texts like "288,320" and "1000:384,416"; `usual` by default."""
    later: dict[int, tuple[int, ...]] = {0: usual}
    for text in texts:
        step, _, numbers = text.rpartition(":")
        try:
            later[int(step or 0)] = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            raise TrainingError(f"sizes are like 288,320,352 or 1000:384,416, not {text!r}") from None
    return {"min_sizes": later.pop(0), "later_sizes": tuple(sorted(later.items()))}


def run_with_progress(
    dataset: Dataset,
    model: zoo.Model,
    recipe: Recipe,
    out: Path,
    device: str,
    *,
    initial: nn.Module | None = None,
) -> Path:
    """Train, showing the loss and the time left: a bar on a terminal, else a line every 100 steps."""
    console = Console(stderr=True)
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=recipe.steps, losses="")

        def show(step: int, losses: dict[str, float]) -> None:
            text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            bar.update(task, completed=step + 1, losses=text)
            if not console.is_terminal and (step + 1) % 100 == 0:
                typer.echo(f"step {step + 1}/{recipe.steps}: {text}", err=True)

        return train(dataset, model, recipe, out, device=device, initial=initial, on_step=show)


def report(
    path: Path, out: Path, source: Source, device: str, *, dataset: Dataset, measured: Dataset | None
) -> None:
    """Calibrate and measure the model, write what was found into its file, and the card and pictures beside it.

    dataset: what it was trained on. measured: what it is to be measured on.
    """
    from model import plots  # noqa: PLC0415 - imports matplotlib, which `maskserve evaluate` can do without

    network, model = zoo.read(path)
    if quantisable(model.architecture):
        images = track(examples(dataset), "calibrating", min(IMAGES, len(dataset)), transient=True)
        model = replace(model, ranges=calibrated(network, model.architecture, images))
    log = read_log(out / "log.jsonl")
    plots.training_curve(log, out / "training.png")
    pictures = [("Losses while training", "training.png")]
    evaluation = None
    if measured is not None:
        seen: list[tuple[Sample, Instances]] = []
        evaluation = measure(Engine(network, model, torch.device(device), "float32"), measured, seen)
        where = HELD_OUT if source.measured_on == SHAPES else str(source.measured_on)
        model = replace(model, ap=evaluation.ap(), ap_source=f"measured on {where}")
        plots.precision_recall(evaluation, out / "precision_recall.png")
        plots.sample_sheet(seen, model.categories, out / "samples.jpg")
        pictures += [
            ("Precision against recall", "precision_recall.png"),
            ("Predictions on images that were never trained on (score 0.5 and above)", "samples.jpg"),
        ]
        show_evaluation(evaluation)
    zoo.describe_anew(path, path, model)
    text = card(
        model,
        evaluation,
        log,
        command=shlex.join(["maskserve", *sys.argv[1:]]),
        data=f"the first {len(training()):,} scenes of seed 1 that `model/data/shapes.py` draws"
        if source.drawn
        else source.data,
        measured_on=model.ap_source.removeprefix("measured on "),
        pictures=pictures,
    )
    (out / "model.md").write_text(text, encoding="utf-8")
    typer.echo(f"wrote {path} and its card {out / 'model.md'}; serve it: maskserve serve --model {path}")


def measure(
    engine: Engine, dataset: Dataset, seen: list[tuple[Sample, Instances]] | None = None
) -> Evaluation:
    """Evaluate with a progress bar; the first few images and what was found in them are added to `seen`."""
    console = Console(stderr=True)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=len(dataset))

        def note(index: int, sample: Sample, _found: Instances) -> None:
            bar.update(task, completed=index + 1)
            if seen is not None and len(seen) < SAMPLES:
                seen.append((sample, engine.segment([sample.pixels], [Options()])[0]))

        return evaluate(engine, dataset, on_image=note)


def run_evaluation(
    model: str,
    source: Source,
    device: str,
    precision: str,
    weights_folder: Path,
    *,
    as_json: bool,
    plots: Path | None,
) -> int:
    """Evaluate a model and print its figures; the program's exit code."""
    torch.set_num_threads(usable_cpus())
    try:
        dataset = measurable(source.data, source.images)
        engine = Engine.load(model, device=device, precision=precision, weights_folder=weights_folder)
        seen: list[tuple[Sample, Instances]] = []
        evaluation = measure(engine, dataset, seen)
    except ERRORS as error:
        typer.echo(str(error), err=True)
        return 1
    if as_json:
        kinds = {"box": evaluation.box, "mask": evaluation.mask}
        document = {
            "model": engine.model.name,
            "precision": engine.precision,
            "images": evaluation.images,
            "objects": evaluation.objects,
            **{
                kind: {"figures": scores.figures, "per_category": scores.per_category}
                for kind, scores in kinds.items()
                if scores is not None
            },
        }
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    else:
        show_evaluation(evaluation)
    if plots is not None:
        from model.plots import precision_recall, sample_sheet  # noqa: PLC0415 - imports matplotlib

        plots.mkdir(parents=True, exist_ok=True)
        precision_recall(evaluation, plots / "precision_recall.png")
        sample_sheet(seen, engine.model.categories, plots / "samples.jpg")
    return 0


def show_evaluation(evaluation: Evaluation) -> None:
    """Print the twelve figures and the categories' AP as tables."""
    console = Console()
    kinds = {"box": evaluation.box} | ({"mask": evaluation.mask} if evaluation.mask is not None else {})
    figures = Table(title=f"{evaluation.images} images, {evaluation.objects} objects")
    figures.add_column("")
    for name in kinds:
        figures.add_column(name, justify="right")
    for figure in FIGURES:
        figures.add_row(figure, *(f"{scores.figures[figure]:.4f}" for scores in kinds.values()))
    console.print(figures)
    table = Table()
    table.add_column("category")
    for name in kinds:
        table.add_column(f"{name} AP", justify="right")
        table.add_column(f"{name} AP50", justify="right")
    for category in evaluation.box.per_category:
        cells = (value for scores in kinds.values() for value in scores.per_category[category])
        table.add_row(category, *(f"{value:.4f}" for value in cells))
    console.print(table)
