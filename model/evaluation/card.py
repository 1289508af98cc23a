"""The model card, as Markdown: architecture, categories, data, training and figures of a model."""

from __future__ import annotations

import platform
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import torchvision

from model.network.build import build_uninitialized, parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.evaluation.coco import Evaluation
    from model.evaluation.matching import MatchingScores
    from model.network.architecture import Architecture
    from model.zoo.model_file import Model

# Columns of the table by category.
CATEGORY_COLUMNS = ("AP", "AP50")
# IoU thresholds of the table of matching.
MATCHING_COLUMNS = (0.5, 0.6, 0.7, 0.8, 0.9)

# Fields of a recipe that are probabilities or strengths of augmentation.
CHANGES = (
    "flip", "flip_vertical", "rotate", "gamma", "brightness", "contrast", "saturation", "stain", "grey", "invert",
    "copy_paste",
)  # fmt: skip


def hardware(device: str = "cpu") -> str:
    """The GPU, or the processor and its number of threads, as text."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        # Not Linux.
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{torch.get_num_threads()} cores of {names[0] if names else platform.processor() or platform.machine()}"


def versions() -> str:
    """The versions of the libraries that figures depend on."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"


def card(
    model: Model,
    evaluation: Evaluation | None,
    log: Sequence[dict[str, float]],
    *,
    command: str,
    data: str,
    measured_on: str,
    pictures: Sequence[tuple[str, str]] = (),
) -> str:
    """The text of the card of a model that `maskserve train` made.

    Args:
        model: the description of the model.
        evaluation: its figures, if it was evaluated.
        log: the records of the run.
        command: the command line of the run.
        data: what the model was trained on.
        measured_on: what the model was evaluated on.
        pictures: captions and file names, relative to the card.
    """
    a = model.architecture
    recipe = model.training.get("recipe", {})
    hours = sum(record.get("seconds", 0.0) for record in log) / 3600
    names = ", ".join(category.name for category in model.categories)
    size = parameters(build_uninitialized(a)) / 1e6
    schedule = f"{recipe.get('schedule')} schedule after {recipe.get('warmup')} steps of warm-up"
    lines = [
        f"# {model.name}",
        "",
        f"{_network(a)} ({size:.1f} million parameters)",
        f"for {len(model.categories)} categories: {names}.",
        "",
        "## Training",
        "",
        f"- Data: {data}",
        f"- Command: `{command}`",
        f"- Recipe: {recipe.get('steps')} steps of {recipe.get('batch_size')} images, {recipe.get('optimizer')},",
        f"  learning rate {recipe.get('learning_rate')} ({schedule}), averaged weights (decay {recipe.get('ema')}).",
        f"- Augmentation: {_augmentation(recipe)}.",
        f"- Hardware: {model.training.get('hardware', 'not recorded')}; {hours:.1f} hours of training steps.",
        f"- Software: {model.training.get('versions', 'not recorded')}.",
        "",
    ]
    if evaluation is not None:
        counted = f", {evaluation.detections} detections an image" * (evaluation.detections > 100)
        lines += ["## Figures", "", f"Measured on {measured_on} with pycocotools{counted}.", ""]
        lines += [*_figures(evaluation), "", *_categories(evaluation), ""]
        if evaluation.matching is not None:
            lines += [*_matching(evaluation.matching), ""]
    for caption, name in pictures:
        lines += [f"![{caption}]({name})", "", f"*{caption}*", ""]
    return "\n".join(lines)


def _network(a: Architecture) -> str:
    """The architecture, as text."""
    kind = "A Mask R-CNN" if a.mask_convs else "A Faster R-CNN, without masks,"
    if a.keypoints:
        kind = f"A {'Mask and ' * (a.mask_convs > 0)}Keypoint R-CNN of {a.keypoints} keypoints"
    body = f"{a.backbone} with a {a.fpn_channels}-channel FPN" if a.pyramid else f"{a.backbone}-C4"
    parts = [body] + ["RoIPool"] * (a.pooling == "pool")
    parts += [f"{a.masks} masks"] * (a.masks != "sigmoid" and a.mask_convs > 0)
    return f"{kind} on a {', '.join(parts)}"


def _augmentation(recipe: dict[str, Any]) -> str:
    """What a recipe changes in images, by the options' names, as text."""
    parts = [f"{name.replace('_', ' ')} {recipe[name]:g}" for name in CHANGES if recipe.get(name)]
    if recipe.get("jitter"):
        least, most = recipe["jitter"]
        parts.append(f"scales of {least:g} to {most:g} on a canvas of {recipe['jitter_side']} pixels a side")
    return ", ".join(parts) or "none"


def _figures(evaluation: Evaluation) -> list[str]:
    kinds = evaluation.by_kind()
    # Keypoints have other figures of recall than boxes and masks.
    names = list(dict.fromkeys(name for scores in kinds.values() for name in scores.figures))
    rows = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for kind, scores in kinds.items():
        cells = [_number(scores.figures.get(name, -1.0)) for name in names]
        rows.append(f"| {kind} | " + " | ".join(cells) + " |")
    return rows


def _categories(evaluation: Evaluation) -> list[str]:
    kinds = evaluation.by_kind()
    rows = [
        "| category | " + " | ".join(f"{kind} {name}" for kind in kinds for name in CATEGORY_COLUMNS) + " |",
        "|---" * (1 + len(CATEGORY_COLUMNS) * len(kinds)) + "|",
    ]
    for name in evaluation.box.per_category:
        cells = [_number(s.per_category[name][figure]) for s in kinds.values() for figure in CATEGORY_COLUMNS]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def _matching(scores: MatchingScores) -> list[str]:
    """The figures of matching at some IoU thresholds, and their means over all of them."""
    columns = [(f"IoU {t:g}", n) for n, t in enumerate(scores.iou_thresholds) if t in MATCHING_COLUMNS]
    headings = [name for name, _ in columns] + ["mean of IoU 0.5 to 0.95"]
    rows = [
        f"| masks matched at a score of {scores.score_threshold:g} | " + " | ".join(headings) + " |",
        "|---" * (1 + len(headings)) + "|",
    ]
    for name, values in (
        ("TP/(TP+FP+FN), mean over images", scores.by_image["ap"]),
        ("TP/(TP+FP+FN), pooled", scores.pooled["ap"]),
        ("panoptic quality, pooled", scores.pooled["panoptic_quality"]),
    ):
        cells = [_number(values[n]) for _, n in columns] + [_number(fmean(values))]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def _number(value: float) -> str:
    return "–" if value < 0 else f"{value:.3f}"
