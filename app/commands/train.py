"""`maskserve train`: from a labelled folder, or drawn scenes, to a weights file with a model card."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from rich.progress import MofNCompleteColumn, TextColumn

from app.commands.datasets import (
    check_evaluation_data,
    describe_mirroring,
    describe_training_data,
    label_digests,
)
from app.commands.evaluate import missing_packages, open_evaluation_data
from app.commands.network import NetworkOptions, initialize
from app.commands.report import report, validate
from app.commands.source import FIGURES, Source
from app.commands.terminal import BAD_USAGE, complain, progress_bar
from app.runtime.cpus import usable_cpus
from app.runtime.loading import LOAD_ERRORS
from model.data import DatasetError, keypoints_of
from model.data.figures import training_figures
from model.data.opening import open_dataset
from model.data.shapes import Shapes, training_scenes
from model.evaluation.card import hardware, versions
from model.kernels.openmp import match_threads
from model.network.architecture import Architecture, ArchitectureError
from model.training.interruption import InterruptedRunError, Interruption
from model.training.parallel import Group, join, processes_here, read_group
from model.training.recipe import RECIPES, Recipe, TrainingError
from model.training.run_folder import claim
from model.training.train import train
from model.zoo import model_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from model.data import Dataset

ERRORS = (*LOAD_ERRORS, DatasetError, TrainingError, ArchitectureError)


def run_training(
    source: Source,
    out: Path,
    network: NetworkOptions,
    device: str,
    overrides: dict[str, Any],
    *,
    recipe: str = "small",
) -> int:
    """Train, evaluate, and write a weights file with its card into the run folder; return the exit code.

    Args:
        source: the data to train and to evaluate on.
        out: the run folder.
        network: the network and its initial weights.
        device: where to train, such as "cpu" or "cuda:0".
        overrides: settings to replace in the recipe, by field name, and "sizes" as texts; None keeps the recipe's.
        recipe: name of the recipe.

    A run of one process that gets SIGINT or SIGTERM finishes its step and saves a checkpoint first.
    """
    # Several processes would stop at different steps.
    with Interruption(enabled=read_group().world == 1) as interruption:
        try:
            return _run(source, out, network, device, overrides, recipe=recipe, interruption=interruption)
        except KeyboardInterrupt as interrupt:
            if read_group().first:
                typer.echo(_describe_interrupt(interrupt, interruption.step), err=True)
            return 128 + (interrupt.number if isinstance(interrupt, InterruptedRunError) else signal.SIGINT)


def _describe_interrupt(interrupt: KeyboardInterrupt, step: int | None) -> str:
    """What becomes of an interrupted run. step: that of its checkpoint, or None before there is one."""
    if step is None:
        return "interrupted before anything was saved; the same command starts as this one did"
    if isinstance(interrupt, InterruptedRunError):
        return f"interrupted at step {step}; the same command continues from there"
    # A second signal, or several processes: steps behind the last checkpoint are lost.
    return f"interrupted; the same command continues from the checkpoint of step {step}"


def _run(
    source: Source,
    out: Path,
    network: NetworkOptions,
    device: str,
    overrides: dict[str, Any],
    *,
    recipe: str,
    interruption: Interruption,
) -> int:
    if (missing := missing_packages("pycocotools", "matplotlib", "tensorboard")) is not None:
        return complain(missing, BAD_USAGE)
    torch.set_num_threads(max(1, usable_cpus() // processes_here()))
    match_threads()
    group = Group()
    try:
        given = {name: value for name, value in overrides.items() if value is not None}
        base = find_recipe(recipe)
        dataset = open_training_data(source, boxes=network.masks == "none")
        on = source.evaluation_data
        facts: dict[str, Any] = {"hardware": hardware(device), "versions": versions(), "data": source.data}
        if on is not None:
            facts["validation"] = on
        if isinstance(dataset, Shapes) and dataset.photos:
            facts["backgrounds"] = f"{len(dataset.photos)} photos"
        torch.manual_seed(given.get("seed", base.seed))
        architecture, initial, origin = initialize(network, dataset, recipe)
        boxes = architecture.mask_convs == 0
        if boxes and network.masks != "none":
            # The model to start from has no masks.
            dataset = open_training_data(source, boxes=True)
        notices = describe_training_data(dataset)
        facts |= label_digests(labels=dataset)
        validation = None if on is None else open_evaluation_data(on, source, boxes=boxes)
        if validation is not None:
            names = dataset.categories
            notices += check_evaluation_data(validation, names, loose_names=source.loose_names)
            facts |= label_digests(validation_labels=validation)
        name = source.data if source.is_drawn else out.name
        model = model_file.describe(
            name,
            architecture,
            dataset.categories,
            training=facts | origin,
            keypoints=keypoints_of(dataset) if architecture.keypoints else None,
        )
        if (fault := model_file.find_fault(model)) is not None:
            # Otherwise the file could not be read when the run is over.
            raise TrainingError(f"a model of {source.data} cannot be served: {fault}")
        final = replace(base, **choose_sizes(given.pop("sizes", []), base, architecture, recipe))
        if network.initial is None:
            # A pretrained backbone keeps its first stage, as in torchvision; random weights are all trained.
            final = replace(final, frozen_stages=0 if network.backbone is None else 1)
        if validation is None and given.get("validate_every"):
            raise TrainingError("--validate-every needs --validation, the data to validate on")
        group, device = join(device)
        final = replace(final, **given)
        final.check()
        notices += describe_mirroring(model.keypoints, final)
        with claim(out) if group.first else nullcontext():
            if group.first:
                typer.echo("\n".join(dict.fromkeys(notices)), err=True, nl=bool(notices))
            path = run_with_progress(
                dataset, model, final, out, device,
                initial=initial, validation=validation, group=group, interruption=interruption,
            )  # fmt: skip
            if group.first:
                report(path, out, source, device, dataset=dataset, validation=validation)
    except ERRORS as error:
        typer.echo(str(error), err=True)
        return 1
    finally:
        group.leave()
    return 0


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises TrainingError if there is none."""
    if name not in RECIPES:
        raise TrainingError(f"no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def open_training_data(source: Source, *, boxes: bool = False) -> Dataset:
    """The data to train on. boxes: only boxes are needed. Raises DatasetError, TrainingError."""
    if source.is_shapes:
        return training_scenes(source.backgrounds)
    if source.data == FIGURES and source.backgrounds is None:
        return training_figures()
    if source.backgrounds is not None:
        raise TrainingError(
            "--backgrounds is for --data shapes; in a labelled folder, add such photos as images without annotations"
        )
    return open_dataset(
        Path(source.data),
        source.images,
        split=source.split,
        skip_damaged=source.skip_damaged,
        boxes=boxes,
    )


def choose_sizes(
    texts: Sequence[str], base: Recipe, architecture: Architecture, recipe: str
) -> dict[str, Any]:
    """The recipe's fields about image sizes. `small` derives them from the architecture's input sides.

    Args:
        texts: the option --sizes; may be empty.
        base: the recipe.
        architecture: what is trained.
        recipe: name of the recipe.
    """
    if recipe == "small":
        return {"max_size": architecture.max_size, **sizes_by_step(texts, scales(architecture))}
    return sizes_by_step(texts, base.min_sizes) if texts else {}


def scales(architecture: Architecture) -> tuple[int, ...]:
    """Shorter image sides for training, from 9/12 to 13/12 of the architecture's, capped at the longer side's limit."""
    steps = (round(architecture.min_size * part / 12 / 32) for part in (9, 10, 11, 12, 13))
    return tuple(min(max(1, step) * 32, architecture.max_size) for step in steps)


def sizes_by_step(texts: Sequence[str], default: tuple[int, ...]) -> dict[str, Any]:
    """Parse texts such as "288,320" and "1000:384,416" into the recipe's `min_sizes` and `later_sizes`.

    default: `min_sizes` without a text that sets them. Raises TrainingError.
    """
    sizes: dict[int, tuple[int, ...]] = {0: default}
    for text in texts:
        step, _, numbers = text.rpartition(":")
        try:
            sizes[int(step or 0)] = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            raise TrainingError(
                f"--sizes takes numbers such as 288,320,352 or 1000:384,416, not {text!r}"
            ) from None
    return {"min_sizes": sizes.pop(0), "later_sizes": tuple(sorted(sizes.items()))}


def run_with_progress(
    dataset: Dataset,
    model: model_file.Model,
    recipe: Recipe,
    out: Path,
    device: str,
    *,
    initial: nn.Module | None = None,
    validation: Dataset | None = None,
    group: Group | None = None,
    interruption: Interruption | None = None,
) -> Path:
    """Train, and show losses and remaining time: as a bar on a terminal, otherwise as a line every 100 steps.

    Args:
        dataset: what to train on.
        model: the architecture and the categories.
        recipe: the settings of the run.
        out: the run folder.
        device: where to train, such as "cpu" or "cuda:0".
        initial: a network whose weights to start from; None starts from random weights.
        validation: the dataset to validate on; None for no validation.
        group: the processes that train together; by default this one alone.
        interruption: what signals do to the run; by default nothing.
    """
    group = group if group is not None else Group()
    started, first = time.monotonic(), -1
    losses_column = TextColumn("{task.fields[losses]}")
    with progress_bar(MofNCompleteColumn(), losses_column, hidden=not group.first) as bar:
        task = bar.add_task("training", total=recipe.steps, losses="")

        def show(step: int, losses: dict[str, float]) -> None:
            nonlocal first
            first = step if first < 0 else first
            text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            bar.update(task, completed=step + 1, losses=text)
            if group.first and not bar.console.is_terminal and (step + 1) % 100 == 0:
                pace = (time.monotonic() - started) / (step + 1 - first)
                left = timedelta(seconds=round(pace * (recipe.steps - step - 1)))
                typer.echo(f"step {step + 1}/{recipe.steps}, {left} left: {text}", err=True)

        def validate_file(path: Path, steps: int) -> float:
            return validate(path, steps, out, validation, device) if validation is not None else 0.0

        return train(
            dataset,
            model,
            recipe,
            out,
            device=device,
            initial=initial,
            on_step=show,
            validate=validate_file if validation is not None else None,
            group=group,
            interruption=interruption,
        )
