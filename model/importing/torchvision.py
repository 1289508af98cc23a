"""torchvision's Mask R-CNN and Faster R-CNN: what fine-tuning scripts save, told from the shapes of their tensors.

The names are those of our own files, so that only older spellings of them have to be translated. Nothing in such a file
says how images are resized or normalised and how detections are chosen: torchvision's defaults stand for all of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from model.data import Category
from model.importing.categories import choose_categories, choose_keypoints, coco_by_label
from model.importing.checkpoint import TORCHVISION
from model.importing.names import depth_of, find_numbers, take
from model.importing.result import Imported, ImportingError, Report
from model.importing.rewriting import widen_mask_head
from model.network.architecture import KEYPOINTS as PEOPLE
from model.network.architecture import V1, Architecture

if TYPE_CHECKING:
    import torch

    from model.importing.checkpoint import Checkpoint

COCO_CLASSES = 91

# Layers' names before torchvision 0.14, which added room for norms, and today's.
_OLDER = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
_OLDER_MASK = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$")
_RESNEXTS = {("resnet50", 32, 4): "resnext50_32x4d", ("resnet101", 32, 8): "resnext101_32x8d"}


def convert(checkpoint: Checkpoint, categories: tuple[Category, ...] | None) -> Imported:
    """The model in a checkpoint of torchvision's. categories: its classes 1, 2, … if they are known.

    Raises ImportingError for what is not a torchvision detector with a Feature Pyramid Network over a ResNet.
    """
    tensors = {_translate_name(name): tensor for name, tensor in checkpoint.tensors.items()}
    report = Report([*checkpoint.notes])
    architecture = _architecture(tensors, report)
    parts = ["Mask"] * (architecture.mask_convs > 0) + ["Keypoint"] * (architecture.keypoints > 0)
    kind = f"{' and '.join(parts) or 'Faster'} R-CNN"
    version = "V2" if architecture.box_convs else "V1"
    report.recognised.insert(0, f"torchvision's {kind} ({version}), {architecture.backbone} with an FPN")
    if categories is None and architecture.keypoints == PEOPLE.keypoints and architecture.classes == 2:
        report.assumed.append("its one category is a person, because it has COCO's keypoints of one")
        categories = (Category(1, "person"),)
    named, labels = _categories(architecture.classes, categories, report)
    report.assumed.append(
        f"torchvision's defaults: images scaled to {architecture.min_size}/{architecture.max_size} and normalised by "
        "ImageNet's mean and deviation, score threshold 0.05, NMS 0.5, at most 100 detections, 1000 proposals"
    )
    keypoints = choose_keypoints(architecture.keypoints, report)
    return Imported(TORCHVISION, architecture, tensors, named, labels, report, keypoints)


def _translate_name(name: str) -> str:
    for pattern, today in _OLDER:
        name = pattern.sub(today, name)
    return _OLDER_MASK.sub(lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}", name)


def _architecture(tensors: dict[str, torch.Tensor], report: Report) -> Architecture:
    backbone = _backbone(tensors)
    trained = any(
        name.endswith("num_batches_tracked") for name in tensors if name.startswith("backbone.body")
    )
    fpn = find_numbers(tensors, r"backbone\.fpn\.inner_blocks\.(\d+)\.")
    if len(fpn) != 4:
        raise ImportingError(
            f"its feature pyramid has {len(fpn)} levels below the pooled one; 4 (C2 to C5) are supported"
        )
    box_convs = find_numbers(tensors, r"roi_heads\.box_head\.(\d+)\.0\.weight")
    linear, layers, box_norm, conv_channels = "roi_heads.box_head.fc6.weight", 0, True, 0
    fpn_channels = len(take(tensors, "backbone.fpn.inner_blocks.0.0.weight"))
    if box_convs:
        numbers = find_numbers(tensors, r"roi_heads\.box_head\.(\d+)\.weight")
        linear = f"roi_heads.box_head.{box_convs[-1] + 2}.weight"
        layers = len(numbers) if len(numbers) > 1 else 0
        box_norm = "roi_heads.box_head.0.1.weight" in tensors
        conv_channels = len(take(tensors, "roi_heads.box_head.0.0.weight"))
    mask_convs = find_numbers(tensors, r"roi_heads\.mask_head\.(\d+)\.0\.weight")
    mask_channels = 256
    if mask_convs:
        head = len(take(tensors, f"roi_heads.mask_head.{mask_convs[0]}.0.weight"))
        hidden = take(tensors, "roi_heads.mask_predictor.conv5_mask.weight").shape[1]
        mask_channels = max(head, hidden)
        if head != hidden:
            widen_mask_head(tensors, mask_channels)
            report.taken.append(
                f"a mask head of {head} and a mask predictor of {hidden} channels; zeros fill the narrower one"
            )
    eps = _norm_eps(backbone, v2=bool(box_convs) and box_norm, trained=trained, report=report)
    sizes, ratios = _anchors(take(tensors, "rpn.head.cls_logits.weight"), report)
    return Architecture(
        backbone=backbone,
        classes=len(take(tensors, "roi_heads.box_predictor.cls_score.weight")),
        norm="batch" if trained else "frozen",
        norm_eps=eps,
        fpn_channels=fpn_channels,
        fpn_norm="backbone.fpn.inner_blocks.0.1.weight" in tensors,
        rpn_convs=len(find_numbers(tensors, r"rpn\.head\.conv\.(\d+)\.0\.weight")),
        anchor_sizes=sizes,
        anchor_ratios=ratios,
        box_convs=len(box_convs),
        box_fcs=layers,
        box_conv_channels=conv_channels if conv_channels != fpn_channels else 0,
        box_norm=box_norm,
        box_channels=len(take(tensors, linear)),
        mask_channels=mask_channels,
        mask_convs=len(mask_convs),
        mask_norm="roi_heads.mask_head.0.1.weight" in tensors,
        **_keypoint_head(tensors),
    )


def _keypoint_head(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The fields of Architecture that describe it; none where there is none."""
    lowres = tensors.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")
    if lowres is None:
        return {}
    convs = find_numbers(tensors, r"roi_heads\.keypoint_head\.(\d+)\.weight")
    return {
        "keypoints": lowres.shape[1],
        "keypoint_convs": len(convs),
        "keypoint_channels": lowres.shape[0],
    }


