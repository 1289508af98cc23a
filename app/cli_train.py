"""`maskserve train`: from a labelled folder, or drawn scenes, to a model to serve with its card."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli_evaluate import draw, measurable, measure, show
from app.cpus import usable_cpus
from app.loading import LOAD_ERRORS
from app.source import SHAPES, Source
from model import weights, zoo
from model.card import card, hardware, versions
from model.data import DatasetError
from model.data.opening import open_dataset
from model.data.shapes import training
from model.engine import Engine
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
        dataset = opened(source)
        measured = None if source.measured_on is None else measurable(source.measured_on, source)
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
        report(path, out, source, measured, device)
    except ERRORS as error:
        typer.echo(str(error), err=True)
        return 1
    return 0


def opened(source: Source, *, boxes: bool = False) -> Dataset:
    """The data to train on. boxes: the network learns only those. Raises DatasetError."""
    if source.drawn:
        return training()
    return open_dataset(
        Path(source.data),
        source.images,
        split=source.split or "train",
        skip_damaged=source.skip_damaged,
        boxes=boxes,
    )


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


def report(path: Path, out: Path, source: Source, measured: Dataset | None, device: str) -> None:
    """Measure the model, write what was found into its file, and the card and pictures beside it."""
    from model import plots  # noqa: PLC0415 - imports matplotlib, which `maskserve evaluate` can do without

    network, model = zoo.read(path)
    log = read_log(out / "log.jsonl")
    plots.training_curve(log, out / "training.png")
    pictures = [("Losses while training", "training.png")]
    evaluation = None
    if measured is not None:
        seen: list[tuple[Sample, Instances]] = []
        engine = Engine(network, model, torch.device(device), "float32")
        evaluation = measure(engine, measured, seen)
        where = HELD_OUT if source.measured_on == SHAPES else str(source.measured_on)
        model = replace(model, ap=evaluation.ap(), ap_source=f"measured on {where}")
        zoo.save(path, zoo.read(path)[0], model, half=True)
        draw(evaluation, engine, measured, seen, out)
        pictures += [
            ("Precision against recall", "precision_recall.png"),
            ("Precision against recall, by category", "precision_recall_by_category.png"),
            ("What is taken for what", "confusion.png"),
            ("Predictions on images that were never trained on (score 0.5 and above)", "samples.jpg"),
            ("The worst images: what is there, and what was found", "worst.jpg"),
        ]
        show(evaluation)
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
