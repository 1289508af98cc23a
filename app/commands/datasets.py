"""What commands say about their data before hours of work depend on it: what is used, what is left out, or why not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from model.data import DatasetError
from model.data.coco import CocoFolder
from model.data.matching import compare_categories, rename_alike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data import Category, Dataset


def announce_training_data(dataset: Dataset) -> None:
    """Say what will be learned from and what is left out, by reason; of torchrun's processes the first does.

    Raises DatasetError if nothing can be learned.
    """
    if not isinstance(dataset, CocoFolder):
        return
    print_notices(dataset)
    tally = dataset.tally()
    if (refusal := tally.refusal()) is not None:
        raise DatasetError(f"{dataset.path}: {refusal}")
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{dataset.path}: {tally}", err=True)


def check_evaluation_data(
    dataset: Dataset, categories: Sequence[Category], *, loose_names: bool = False
) -> None:
    """Say what the evaluation leaves out, and which categories it cannot compare.

    Args:
        dataset: what to evaluate on; with `loose_names` its categories are renamed to the model's.
        categories: the model's.
        loose_names: take names that differ by capitals, blanks, hyphens or underscores alone for the same.

    Raises DatasetError where no figure would mean anything: no objects, no image that can be read, no shared category.
    """
    if isinstance(dataset, CocoFolder):
        if loose_names:
            dataset.categories = rename_alike(categories, dataset.categories)
        print_notices(dataset)
        tally = dataset.tally(boxes=True)
        if (refusal := tally.refusal("measure")) is not None:
            raise DatasetError(f"{dataset.path}: {refusal}")
        if dataset.problems:
            typer.echo(f"{dataset.path}: left out: {', '.join(tally.problems())}", err=True)
        if without := tally.objects - tally.masks:
            told = (
                "so masks are not measured"
                if not tally.masks
                else "and count as not found where masks are measured"
            )
            typer.echo(
                f"warning: {dataset.path}: {without} of {tally.objects} objects have no outline, {told}",
                err=True,
            )
        _require_readable(dataset)
    found = compare_categories(categories, dataset.categories)
    warning = found.warning()
    if not found.shared:
        raise DatasetError(
            f"the model and the data share no category, so there is nothing to measure: {warning}"
        )
    if warning is not None:
        typer.echo(f"warning: {warning}; objects of these categories count as not found", err=True)


def label_digests(**datasets: Dataset) -> dict[str, str]:
    """Hashes of the labels of labelled folders, by the names given; a run is not resumed with others."""
    return {name: data.digest() for name, data in datasets.items() if isinstance(data, CocoFolder)}


def print_notices(dataset: CocoFolder) -> None:
    """Say what was passed over and does no harm."""
    for notice in dataset.notices:
        typer.echo(notice, err=True)


def _require_readable(dataset: CocoFolder) -> None:
    """Raise DatasetError if no image at all can be decoded, which would end a run after its training."""
    first: DatasetError | None = None
    for index in range(len(dataset)):
        try:
            dataset[index]
        except DatasetError as error:
            first = first or error
        else:
            return
    raise DatasetError(f"{dataset.path}: no image can be read; the first: {first}")
