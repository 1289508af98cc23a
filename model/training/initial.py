"""What a network starts from instead of random weights: a backbone from ImageNet, or a detector with other categories
or fewer channels.
"""

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
from model.zoo.download import DamagedWeightsError, download
from model.zoo.model_file import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.data import Category
    from model.network.architecture import Architecture
    from model.zoo.download import Tell
    from model.zoo.model_file import Model

IMAGENET = "imagenet"
_HASHED = re.compile(r"-([0-9a-f]{8,64})\.pth$")  # as torchvision names its files: …-0676ba61.pth

# Tensors with a row, or four, for each class.
_BY_CLASS = {
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
    """Put classification weights into a detector's backbone, and return the path of the file that they came from.

    source: "imagenet" for torchvision's (fetched into `folder` where they are not there), or a file of that network's
    state dict: safetensors, or torchvision's .pth, whose name has its hash. No other pickle is read.
    Raises ModelError, or model.zoo.download.WeightsError.
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
                f"{path}: not the weights of a {architecture.backbone} ({len(missing)} tensors missing, {len(wrong)} "
                f"of another shape; the first is {prefix}{(missing or wrong)[0]})"
            )
        module.load_state_dict({n: tensors[prefix + n] for n in own if prefix + n in tensors}, strict=False)
    return str(path)


def _imagenet(architecture: Architecture, folder: Path, tell: Tell) -> Path:
    name = architecture.backbone
    if name == "vgg16" and architecture.norm == "batch":
        name = "vgg16_bn"
    url = str(torchvision.models.get_model_weights(name).IMAGENET1K_V1.url)
    file = url.rpartition("/")[2]
    hashed = _HASHED.search(file)
    if hashed is None:
        raise ModelError(f"{url}: its name has no hash to check it by")
    download(url, folder / file, hashed[1], tell=tell)
    return folder / file


def _backbone_tensors(path: Path) -> dict[str, Tensor]:
    """By the names of torchvision's classifiers, without "features." in front."""
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file")
    try:
        if path.suffix == ".pth":
            hashed = _HASHED.search(path.name)
            if hashed is None:
                raise ModelError(
                    f"{path}: a .pth is a pickle, and only read where its name has its hash, as torchvision's have "
                    "(resnet50-0676ba61.pth); convert it to safetensors"
                )
            verify(path, hashed[1])
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            tensors = load_file(path)
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError, OSError, DamagedWeightsError) as error:
        raise ModelError(f"{path}: not readable as a backbone's weights ({first_line(error)})") from error
    return {str(n).removeprefix("features."): t for n, t in tensors.items() if hasattr(t, "shape")}


def transferred(
    network: nn.Module, model: Model, categories: Sequence[Category]
) -> tuple[nn.Module, Architecture, list[str]]:
    """The same network for other categories: those that it knows by name keep what they learned of themselves.

    Everything that is not of a single class is kept, and so is what background is; what is new starts from random
    numbers. Returns the network, its architecture, and the names that were known.
    """
    architecture = replace(model.architecture, classes=len(categories) + 1)
    made = build(architecture)
    known = {c.name: label for c, label in zip(model.categories, model.labels, strict=True)}
    before = {0: 0} | {n: known[c.name] for n, c in enumerate(categories, start=1) if c.name in known}
    old, state = network.state_dict(), made.state_dict()
    for name, tensor in state.items():
        rows = _BY_CLASS.get(name.rpartition(".")[0])
        if rows is None or tensor.shape[0] == rows:  # one mask for all classes has no rows of theirs
            state[name] = old[name]
            continue
        for new, label in before.items():
            tensor[new * rows : (new + 1) * rows] = old[name][label * rows : (label + 1) * rows]
    made.load_state_dict(state)
    return made, architecture, [c.name for c in categories if c.name in known]


def widened(network: nn.Module, architecture: Architecture, channels: int) -> tuple[nn.Module, Architecture]:
    """The same function with more channels in FPN and heads, to go on training with.

    The new ones hold random numbers that nothing reads yet: their weights in the old channels' next layers are 0
    (after Chen, Goodfellow and Shlens, "Net2Net", 2016, which doubles channels instead). Raises ArchitectureError.
    """
    least = max(architecture.fpn_channels, architecture.mask_channels)
    if not architecture.pyramid or channels < least:
        raise ArchitectureError(
            f"a network is only widened if it has a pyramid, and to no less than it has ({least}): {channels}"
        )
    wide = replace(architecture, fpn_channels=channels, mask_channels=channels)
    made = build(wide)
    swapped = {f"{name}.weight" for name, m in made.named_modules() if isinstance(m, nn.ConvTranspose2d)}
    old, state = network.state_dict(), made.state_dict()
    for name, tensor in state.items():
        if tensor.shape == old[name].shape:
            tensor.copy_(old[name])
            continue
        if tensor.dim() == 1:  # a bias or a norm
            tensor[: len(old[name])] = old[name]
            continue
        # [outputs, inputs, …]. A fully connected layer's inputs are channels × bins, so the old ones lead there too.
        ours, theirs = (t.transpose(0, 1) if name in swapped else t for t in (tensor, old[name]))
        outputs, inputs = theirs.shape[:2]
        ours[:outputs, inputs:] = 0
        ours[:outputs, :inputs] = theirs
    made.load_state_dict(state)
    return made, wide
