"""A run's folder: what it was started with, its log and TensorBoard events, its checkpoint."""

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
from model.zoo.partial import locked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import NoReturn

    from model.zoo import model_file

CHECKPOINT, LOG, SETTINGS, EVENTS = "checkpoint.pt", "log.jsonl", "settings.json", "events"
HOLDS = {"step", "network", "average", "optimizer"}  # what a checkpoint has at least
# What torch.load was seen to raise for a checkpoint cut short or with other bytes in it, and what other documents do.
DAMAGE = (RuntimeError, UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError)


def claimed(run: Path) -> AbstractContextManager[None]:
    """Make the folder and hold it while inside.

    Raises TrainingError where it cannot be made, and on entering if another process or thread holds it.
    """

    def refuse() -> NoReturn:
        raise TrainingError(f"{run}: another process trains in it; wait for its end, or name another folder")

    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{run}: cannot be made a run folder: {error.strerror}") from error
    return locked(run / "run", refuse)


def keep_settings(run: Path, model: model_file.Model, recipe: Recipe, *, write: bool = True) -> None:
    """Write what the run was started with, and refuse to resume a run of something else.

    Raises TrainingError for that, and for a folder whose checkpoint or settings are damaged.
    """
    settings = {
        "architecture": model.architecture.to_dict(),
        "categories": [asdict(category) for category in model.categories],
        "data": model.training.get("data"),
        "backgrounds": model.training.get("backgrounds"),
        "initial": model.training.get("initial"),
        "backbone": model.training.get("backbone"),
        "recipe": asdict(recipe),
    }
    settings = json.loads(json.dumps(settings))
    path = run / SETTINGS
    checkpoint = load_checkpoint(run, "cpu", mmap=True)
    if checkpoint is not None:
        otherwise = f"delete {run / CHECKPOINT} to start anew, or name another folder"
        try:
            before = json.loads(path.read_text())
            recipe_before = Recipe(**{k: _tuples(v) for k, v in before["recipe"].items()})
            alike = recipe.begins_like(recipe_before, checkpoint["step"])
        except FileNotFoundError:
            raise TrainingError(
                f"{path}: missing, but there is a checkpoint beside it; {otherwise}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrainingError(
                f"{path}: damaged, or of another version ({error!r:.200}); {otherwise}"
            ) from error
        changed = []
        if not alike:
            changed = [
                f"{key} {before['recipe'].get(key)} → {value}"
                for key, value in settings["recipe"].items()
                if before["recipe"].get(key, value) != value
            ]
        whole = ("architecture", "categories", "data", "backgrounds", "initial", "backbone")
        changed += [f"the {key}" for key in whole if before.get(key, settings[key]) != settings[key]]
        if changed:
            raise TrainingError(
                f"{run} holds a run with other settings ({', '.join(changed)}); name another folder to start anew"
            )
    if write:
        _put(path, settings)


def keep_environment(run: Path, device: str, processes: int) -> None:
    """Write what the run ran on, and with which command, to environment.json; a resumed run adds to it."""
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
        _put(path, [*before, entry])
    except (ValueError, TypeError, RecursionError) as error:
        raise TrainingError(f"{path}: damaged ({error!r:.200}); delete it to go on") from error


def _put(path: Path, document: Any) -> None:
    """Write a JSON file all at once."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=1))
    part.replace(path)


def _tuples(value: Any) -> Any:
    """A value as it was before JSON made lists of its tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def save_checkpoint(run: Path, document: dict[str, Any]) -> None:
    """Put the checkpoint in its place all at once."""
    part = run / f"{CHECKPOINT}.part"
    torch.save(document, part)
    part.replace(run / CHECKPOINT)


def load_checkpoint(run: Path, device: str, *, mmap: bool = False) -> dict[str, Any] | None:
    """The checkpoint, if there is one. mmap: its tensors are read when they are used. Raises TrainingError."""
    path = run / CHECKPOINT
    if not path.exists():
        return None
    try:
        document: dict[str, Any] = torch.load(path, map_location=device, mmap=mmap, weights_only=True)
        if not document.keys() >= HOLDS or type(document["step"]) is not int:
            raise TypeError("no checkpoint of a run")
    except torch.OutOfMemoryError:
        raise
    except DAMAGE as error:
        raise TrainingError(f"{path}: the checkpoint is damaged; delete it or name another folder") from error
    return document


class Journal:
    """The log of a run, a line of JSON a step, and the same for TensorBoard."""

    def __init__(self, run: Path, first: int) -> None:
        """first: the step that comes next; what was logged of later ones is dropped, for they will be run again."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - of the extra `train`

        lines = [line for line in read_log(run / LOG) if line["step"] < first]
        if (run / LOG).exists():
            (run / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._log = (run / LOG).open("a", buffering=1)  # a line at a time, for those who watch
        self._events = SummaryWriter(str(run / EVENTS), purge_step=first)

    def step(self, record: Mapping[str, float]) -> None:
        """One step's number, learning rate, losses and seconds."""
        self._log.write(
            json.dumps({k: v if k == "step" else float(f"{v:.8g}") for k, v in record.items()}) + "\n"
        )
        for name, value in record.items():
            if name != "step":
                group = "loss" if name.startswith("L") else "run"
                self._events.add_scalar(f"{group}/{name}", value, int(record["step"]))

    def validation(self, step: int, score: float) -> None:
        """What the model of a step scored."""
        self._events.add_scalar("validation/AP", score, step)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._log.flush()
        self._events.flush()

    def close(self) -> None:
        """The end."""
        self._log.close()
        self._events.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The records of a run's log.jsonl; a last line that was cut off is passed over."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
