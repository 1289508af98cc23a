"""Plots of training and evaluation: losses, precision against recall, confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model.evaluation.confusion import BACKGROUND, IOU_THRESHOLD
from model.images.text import label_name, picture_of
from model.training.train import TERMS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform
    from numpy.typing import NDArray

    from model.evaluation.coco import Evaluation, Scores
    from model.evaluation.confusion import Confusion
    from model.evaluation.matching import MatchingScores

# Steps over which a curve is smoothed.
WINDOW = 101
# Size of letters in pictures of text, pixels: sharp at the plots' 110 dots an inch.
PICTURE_SIZE = 40
# Of a side of a plot: 44 million pixels.
MOST_INCHES = 60.0


def training_curve(log: Sequence[dict[str, float]], path: Path) -> None:
    """Plot each loss term and the learning rate of a run against the step, as a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - comes with the extra `train`

    steps = [record["step"] for record in log]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    for term in (*TERMS.values(), "L"):
        values = [record[term] for record in log if term in record]
        if values:
            axes.plot(steps, smooth(values), label=term, linewidth=2.2 if term == "L" else 1.4)
    axes.set(xlabel="step", ylabel=f"loss (mean of {WINDOW} steps)", yscale="log", title="Training")
    axes.grid(alpha=0.3)
    axes.legend(ncols=3, frameon=False)
    rate = axes.twinx()
    rate.plot(steps, [record["lr"] for record in log], color="grey", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)")
    figure.savefig(path, dpi=110)


def smooth(values: Sequence[float]) -> np.ndarray:
    """The mean over WINDOW steps around each step; over fewer at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - WINDOW // 2, 0), np.minimum(centre + WINDOW // 2 + 1, len(values))
    mean: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return mean


def precision_recall(evaluation: Evaluation, path: Path) -> None:
    """Plot precision against recall at five IoU thresholds, as means over the categories, as a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - comes with the extra `train`

    kinds: dict[str, Scores] = {"boxes": evaluation.box}
    if evaluation.mask is not None:
        kinds["masks"] = evaluation.mask
    figure = Figure(figsize=(4.6 * len(kinds), 4.2), layout="constrained")
    recall = np.linspace(0, 1, 101)
    for axes, (kind, scores) in zip(
        np.atleast_1d(figure.subplots(1, len(kinds))), kinds.items(), strict=True
    ):
        # IoU 0.5, 0.75, 0.85, 0.9 and 0.95.
        for row in (0, 5, 7, 8, 9):
            defined = np.ma.masked_less(scores.precision[row], 0).mean(1)
            axes.plot(recall, defined, label=f"IoU {0.5 + 0.05 * row:.2f}")
        axes.set(
            xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02),
            title=f"{kind}: AP {scores.figures['AP']:.3f}, AP50 {scores.figures['AP50']:.3f}",
        )  # fmt: skip
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=110)


