"""Initial weights other than random ones: a backbone from ImageNet, or a detector with other categories or channels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from model.messages import first_line
from model.network.architecture import ArchitectureError
from model.network.build import build
from model.zoo.catalogue import verify
from model.zoo.download import download
from model.zoo.errors import DamagedWeightsError
from model.zoo.model_file import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.data import Category
    from model.network.architecture import Architecture
    from model.zoo.download import Tell
    from model.zoo.model_file import Model

IMAGENET = "imagenet"
# torchvision's file names contain a hash: resnet50-0676ba61.pth.
_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")

# Layers with rows for each class → how many rows.
_ROWS_PER_CLASS = {
    "roi_heads.box_predictor.cls_score": 1,
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}


def load_backbone(
    network: nn.Module,
    architecture: Architecture,
    source: str,
    folder: Path,
    *,
    tell: Tell = lambda _line: None,
) -> str:
    """Load a classifier's weights into the backbone of a detector; return the path of their file.

    Args:
        network: the detector, changed in place.
        architecture: its architecture.
        source: "imagenet" for torchvision's weights, or the path of a classifier's state dict: a safetensors file, or
            a .pth whose name contains its hash, as torchvision's do. Other pickles are never read.
        folder: where torchvision's weights are, or are downloaded to.
        tell: is called with lines about the download.

    Raises ModelError if the weights do not fit, or model.zoo.errors.WeightsError.
    """
    path = _imagenet(architecture, folder, tell) if source == IMAGENET else Path(source).expanduser()
    tensors = _backbone_tensors(path)
    detector: Any = network
    parts = {"": detector.backbone.body}
    if not architecture.pyramid:
        parts["layer4."] = detector.roi_heads.box_head.res5
    for prefix, module in parts.items():
        own = module.state_dict()
        missing = [n for n in own if prefix + n not in tensors and not n.endswith("num_batches_tracked")]
        wrong = [n for n in own if prefix + n in tensors and own[n].shape != tensors[prefix + n].shape]
        if missing or wrong:
            raise ModelError(
                f"{path}: not the weights of a {architecture.backbone}: {len(missing)} tensors are missing and "
                f"{len(wrong)} have another shape; the first is {prefix}{(missing or wrong)[0]}"
            )
        module.load_state_dict({n: tensors[prefix + n] for n in own if prefix + n in tensors}, strict=False)
    return str(path)


def _imagenet(architecture: Architecture, folder: Path, tell: Tell) -> Path:
    name = architecture.backbone
    if name == "vgg16" and architecture.norm == "batch":
        name = "vgg16_bn"
    url = str(torchvision.models.get_model_weights(name).IMAGENET1K_V1.url)
    file = url.rpartition("/")[2]
    hashed = _HASH.search(file)
    if hashed is None:
        raise ModelError(f"{url}: the file name has no hash to verify the file with")
    download(url, folder / file, hashed[1], tell=tell)
    return folder / file


def _backbone_tensors(path: Path) -> dict[str, Tensor]:
    """A classifier's tensors by torchvision's names, without the prefix "features."."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        if path.suffix == ".pth":
            hashed = _HASH.search(path.name)
            if hashed is None:
                raise ModelError(
                    f"{path}: a .pth file is a pickle, which is only read if its name has its hash, like torchvision's "
                    "resnet50-0676ba61.pth; convert it to safetensors"
                )
            verify(path, hashed[1])
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            tensors = load_file(path)
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError, OSError, DamagedWeightsError) as error:
        raise ModelError(f"{path}: cannot be read as weights of a backbone ({first_line(error)})") from error
    return {str(n).removeprefix("features."): t for n, t in tensors.items() if hasattr(t, "shape")}


def transfer(
    network: nn.Module, model: Model, categories: Sequence[Category]
) -> tuple[nn.Module, Architecture, list[str]]:
    """Copy a detector for other categories; return the copy, its architecture and the names that both have.

    Categories that the model has by the same name keep their weights, as do background and all layers that classes
    share. The weights of new categories are random.

    Args:
        network: the detector.
        model: its description, with categories and labels.
        categories: those of the copy.
    """
    architecture = replace(model.architecture, classes=len(categories) + 1)
    copy = build(architecture)
    known = {c.name: label for c, label in zip(model.categories, model.labels, strict=True)}
    # New label → old label; 0 is background.
    sources = {0: 0} | {n: known[c.name] for n, c in enumerate(categories, start=1) if c.name in known}
    old, state = network.state_dict(), copy.state_dict()
    for name, tensor in state.items():
        rows = _ROWS_PER_CLASS.get(name.rpartition(".")[0])
        # A class-agnostic mask layer has the rows of a single class.
        if rows is None or tensor.shape[0] == rows:
            state[name] = old[name]
            continue
        for new, label in sources.items():
            tensor[new * rows : (new + 1) * rows] = old[name][label * rows : (label + 1) * rows]
    copy.load_state_dict(state)
    return copy, architecture, [c.name for c in categories if c.name in known]


def exchange_keypoints(network: nn.Module, architecture: Architecture) -> nn.Module:
    """Copy a detector into one that differs in its keypoint branch alone, which starts from random weights.

    Args:
        network: the detector, with another branch or without.
        architecture: of the copy.
    """
    copy = build(architecture)
    shared = {name: tensor for name, tensor in network.state_dict().items() if "keypoint" not in name}
    copy.load_state_dict({**copy.state_dict(), **shared})
    return copy


def widen(network: nn.Module, architecture: Architecture, channels: int) -> tuple[nn.Module, Architecture]:
    """Copy a detector with more channels in FPN and heads, computing the same; return copy and architecture.

    The new channels have random weights, and the weights that read them are 0. (Chen, Goodfellow and Shlens,
    "Net2Net", 2016, duplicate channels instead.)

    Args:
        network: the detector.
        architecture: its architecture, which must have an FPN.
        channels: of FPN and heads in the copy, at least as many as now.

    Raises ArchitectureError.
    """
    least = max(architecture.fpn_channels, architecture.mask_channels)
    if not architecture.pyramid or channels < least:
        raise ArchitectureError(
            f"only a network with an FPN can be widened, and only to its own {least} channels or more, not {channels}"
        )
    if architecture.head_norm == "group":
        raise ArchitectureError(
            "a network with GroupNorm cannot be widened: its norms would be taken over other groups of channels"
        )
    wide = replace(architecture, fpn_channels=channels, mask_channels=channels)
    copy = build(wide)
    transposed = {f"{name}.weight" for name, m in copy.named_modules() if isinstance(m, nn.ConvTranspose2d)}
    old, state = network.state_dict(), copy.state_dict()
    for name, tensor in state.items():
        if tensor.shape == old[name].shape:
            tensor.copy_(old[name])
            continue
        # A bias or a norm.
        if tensor.dim() == 1:
            tensor[: len(old[name])] = old[name]
            continue
        # Inputs of a fully connected layer are channels × bins, so that the old ones come first there too.
        new, before = (t.transpose(0, 1) if name in transposed else t for t in (tensor, old[name]))
        outputs, inputs = before.shape[:2]  # [outputs, inputs, …]
        new[:outputs, inputs:] = 0
        new[:outputs, :inputs] = before
    copy.load_state_dict(state)
    return copy, wide
