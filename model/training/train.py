"""Training with the paper's multi-task loss L = L_cls + L_box + L_mask (Mask R-CNN, section 3) and the RPN's two terms.

A run writes one safetensors file, which the service can serve. A checkpoint beside it resumes the run exactly.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from model.data.loading import batches
from model.network.build import build_uninitialized
from model.training.interruption import InterruptedRunError, Interruption
from model.training.parallel import Group
from model.training.recipe import Recipe, TrainingError
from model.training.resizing import InputSize
from model.training.run_folder import (
    RunLog,
    load_checkpoint,
    read_log,
    record_environment,
    record_settings,
    save_checkpoint,
)
from model.training.step import TERMS, TrainingState, start, step, uses_bfloat16
from model.zoo import model_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

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
    validate: Callable[[Path, int], float] | None = None,
    group: Group | None = None,
    interruption: Interruption | None = None,
) -> Path:
    """Train a model's architecture on a dataset; return the path of the weights file in the run folder.

    The file is model.safetensors, the last weights. With `validate` and `recipe.validate_every` it is
    best.safetensors. If the folder holds a checkpoint of the same recipe, the run is resumed, and the result is that
    of an uninterrupted run: on the CPU, bit for bit.

    Args:
        dataset: what to train on.
        model: the architecture and the categories, which include those of the dataset.
        recipe: the settings of the run.
        run: the run folder, created if necessary.
        device: where to train, such as "cpu" or "cuda:0".
        initial: a network whose weights to start from; None starts from random weights.
        on_step: is called with each step's number and losses.
        validate: is called with a weights file and the number of steps so far, and returns a score; higher is better.
        group: the processes that train together. Each of them calls this function; only the first writes files.
        interruption: what signals do to the run; by default nothing. Its `step` is kept up to date.

    Raises TrainingError, also if the loss or the gradient is not finite, and InterruptedRunError, after saving a
    checkpoint.
    """
    recipe.check()
    group = group if group is not None else Group()
    interruption = interruption if interruption is not None else Interruption()
    if not len(dataset):
        raise TrainingError("the dataset has no images")
    if unknown := {c.id: c.name for c in dataset.categories if c not in model.categories}:
        raise TrainingError(f"the model lacks categories of the dataset: {unknown}")
    run.mkdir(parents=True, exist_ok=True)
    record_settings(run, model, recipe, write=group.first)
    state = start(model, recipe, device, initial, group)
    if _resume(state, run, device):
        interruption.step = state.step
    validates = validate is not None and recipe.validate_every > 0
    result = run / (BEST if validates else LAST)
    if state.stopped or state.step >= recipe.steps:
        if group.first:
            log.warning(
                "%s: nothing is trained, the run is over after %d steps; give more --steps, or another --out",
                run, state.step,
            )  # fmt: skip
        # A run that was not validated has no best model.
        return result if result.exists() else run / LAST
    if group.first:
        record_environment(run, device, group.world)
    labels = {c.id: label for c, label in zip(model.categories, model.labels, strict=True)}
    loader = batches(
        dataset,
        labels,
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        first=state.step,
        seed=recipe.seed,
        workers=recipe.workers,
        changes=recipe.augmentation(),
        share=(group.rank, group.world),
        input_size=InputSize(recipe, model.architecture),
    )
    autocast = uses_bfloat16(recipe.precision, device)
    run_log = RunLog(run, state.step) if group.first else None
    reported: set[str] = set()
    try:
        for batch in loader:
            with interruption.postpone():
                for reason in set(batch.unreadable) - reported:
                    log.warning("skipped: %s", reason)
                    reported.add(reason)
                started = time.perf_counter()
                losses = step(state, batch, recipe, device, group, autocast=autocast)
                record = {"step": batch.step, "lr": recipe.rate(batch.step), **losses}
                record["seconds"] = time.perf_counter() - started
                if run_log is not None:
                    run_log.step(record)
                if on_step is not None:
                    on_step(batch.step, losses)
                last = state.step == recipe.steps
                validate_now = validates and (state.step % recipe.validate_every == 0 or last)
                if run_log is not None and (
                    state.step % recipe.checkpoint_every == 0 or last or validate_now
                ):
                    run_log.flush()
                    save_model(state, model, recipe, run)
                    if validate_now and validate is not None:
                        run_log.validation(batch.step, _validate(state, validate, recipe, run))
                    # The checkpoint last, so that whenever the run is interrupted, the files of its checkpoint exist.
                    _save_checkpoint(state, run)
                    interruption.step = state.step
                if validate_now and group.broadcast(value=state.stopped):
                    break
    except InterruptedRunError:
        if state.step != (interruption.step or 0):
            save_model(state, model, recipe, run)
            _save_checkpoint(state, run)
            interruption.step = state.step
        raise
    finally:
        if run_log is not None:
            run_log.close()
    return result


def _validate(
    state: TrainingState, validate: Callable[[Path, int], float], recipe: Recipe, run: Path
) -> float:
    """Validate the weights file of this step, copy it if it is the best so far, and return its score."""
    score = validate(run / LAST, state.step)
    better = score > state.best
    state.validations_since_best = 0 if better else state.validations_since_best + 1
    # Of models with the same score, above all 0, the later one: the first is hardly trained.
    if score >= state.best or not (run / BEST).exists():
        state.best = max(state.best, score)
        part = run / f"{BEST}.part"
        shutil.copyfile(run / LAST, part)
        part.replace(run / BEST)
    state.stopped = 0 < recipe.patience <= state.validations_since_best
    return score


def _save_checkpoint(state: TrainingState, run: Path) -> None:
    document = {
        "step": state.step,
        "network": state.network.state_dict(),
        "average": None if state.average is None else state.average.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "validation": {"best": state.best, "since": state.validations_since_best, "ended": state.stopped},
    }
    save_checkpoint(run, document)


def _resume(state: TrainingState, run: Path, device: str) -> bool:
    """Continue from the checkpoint in the run folder; return whether there is one."""
    document = load_checkpoint(run, device)
    if document is None:
        return False
    state.network.load_state_dict(document["network"])
    state.optimizer.load_state_dict(document["optimizer"])
    state.step = int(document["step"])
    if state.average is not None:
        state.average.module.load_state_dict(document["average"])
        # There is one update per step.
        state.average.n_averaged.fill_(state.step)
    # Checkpoints of early versions have no "validation".
    if (known := document.get("validation")) is not None:
        state.best, state.validations_since_best = known["best"], known["since"]
        state.stopped = known["ended"]
    return True


def save_model(state: TrainingState, model: model_file.Model, recipe: Recipe, run: Path) -> None:
    """Write the averaged weights, or without averaging the network's own, as model.safetensors in the run folder.

    Args:
        state: of the training.
        model: what is known of the model.
        recipe: noted in the file.
        run: the folder.
    """
    saved = build_uninitialized(model.architecture)
    network = state.network if state.average is None else state.average.module
    saved.load_state_dict(network.state_dict())
    training = {**model.training, "recipe": json.loads(json.dumps(asdict(recipe)))}
    model_file.save(run / LAST, saved, replace(model, training=training), half=True)
