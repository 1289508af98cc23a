"""`maskserve train`: from a labelled folder, or drawn scenes, to a model to serve with its card."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from rich.progress import MofNCompleteColumn, TextColumn

from app.commands.evaluate import measurable, not_installed
from app.commands.report import judged, report
from app.commands.source import SHAPES, Source
from app.commands.terminal import BAD_USAGE, complain, progress_bar
from app.runtime.cpus import usable_cpus
from app.runtime.loading import LOAD_ERRORS
from model.data import DatasetError
from model.data.opening import open_dataset
from model.data.shapes import Shapes, training
from model.evaluation.card import hardware, versions
from model.network.architecture import BACKBONES, C4, SMALL, V1, Architecture, ArchitectureError
from model.network.build import build
from model.training.initial import load_backbone, transferred, widened
from model.training.parallel import Group, join, processes_here
from model.training.recipe import RECIPES, Recipe, TrainingError
from model.training.run_folder import claimed
from model.training.train import train
from model.zoo import catalogue as weights
from model.zoo import model_file, zoo
from model.zoo.partial import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from model.data import Dataset

ERRORS = (*LOAD_ERRORS, DatasetError, TrainingError, ArchitectureError)


@dataclass(frozen=True, slots=True)
class Start:
    """What is trained, and what it starts from."""

    architecture: str = "small"
    pooling: str = "align"
    masks: str = "sigmoid"  # or "softmax", "agnostic", "none"
    initial: str | None = None  # a model to go on from, by its name or file; its architecture is taken too
    backbone: str | None = None  # "imagenet", or a file of a classifier's weights
    channels: int | None = None  # of FPN and heads
    input: tuple[int, int] | None = None  # shorter and longer side of what the model is used on


def run_training(
    source: Source, out: Path, start: Start, device: str, overrides: dict[str, Any], *, recipe: str = "small"
) -> int:
    """Train, evaluate, and leave a model file with its card in the run folder; the program's exit code.

    overrides: what to change about the recipe of that name; None changes nothing.
    """
    if (lacking := not_installed("pycocotools", "matplotlib", "tensorboard")) is not None:
        return complain(lacking, BAD_USAGE)
    torch.set_num_threads(max(1, usable_cpus() // processes_here()))
    group = Group()
    try:
        given = {name: value for name, value in overrides.items() if value is not None}
        planned = recipe_named(recipe)
        dataset = opened(source, boxes=start.masks == "none")
        on = source.measured_on
        facts: dict[str, Any] = {"hardware": hardware(device), "versions": versions(), "data": source.data}
        if on is not None:
            facts["validation"] = on
        if isinstance(dataset, Shapes) and dataset.photos:
            facts["backgrounds"] = f"{len(dataset.photos)} photos"
        torch.manual_seed(given.get("seed", planned.seed))
        base, network, origin = begun(start, dataset, recipe)
        boxes = base.mask_convs == 0
        if boxes and start.masks != "none":  # the model to go on from has no masks
            dataset = opened(source, boxes=True)
        measured = None if on is None else measurable(on, source, boxes=boxes)
        name = SHAPES if source.drawn else out.name
        model = model_file.describe(name, base, dataset.categories, training=facts | origin)
        if (wrong := model_file.fault(model)) is not None:  # or its file could not be read when all is done
            raise TrainingError(f"a model of {source.data} cannot be served: {wrong}")
        texts = given.pop("sizes", [])
        sizes = sizes_by_step(texts, planned.min_sizes) if texts else {}
        if recipe == "small":
            sizes = {"max_size": base.max_size, **sizes_by_step(texts, scales(base))}
        if start.backbone is None and start.initial is None:
            sizes["frozen_stages"] = 0  # random numbers are not worth keeping
        elif start.backbone is not None:
            sizes["frozen_stages"] = 1  # as torchvision trains a pretrained backbone: three of four stages
        if measured is None and given.get("validate_every"):
            raise TrainingError("to validate on the way, --validation has to say on what")
        group, device = join(device)
        final = replace(planned, **{**sizes, **given})
        with claimed(out) if group.first else nullcontext():
            path = run_with_progress(
                dataset, model, final, out, device, initial=network, measured=measured, group=group
            )
            if group.first:
                report(path, out, source, device, dataset=dataset, measured=measured)
    except ERRORS as error:
        typer.echo(str(error), err=True)
        return 1
    finally:
        group.leave()
    return 0


def recipe_named(name: str) -> Recipe:
    """A recipe of model/training/recipe.py. Raises TrainingError."""
    if name not in RECIPES:
        raise TrainingError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def begun(
    start: Start, dataset: Dataset, recipe: str
) -> tuple[Architecture, nn.Module | None, dict[str, Any]]:
    """The architecture, the network to start from if it is not random, and where that came from, for the file.

    Raises TrainingError, ArchitectureError, ModelError, WeightsError.
    """
    if start.initial is not None:
        if start.backbone is not None:
            raise TrainingError("a model to go on from has a backbone already: --initial or --backbone")
        if (start.pooling, start.masks) != ("align", "sigmoid"):
            raise TrainingError(
                "a model to go on from has its own pooling and masks, which cannot be changed"
            )
        network, before = zoo.load(start.initial, weights.default_folder())
        origin = {"initial": {"name": before.name, "sha256": before.sha256, "training": before.training}}
        architecture = before.architecture
        same = before.categories == tuple(dataset.categories)
        if not same or before.labels != tuple(range(1, before.architecture.classes)):
            network, architecture, known = transferred(network, before, dataset.categories)
            new = [c.name for c in dataset.categories if c.name not in known]
            typer.echo(
                f"{before.name} knows {len(known)} of the {len(dataset.categories)} categories"
                + (f"; these start from nothing: {', '.join(new)}" if new else ""),
                err=True,
            )
        if start.channels is not None:
            network, architecture = widened(network, architecture, start.channels)
        return resized(architecture, start), network, origin
    architecture = described(start, len(dataset.categories) + 1, recipe)
    if start.backbone is None:
        return architecture, None, {}
    network = build(architecture)
    path = load_backbone(
        network,
        architecture,
        start.backbone,
        weights.default_folder(),
        tell=lambda line: typer.echo(line, err=True),
    )
    return architecture, network, {"backbone": {"file": Path(path).name, "sha256": digest(Path(path))}}


def opened(source: Source, *, boxes: bool = False) -> Dataset:
    """The data to train on. boxes: the network learns only those. Raises DatasetError, TrainingError."""
    if source.drawn:
        return training(source.backgrounds)
    if source.backgrounds is not None:
        raise TrainingError(
            "backgrounds are for `shapes`; photos of your own without objects are images without annotations"
        )
    return open_dataset(
        Path(source.data),
        source.images,
        split=source.split,
        skip_damaged=source.skip_damaged,
        boxes=boxes,
    )


def resized(architecture: Architecture, start: Start) -> Architecture:
    """With the sides of the input that were asked for."""
    if start.input is None:
        return architecture
    return replace(architecture, min_size=start.input[0], max_size=start.input[1])


def described(start: Start, classes: int, recipe: str = "small") -> Architecture:
    """`small`, a backbone with FPN and the paper's widths (resnet50), or the paper's C4 (resnet50-c4).

    Norms are trained, unless the backbone is pretrained: then they are constants, as in the paper. Raises
    ArchitectureError.
    """
    name, c4 = start.architecture.removesuffix("-c4"), start.architecture.endswith("-c4")
    norm = "batch" if start.backbone is None else "frozen"
    if start.architecture == "small":
        made = replace(SMALL, classes=classes, norm=norm)
    elif name not in BACKBONES:
        raise ArchitectureError(
            f"no architecture {start.architecture!r}; there are small, {', '.join(BACKBONES)}, and resnet50-c4 or "
            "another ResNet's"
        )
    else:
        made = replace(C4 if c4 else V1, backbone=name, classes=classes, norm=norm, norm_eps=1e-5)
    if recipe == "cityscapes":
        made = replace(made, min_size=1024, max_size=2048)  # the paper's, appendix A
    made = resized(made, start)
    if start.channels is not None:
        made = replace(made, fpn_channels=start.channels, mask_channels=start.channels)
    if start.masks == "none":
        return replace(made, pooling=start.pooling, mask_convs=0)
    return replace(made, pooling=start.pooling, masks=start.masks)


def scales(architecture: Architecture) -> tuple[int, ...]:
    """Shorter image sides to train at, around the one that the network is used at: ¾ to 13/12 of it.

    None is above the longer side's limit, which no image exceeds anyway.
    """
    steps = (round(architecture.min_size * part / 12 / 32) for part in (9, 10, 11, 12, 13))
    return tuple(min(max(1, step) * 32, architecture.max_size) for step in steps)


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
    model: model_file.Model,
    recipe: Recipe,
    out: Path,
    device: str,
    *,
    initial: nn.Module | None = None,
    measured: Dataset | None = None,
    group: Group | None = None,
) -> Path:
    """Train, showing the loss and the time left: a bar on a terminal, else a line every 100 steps."""
    group = group if group is not None else Group()
    begun_at, first = time.monotonic(), -1
    losses_column = TextColumn("{task.fields[losses]}")
    with progress_bar(MofNCompleteColumn(), losses_column, hidden=not group.first) as bar:
        task = bar.add_task("training", total=recipe.steps, losses="")

        def show(step: int, losses: dict[str, float]) -> None:
            nonlocal first
            first = step if first < 0 else first
            text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            bar.update(task, completed=step + 1, losses=text)
            if group.first and not bar.console.is_terminal and (step + 1) % 100 == 0:
                pace = (time.monotonic() - begun_at) / (step + 1 - first)
                left = timedelta(seconds=round(pace * (recipe.steps - step - 1)))
                typer.echo(f"step {step + 1}/{recipe.steps}, {left} left: {text}", err=True)

        def judge(path: Path, steps: int) -> float:
            return judged(path, steps, out, measured, device) if measured is not None else 0.0

        return train(
            dataset,
            model,
            recipe,
            out,
            device=device,
            initial=initial,
            on_step=show,
            judge=judge if measured is not None else None,
            group=group,
        )
