"""`maskserve evaluate`: the figures of a model on drawn scenes or a labelled folder, and plots of them."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import orjson
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.api import query
from app.commands.datasets import check_evaluation_data
from app.commands.source import FIGURES, SHAPES, Source
from app.commands.terminal import BAD_USAGE, complain, progress_bar
from app.problems import InvalidParameter
from app.runtime.cpus import usable_cpus
from app.runtime.loading import LOAD_ERRORS
from model.data import DatasetError
from model.data.figures import held_out_figures
from model.data.opening import open_dataset
from model.data.shapes import held_out_scenes
from model.evaluation.coco import STANDARD_DETECTIONS, Evaluation, evaluate, match_categories, predict
from model.evaluation.confusion import BACKGROUND, SCORE_THRESHOLD
from model.evaluation.matching import METRICS
from model.evaluation.sheets import sample_sheet, worst_images
from model.inference.engine import Engine
from model.inference.tiling import Tiling, TilingError
from model.instances import Options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.data import Dataset, Sample
    from model.evaluation.confusion import ImageScore
    from model.evaluation.matching import MatchingScores
    from model.instances import Instances

# Images on the sheet of predictions, and on that of the worst images.
SAMPLE_COUNT = 9
WORST_COUNT = 8
# Columns of the tables by category.
CATEGORY_COLUMNS = ("AP", "AP50", "AP small", "AP medium", "AP large")


def run_evaluation(
    model: str,
    source: Source,
    device: str,
    precision: str,
    weights_folder: Path,
    *,
    as_json: bool,
    plots: Path | None,
    score_threshold: float,
    tiles: Mapping[str, Any],
) -> int:
    """Evaluate a model and print its figures; return the exit code.

    Args:
        model: a name from `maskserve weights list`, or a file.
        source: the data to evaluate on.
        device: where to run the model: "auto", "cpu", "cuda:0" …
        precision: number format of the forward pass.
        weights_folder: where downloaded weights are.
        as_json: print JSON instead of tables.
        plots: folder to draw plots into; None draws none.
        score_threshold: of the detections that matching, confusion and pictures count.
        tiles: how images are cut, as parameters of POST /segment; None where not given.
    """
    packages = ("pycocotools",) if plots is None else ("pycocotools", "matplotlib")
    if (missing := missing_packages(*packages)) is not None:
        return complain(missing, BAD_USAGE)
    torch.set_num_threads(usable_cpus())
    try:
        if plots is not None:
            # Checked before the work begins.
            plots.mkdir(parents=True, exist_ok=True)
        engine = Engine.load(model, device=device, precision=precision, weights_folder=weights_folder)
        dataset = open_evaluation_data(source.data, source, boxes=engine.model.architecture.mask_convs == 0)
        given = {name: value for name, value in tiles.items() if value is not None}
        tiling = query.parse(given, engine.model).tiling
        names = engine.model.categories
        for line in check_evaluation_data(dataset, names, loose_names=source.loose_names):
            typer.echo(line, err=True)
        samples: list[tuple[Sample, Instances]] = []
        evaluation = evaluate_with_progress(
            engine, dataset, samples, score_threshold=score_threshold, tiling=tiling
        )
    except InvalidParameter as problem:
        return complain(problem.detail, BAD_USAGE)
    except (*LOAD_ERRORS, DatasetError, TilingError, OSError) as error:
        typer.echo(str(error), err=True)
        return 1
    if as_json:
        typer.echo(orjson.dumps(to_document(engine, evaluation), option=orjson.OPT_INDENT_2))
    else:
        print_tables(evaluation)
    for reason in evaluation.unreadable:
        typer.echo(f"skipped: {reason}", err=True)
    if plots is not None:
        try:
            draw_plots(evaluation, engine, dataset, samples, plots, tiling=tiling)
        except (*LOAD_ERRORS, DatasetError, TilingError, OSError) as error:
            typer.echo(f"no plots: {error}", err=True)
            return 1
    return 0


def missing_packages(*packages: str) -> str | None:
    """An error message if packages of the extra `train` are not installed, otherwise None."""
    if missing := [package for package in packages if find_spec(package) is None]:
        return (
            f"not installed: {', '.join(missing)}, which the extra `train` brings: "
            "pip install '.[train]' in the checkout"
        )
    return None


def open_evaluation_data(name: str, source: Source, *, boxes: bool = False) -> Dataset:
    """Open a dataset to evaluate on.

    Args:
        name: "shapes", "figures", or the path of a folder or a COCO JSON file.
        source: how to read it.
        boxes: only boxes are needed, not masks.

    Raises DatasetError.
    """
    if name == SHAPES:
        return held_out_scenes()
    if name == FIGURES:
        return held_out_figures()
    images = source.validation_images
    if images is None and name == source.data:
        images = source.images
    return open_dataset(
        Path(name),
        images,
        # With a validation, the split is that of the training data.
        split=None if source.validation is not None else source.split,
        otherwise="val",
        skip_damaged=source.skip_damaged,
        boxes=boxes,
    )


def evaluate_with_progress(
    engine: Engine,
    dataset: Dataset,
    samples: list[tuple[Sample, Instances]] | None = None,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    tiling: Tiling | None = None,
) -> Evaluation:
    """Evaluate with a progress bar.

    Args:
        engine: the model.
        dataset: what to evaluate on.
        samples: receives the first SAMPLE_COUNT images and their predictions at the score threshold.
        score_threshold: of the detections that matching, confusion and pictures count.
        tiling: how images are cut; None: not.

    Raises DatasetError if no image can be read, TilingError.
    """
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=len(dataset))

        def on_image(index: int, sample: Sample, _predicted: Instances) -> None:
            bar.update(task, completed=index + 1)
            if samples is not None and len(samples) < SAMPLE_COUNT:
                samples.append((sample, predict(engine, sample.pixels, Options(score_threshold), tiling)))

        return evaluate(engine, dataset, score_threshold=score_threshold, tiling=tiling, on_image=on_image)


def draw_plots(
    evaluation: Evaluation,
    engine: Engine,
    dataset: Dataset,
    samples: Sequence[tuple[Sample, Instances]],
    folder: Path,
    *,
    tiling: Tiling | None = None,
) -> None:
    """Draw curves, the confusion matrix, sample predictions and the worst images into a folder.

    Args:
        evaluation: the figures.
        engine: the model, which segments the worst images again.
        dataset: what it was evaluated on.
        samples: images and predictions for the sheet of samples.
        folder: where to write the pictures; created if necessary.
        tiling: how images are cut; None: not.
    """
    from model.evaluation import plots  # noqa: PLC0415 - imports matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    plots.precision_recall(evaluation, folder / "precision_recall.png")
    plots.precision_recall_by_category(evaluation, folder / "precision_recall_by_category.png")
    plots.confusion_matrix(evaluation.confusion, folder / "confusion.png")
    if evaluation.matching is not None:
        plots.matching(evaluation.matching, folder / "matching.png")
    keypoints = engine.model.keypoints
    sample_sheet(samples, engine.model.categories, folder / "samples.jpg", keypoints=keypoints)
    ids = match_categories(engine.model.categories, dataset.categories)
    options = Options(evaluation.confusion.score_threshold, categories=frozenset(ids))
    worst: list[tuple[ImageScore, Sample, Instances]] = []
    for image in evaluation.confusion.worst(WORST_COUNT):
        try:
            sample = dataset[image.index]
        except DatasetError:
            # It could be read when it was evaluated.
            continue
        predicted = predict(engine, sample.pixels, options, tiling)
        labels = torch.tensor([ids[label] for label in predicted.labels.tolist()], dtype=torch.int64)
        worst.append((image, sample, replace(predicted, labels=labels)))
    worst_images(worst, dataset.categories, folder / "worst.jpg", keypoints=keypoints)


def to_document(engine: Engine, evaluation: Evaluation) -> dict[str, Any]:
    """The JSON report: all figures."""
    confusion = evaluation.confusion
    document: dict[str, Any] = {
        "model": engine.model.name,
        "precision": engine.precision,
        "images": evaluation.images,
        "objects": evaluation.objects,
        "detections_per_image": evaluation.detections,
        "score_threshold": confusion.score_threshold,
        **{
            kind: {"figures": scores.figures, "per_category": scores.per_category}
            for kind, scores in evaluation.by_kind().items()
        },
        "confusion": {"names": [*confusion.names, BACKGROUND], "matrix": confusion.matrix.tolist()},
        "worst": [asdict(image) for image in confusion.worst(WORST_COUNT)],
        "skipped": evaluation.unreadable,
    }
    if evaluation.matching is not None:
        document["matching"] = asdict(evaluation.matching)
    if evaluation.cityscapes is not None:
        document["cityscapes"] = asdict(evaluation.cityscapes)
    return document


def print_tables(evaluation: Evaluation) -> None:
    """Print COCO's figures, AP by category, the figures of matching, and those of Cityscapes if there are any."""
    console = Console()
    scores = evaluation.by_kind()
    figures = Table(title=f"{evaluation.images} images, {evaluation.objects} objects")
    figures.add_column("")
    for name in scores:
        figures.add_column(name, justify="right")
    # Keypoints have other figures of recall than boxes and masks.
    for figure in dict.fromkeys(name for own in scores.values() for name in own.figures):
        figures.add_row(figure, *(format_figure(own.figures.get(figure, -1.0)) for own in scores.values()))
    console.print(figures)
    if evaluation.detections > STANDARD_DETECTIONS[-1]:
        console.print(
            f"The model finds up to {evaluation.detections} instances in an image, and AP counts as many; COCO's own "
            f"protocol counts {STANDARD_DETECTIONS[-1]}."
        )
    for kind, own in scores.items():
        table = Table(title=f"{kind}, by category")
        table.add_column("category")
        for figure in CATEGORY_COLUMNS:
            table.add_column(figure, justify="right")
        for category, values in own.per_category.items():
            table.add_row(
                escape(category), *(format_figure(values.get(figure, -1.0)) for figure in CATEGORY_COLUMNS)
            )
        console.print(table)
    if evaluation.matching is not None:
        console.print(_matching_table(evaluation.matching))
    if evaluation.cityscapes is not None:
        cityscapes = evaluation.cityscapes
        table = Table(title="masks, by the Cityscapes protocol")
        for heading in ("category", "AP", "AP50"):
            table.add_column(heading, justify="left" if heading == "category" else "right")
        for category, (ap, ap50) in cityscapes.per_category.items():
            table.add_row(escape(category), format_figure(ap), format_figure(ap50))
        table.add_section()
        table.add_row("mean", format_figure(cityscapes.ap), format_figure(cityscapes.ap50))
        console.print(table)


def _matching_table(scores: MatchingScores) -> Table:
    """A row for each IoU threshold, and one of means."""
    table = Table(title=f"masks, matched one-to-one at a score of {scores.score_threshold:g}")
    table.add_column("IoU")
    for heading in ("TP/(TP+FP+FN), by image", "pooled", "F1", "precision", "recall", "panoptic quality"):
        table.add_column(heading, justify="right")
    columns = [scores.by_image["ap"], *(scores.pooled[metric] for metric in METRICS)]
    for row, threshold in enumerate(scores.iou_thresholds):
        table.add_row(f"{threshold:.2f}", *(format_figure(column[row]) for column in columns))
    table.add_section()
    table.add_row("mean", *(format_figure(fmean(column)) for column in columns))
    return table


def format_figure(value: float) -> str:
    """A figure with four digits, or a dash if it is undefined: negative or NaN."""
    return f"{value:.4f}" if value >= 0 else "–"
