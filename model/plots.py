"""Pictures of a training run and of an evaluation: loss curves, precision against recall, samples beside the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from model.draw import overlay
from model.masks import Crop
from model.train import TERMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from model.data import Category, Sample
    from model.evaluate import Evaluation, Scores
    from model.instances import Instances

WINDOW = 101  # steps that a curve is smoothed over


def training_curve(log: Sequence[dict[str, float]], path: Path) -> None:
    """Each loss term and the learning rate against the step, from a run's log, as a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - of the extra `train`; the service runs without it

    steps = [record["step"] for record in log]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    for term in (*TERMS.values(), "L"):
        values = [record[term] for record in log if term in record]
        if values:
            axes.plot(steps, smoothed(values), label=term, linewidth=2.2 if term == "L" else 1.4)
    axes.set(xlabel="step", ylabel=f"loss (mean of {WINDOW} steps)", yscale="log", title="Training")
    axes.grid(alpha=0.3)
    axes.legend(ncols=3, frameon=False)
    rate = axes.twinx()
    rate.plot(steps, [record["lr"] for record in log], color="grey", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)")
    figure.savefig(path, dpi=110)


def smoothed(values: Sequence[float]) -> np.ndarray:
    """The mean over WINDOW steps around each; fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - WINDOW // 2, 0), np.minimum(centre + WINDOW // 2 + 1, len(values))
    mean: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return mean


def precision_recall(evaluation: Evaluation, path: Path) -> None:
    """Precision against recall at five IoU thresholds, boxes and masks, means over the categories, as a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    kinds: dict[str, Scores] = {"boxes": evaluation.box}
    if evaluation.mask is not None:
        kinds["masks"] = evaluation.mask
    figure = Figure(figsize=(4.6 * len(kinds), 4.2), layout="constrained")
    recall = np.linspace(0, 1, 101)
    for axes, (kind, scores) in zip(
        np.atleast_1d(figure.subplots(1, len(kinds))), kinds.items(), strict=True
    ):
        for row in (0, 5, 7, 8, 9):  # IoU .5, .75, .85, .9, .95
            counted = np.ma.masked_less(scores.precision[row], 0).mean(1)
            axes.plot(recall, counted, label=f"IoU {0.5 + 0.05 * row:.2f}")
        axes.set(
            xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02),
            title=f"{kind}: AP {scores.figures['AP']:.3f}, AP50 {scores.figures['AP50']:.3f}",
        )  # fmt: skip
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=110)


def true_crops(sample: Sample) -> Iterator[Crop]:
    """The annotated masks of a sample as crops, to be drawn."""
    for mask, (x0, y0, x1, y1) in zip(sample.masks, sample.boxes.astype(int).tolist(), strict=True):
        yield Crop(x0, y0, mask[y0:y1, x0:x1].astype(bool))


def sample_sheet(
    found: Sequence[tuple[Sample, Instances]], categories: Sequence[Category], path: Path, *, columns: int = 3
) -> None:
    """Predictions drawn on their images, side by side on one sheet."""
    names = {category.id: category.name for category in categories}
    side, gap = 420, 8
    tiles = []
    for sample, instances in found:
        tile = Image.fromarray(overlay(sample.pixels, instances, names))
        tile.thumbnail((side, side), Image.Resampling.LANCZOS)
        tiles.append(tile)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(
            tile,
            (
                column * (side + gap) + (side - tile.width) // 2,
                row * (side + gap) + (side - tile.height) // 2,
            ),
        )
    sheet.save(path, quality=88)
