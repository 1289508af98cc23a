"""The network that `maskserve train` trains: its architecture, and the weights that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from model.data import keypoints_of
from model.network.architecture import BACKBONES, C4, SMALL, V1, Architecture, ArchitectureError
from model.network.build import build
from model.network.conventions import PASTES
from model.training.initial import exchange_keypoints, load_backbone, transfer, widen
from model.training.recipe import TrainingError
from model.zoo import catalogue, zoo
from model.zoo.partial import digest

if TYPE_CHECKING:
    from torch import nn

    from model.data import Dataset

# Fewest proposals for each detection: some hold nothing, and some hold the same object.
PROPOSALS_PER_DETECTION = 2
# Levels of the feature pyramid, P2 to P6.
LEVELS = 5


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
    # Channels of FPN and heads; None is the architecture's number.
    channels: int | None = None
    # Shorter and longer side that images are resized to in use, pixels; None is the architecture's.
    input: tuple[int, int] | None = None
    # Instances that are found in an image at most; None is the architecture's number.
    detections: int | None = None
    # Anchor sizes, pixels, as text: "8", or "8,16,32,64,128"; None is the architecture's.
    anchors: str | None = None
    # "torchvision" or "detectron2": the rule by which masks are pasted; None is the architecture's.
    paste: str | None = None
    # IoU of two boxes of a category from which on only the surer one is kept; None is the architecture's.
    nms: float | None = None
    # Whether keypoints are learned where the data has some.
    keypoints: bool = True
    # Folder of downloaded weights; None is the usual one.
    weights_folder: Path | None = None


# Recipe → what its networks have, where the options say nothing.
NETWORKS = {
    # Mask R-CNN, appendix A.
    "cityscapes": NetworkOptions(input=(1024, 2048)),
    # Nuclei of 20 pixels, several hundred in an image.
    # The other rule of pasting loses 3 points of TP/(TP+FP+FN) on objects this small, and nuclei hardly overlap
    # (docs/training.md).
    "nuclei": NetworkOptions(input=(512, 768), detections=500, anchors="8", paste="detectron2", nms=0.3),
}


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
        return _start_from_model(options.initial, options, dataset, recipe)
    architecture = choose_architecture(options, len(dataset.categories) + 1, recipe)
    known = keypoints_of(dataset) if options.keypoints else None
    if known is not None:
        architecture = add_keypoints(architecture, len(known.names))
    if options.backbone is None:
        return architecture, None, {}
    network = build(architecture)
    path = Path(
        load_backbone(
            network,
            architecture,
            options.backbone,
            options.weights_folder or catalogue.default_folder(),
            tell=lambda line: typer.echo(line, err=True),
        )
    )
    return architecture, network, {"backbone": {"file": path.name, "sha256": digest(path)}}


def _start_from_model(
    name: str, options: NetworkOptions, dataset: Dataset, recipe: str
) -> tuple[Architecture, nn.Module, dict[str, Any]]:
    if options.backbone is not None:
        raise TrainingError("--initial and --backbone exclude each other: a model includes its backbone")
    if (options.pooling, options.masks) != ("align", "sigmoid"):
        raise TrainingError("--initial excludes --pooling and --masks: a model keeps its own")
    network, model = zoo.load(name, options.weights_folder or catalogue.default_folder())
    origin = {"initial": {"name": model.name, "sha256": model.sha256, "training": model.training}}
    if model.origin:
        origin["initial"]["origin"] = model.origin
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
    theirs, own = keypoints_of(dataset) if options.keypoints else None, model.keypoints
    if (None if theirs is None else theirs.names) != (None if own is None else own.names):
        changed = add_keypoints(architecture, 0 if theirs is None else len(theirs.names))
        network, architecture = exchange_keypoints(network, changed), changed
        if theirs is not None:
            typer.echo(f"the keypoints start from random weights: {model.name} has not the data's", err=True)
    return adapt(architecture, options, recipe), network, origin


def add_keypoints(architecture: Architecture, count: int) -> Architecture:
    """The architecture with a branch for so many keypoints, or without one; narrow where the mask branch is.

    Raises ArchitectureError where it cannot have one.
    """
    made = replace(architecture, keypoints=count)
    if architecture.fpn_channels < V1.fpn_channels:
        made = replace(made, keypoint_channels=architecture.fpn_channels)
    try:
        made.validate()
    except ArchitectureError as error:
        raise ArchitectureError(f"{error}; --keypoints none trains without them") from None
    return made


def adapt(architecture: Architecture, options: NetworkOptions, recipe: str) -> Architecture:
    """The architecture with what the options, or else the recipe, say of its input, anchors and detections.

    Args:
        architecture: what to change.
        options: of which None keeps what there is.
        recipe: name of the recipe.

    Raises ArchitectureError.
    """
    own = NETWORKS.get(recipe, NetworkOptions())
    sides, detections = options.input or own.input, options.detections or own.detections
    anchors = own.anchors if options.anchors is None else options.anchors
    paste = options.paste or own.paste
    nms = own.nms if options.nms is None else options.nms
    if sides is not None:
        architecture = replace(architecture, min_size=sides[0], max_size=sides[1])
    if anchors is not None:
        if architecture.conventions.anchor_levels:
            raise ArchitectureError(
                "--anchors cannot change a model whose levels each have anchors of their own; leave it out"
            )
        architecture = replace(architecture, anchor_sizes=parse_anchors(anchors))
    if detections is not None:
        architecture = set_detections(architecture, detections)
    if paste is not None:
        if paste not in PASTES:
            raise ArchitectureError(f"--paste is {' or '.join(PASTES)}, not {paste!r:.60}")
        architecture = replace(architecture, conventions=replace(architecture.conventions, paste=paste))
    if nms is not None:
        architecture = replace(architecture, conventions=replace(architecture.conventions, nms=nms))
    return architecture


def set_detections(architecture: Architecture, detections: int) -> Architecture:
    """The architecture with that many detections in an image at most, and proposals for as many."""
    rules = replace(architecture.conventions, detections=detections)
    proposals = max(architecture.proposals, PROPOSALS_PER_DETECTION * detections)
    return replace(architecture, conventions=rules, proposals=proposals)


def parse_anchors(text: str) -> tuple[int, ...]:
    """Anchor sizes of P2 to P6, pixels, from "8,16,32,64,128" or the first of them. Raises ArchitectureError."""
    try:
        sizes = [int(number) for number in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, LEVELS) or min(sizes) < 1:
        raise ArchitectureError(
            f"--anchors takes {LEVELS} sizes in pixels, such as 8,16,32,64,128, or the first of them, not {text!r:.100}"
        )
    return tuple(sizes) if len(sizes) == LEVELS else tuple(sizes[0] * 2**level for level in range(LEVELS))


def choose_architecture(options: NetworkOptions, classes: int, recipe: str = "small") -> Architecture:
    """`small`; a backbone with FPN and the paper's widths, such as resnet50; or the paper's C4, such as resnet50-c4.

    Norms are trained, except in a pretrained backbone, where they are constants, as in the paper. Raises
    ArchitectureError for an unknown name.

    Args:
        options: the network.
        classes: number of classes, with background.
        recipe: name of the recipe, which may set input sides, anchors and detections.
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
    chosen = adapt(chosen, options, recipe)
    if options.channels is not None:
        chosen = replace(chosen, fpn_channels=options.channels, mask_channels=options.channels)
    if options.masks == "none":
        return replace(chosen, pooling=options.pooling, mask_convs=0)
    return replace(chosen, pooling=options.pooling, masks=options.masks)
