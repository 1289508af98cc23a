"""MMDetection's Mask R-CNN, 2.x and 3.x: its configuration and weights in our terms.

Names and the order of classes are rewritten as for Detectron2; what is another function is a convention of the
architecture (model/network/conventions.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from model.importing.categories import choose_categories, name_categories
from model.importing.checkpoint import MMDETECTION
from model.importing.mmdetection_config import read_config_file, read_config_text
from model.importing.mmdetection_settings import Settings, Table, read_norm, read_settings
from model.importing.names import depth_of, take
from model.importing.result import Imported, ImportingError, Report
from model.importing.rewriting import background_first, rgb_first, scale_deltas
from model.network.architecture import Architecture
from model.network.conventions import Conventions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from model.data import Category
    from model.importing.checkpoint import Checkpoint

_NAMES = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"backbone\.(.+)$", r"backbone.body.\1"),
        (r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)$", r"backbone.fpn.inner_blocks.\1.0.\2"),
        (r"neck\.fpn_convs\.(\d+)\.conv\.(\w+)$", r"backbone.fpn.layer_blocks.\1.0.\2"),
        (r"neck\.lateral_convs\.(\d+)\.gn\.(\w+)$", r"backbone.fpn.inner_blocks.\1.1.\2"),
        (r"neck\.fpn_convs\.(\d+)\.gn\.(\w+)$", r"backbone.fpn.layer_blocks.\1.1.\2"),
        (r"rpn_head\.rpn_conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
        (r"rpn_head\.rpn_conv\.(\d+)\.conv\.(\w+)$", r"rpn.head.conv.\1.0.\2"),
        (r"rpn_head\.rpn_cls\.(\w+)$", r"rpn.head.cls_logits.\1"),
        (r"rpn_head\.rpn_reg\.(\w+)$", r"rpn.head.bbox_pred.\1"),
        (r"roi_head\.bbox_head\.fc_cls\.(\w+)$", r"roi_heads.box_predictor.cls_score.\1"),
        (r"roi_head\.bbox_head\.fc_reg\.(\w+)$", r"roi_heads.box_predictor.bbox_pred.\1"),
        (r"roi_head\.bbox_head\.shared_convs\.(\d+)\.conv\.(\w+)$", r"roi_heads.box_head.\1.0.\2"),
        (r"roi_head\.bbox_head\.shared_convs\.(\d+)\.gn\.(\w+)$", r"roi_heads.box_head.\1.1.\2"),
        (r"roi_head\.mask_head\.convs\.(\d+)\.conv\.(\w+)$", r"roi_heads.mask_head.\1.0.\2"),
        (r"roi_head\.mask_head\.convs\.(\d+)\.gn\.(\w+)$", r"roi_heads.mask_head.\1.1.\2"),
        (r"roi_head\.mask_head\.upsample\.(\w+)$", r"roi_heads.mask_predictor.conv5_mask.\1"),
        (r"roi_head\.mask_head\.conv_logits\.(\w+)$", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    )
]
_SHARED_FC = re.compile(r"roi_head\.bbox_head\.shared_fcs\.(\d+)\.(\w+)$")
# Averages that MMDetection 2.x keeps beside the weights (it swaps them when it saves), and counters.
_UNUSED = re.compile(r"(ema_.*|data_preprocessor\..*|.*num_batches_tracked)$")
_BOX_HEADS = {
    "Shared2FCBBoxHead": {"num_shared_convs": 0, "num_shared_fcs": 2},
    "Shared4Conv1FCBBoxHead": {"num_shared_convs": 4, "num_shared_fcs": 1},
    "ConvFCBBoxHead": {"num_shared_convs": 0, "num_shared_fcs": 0},
}


def convert(checkpoint: Checkpoint, config: Path | None, categories: tuple[Category, ...] | None) -> Imported:
    """The model in a checkpoint of MMDetection's.

    Args:
        checkpoint: of MMDetection.
        config: a file in place of the configuration that the checkpoint holds.
        categories: in the order of its classes, in place of the names that it holds.

    Raises ImportingError for what is not supported, by the name of the setting.
    """
    meta = checkpoint.around.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    version = str(meta.get("mmdet_version", ""))
    if version.startswith(("0.", "1.")):
        raise ImportingError(
            f"of MMDetection {version}, which counted classes and pixels otherwise; 2.x and 3.x are supported"
        )
    report = Report([*checkpoint.notes])
    document = _document(meta, config, report)
    model = Table(_need(document, "model"), "model")
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.tensors.items()
        if not _UNUSED.match(name)
    }
    settings = read_settings(document, model)
    architecture = _architecture(model, settings, tensors)
    ours = {_translate_name(name, architecture): tensor for name, tensor in tensors.items()}
    _rewrite(ours, settings, architecture.classes - 1)
    if categories is None and (names := _classes(meta)) is not None:
        categories = name_categories(names)
        report.taken.append(f"{len(names)} categories from the checkpoint")
    named = choose_categories(architecture.classes - 1, categories, report)
    kind = "Mask R-CNN" if architecture.mask_convs else "Faster R-CNN"
    of = f" {version}" if version else ""
    report.recognised.insert(0, f"MMDetection{of}'s {kind}, {architecture.backbone} with an FPN")
    return Imported(MMDETECTION, architecture, ours, named, tuple(range(1, architecture.classes)), report)


def _document(meta: Mapping[str, Any], config: Path | None, report: Report) -> dict[str, Any]:
    if config is not None:
        report.taken.append(f"settings from {config}")
        return read_config_file(config)
    text = meta.get("cfg") or meta.get("config")
    if not isinstance(text, str):
        raise ImportingError(
            "a checkpoint of MMDetection that does not hold its configuration: --config FILE (the .py that MMDetection "
            "writes into its work folder)"
        )
    report.taken.append("settings from the configuration that it holds")
    return read_config_text(text, "its configuration")


def _need(document: Mapping[str, Any], name: str) -> Any:
    if name not in document:
        raise ImportingError(f"its configuration has no {name}")
    return document[name]


def _classes(meta: Mapping[str, Any]) -> Sequence[str] | None:
    names = meta.get("CLASSES")
    described = meta.get("dataset_meta")
    if names is None and isinstance(described, dict):
        names = described.get("classes", described.get("CLASSES"))
    if isinstance(names, str):
        return [names]
    return [str(name) for name in names] if isinstance(names, list | tuple) and names else None


def _architecture(model: Table, settings: Settings, tensors: dict[str, Tensor]) -> Architecture:
    depth = depth_of(tensors, "backbone.")
    first = take(tensors, "backbone.layer1.0.conv2.weight")
    width, groups = int(first.shape[0]), int(first.shape[0] // first.shape[1])
    stem, res2 = (
        int(take(tensors, name).shape[0])
        for name in (
            "backbone.conv1.weight",
            "backbone.layer1.0.conv3.weight" if depth >= 50 else "backbone.layer1.0.conv2.weight",
        )
    )
    heads = model.table("roi_head")
    box, mask = heads.table("bbox_head"), heads.table("mask_head")
    kind = box.only("type", *_BOX_HEADS)
    convs, layers = (
        int(box.get(key, _BOX_HEADS[kind][key])) for key in ("num_shared_convs", "num_shared_fcs")
    )
    for key in ("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"):
        box.only(key, 0)
    if layers < 1:
        raise ImportingError(f"{box.name}.num_shared_fcs: {layers} is not supported; 1 and more are")
    for key in ("cls_predictor_cfg", "reg_predictor_cfg"):
        box.only(key, None, {"type": "Linear"})
    box.only("with_avg_pool", False)
    read_norm(box, "box", settings)
    if mask.values:
        mask.only("type", "FCNMaskHead")
        if mask.get("num_convs", 4) < 1:
            raise ImportingError(
                f"{mask.name}.num_convs: {mask.get('num_convs')} is not supported; 1 and more are"
            )
        mask.only("conv_kernel_size", 3)
        mask.only("predictor_cfg", None, {"type": "Conv"})
        read_norm(mask, "mask", settings)
        upsampling = mask.get("upsample_cfg", {"type": "deconv"})
        if upsampling not in ({"type": "deconv"}, {"type": "deconv", "scale_factor": 2}):
            raise ImportingError(
                f"{mask.name}.upsample_cfg: {upsampling!r:.60} is not supported; deconv by 2 is"
            )
    classes = len(take(tensors, "roi_head.bbox_head.fc_cls.weight"))
    rpn = [name for name in tensors if name.startswith("rpn_head.rpn_conv") and name.endswith("weight")]
    return Architecture(
        backbone=f"resnet{depth}",
        classes=classes,
        norm="frozen",
        norm_eps=settings.norm_eps,
        fpn_channels=len(take(tensors, "neck.lateral_convs.0.conv.weight")),
        fpn_norm="fpn" in settings.group_norm,
        rpn_convs=len(rpn),
        rpn_channels=_rpn_channels(tensors, rpn),
        anchor_ratios=tuple(
            float(r) for r in model.table("rpn_head").table("anchor_generator").get("ratios")
        ),
        proposals=_proposals(model.table("test_cfg").table("rpn")),
        box_convs=convs,
        box_channels=len(take(tensors, "roi_head.bbox_head.shared_fcs.0.weight")),
        box_fcs=layers,
        box_conv_channels=len(tensors["roi_head.bbox_head.shared_convs.0.conv.weight"]) if convs else 0,
        box_norm="box" in settings.group_norm,
        mask_channels=len(tensors.get("roi_head.mask_head.convs.0.conv.weight", range(256))),
        mask_convs=len({n for n in tensors if re.match(r"roi_head\.mask_head\.convs\.\d+\.conv\.weight", n)}),
        mask_norm="mask" in settings.group_norm,
        head_norm="group" if settings.group_norm else "batch",
        min_size=settings.scale[0],
        max_size=settings.scale[1],
        stem_channels=0 if stem == 64 else stem,
        res2_channels=0 if res2 == (256 if depth >= 50 else 64) else res2,
        bottleneck_channels=width if depth >= 50 and width != 64 else 0,
        groups=groups if groups > 1 else 0,
        stride_in_1x1=settings.caffe and depth >= 50,
        conventions=_conventions(settings),
    )


def _rpn_channels(tensors: dict[str, Tensor], names: Sequence[str]) -> tuple[int, ...]:
    """The widths of the RPN's convolutions where they are not the pyramid's."""
    pyramid = len(take(tensors, "neck.lateral_convs.0.conv.weight"))
    widths = tuple(len(tensors[name]) for name in sorted(names))
    return () if all(width == pyramid for width in widths) else widths


def _proposals(rpn: Table) -> int:
    return int(rpn.get("max_per_img", rpn.get("max_num", rpn.get("nms_post", 1000))))


def _conventions(settings: Settings) -> Conventions:
    # Means are given in the order of the channels, and the first convolution is turned to RGB.
    turn = -1 if settings.bgr else 1
    return Conventions(
        pixel_mean=tuple(float(value) for value in settings.mean[::turn]),
        pixel_std=tuple(float(value) for value in settings.std[::turn]),
        **settings.conventions,
    )


def _translate_name(name: str, architecture: Architecture) -> str:
    """Our name of a tensor. Raises ImportingError for one that is not of a Mask R-CNN."""
    if (found := _SHARED_FC.match(name)) is not None:
        number = int(found[1])
        if architecture.box_convs == 0 and architecture.box_fcs == 2:
            return f"roi_heads.box_head.fc{number + 6}.{found[2]}"
        return f"roi_heads.box_head.{architecture.box_convs + 1 + 2 * number}.{found[2]}"
    for pattern, to in _NAMES:
        found = pattern.match(name)
        if found is not None:
            return found.expand(to)
    raise ImportingError(f"the file has a tensor that is no part of a Mask R-CNN: {name}")


def _rewrite(tensors: dict[str, Tensor], settings: Settings, classes: int) -> None:
    """What is the same function in our terms: see detectron2.py."""
    if settings.bgr:
        rgb_first(tensors)
    background_first(tensors, classes)
    scale_deltas(tensors, "roi_heads.box_predictor.bbox_pred", [1 / std for std in settings.box_stds])
    rpn = [1 / std for std in settings.rpn_stds]
    scale_deltas(tensors, "rpn.head.bbox_pred", [10 * w for w in rpn[:2]] + [5 * w for w in rpn[2:]])
