"""Training with the paper's multi-task loss L = L_cls + L_box + L_mask (Mask R-CNN, section 3) and the RPN's two terms.

The result of a run is one safetensors file that the service can serve; a checkpoint beside it resumes exactly.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from model.data.loading import Augmentation, batches
from model.network.build import build
from model.training.parallel import Group
from model.training.recipe import Recipe, TrainingError
from model.training.run_folder import (
    Journal,
    keep_environment,
    keep_settings,
    load_checkpoint,
    read_log,
    save_checkpoint,
)
from model.training.step import TERMS, State, begin, computes_in_half, step
from model.zoo import model_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from model.data import Dataset

__all__ = ["BEST", "LAST", "TERMS", "Recipe", "TrainingError", "read_log", "train"]

log = logging.getLogger(__name__)

LAST, BEST = "model.safetensors", "best.safetensors"


def train(
    dataset: Dataset,
    model: model_file.Model,
    recipe: Recipe,
    run: Path,
    *,
    device: str = "cpu",
    initial: nn.Module | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    judge: Callable[[Path, int], float] | None = None,
    group: Group | None = None,
) -> Path:
    """Train `model`'s architecture on a dataset; return the path of the weights file in `run`.

    That is model.safetensors, the last weights; with a judge and `recipe.validate_every` it is best.safetensors.
    A run folder that holds a checkpoint of the same recipe is resumed: the result is what it would have been
    without the interruption, bit for bit on the CPU. initial: a network to start from instead of random weights.
    on_step gets each step's number and losses. judge: gets the model's file and the number of steps so far, and says
    how good it is. group: the processes that share the work; every one of them calls this, and only the first writes.
    Raises TrainingError, also when the loss is no longer finite.
    """
    recipe.check()
    group = group if group is not None else Group()
    if not len(dataset):
        raise TrainingError("the dataset has no images")
    if unknown := {c.id: c.name for c in dataset.categories if c not in model.categories}:
        raise TrainingError(f"the model does not know the dataset's categories {unknown}")
    run.mkdir(parents=True, exist_ok=True)
    keep_settings(run, model, recipe, write=group.first)
    state = begin(model, recipe, device, initial, group)
    _resume(state, run, device)
    judged = judge is not None and recipe.validate_every > 0
    result = run / (BEST if judged else LAST)
    if state.ended or state.step >= recipe.steps:
        return result
    if group.first:
        keep_environment(run, device, group.world)
    labels = {c.id: label for c, label in zip(model.categories, model.labels, strict=True)}
    jitter = (recipe.jitter[0], recipe.jitter[1]) if recipe.jitter else None
    loader = batches(
        dataset,
        labels,
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        first=state.step,
        seed=recipe.seed,
        workers=recipe.workers,
        changes=Augmentation(recipe.flip, jitter, recipe.jitter_side, recipe.copy_paste),
        share=(group.rank, group.world),
    )
    half = computes_in_half(recipe.precision, device)
    journal = Journal(run, state.step) if group.first else None
    told: set[str] = set()
    try:
        for batch in loader:
            for reason in set(batch.unreadable) - told:
                log.warning("left out: %s", reason)
                told.add(reason)
            started = time.perf_counter()
            losses = step(state, batch, recipe, device, group, half=half)
            record = {"step": batch.step, "lr": recipe.rate(batch.step), **losses}
            record["seconds"] = time.perf_counter() - started
            if journal is not None:
                journal.step(record)
            if on_step is not None:
                on_step(batch.step, losses)
            last = state.step == recipe.steps
            judging = judged and (state.step % recipe.validate_every == 0 or last)
            if journal is not None and (state.step % recipe.checkpoint_every == 0 or last or judging):
                journal.flush()
                save_average(state.network, state.average if recipe.ema else None, model, recipe, run)
                if judging and judge is not None:
                    journal.validation(batch.step, _judge(state, judge, recipe, run))
                # The checkpoint last: a run that has one has what was made of it, whenever it is interrupted.
                _checkpoint(state, run)
            if judging and group.agreed(value=state.ended):
                break
    finally:
        if journal is not None:
            journal.close()
    return result


def _judge(state: State, judge: Callable[[Path, int], float], recipe: Recipe, run: Path) -> float:
    """Have the model of this step judged, keep it if it is the best so far, and say how good it is."""
    score = judge(run / LAST, state.step)
    if score > state.best or not (run / BEST).exists():
        state.best, state.since = score, 0
        part = run / f"{BEST}.part"
        shutil.copyfile(run / LAST, part)
        part.replace(run / BEST)
    else:
        state.since += 1
    state.ended = 0 < recipe.patience <= state.since
    return score


def _checkpoint(state: State, run: Path) -> None:
    document = {
        "step": state.step,
        "network": state.network.state_dict(),
        "average": state.average,
        "optimizer": state.optimizer.state_dict(),
        "validation": {"best": state.best, "since": state.since, "ended": state.ended},
    }
    save_checkpoint(run, document)


def _resume(state: State, run: Path, device: str) -> None:
    document = load_checkpoint(run, device)
    if document is None:
        return
    state.network.load_state_dict(document["network"])
    state.optimizer.load_state_dict(document["optimizer"])
    state.average = document["average"]
    state.step = int(document["step"])
    if (known := document.get("validation")) is not None:  # checkpoints of before have none
        state.best, state.since, state.ended = known["best"], known["since"], known["ended"]


def save_average(
    network: nn.Module, average: dict[str, Tensor] | None, model: model_file.Model, recipe: Recipe, run: Path
) -> None:
    """Write the averaged weights (or the network's own) as `run`/model.safetensors."""
    saved = build(model.architecture)
    saved.load_state_dict(average if average is not None else network.state_dict())
    training = {**model.training, "recipe": json.loads(json.dumps(asdict(recipe)))}
    model_file.save(run / LAST, saved, replace(model, training=training), half=True)
