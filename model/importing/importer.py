"""A file of another framework → a model of ours. The way in; each framework's own file knows its names."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from model.importing import detectron2, mmdetection, torchvision
from model.importing.changes import apply
from model.importing.checkpoint import DETECTRON2, MMDETECTION, open_checkpoint
from model.importing.detectron2_config import read_config
from model.importing.reading import ReadingError
from model.importing.result import Imported, ImportingError, Report
from model.network.architecture import ArchitectureError
from model.network.skeleton import skeleton
from model.zoo.model_file import Model, ModelError, check_tensors, fill, find_fault
from model.zoo.partial import digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from model.data import Category
    from model.importing.checkpoint import Checkpoint


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model that is ready for an Engine, and what is to be said about it."""

    # A skeleton that holds the weights.
    network: nn.Module
    model: Model
    report: Report


def import_model(
    path: Path,
    *,
    config: Path | None = None,
    categories: tuple[Category, ...] | None = None,
    changes: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> ImportedModel:
    """Read a checkpoint of torchvision, Detectron2 or MMDetection.

    Args:
        path: of the checkpoint.
        config: of Detectron2's YAML, or of an MMDetection configuration; found by itself where it lies beside.
        categories: in the order of the network's classes, where the file does not hold them or is wrong.
        changes: to the architecture, as model.importing.changes reads them.
        name: of the model; by default the file's.

    Raises ImportingError, whose message begins with the path.
    """
    try:
        checkpoint = open_checkpoint(path)
        imported = _convert(path, checkpoint, config, categories)
        return _load(path, _apply_changes(imported, changes or {}), name or path.stem)
    except ReadingError as error:
        raise ImportingError(str(error)) from None
    except ImportingError as error:
        raise ImportingError(f"{path}: {error}") from None


def load_checkpoint(path: Path) -> tuple[nn.Module, Model]:
    """A checkpoint about which nothing has to be asked, for an Engine at once. Raises ModelError."""
    try:
        imported = import_model(path)
    except ImportingError as error:
        raise ModelError(f"{error} (see `maskserve import --help`)") from None
    for line in imported.report.lines():
        log.info("%s: %s", path, line)
    assumed = " ".join(f"Assumed: {line}." for line in imported.report.assumed)
    return imported.network, replace(imported.model, notice=f"Imported as it was loaded. {assumed}")


def _apply_changes(imported: Imported, changes: Mapping[str, Any]) -> Imported:
    """The same with what was told. Raises ImportingError for what has to be told and was not."""
    missing = [question for field, question in imported.report.needed.items() if field not in changes]
    if missing:
        raise ImportingError(f"to be told: {'; '.join(missing)}")
    imported.report.taken.extend(f"{field} = {value}, as told" for field, value in changes.items())
    return replace(imported, architecture=apply(imported.architecture, changes))


def _convert(
    path: Path, checkpoint: Checkpoint, config: Path | None, categories: tuple[Category, ...] | None
) -> Imported:
    if checkpoint.framework == DETECTRON2:
        beside = path.with_name("config.yaml")
        if config is None and not beside.is_file():
            raise ImportingError(
                "a checkpoint of Detectron2, whose configuration decides what the weights mean: --config config.yaml "
                "(Detectron2's trainers write it beside the checkpoints, and `cfg.dump()` gives it)"
            )
        imported = detectron2.convert(checkpoint, read_config(config or beside), categories)
        imported.report.taken.insert(0, f"settings from {config or beside}")
        return imported
    if checkpoint.framework == MMDETECTION:
        return mmdetection.convert(checkpoint, config, categories)
    if config is not None:
        raise ImportingError("a checkpoint of torchvision, which has no configuration: leave --config out")
    return torchvision.convert(checkpoint, categories)


def _load(path: Path, imported: Imported, name: str) -> ImportedModel:
    model = Model(
        name=name,
        architecture=imported.architecture,
        categories=imported.categories,
        labels=imported.labels,
        origin=imported.framework,
        sha256=digest(path),
        keypoints=imported.keypoints,
    )
    try:
        if (wrong := find_fault(model)) is not None:
            raise ImportingError(wrong)
        network = skeleton(imported.architecture)
        check_tensors(imported.tensors, network.state_dict(), "converted to ours")
    except (ModelError, ArchitectureError, ValueError) as error:
        raise ImportingError(str(error)) from None
    return ImportedModel(fill(network, imported.tensors), model, imported.report)
