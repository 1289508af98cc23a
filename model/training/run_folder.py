"""The run folder: settings, log, TensorBoard events and checkpoint of a training run."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision

from model.training.recipe import Recipe, TrainingError
from model.zoo.partial import lock_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import NoReturn

    from model.zoo import model_file

CHECKPOINT, LOG, SETTINGS, EVENTS = "checkpoint.pt", "log.jsonl", "settings.json", "events"
# Keys that every checkpoint has.
CHECKPOINT_KEYS = {"step", "network", "average", "optimizer"}
# Errors that torch.load raises for truncated, corrupted and unrelated files, by experiment.
LOAD_FAILURES = (RuntimeError, UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError)


def claim(run: Path) -> AbstractContextManager[None]:
    """Create the folder and lock it for the duration of the context.

    Raises TrainingError if it cannot be created, and on entering if another process or thread has locked it.
    """

    def refuse() -> NoReturn:
        raise TrainingError(
            f"{run}: another process is training here; wait until it ends, or choose another folder"
        )

    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{run}: cannot create the run folder: {error.strerror}") from error
    return lock_file(run / "run", refuse)


def record_settings(run: Path, model: model_file.Model, recipe: Recipe, *, write: bool = True) -> None:
    """Write the settings of a run, after checking that they fit the checkpoint in the folder, if there is one.

    Args:
        run: the run folder.
        model: what is trained; its `training` names data and initial weights.
        recipe: the settings of the run.
        write: False only checks.

    Raises TrainingError if the folder holds a run with other settings, or its checkpoint or settings are damaged.
    """
    settings = {
        "architecture": model.architecture.to_dict(),
        "categories": [asdict(category) for category in model.categories],
        "keypoints": None if model.keypoints is None else list(model.keypoints.names),
        "data": model.training.get("data"),
        "labels": model.training.get("labels"),
        "validation": model.training.get("validation"),
        "validation labels": model.training.get("validation_labels"),
        "backgrounds": model.training.get("backgrounds"),
        "initial": model.training.get("initial"),
        "backbone": model.training.get("backbone"),
        "recipe": asdict(recipe),
    }
    settings = json.loads(json.dumps(settings))
    path = run / SETTINGS
    checkpoint = load_checkpoint(run, "cpu", mmap=True)
    if checkpoint is not None:
        remedy = f"delete {run / CHECKPOINT} to start over, or choose another folder"
        try:
            before = json.loads(path.read_text())
            recipe_before = Recipe(**{k: _tuples(v) for k, v in before["recipe"].items()})
            alike = recipe.matches_until(recipe_before, checkpoint["step"])
        except FileNotFoundError:
            raise TrainingError(
                f"{path}: missing, although there is a checkpoint beside it; {remedy}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrainingError(
                f"{path}: damaged, or written by another version ({error!r:.200}); {remedy}"
            ) from error
        changed = []
        if not alike:
            changed = [
                f"{key} {before['recipe'].get(key)} → {value}"
                for key, value in settings["recipe"].items()
                if before["recipe"].get(key, value) != value
            ]
        whole = [key for key in settings if key not in ("recipe", "validation", "validation labels")]
        changed += [f"the {key}" for key in whole if before.get(key, settings[key]) != settings[key]]
        # A validation may be added or left out, but the best score of one says nothing about another.
        for key in ("validation", "validation labels"):
            if None not in (before.get(key), settings[key]) and before[key] != settings[key]:
                changed.append(f"the {key}")
        if changed:
            raise TrainingError(f"{run} holds a run with other settings ({', '.join(changed)}); {remedy}")
    if write:
        _write_json(path, settings)


def record_environment(run: Path, device: str, processes: int) -> None:
    """Append the command, hardware and versions of this start of the run to environment.json.

    Args:
        run: the folder.
        device: what is trained on.
        processes: how many train together.
    """
    path = run / "environment.json"
    entry = {
        "command": sys.argv,
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
    try:
        before = json.loads(path.read_text()) if path.exists() else []
        _write_json(path, [*before, entry])
    except (ValueError, TypeError, RecursionError) as error:
        raise TrainingError(f"{path}: damaged ({error!r:.200}); delete it to continue") from error


def _write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=1))
    part.replace(path)


def _tuples(value: Any) -> Any:
    """Undo JSON's conversion of tuples to lists."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def save_checkpoint(run: Path, document: dict[str, Any]) -> None:
    """Write the checkpoint atomically."""
    part = run / f"{CHECKPOINT}.part"
    torch.save(document, part)
    part.replace(run / CHECKPOINT)


def load_checkpoint(run: Path, device: str, *, mmap: bool = False) -> dict[str, Any] | None:
    """Load the checkpoint, or return None if there is none.

    Args:
        run: the run folder.
        device: where to put the tensors.
        mmap: read each tensor only when it is used.

    Raises TrainingError if the file is damaged.
    """
    path = run / CHECKPOINT
    if not path.exists():
        return None
    try:
        document: dict[str, Any] = torch.load(path, map_location=device, mmap=mmap, weights_only=True)
        if not document.keys() >= CHECKPOINT_KEYS or type(document["step"]) is not int:
            raise TypeError("not a checkpoint of a run")
    except torch.OutOfMemoryError:
        raise
    except LOAD_FAILURES as error:
        raise TrainingError(
            f"{path}: the checkpoint is damaged; delete it or choose another folder"
        ) from error
    return document


class RunLog:
    """The log of a run: one line of JSON per step, and the same for TensorBoard."""

    def __init__(self, run: Path, first: int) -> None:
        """first: the next step. Records of later steps are removed, because those steps will run again."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - comes with the extra `train`

        lines = [line for line in read_log(run / LOG) if line["step"] < first]
        if (run / LOG).exists():
            part = run / f"{LOG}.part"
            part.write_text("".join(json.dumps(line) + "\n" for line in lines))
            part.replace(run / LOG)
        # Line-buffered, so that `tail -f` shows each step at once.
        self._log = (run / LOG).open("a", buffering=1)
        self._events = SummaryWriter(str(run / EVENTS), purge_step=first)

    def step(self, record: Mapping[str, float]) -> None:
        """Log a step's number, learning rate, losses and seconds."""
        self._log.write(
            json.dumps({k: v if k == "step" else float(f"{v:.8g}") for k, v in record.items()}) + "\n"
        )
        for name, value in record.items():
            if name != "step":
                group = "loss" if name.startswith("L") else "run"
                self._events.add_scalar(f"{group}/{name}", value, int(record["step"]))

    def validation(self, step: int, score: float) -> None:
        """Log the score of a validation."""
        self._events.add_scalar("validation/AP", score, step)

    def flush(self) -> None:
        """Write buffered records to the files."""
        self._log.flush()
        self._events.flush()

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self._events.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The records of a run's log.jsonl, without a truncated last line."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
