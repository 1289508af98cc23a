"""`maskserve evaluate`: how well a model does on drawn scenes or a labelled folder, in figures and pictures."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch
import typer
from rich.console import Console
from rich.table import Table

from app.commands.source import SHAPES, Source
from app.commands.terminal import BAD_USAGE, complain, progress_bar
from app.runtime.cpus import usable_cpus
from app.runtime.loading import LOAD_ERRORS
from model.data import DatasetError
from model.data.opening import open_dataset
from model.data.shapes import held_out
from model.evaluation.coco import FIGURES, Evaluation, evaluate, matching
from model.inference.engine import Engine
from model.instances import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data import Dataset, Sample
    from model.evaluation.coco import Scores
    from model.evaluation.confusion import Verdict
    from model.instances import Instances

SAMPLES = 9  # pictures on the sheet of predictions
WORST = 8  # images on the sheet of the worst
SHOWN = ("AP", "AP50", "AP small", "AP medium", "AP large")  # of each category


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
    if (lacking := not_installed("pycocotools", *["matplotlib"] * (plots is not None))) is not None:
        return complain(lacking, BAD_USAGE)
    torch.set_num_threads(usable_cpus())
    try:
        engine = Engine.load(model, device=device, precision=precision, weights_folder=weights_folder)
        dataset = measurable(source.data, source, boxes=engine.model.architecture.mask_convs == 0)
        seen: list[tuple[Sample, Instances]] = []
        evaluation = measure(engine, dataset, seen)
        if plots is not None:
            draw(evaluation, engine, dataset, seen, plots)
    except (*LOAD_ERRORS, DatasetError) as error:
        typer.echo(str(error), err=True)
        return 1
    if as_json:
        typer.echo(orjson.dumps(document(engine, evaluation), option=orjson.OPT_INDENT_2))
    else:
        show(evaluation)
    for reason in evaluation.unreadable:
        typer.echo(f"left out: {reason}", err=True)
    return 0


def not_installed(*packages: str) -> str | None:
    """Which of these, which come with the extra `train`, are not there, and how to get them; None if all are."""
    if missing := [package for package in packages if find_spec(package) is None]:
        return f"not installed: {', '.join(missing)}; get what this needs with pip install 'maskserve[train]'"
    return None


def measurable(name: str, source: Source, *, boxes: bool = False) -> Dataset:
    """The dataset of that name to measure on, read as `source` says. boxes: only those matter. Raises DatasetError."""
    if name == SHAPES:
        return held_out()
    return open_dataset(
        Path(name),
        source.images if name == source.data else None,
        split=source.split,
        otherwise="val",
        skip_damaged=source.skip_damaged,
        boxes=boxes,
    )


def measure(
    engine: Engine, dataset: Dataset, seen: list[tuple[Sample, Instances]] | None = None
) -> Evaluation:
    """Evaluate with a progress bar; the first few images and what was found in them are added to `seen`."""
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=len(dataset))

        def note(index: int, sample: Sample, _found: Instances) -> None:
            bar.update(task, completed=index + 1)
            if seen is not None and len(seen) < SAMPLES:
                seen.append((sample, engine.segment([sample.pixels], [Options()])[0]))

        return evaluate(engine, dataset, on_image=note)


def draw(
    evaluation: Evaluation,
    engine: Engine,
    dataset: Dataset,
    seen: Sequence[tuple[Sample, Instances]],
    folder: Path,
) -> None:
    """Curves, confusion, sample predictions and the worst images, as pictures in a folder."""
    from model.evaluation import plots  # noqa: PLC0415 - imports matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    plots.precision_recall(evaluation, folder / "precision_recall.png")
    plots.precision_recall_by_category(evaluation, folder / "precision_recall_by_category.png")
    plots.confusion_matrix(evaluation.confusion, folder / "confusion.png")
    plots.sample_sheet(seen, engine.model.categories, folder / "samples.jpg")
    ids = matching(engine.model.categories, dataset.categories)
    wanted = Options(categories=frozenset(ids))
    judged: list[tuple[Verdict, Sample, Instances]] = []
    for verdict in evaluation.confusion.worst(WORST):
        sample = dataset[verdict.index]
        (found,) = engine.segment([sample.pixels], [wanted])
        labels = torch.tensor([ids[label] for label in found.labels.tolist()], dtype=torch.int64)
        judged.append((verdict, sample, replace(found, labels=labels)))
    plots.worst_images(judged, dataset.categories, folder / "worst.jpg")


def kinds(evaluation: Evaluation) -> dict[str, Scores]:
    """The figures of boxes and, where there are any, of masks."""
    return {"box": evaluation.box} | ({"mask": evaluation.mask} if evaluation.mask is not None else {})


def document(engine: Engine, evaluation: Evaluation) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    confusion = evaluation.confusion
    made: dict[str, Any] = {
        "model": engine.model.name,
        "precision": engine.precision,
        "images": evaluation.images,
        "objects": evaluation.objects,
        **{
            kind: {"figures": scores.figures, "per_category": scores.per_category}
            for kind, scores in kinds(evaluation).items()
        },
        "confusion": {"names": [*confusion.names, "nothing"], "matrix": confusion.matrix.tolist()},
        "worst": [asdict(verdict) for verdict in confusion.worst(WORST)],
        "left_out": evaluation.unreadable,
    }
    if evaluation.cityscapes is not None:
        made["cityscapes"] = asdict(evaluation.cityscapes)
    return made


def show(evaluation: Evaluation) -> None:
    """Print the twelve figures and the categories' AP, by size, as tables."""
    console = Console()
    scores = kinds(evaluation)
    figures = Table(title=f"{evaluation.images} images, {evaluation.objects} objects")
    figures.add_column("")
    for name in scores:
        figures.add_column(name, justify="right")
    for figure in FIGURES:
        figures.add_row(figure, *(number(s.figures[figure]) for s in scores.values()))
    console.print(figures)
    for kind, found in scores.items():
        table = Table(title=f"{kind}, by category")
        table.add_column("category")
        for figure in SHOWN:
            table.add_column(figure, justify="right")
        for category, values in found.per_category.items():
            table.add_row(category, *(number(values[figure]) for figure in SHOWN))
        console.print(table)
    if evaluation.cityscapes is not None:
        streets = evaluation.cityscapes
        table = Table(title="masks by Cityscapes' own protocol")
        for heading in ("category", "AP", "AP50"):
            table.add_column(heading, justify="left" if heading == "category" else "right")
        for category, (ap, ap50) in streets.per_category.items():
            table.add_row(category, number(ap), number(ap50))
        table.add_section()
        table.add_row("mean", number(streets.ap), number(streets.ap50))
        console.print(table)


def number(value: float) -> str:
    """A figure, or a dash where there was nothing to count."""
    return f"{value:.4f}" if value >= 0 else "–"
