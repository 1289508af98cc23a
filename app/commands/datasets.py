"""What commands say about their data before hours of work depend on it: what is used, what is left out, or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.data import DatasetError
from model.data.coco import CocoFolder
from model.data.matching import compare_categories, rename_alike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data import Category, Dataset, Keypoints
    from model.training.recipe import Recipe


def describe_training_data(dataset: Dataset) -> list[str]:
    """What to say before the first step: what is learned from, and what is left out, by reason.

    Raises DatasetError if nothing can be learned.
    """
    if not isinstance(dataset, CocoFolder):
        return []
    tally = dataset.tally()
    if (refusal := tally.refusal()) is not None:
        raise DatasetError(f"{dataset.path}: {refusal}")
    return [*dataset.notices, f"{dataset.path}: {tally}"]


def describe_mirroring(keypoints: Keypoints | None, recipe: Recipe) -> list[str]:
    """What to say where images are mirrored and no keypoint becomes another: names may say sides otherwise.

    Args:
        keypoints: of the model; None where it has none.
        recipe: how often images are mirrored.
    """
    flips = ["--flip 0"] * (recipe.flip > 0) + ["--flip-vertical 0"] * (recipe.flip_vertical > 0)
    if keypoints is None or not flips or len(keypoints.names) == 1:
        return []
    if keypoints.flip_indices() != tuple(range(len(keypoints.names))):
        return []
    told = (
        "no two keypoints are named as the left and the right one, so mirrored images keep them as they are"
    )
    return [f"{told}: {' '.join(flips)} if some are of one side"]


def check_evaluation_data(
    dataset: Dataset, categories: Sequence[Category], *, loose_names: bool = False
) -> list[str]:
    """What to say before an evaluation: what it leaves out, and which categories it cannot compare.

    Args:
        dataset: what to evaluate on; with `loose_names` its categories are renamed to the model's.
        categories: the model's.
        loose_names: take names that differ by capitals, blanks, hyphens or underscores alone for the same.

    Raises DatasetError where no figure would mean anything: no objects, no image that can be read, no shared category.
    """
    lines: list[str] = []
    if isinstance(dataset, CocoFolder):
        if loose_names:
            dataset.categories = rename_alike(categories, dataset.categories)
        lines += _check_folder(dataset)
    found = compare_categories(categories, dataset.categories)
    warning = found.warning()
    if not found.shared:
        raise DatasetError(
            f"the model and the data share no category, so there is nothing to measure: {warning}"
        )
    if warning is not None:
        lines.append(f"warning: {warning}; objects of these categories count as not found")
    return lines


def _check_folder(dataset: CocoFolder) -> list[str]:
    tally = dataset.tally(boxes=True)
    if (refusal := tally.refusal("measure")) is not None:
        raise DatasetError(f"{dataset.path}: {refusal}")
    _require_readable(dataset)
    lines = list(dataset.notices)
    if dataset.problems:
        lines.append(f"{dataset.path}: left out: {', '.join(tally.problems())}")
    if without := tally.objects - tally.masks:
        told = (
            "and count as not found where masks are measured" if tally.masks else "so masks are not measured"
        )
        lines.append(f"warning: {dataset.path}: {without} of {tally.objects} objects have no outline, {told}")
    return lines


def label_digests(**datasets: Dataset) -> dict[str, str]:
    """Hashes of the labels of labelled folders, by the names given; a run is not resumed with others."""
    return {name: data.digest() for name, data in datasets.items() if isinstance(data, CocoFolder)}


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