def matching(scores: MatchingScores, path: Path) -> None:
    """Plot the figures of matching against the IoU threshold, as a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - comes with the extra `train`

    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    lines = {
        "TP/(TP+FP+FN), mean over images": scores.by_image["ap"],
        "TP/(TP+FP+FN), pooled": scores.pooled["ap"],
        "F1, pooled": scores.pooled["f1"],
        "panoptic quality, pooled": scores.pooled["panoptic_quality"],
    }
    for label, values in lines.items():
        axes.plot(scores.iou_thresholds, values, label=label, marker=".")
    axes.set(xlabel="IoU threshold", ylim=(0, 1.02), title=f"Masks at score ≥ {scores.score_threshold:g}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=110)


def precision_recall_by_category(evaluation: Evaluation, path: Path, most: int = 40) -> None:
    """Plot precision against recall for each category, at IoU 0.5 and 0.75, as a PNG.

    Args:
        evaluation: the figures; masks are plotted if there are any, otherwise boxes.
        path: the file to write.
        most: the largest number of categories; if there are more, those with the lowest AP are plotted.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - comes with the extra `train`

    scores = evaluation.mask if evaluation.mask is not None else evaluation.box
    ranked = sorted(
        (values["AP"], column, name)
        for column, (name, values) in enumerate(scores.per_category.items())
        if values["AP"] >= 0
    )[:most]
    ids = dict(zip(evaluation.confusion.names, evaluation.confusion.ids, strict=True))
    columns = max(1, min(5, len(ranked)))
    rows = max(1, -(-len(ranked) // columns))
    figure = Figure(figsize=(2.6 * columns, 2.4 * rows), layout="constrained")
    recall = np.linspace(0, 1, 101)
    drawn = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).reshape(-1)
    for axes in drawn[len(ranked) :]:
        axes.set_axis_off()
    for axes, (value, column, name) in zip(drawn, ranked, strict=False):
        for row, label in ((0, "IoU 0.50"), (5, "IoU 0.75")):
            axes.plot(recall, np.ma.masked_less(scores.precision[row, :, column], 0), label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        _set_title(axes, f"{label_name(name, ids[name])}: AP {value:.3f}")
        axes.grid(alpha=0.3)
    if ranked:
        drawn[0].legend(loc="lower left", frameon=False, fontsize=7)
    figure.savefig(path, dpi=110)


def confusion_matrix(confusion: Confusion, path: Path) -> None:
    """Plot a confusion matrix as a PNG: counts, coloured by their share of the row."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - comes with the extra `train`

    names = [label_name(name, number) for name, number in zip(confusion.names, confusion.ids, strict=True)]
    names.append(BACKGROUND)
    totals = confusion.matrix.sum(1, keepdims=True)
    shares = confusion.matrix / np.maximum(totals, 1)
    side = min(max(4.5, 0.42 * len(names) + 2), MOST_INCHES)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes: Axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # matplotlib draws ASCII. Other names are pictures beside the axes.
    ticks = [name if name.isascii() else "" for name in names]
    if side == MOST_INCHES:
        # They would be written over one another.
        names, ticks = [], [""] * len(names)
    axes.set_xticks(range(len(ticks)), ticks, rotation=90, parse_math=False)
    axes.set_yticks(range(len(ticks)), ticks, parse_math=False)
    for place, name in enumerate(names):
        if not name.isascii():
            picture = picture_of(name, PICTURE_SIZE)
            _put(axes, np.rot90(picture), (place, 0), (0, -7), axes.get_xaxis_transform())
            _put(axes, picture, (0, place), (-7, 0), axes.get_yaxis_transform())
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=f"Counts at score ≥ {confusion.score_threshold:g}, IoU ≥ {IOU_THRESHOLD}",
    )
    # With more categories the numbers would be too small to read.
    if len(ticks) <= 30:
        for row, column in np.argwhere(confusion.matrix).tolist():
            ink = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column,
                row,
                str(confusion.matrix[row, column]),
                ha="center",
                va="center",
                color=ink,
                fontsize=8,
            )
    figure.savefig(path, dpi=110)


def _set_title(axes: Axes, title: str) -> None:
    """Write a line in any script above axes."""
    if title.isascii():
        axes.set_title(title, fontsize=9, parse_math=False)
    else:
        _put(axes, picture_of(title, PICTURE_SIZE), (0.5, 1), (0, 4), axes.transAxes, points=9)


def _put(
    axes: Axes,
    picture: NDArray[np.uint8],
    at: tuple[float, float],
    offset: tuple[float, float],
    coordinates: Transform,
    *,
    points: float = 10,
) -> None:
    """Put a line of text beside axes.

    Args:
        axes: the axes.
        picture: [H, W, 4] of the text, whose letters have PICTURE_SIZE.
        at: x and y of the place.
        offset: of the text's nearest edge from there, points; it is centred in the direction that is 0.
        coordinates: those of `at`.
        points: the size of the letters.
    """
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage  # noqa: PLC0415 - comes with the extra `train`

    across, up = ((1 - np.sign(value)) / 2 for value in offset)
    text = OffsetImage(picture, zoom=points / PICTURE_SIZE, interpolation="hanning", resample=True)
    axes.add_artist(
        AnnotationBbox(
            text, at, offset, xycoords=coordinates, boxcoords="offset points",
            box_alignment=(across, up), frameon=False, pad=0, annotation_clip=False,
        )
    )  # fmt: skip
