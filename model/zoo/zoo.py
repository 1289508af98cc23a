"""Model name → network and description: torchvision's COCO models, the bundled one, and files of model_file.py.

No pickle is ever loaded but torchvision's own COCO files, whose hash is checked first and whose reading is
restricted to tensors (`weights_only=True`).
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from model.data import Category
from model.network.architecture import V1, V2
from model.network.build import build
from model.zoo import catalogue as weights
from model.zoo.model_file import Model, ModelError, first_line, read

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

BUNDLED = "shapes"
AUTO = "auto"
COCO = {"maskrcnn_resnet50_fpn": V1, "maskrcnn_resnet50_fpn_v2": V2}
COCO_CATEGORIES = tuple(
    Category(number, name)
    for number, name in enumerate(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
)


def load(name: str, folder: Path) -> tuple[nn.Module, Model]:
    """The network (CPU, float32, evaluation mode) and description of a model.

    name: one of the zoo's names, `auto`, or the path of a model file. folder: where downloaded weights lie. A COCO
    model that is named and not there is fetched; `auto` never reaches for the network.
    Raises ModelError, or model.zoo.download.WeightsError if a fetch fails.
    """
    if name == AUTO:
        chosen = weights.best(folder)
        if chosen is not None:
            return _coco(chosen.name, folder)
        best = weights.catalogue()[0]
        network, model = read(bundled())
        notice = (
            f"This is the small bundled model, which knows ten kinds of drawn shapes and nothing else. "
            f"`maskserve weights fetch {best.name}` gets the COCO model ({len(COCO_CATEGORIES)} categories, "
            f"{best.size / 1e6:.0f} MB)."
        )
        return network, replace(model, notice=notice)
    if name == BUNDLED:
        return read(bundled())
    if name in COCO:
        return _coco(name, folder)
    if name.endswith(".safetensors") or "/" in name or Path(name).exists():
        return read(Path(name).expanduser())
    known = [AUTO, BUNDLED, *COCO]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}, or the path of a file"
    raise ModelError(f"no model is called {name!r}: {hint}")


def bundled() -> Path:
    """The file of the model that comes with maskserve."""
    return weights.bundled_folder() / f"{BUNDLED}.safetensors"


def file_of(name: str) -> Path | None:
    """The file that `name` means to `load`, where it is one that `save` wrote: not for the COCO models."""
    if name in COCO:
        return None
    return bundled() if name == BUNDLED else Path(name).expanduser()


def _coco(name: str, folder: Path) -> tuple[nn.Module, Model]:
    entry = weights.find(name)
    path = weights.fetch(name, folder, tell=log.info)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ModelError(f"{path}: not readable as torchvision's weights ({first_line(error)})") from error
    network = build(COCO[name])
    try:
        # Not _check: the V1 file is older than today's names of its layers, which torchvision translates as it loads.
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{path}: not the weights of {name} ({first_line(error)})") from error
    model = Model(
        name=name,
        architecture=COCO[name],
        categories=COCO_CATEGORIES,
        labels=tuple(category.id for category in COCO_CATEGORIES),
        ap={"box": entry.box_ap / 100, "mask": entry.mask_ap / 100},
        ap_source="published by torchvision, COCO val2017",
        sha256=entry.sha256,
    )
    return network, model