def _backbone(tensors: dict[str, torch.Tensor]) -> str:
    if "backbone.body.conv1.weight" not in tensors:
        raise ImportingError(
            "its backbone is no ResNet; of torchvision's, ResNets and ResNeXts are supported"
        )
    name = f"resnet{depth_of(tensors, 'backbone.body.')}"
    width, each = tensors["backbone.body.layer1.0.conv2.weight"].shape[:2]
    groups = width // each
    if groups == 1 and width == 64:
        return name
    if (name, groups, each) in _RESNEXTS:
        return _RESNEXTS[name, groups, each]
    raise ImportingError(f"a {name} of width {width} in {groups} groups is not supported")


def _norm_eps(backbone: str, *, v2: bool, trained: bool, report: Report) -> float:
    """What is added to variances. A file does not say it, and COCO_V1's weights are the only ones made with 0."""
    if trained or v2 or backbone != "resnet50":
        return 1e-5
    report.assumed.append(
        "norm_eps 0, as in everything that began from torchvision's COCO_V1 weights (weights='DEFAULT'); if it began "
        "from an ImageNet backbone only, say --set norm_eps=1e-5"
    )
    return 0.0


def _anchors(logits: torch.Tensor, report: Report) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sizes and ratios for so many anchors at each place."""
    if len(logits) == len(V1.anchor_ratios):
        report.assumed.append(
            "anchors of 32, 64, 128, 256 and 512 pixels in the ratios 0.5, 1 and 2 (--set anchor_sizes=…)"
        )
        return V1.anchor_sizes, V1.anchor_ratios
    report.needed["anchor_ratios"] = (
        f"the ratios of its {len(logits)} anchors at each place: --set anchor_ratios=… (height / width), with "
        "--set anchor_sizes=… if they are not 32, 64, 128, 256 and 512"
    )
    return V1.anchor_sizes, tuple([1.0] * len(logits))


def _categories(
    classes: int, given: tuple[Category, ...] | None, report: Report
) -> tuple[tuple[Category, ...], tuple[int, ...]]:
    if given is None and classes == COCO_CLASSES:
        report.assumed.append("COCO's 80 categories, because it has 91 classes")
        return coco_by_label()
    named = choose_categories(classes - 1, given, report)
    return named, tuple(range(1, classes))
