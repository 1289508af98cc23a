"""Model name → network and description: torchvision's COCO models, the bundled ones, and files of model_file.py.

No pickle is ever loaded but torchvision's own COCO files, whose hash is checked first and whose reading is
restricted to tensors (`weights_only=True`).
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch

from model.data.person import PERSON_KEYPOINTS
from model.messages import did_you_mean, first_line
from model.network.architecture import KEYPOINTS, V1, V2
from model.network.skeleton import skeleton
from model.zoo import catalogue as weights
from model.zoo.coco import COCO_CATEGORIES
from model.zoo.model_file import Model, ModelError, read

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.network.architecture import Architecture

log = logging.getLogger(__name__)

AUTO = "auto"
COCO = {"maskrcnn_resnet50_fpn": V1, "maskrcnn_resnet50_fpn_v2": V2, "keypointrcnn_resnet50_fpn": KEYPOINTS}


def load(name: str, folder: Path, *, runnable: bool = True) -> tuple[nn.Module, Model]:
    """The network (CPU, float32, evaluation mode) and description of a model.

    A COCO model that is named and not there is fetched; `auto` never reaches for the network.

    Args:
        name: one of the zoo's names, `auto`, or the path of a model file.
        folder: where downloaded weights lie.
        runnable: as for model.zoo.model_file.read.

    Raises ModelError, or model.zoo.errors.WeightsError if a fetch fails.
    """
    if name == AUTO:
        chosen = weights.best(folder)
        if chosen is not None:
            return _coco(chosen.name, folder, runnable=runnable)
        best, bundled = weights.catalogue()[0], next(iter(weights.bundled().values()))
        network, model = _open(bundled_path(bundled.name), runnable=runnable)
        notice = (
            f"This is a small bundled model, which finds {bundled.finds} and nothing else. "
            f"`maskserve weights fetch {best.name}` gets the COCO model ({len(COCO_CATEGORIES)} categories, "
            f"{best.size / 1e6:.0f} MB)."
        )
        return network, replace(model, notice=notice)
    if name in weights.bundled():
        return _open(bundled_path(name), runnable=runnable)
    if name in COCO:
        return _coco(name, folder, runnable=runnable)
    if name.endswith(".safetensors") or "/" in name or Path(name).exists():
        return _open(Path(name).expanduser(), runnable=runnable)
    known = [AUTO, *weights.bundled(), *COCO]
    hint = did_you_mean(name, known) or f"there are {', '.join(known)}, or the path of a file"
    raise ModelError(f"no model is called {name!r}: {hint}")


def _open(path: Path, *, runnable: bool) -> tuple[nn.Module, Model]:
    """A model file, with what the catalogue knows beyond it if it is a bundled one."""
    network, model = read(path, runnable=runnable)
    extents = {entry.sha256: entry.object_extent for entry in weights.bundled().values()}
    return network, replace(model, object_extent=model.object_extent or extents.get(model.sha256, 0.0))


def bundled_path(name: str) -> Path:
    """The file of a model that comes with maskserve."""
    return weights.bundled()[name].path


def file_of(name: str) -> Path | None:
    """The file that `name` means to `load`, where it is one that `save` wrote: not for the COCO models."""
    if name in COCO:
        return None
    return bundled_path(name) if name in weights.bundled() else Path(name).expanduser()


def _coco(name: str, folder: Path, *, runnable: bool) -> tuple[nn.Module, Model]:
    entry = weights.find(name)
    path = weights.fetch(name, folder, tell=log.info)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ModelError(f"{path}: not readable as torchvision's weights ({first_line(error)})") from error
    try:
        network = _runnable(COCO[name], tensors) if runnable else _skeleton(COCO[name], tensors)
    except RuntimeError as error:
        raise ModelError(f"{path}: not the weights of {name} ({first_line(error)})") from error
    # The model of keypoints knows people alone.
    categories = COCO_CATEGORIES[:1] if entry.keypoint_ap is not None else COCO_CATEGORIES
    published = {"box": entry.box_ap, "mask": entry.mask_ap, "keypoints": entry.keypoint_ap}
    model = Model(
        name=name,
        architecture=COCO[name],
        categories=categories,
        labels=tuple(category.id for category in categories),
        ap={kind: ap / 100 for kind, ap in published.items() if ap is not None},
        ap_source="published by torchvision, COCO val2017",
        sha256=entry.sha256,
        keypoints=PERSON_KEYPOINTS if entry.keypoint_ap is not None else None,
    )
    return network, model


def _runnable(architecture: Architecture, tensors: dict[str, Tensor]) -> nn.Module:
    """Torchvision's module with the tensors of its file. Raises RuntimeError if they are another network's."""
    from model.network.build import build_uninitialized  # noqa: PLC0415 - imports torchvision

    network = build_uninitialized(architecture)
    network.load_state_dict(tensors)
    return network


def _skeleton(architecture: Architecture, tensors: dict[str, Tensor]) -> nn.Module:
    """The same as modules that only hold weights."""
    network = skeleton(architecture)
    own = network.state_dict()
    current = {_current_name(name): tensor for name, tensor in tensors.items()}
    if not any(name.endswith("num_batches_tracked") for name in own):
        current = {name: t for name, t in current.items() if not name.endswith("num_batches_tracked")}
    network.load_state_dict(current, strict=True, assign=True)
    return network


def _current_name(name: str) -> str:
    """A tensor's name today: torchvision's V1 file is older than its names of some layers."""
    name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    name = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
    return re.sub(
        r"^(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)$",
        lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}",
        name,
    )
