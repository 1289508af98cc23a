"""The network that `maskserve train` trains: its architecture, and the weights that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from model.network.architecture import BACKBONES, C4, SMALL, V1, Architecture, ArchitectureError
from model.network.build import build
from model.training.initial import load_backbone, transfer, widen
from model.training.recipe import TrainingError
from model.zoo import catalogue, zoo
from model.zoo.partial import digest

if TYPE_CHECKING:
    from torch import nn

    from model.data import Dataset

# At least: some propose nothing, and some the same object.
PROPOSALS_PER_DETECTION = 2


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Which network is trained, and which weights it starts from."""

    # A name that `choose_architecture` knows; not used with `initial`.
    architecture: str = "small"
    # "align" or "pool".
    pooling: str = "align"
    # "sigmoid", "softmax", "agnostic" or "none".
    masks: str = "sigmoid"
    # Name or file of a model to start from, with its architecture.
    initial: str | None = None
    # "imagenet", or the file of a classifier's weights.
    backbone: str | None = None
    # Of FPN and heads; None is the architecture's number.
    channels: int | None = None
    # Shorter and longer side that images are resized to in use, pixels; None is the architecture's.
    input: tuple[int, int] | None = None
    # Instances that are found in an image at most; None is the architecture's number.
    detections: int | None = None


def initialize(
    options: NetworkOptions, dataset: Dataset, recipe: str
) -> tuple[Architecture, nn.Module | None, dict[str, Any]]:
    """Choose the architecture and load the initial weights.

    Returns the architecture; a network with the initial weights, or None for random weights; and the origin of the
    weights, for the metadata of the file. Raises TrainingError, ArchitectureError, ModelError, WeightsError.

    Args:
        options: the network and its initial weights.
        dataset: the data to train on; its categories become the network's.
        recipe: name of the recipe.
    """
    if options.initial is not None:
        return _start_from_model(options.initial, options, dataset)
    architecture = choose_architecture(options, len(dataset.categories) + 1, recipe)
    if options.backbone is None:
        return architecture, None, {}
    network = build(architecture)
    path = Path(
        load_backbone(
            network,
            architecture,
            options.backbone,
            catalogue.default_folder(),
            tell=lambda line: typer.echo(line, err=True),
        )
    )
    return architecture, network, {"backbone": {"file": path.name, "sha256": digest(path)}}


def _start_from_model(
    name: str, options: NetworkOptions, dataset: Dataset
) -> tuple[Architecture, nn.Module, dict[str, Any]]:
    if options.backbone is not None:
        raise TrainingError("--initial and --backbone exclude each other: a model includes its backbone")
    if (options.pooling, options.masks) != ("align", "sigmoid"):
        raise TrainingError("--initial excludes --pooling and --masks: a model keeps its own")
    network, model = zoo.load(name, catalogue.default_folder())
    origin = {"initial": {"name": model.name, "sha256": model.sha256, "training": model.training}}
    architecture = model.architecture
    same = model.categories == tuple(dataset.categories)
    if not same or model.labels != tuple(range(1, model.architecture.classes)):
        network, architecture, known = transfer(network, model, dataset.categories)
        new = [c.name for c in dataset.categories if c.name not in known]
        typer.echo(
            f"{model.name} has {len(known)} of the {len(dataset.categories)} categories"
            + (f"; these start from random weights: {', '.join(new)}" if new else ""),
            err=True,
        )
    if options.channels is not None:
        network, architecture = widen(network, architecture, options.channels)
    return set_detections(resize_input(architecture, options), options), network, origin


def resize_input(architecture: Architecture, options: NetworkOptions) -> Architecture:
    """The architecture with the input sides of the options, if they have any."""
    if options.input is None:
        return architecture
    return replace(architecture, min_size=options.input[0], max_size=options.input[1])


def set_detections(architecture: Architecture, options: NetworkOptions) -> Architecture:
    """The architecture with the number of detections of the options, if they have one, and proposals for as many."""
    if options.detections is None:
        return architecture
    rules = replace(architecture.conventions, detections=options.detections)
    proposals = max(architecture.proposals, PROPOSALS_PER_DETECTION * options.detections)
    return replace(architecture, conventions=rules, proposals=proposals)


def choose_architecture(options: NetworkOptions, classes: int, recipe: str = "small") -> Architecture:
    """`small`; a backbone with FPN and the paper's widths, such as resnet50; or the paper's C4, such as resnet50-c4.

    Norms are trained, except in a pretrained backbone, where they are constants, as in the paper. Raises
    ArchitectureError for an unknown name.

    Args:
        options: the network.
        classes: number of classes, with background.
        recipe: name of the recipe; "cityscapes" sets the input sides of the paper's appendix A.
    """
    name, c4 = options.architecture.removesuffix("-c4"), options.architecture.endswith("-c4")
    norm = "batch" if options.backbone is None else "frozen"
    if options.architecture == "small":
        chosen = replace(SMALL, classes=classes, norm=norm)
    elif name not in BACKBONES:
        raise ArchitectureError(
            f"no architecture {options.architecture!r}; choose one of small, {', '.join(BACKBONES)}, or a ResNet with "
            "the suffix -c4, such as resnet50-c4"
        )
    else:
        chosen = replace(C4 if c4 else V1, backbone=name, classes=classes, norm=norm, norm_eps=1e-5)
    if recipe == "cityscapes":
        chosen = replace(chosen, min_size=1024, max_size=2048)
    chosen = set_detections(resize_input(chosen, options), options)
    if options.channels is not None:
        chosen = replace(chosen, fpn_channels=options.channels, mask_channels=options.channels)
    if options.masks == "none":
        return replace(chosen, pooling=options.pooling, mask_convs=0)
    return replace(chosen, pooling=options.pooling, masks=options.masks)
